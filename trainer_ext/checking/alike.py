"""Which of many items are alike, without comparing each with each: only items that agree in a *band* are compared.

A band is a whole number made of a part of an item's sketch, of which an item has several (locality-sensitive hashing).
Sorted by one band, items that agree in it lie side by side. Of a run of thousands that agree, each is compared with its
``NEIGHBOURS`` and with the first of the run, so the work stays proportional to the items, however alike they are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

# Compared with each item in a run of equal bands.
NEIGHBOURS = 4

Agree = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Grown:
    """An array that grows block by block.

    >>> numbers = Grown()
    >>> numbers.add([1, 2]); numbers.add([3])
    >>> numbers.values.tolist()
    [1, 2, 3]
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def add(self, block: Any) -> None:
        """Put a block at the end."""
        self._blocks.append(np.asarray(block))

    def last(self) -> np.ndarray:
        """The block that was added last, before ``values`` is asked for."""
        return self._blocks[-1]

    @property
    def values(self) -> np.ndarray:
        """All blocks as one array."""
        if len(self._blocks) != 1:
            self._blocks = [np.concatenate(self._blocks) if self._blocks else np.empty(0, np.int64)]
        return self._blocks[0]


def twins(bands: Iterable[np.ndarray], agree: Agree) -> np.ndarray:
    """Pairs of alike items, (pairs, 2) int64: an item and the earliest one that it was found alike to.

    Args:
        bands: each (items,) whole numbers.
        agree: takes the numbers of items, left and right (n,), and says which pairs are alike (n,).

    >>> twins([np.array([1, 2, 1, 3]), np.array([5, 6, 7, 6])], lambda left, right: left < 10).tolist()
    [[2, 0], [3, 1]]
    """
    found = [np.empty((0, 2), np.int64)]
    for band in bands:
        order, places = np.argsort(band, kind="stable"), np.arange(len(band))
        fresh = np.concatenate([np.ones(min(1, len(band)), bool), np.diff(band[order]) != 0])
        first = np.maximum.accumulate(np.where(fresh, places, 0))  # place where each one's run begins
        for step in (*range(1, NEIGHBOURS + 1), 0):
            others = first if step == 0 else places - step
            inside = (others >= first) & (others < places)
            left, right = order[others[inside]], order[places[inside]]  # stable: left is the earlier item
            alike = agree(left, right)
            found.append(np.stack([right[alike], left[alike]], axis=1))
    return _earliest(found)


def matches(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray], agree: Agree) -> np.ndarray:
    """Pairs of alike items of two sets, (pairs, 2) int64: one of ours and the earliest of theirs.

    Args:
        ours: each (items,) whole numbers; one pair at most for each of these.
        theirs: as many bands of other items.
        agree: as in ``twins``: numbers of ours on the left, of theirs on the right.

    >>> matches([np.array([5, 9])], [np.array([4, 5, 5])], lambda left, right: right == 2).tolist()
    [[0, 2]]
    """
    found = [np.empty((0, 2), np.int64)]
    for mine, other in zip(ours, theirs, strict=True):
        order = np.argsort(other, kind="stable")
        begin = np.searchsorted(other[order], mine, side="left")
        end = np.searchsorted(other[order], mine, side="right")
        for step in range(2 * NEIGHBOURS):
            left = np.flatnonzero(begin + step < end)
            right = order[begin[left] + step]
            alike = agree(left, right)
            found.append(np.stack([left[alike], right[alike]], axis=1))
    return _earliest(found)


def _earliest(found: list[np.ndarray]) -> np.ndarray:
    """Of the pairs of one left item the one with the smallest right item, in order."""
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[np.unique(pairs[:, 0], return_index=True)[1]]
