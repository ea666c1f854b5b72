"""Vectors of all that can be read, for tables: one broken item of a batch does not end it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")  # endings of files


def vectors_or_reasons(encode: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[np.ndarray | str]:
    """The vector of each item, or one line on why it has none.

    A batch that fails is halved until what is at fault is alone, so n items with b broken ones cost some b log n more
    calls.

    Args:
        encode: items -> (items, dim), such as ``model.encode_image``. Only ``ValueError``, ``TypeError`` and
            ``OSError`` are faults of items; others, such as a lack of memory, pass through.
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


def vector_column(found: Sequence[np.ndarray | str], dim: int) -> Any:
    """What :func:`vectors_or_reasons` gives as an Arrow column of lists of ``dim`` float32; null where there is none.

    >>> vector_column([np.ones(2), "no picture"], 2).to_pylist()
    [[1.0, 1.0], None]
    """
    rows = [np.zeros(dim) if isinstance(vector, str) else vector for vector in found]
    without = pa.array([isinstance(vector, str) for vector in found], pa.bool_())
    flat = np.concatenate(rows) if rows else np.zeros(0)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), dim, mask=without)
