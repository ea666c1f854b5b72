"""The rows of one source as an endless sequence, epoch after epoch, which the steps of a run cut into batches.

Steps 3 and 4 of ``data_mixing``'s text.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

# First word of the seed: data_mixing has 1, data_streams 3 and 4.
_ORDER_OF_ROWS = 2


class _Run(NamedTuple):
    """One stage's consecutive use of a source: ``steps`` steps of ``batch_size`` rows from position ``start`` on."""

    start: int
    batch_size: int
    steps: int


class Positions:
    """The positions that the steps take from the endless sequence of one source, which is all to say of a stream."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @property
    def end(self) -> int:
        """Position behind the last planned row."""
        last = self._runs[-1] if self._runs else _Run(0, 1, 0)
        return last.start + last.batch_size * last.steps

    def extend(self, batch_size: int, steps: int) -> int:
        """Plan ``steps`` more steps; return the position of their first row."""
        start = self.end
        if steps:
            self._runs.append(_Run(start, batch_size, steps))
        return start

    def size(self, alpha: float) -> float:
        """What the number of rows contributes to the source's share."""
        return 1.0

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and row indices of ``count`` consecutive positions."""
        return np.zeros(count, dtype=np.int64), np.arange(start, start + count)


class RowOrder(Positions):
    """The endless row sequence of one source, readable at any position (steps 3 and 4 of the module's text).

    Holds the permutations of the two latest epochs: 8 or 16 bytes per row of the source.
    """

    def __init__(self, name: str, rows: int, seed: int) -> None:
        super().__init__()
        self.rows = rows
        self._seed = [seed, _ORDER_OF_ROWS, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])]
        self._made: OrderedDict[int, np.ndarray] = OrderedDict()

    def size(self, alpha: float) -> float:
        """What the number of rows contributes to the source's share."""
        return float(self.rows**alpha)

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and row indices of ``count`` consecutive positions."""
        epochs, offsets = np.divmod(np.arange(start, start + count), self.rows)
        indices = np.empty(count, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            indices[chosen] = self._epoch(epoch)[offsets[chosen]]
        return epochs, indices

    def _epoch(self, epoch: int) -> np.ndarray:
        """Row order of one epoch, the mended head included."""
        if epoch in self._made:
            self._made.move_to_end(epoch)
            return self._made[epoch]
        # The tail of an epoch is as drawn unless its own mended head reaches into it (sources below two batches).
        # Go back to the first epoch that can be made from drawn permutations alone, then forward again.
        first = epoch
        while first - 1 not in self._made and self._head_reaches_tail(first - 1, self._taken_before(first)[0]):
            first -= 1
        for current in range(first, epoch + 1):
            self._made[current] = self._mend(current)
            while len(self._made) > 2:
                self._made.popitem(last=False)
        return self._made[epoch]

    def _mend(self, epoch: int) -> np.ndarray:
        order = self._draw(epoch)
        taken, batch_size = self._taken_before(epoch)
        if not taken:
            return order
        before = self._made[epoch - 1] if epoch - 1 in self._made else self._draw(epoch - 1)
        head = order[:batch_size]
        repeated = np.isin(head, before[self.rows - taken :])
        # Of batch_size rows at most ``taken`` are repeated, so enough others are left for the step's share.
        share = np.flatnonzero(~repeated)[: batch_size - taken]
        rest = np.setdiff1d(np.arange(batch_size), share)
        order[:batch_size] = head[np.concatenate([share, rest])]
        return order

    def _draw(self, epoch: int) -> np.ndarray:
        dtype = np.int32 if self.rows <= np.iinfo(np.int32).max else np.int64
        order = np.arange(self.rows, dtype=dtype)
        np.random.default_rng([*self._seed, epoch]).shuffle(order)
        return order

    def _taken_before(self, epoch: int) -> tuple[int, int]:
        """(rows that the step crossing the start of ``epoch`` took before it, that step's batch size); (0, 0): none."""
        boundary = epoch * self.rows
        if epoch <= 0 or boundary >= self.end:
            return 0, 0
        run = self._runs[bisect_right(self._runs, boundary, key=lambda run: run.start) - 1]
        taken = (boundary - run.start) % run.batch_size
        return (taken, run.batch_size) if taken else (0, 0)

    def _head_reaches_tail(self, epoch: int, tail: int) -> bool:
        """Whether the mended head of ``epoch`` overlaps its last ``tail`` rows."""
        return tail > 0 and self._taken_before(epoch)[1] > self.rows - tail
