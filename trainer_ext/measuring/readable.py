"""Vectors of all that can be read: one broken item of a batch does not end it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def vectors_or_reasons(encode: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[np.ndarray | str]:
    """The vector of each item, or one line on why it has none.

    A batch that fails is halved until what is at fault is alone, so n items with b broken ones cost some b log n more
    calls.

    Args:
        encode: items -> (items, dim), such as ``model.encode_image``. Only ``ValueError``, ``TypeError`` and ``OSError``
            are faults of items; others, such as a lack of memory, pass through.
        items: texts, pictures, paths, bytes.

    >>> vectors_or_reasons(lambda items: np.array([[float(item)] for item in items]), ["1", "two"])
    [array([1.]), "could not convert string to float: 'two'"]
    """
    try:
        return list(encode(items)) if items else []
    except (ValueError, TypeError, OSError) as error:
        if len(items) == 1:
            words = " ".join(str(error).split()).removeprefix("image 0: ")  # a place in a batch of one
            return [words[:300] or type(error).__name__]
        half = len(items) // 2
        return vectors_or_reasons(encode, items[:half]) + vectors_or_reasons(encode, items[half:])
