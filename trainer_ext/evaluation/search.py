"""Exact search in blocks: the rank of every relevant candidate, the best candidates and histograms, in one pass.

The score matrix of 10,000 queries and a million candidates would take 40 GB. In steps, for each block of queries:

1. score the relevant candidates; a candidate is *ahead* if its score is above that, less the tie margin;
2. multiply with one block of candidates after the other, into the same memory;
3. count the block's scores into the histograms; take out what a query excludes;
4. keep the best so far: only scores above the worst of them are looked at again;
5. take out the relevant ones and count how many are ahead.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer_ext.evaluation.items import Rows
from trainer_ext.evaluation.metrics import NOT_RELEVANT, tie_margin

# Scores held at once: 4,096 x 2,048 float32 are 32 MB. Candidates are read anew for each block of queries.
QUERY_BLOCK = 4096
CANDIDATE_BLOCK = 2048
# Queries that one thread looks after, at least: products use all cores by themselves, the steps after them do not.
THREAD_ROWS = 256
# With more relevant candidates a query than this, sorting a row is faster than counting once for each.
COUNTED = 8


@dataclass(frozen=True)
class Found:
    """What was found for the queries in ``rows``.

    ``ranks``: (queries, most relevant) int64 as ``metrics.relevant_ranks`` gives them. ``top``: (queries, shown) int64,
    the best candidates in order, -1 where there are no more; ``top_scores`` their scores, minus infinity there.
    ``true_counts``, ``other_counts``: how many relevant and other pairs fall between two ``edges``.
    """

    rows: slice
    ranks: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray
    true_counts: np.ndarray
    other_counts: np.ndarray


def search(
    queries: Rows,
    candidates: Rows,
    relevant: Sequence[Sequence[int]],
    exclude: Sequence[Sequence[int]] | None = None,
    shown: int = 0,
    bins: int = 0,
) -> Iterator[Found]:
    """Find for each block of queries; ``exclude[i]`` are candidates left out for query i.

    ``shown`` best candidates are kept. ``bins`` equal bins between -1 and 1 count cosines; 0 counts none.
    """
    memory = np.empty(min(QUERY_BLOCK, len(queries)) * min(CANDIDATE_BLOCK, len(candidates)), np.float32)
    threads = max(1, min(_cores(), min(QUERY_BLOCK, len(queries)) // THREAD_ROWS))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(queries), QUERY_BLOCK):
            rows = slice(start, min(start + QUERY_BLOCK, len(queries)))
            right = pad(relevant[rows])
            left_out = pad(exclude[rows]) if exclude is not None else np.full((len(right), 0), -1)
            asked = queries.block(rows.start, rows.stop)
            own = _own_scores(asked, candidates, right)
            ends = np.linspace(0, len(asked), threads + 1).astype(int)
            parts = [
                _Part(slice(first, last), own[first:last], right[first:last], left_out[first:last], shown, bins)
                for first, last in pairwise(ends.tolist())
            ]
            _look_through(asked, candidates, parts, memory, pool)
            yield Found(
                rows,
                ranks=np.concatenate([part.ahead.ranks() for part in parts]),
                top=np.concatenate([part.best.places for part in parts]),
                top_scores=np.concatenate([part.best.scores for part in parts]),
                true_counts=np.sum([part.true_counts for part in parts], axis=0),
                other_counts=np.sum([part.other_counts for part in parts], axis=0),
            )


def pad(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """(lists, longest) int64, short rows padded with -1.

    >>> pad([[3], [], [1, 2]]).tolist()
    [[3, -1], [-1, -1], [1, 2]]
    """
    padded = np.full((len(lists), max(map(len, lists), default=0)), -1)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded


def _cores() -> int:
    """The cores this process may use; fewer where a scheduler or container says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _look_through(
    asked: np.ndarray, candidates: Rows, parts: list["_Part"], memory: np.ndarray, pool: ThreadPoolExecutor
) -> None:
    """Multiply block by block, and hand each part its rows."""
    block = np.empty((min(CANDIDATE_BLOCK, len(candidates)), asked.shape[1]), np.float32)
    for start in range(0, len(candidates), CANDIDATE_BLOCK):
        stop = min(start + CANDIDATE_BLOCK, len(candidates))
        scores = memory[: len(asked) * (stop - start)].reshape(len(asked), stop - start)
        np.matmul(asked, candidates.block(start, stop, block).T, out=scores)
        list(pool.map(lambda part: part.add(scores[part.rows], start), parts))  # noqa: B023  # done in this round


class _Part:
    """Some of the queries of a block, and what has been found for them so far: steps 3 to 5."""

    def __init__(
        self, rows: slice, own: np.ndarray, right: np.ndarray, left_out: np.ndarray, shown: int, bins: int
    ) -> None:
        self.rows, self.bins = rows, bins
        self.ahead, self.best = _Ahead(own), _Best(len(own), shown)
        self.right, self.left_out = _Cells(right), _Cells(left_out)
        self.true_counts, self.other_counts = np.zeros(bins, np.int64), np.zeros(bins, np.int64)

    def add(self, scores: np.ndarray, start: int) -> None:
        """Look through scores (queries, candidates) of the candidates from ``start`` on; they are changed."""
        stop = start + scores.shape[1]
        true, gone = self.right.within(start, stop), self.left_out.within(start, stop)
        if self.bins:
            here = _histogram(scores[true], self.bins)
            self.true_counts += here
            self.other_counts += _histogram(scores, self.bins) - here - _histogram(scores[gone], self.bins)
        scores[gone] = -np.inf
        self.best.add(scores, start)
        scores[true] = -np.inf
        self.ahead.add(scores)


def _own_scores(queries: np.ndarray, candidates: Rows, padded: np.ndarray) -> np.ndarray:
    """(queries, most relevant) float64, best first; padding is minus infinity."""
    own = np.full(padded.shape, -np.inf)
    for slot in range(padded.shape[1]):
        present = np.flatnonzero(padded[:, slot] >= 0)
        chosen = candidates.take(padded[present, slot])
        own[present, slot] = np.einsum("qd,qd->q", queries[present], chosen, dtype=np.float64)
    return -np.sort(-own, axis=1)


def _histogram(scores: np.ndarray, bins: int) -> np.ndarray:
    """How many cosines fall into each of ``bins`` equal bins from -1 to 1; rounding beyond counts as the end."""
    places = ((scores.ravel() + 1.0) * (bins / 2)).astype(np.int64)
    return np.bincount(np.clip(places, 0, bins - 1), minlength=bins)


class _Cells:
    """Cells (row, candidate) of a padded list, found fast for a block of candidates."""

    def __init__(self, padded: np.ndarray) -> None:
        row, slot = np.nonzero(padded >= 0)
        candidate = padded[row, slot]
        order = np.argsort(candidate, kind="stable")
        self.row, self.candidate = row[order], candidate[order]

    def within(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the cells in a block that begins at candidate ``start``."""
        first, last = np.searchsorted(self.candidate, [start, stop])
        return self.row[first:last], self.candidate[first:last] - start


class _Ahead:
    """Counts the candidates that score as high as a relevant one, or higher."""

    def __init__(self, own: np.ndarray) -> None:
        self.present = np.isfinite(own)
        limit = np.where(self.present, own - tie_margin(np.where(self.present, own, 0.0)), np.inf)
        # Scores are float32: no such score lies between the limit and the next float32 above it.
        near = limit.astype(np.float32)
        self.limits: np.ndarray = np.where(near < limit, np.nextafter(near, np.float32(np.inf)), near).astype(
            np.float32
        )
        self.counts: np.ndarray = np.zeros(own.shape, np.int64)

    def add(self, scores: np.ndarray) -> None:
        """Count a block (queries, candidates), without relevant and excluded ones; it may be put in another order."""
        if self.limits.shape[1] > COUNTED:
            scores.sort(axis=1)
            for row, limits, counts in zip(scores, self.limits, self.counts, strict=True):
                counts += len(row) - np.searchsorted(row, limits)
            return
        for slot in range(self.limits.shape[1]):
            ahead = scores >= self.limits[:, slot : slot + 1]
            # Eight booleans a byte, and its bits counted: several times faster than a sum of booleans.
            self.counts[:, slot] += np.bitwise_count(np.packbits(ahead, axis=1)).sum(axis=1, dtype=np.int64)

    def ranks(self) -> np.ndarray:
        """Ranks from 0: those ahead, and the better relevant ones."""
        return np.where(self.present, self.counts + np.arange(self.counts.shape[1]), NOT_RELEVANT)


class _Best:
    """The best candidates so far of each query: higher scores first, then lower index."""

    def __init__(self, queries: int, shown: int) -> None:
        self.scores = np.full((queries, shown), -np.inf, np.float32)
        self.places = np.full((queries, shown), -1, np.int64)

    def add(self, scores: np.ndarray, start: int) -> None:
        """Look through a block (queries, candidates) that begins at candidate ``start``."""
        shown = self.scores.shape[1]
        if not shown:
            return
        limit = self.scores[:, -1]
        if np.isneginf(limit).any() and scores.shape[1] > shown:  # without a limit the whole block would be sorted
            kth = scores.shape[1] - shown
            limit = np.maximum(limit, np.partition(scores, kth, axis=1)[:, kth])
            limit = np.nextafter(limit, np.float32(-np.inf))  # the last one itself counts
        cells = np.flatnonzero(scores > limit[:, None])
        if not len(cells):
            return
        row, column = cells // scores.shape[1], cells % scores.shape[1]
        touched = np.unique(row)
        kept_row = np.repeat(touched, shown)
        row = np.concatenate([kept_row, row])
        score = np.concatenate([self.scores[touched].ravel(), scores.ravel()[cells]])
        place = np.concatenate([self.places[touched].ravel(), column + start])
        order = np.lexsort((place, -score, row))
        row, score, place = row[order], score[order], place[order]
        within = np.arange(len(row)) - np.searchsorted(row, row)
        first = within < shown
        self.scores[row[first], within[first]] = score[first]
        self.places[row[first], within[first]] = place[first]
