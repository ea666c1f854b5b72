"""Vectors in fewer bits, as vector stores keep them; equal to ``quantize_embeddings`` of sentence-transformers 6.

``int8``: 256 steps a component between its smallest and largest value; scored by the cosine of the codes, as
sentence-transformers scores them. (The codes of its version 5.5 are one step higher below zero: it cuts towards zero.)
``binary``: the sign alone; the cosine of signs orders as the Hamming distance does.
"""

from typing import Protocol

import numpy as np

PRECISIONS = ("int8", "binary")
# Vectors turned to codes at once.
BLOCK = 4096


class _Blocks(Protocol):
    def __len__(self) -> int: ...
    def block(self, start: int, stop: int) -> np.ndarray: ...


def codes(rows: _Blocks, precision: str) -> np.ndarray:
    """(rows, dim) int8: from -128 to 127 for ``int8``, -1 or 1 for ``binary``. ``rows`` are read in blocks, twice.

    Raises:
        ValueError: no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    starts = range(0, len(rows), BLOCK)
    coded = np.empty((len(rows), rows.block(0, 1).shape[1]), np.int8)
    if precision == "binary":
        for start in starts:
            coded[start : start + BLOCK] = np.where(rows.block(start, start + BLOCK) > 0, 1, -1)
        return coded
    low = np.min([rows.block(start, start + BLOCK).min(axis=0) for start in starts], axis=0)
    high = np.max([rows.block(start, start + BLOCK).max(axis=0) for start in starts], axis=0)
    steps = (high - low) / 255
    steps = np.where(steps == 0, 1, steps)  # a component that never changes says nothing
    for start in starts:
        levels = np.clip(np.floor((rows.block(start, start + BLOCK) - low) / steps), 0, 255)
        coded[start : start + BLOCK] = (levels - 128).astype(np.int8)
    return coded
