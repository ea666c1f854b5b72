"""What callers hand over, as a list: one text or image, or any collection of them.

A collection is whatever can be walked through: lists, tuples, generators, ``dict.values()``, columns of ``datasets``
and pandas, arrays of strings or objects. What has a meaning of its own as one image is not walked through: a file (its
lines), bytes (its numbers), an array of pixels.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image


def list_of_texts(texts: Any) -> tuple[bool, list[str]]:
    """Whether ``texts`` is a single string, and the strings as a list.

    Raises ``TypeError`` naming the position of what is no string.

    Example::

        >>> list_of_texts("a cat"), list_of_texts(text for text in ("a", "b")), list_of_texts({1: "a"}.values())
        ((True, ['a cat']), (False, ['a', 'b']), (False, ['a']))
    """
    if isinstance(texts, np.ndarray) and not texts.ndim:
        texts = texts.item()
    if isinstance(texts, str):
        return True, [texts]
    _refuse_tables(texts, "texts")
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, bytearray, Mapping)):
        raise TypeError(f"encode_text takes strings, got {_shown(texts)}; pass a string or a list of them")
    found = list(texts)
    for position, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"encode_text takes strings, got {_shown(text)} at position {position}")
    return False, found


def list_of_images(images: Any) -> tuple[bool, list[Any]]:
    """Whether ``images`` is a single image, and the images as a list. Arrays and tensors with four axes are batches.

    What the items are is not looked at: ``open_image`` says what is no image.

    Example::

        >>> pixels = np.zeros((2, 8, 8, 3), dtype=np.uint8)
        >>> [len(list_of_images(images)[1]) for images in (pixels, pixels[0], "cat.png", {"a": "cat.png"}.values())]
        [2, 1, 1, 1]
    """
    if isinstance(images, np.ndarray) and not images.ndim:
        images = images.item()
    pixels = torch.is_tensor(images) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OUT")
    if pixels:
        several = images.ndim == 4 or (images.ndim == 1 and not len(images))
        return (False, list(images)) if several else (True, [images])
    _refuse_tables(images, "images")
    whole = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)
    if isinstance(images, whole) or hasattr(images, "read") or not isinstance(images, Iterable):
        return True, [images]
    return False, list(images)


def _refuse_tables(inputs: Any, kind: str) -> None:
    """Walking through a table of pandas gives the names of its columns, which would be taken for texts or paths."""
    if getattr(inputs, "ndim", 1) == 2 and hasattr(inputs, "columns"):
        raise TypeError(f"got a table with columns {list(inputs.columns)[:6]}; pass the column that holds the {kind}")


def _shown(item: Any) -> str:
    return f"{type(item).__name__}: {str(item)[:60]!r}"
