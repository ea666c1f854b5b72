"""Retrieval metrics on score matrices: ranks with ties counted against the model, then a value per query.

Pure numpy, without models or tasks. Every metric but the median rank is a fraction between 0 and 1, and each comes with
its exact expectation under a random order.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Scores closer than this (relative above 1) are a tie: a matrix product may round equal rows differently by column.
TIE_TOLERANCE = 1e-6
NOT_RELEVANT = np.iinfo(np.int64).max


def tie_margin(scores: np.ndarray) -> np.ndarray:
    """The difference above which two scores of this size count as different."""
    return TIE_TOLERANCE * np.maximum(1.0, np.abs(scores))


def relevant_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank, from 0, of every relevant candidate, with ties counted against the model.

    A relevant candidate ranks behind all non-relevant ones that score the same or higher; relevant ones are ordered by
    score among themselves. A constant score therefore gets the worst possible rank.

    Args:
        scores: (queries, candidates), higher is better; must be finite, since NaN compares as "not ahead".
        relevant: (queries, most relevant per query) candidate indices, short rows padded with -1.

    Returns:
        (queries, most relevant per query) int64, ascending along a row; padding is ``NOT_RELEVANT``.

    >>> relevant_ranks(np.array([[0.9, 0.5, 0.5]]), np.array([[1]]))   # the tie with candidate 2 counts against us
    array([[2]])
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite and cannot be ranked.")
    query, slot = np.nonzero(relevant >= 0)
    candidate = relevant[query, slot]
    own = np.full(relevant.shape, -np.inf)
    own[query, slot] = scores[query, candidate]
    own = -np.sort(-own, axis=1)
    others = scores.astype(np.float64)
    others[query, candidate] = -np.inf
    ranks = np.full(relevant.shape, NOT_RELEVANT)
    for column in range(relevant.shape[1]):
        present = np.isfinite(own[:, column])
        score = own[present, column]
        ranks[present, column] = (others[present] >= (score - tie_margin(score))[:, None]).sum(axis=1) + column
    return ranks


@dataclass(frozen=True)
class Metric:
    """A figure computed from ranks: one value per query, of which the mean is taken (the median for ``median_rank``).

    ``hit``: is any relevant candidate among the first k (R@k of image-text retrieval since CLIP).
    ``recall``: the share of a query's relevant candidates among the first k (R@k of text retrieval, as in TREC).
    ``ndcg``: nDCG@k with binary gains.
    ``mrr``: one over the place of the first relevant candidate, 0 beyond k if k is given.
    ``map``: precision at each relevant candidate among the first k, summed, over all relevant ones (TREC's map_cut).
    ``median_rank``: the place, from 1, of the first relevant candidate; it takes no k.
    With one relevant candidate per query, hit and recall are the same.

    >>> ranks = np.array([[0, 7], [4, NOT_RELEVANT]])
    >>> [Metric(kind, 5).measure(ranks) for kind in ("hit", "recall", "mrr", "map")]
    [1.0, 0.75, 0.6, 0.35]
    """

    kind: Literal["hit", "recall", "ndcg", "mrr", "map", "median_rank"]
    k: int | None = None

    def __post_init__(self) -> None:
        if self.k is None and self.kind not in ("mrr", "median_rank"):
            raise ValueError(f"Metric {self.kind!r} needs k: Metric({self.kind!r}, 10) looks at the first 10.")
        if self.k is not None and (self.k < 1 or self.kind == "median_rank"):
            raise ValueError(f"Metric({self.kind!r}, {self.k}): k is at least 1, and median_rank takes none.")

    @property
    def name(self) -> str:
        """Short name for logs: ``r5``, ``ndcg10``, ``map10``, ``mrr``, ``median_rank``."""
        return f"{'r' if self.kind in ('hit', 'recall') else self.kind}{self.k or ''}"

    def per_query(self, ranks: np.ndarray) -> np.ndarray:
        """(queries,) float64 of (queries, most relevant) ``ranks`` as ``relevant_ranks`` returns them."""
        if self.kind == "median_rank":
            return ranks[:, 0] + 1.0
        within = ranks < (NOT_RELEVANT if self.k is None else self.k)
        places = np.where(within, ranks, 0) + 1.0
        if self.kind == "hit":
            return within[:, 0].astype(np.float64)
        if self.kind == "mrr":
            return np.where(within[:, 0], 1.0 / places[:, 0], 0.0)
        relevant = (ranks != NOT_RELEVANT).sum(axis=1)
        if self.kind == "recall":
            return within.sum(axis=1) / relevant
        if self.kind == "map":
            return np.where(within, (np.arange(ranks.shape[1]) + 1.0) / places, 0.0).sum(axis=1) / relevant
        gains = np.where(within, 1.0 / np.log2(places + 1.0), 0.0).sum(axis=1)
        return gains / self._ideal(relevant)

    def combine(self, values: np.ndarray) -> float:
        """The figure of values per query."""
        return float(np.median(values) if self.kind == "median_rank" else values.mean())

    def measure(self, ranks: np.ndarray) -> float:
        """The figure of (queries, most relevant) ``ranks``."""
        return self.combine(self.per_query(ranks))

    def chance(self, relevant: np.ndarray, candidates: int | np.ndarray) -> float:
        """Exact expectation under a uniformly random order.

        ``relevant`` is (queries,) counts; ``candidates`` is one number, or one per query. The median rank has no simple
        expectation: given is the median of the distribution of places of all queries together.

        >>> round(Metric("hit", 5).chance(np.array([1, 1]), 200), 6)
        0.025
        """
        if self.kind in ("mrr", "median_rank"):
            return self._chance_of_first(relevant, np.broadcast_to(candidates, relevant.shape))
        assert self.k is not None  # __post_init__ saw to it
        drawn = np.minimum(self.k, candidates)
        if self.kind == "recall":
            return float(np.mean(drawn / candidates))
        if self.kind == "map":
            return self._chance_of_map(relevant, np.broadcast_to(candidates, relevant.shape))
        if self.kind == "ndcg":
            counts, place = np.unique(drawn, return_inverse=True)
            discounts = np.array([self._discounts(count).sum() for count in counts])[place].reshape(np.shape(drawn))
            return float((relevant / candidates * discounts / self._ideal(relevant)).mean())
        # No hit: every one of the first k draws misses, each with (candidates - relevant - i) / (candidates - i).
        draws, every = np.arange(self.k), np.reshape(candidates, (-1, 1))
        ways = np.maximum(every - relevant[:, None] - draws, 0)
        return float((1.0 - np.prod(ways / np.maximum(every - draws, 1), axis=1)).mean())

    def _chance_of_first(self, relevant: np.ndarray, candidates: np.ndarray) -> float:
        """From P(no relevant one among the first i), for each distinct pair of counts."""
        pairs, weights = np.unique(np.stack([relevant, candidates]), axis=1, return_counts=True)
        seen, expected = np.zeros(int(candidates.max())), 0.0
        for right, every, weight in zip(*pairs.tolist(), (weights / len(relevant)).tolist(), strict=True):
            place = np.arange(every - right + 1)
            missed = np.cumprod(np.concatenate([[1.0], (every - right - place[:-1]) / (every - place[:-1])]))
            here = missed * right / (every - place)
            expected += weight * float((here / (place + 1.0))[: self.k].sum())
            seen[: len(here)] += weight * np.cumsum(here)
            seen[len(here) :] += weight
        if self.kind == "mrr":
            return expected
        return float(np.searchsorted(seen, 0.5 - 1e-9) + 1)

    def _chance_of_map(self, relevant: np.ndarray, candidates: np.ndarray) -> float:
        """Place i is relevant with R/N; of those before it, each with (R - 1)/(N - 1)."""
        place = np.arange(1.0, (self.k or 0) + 1.0)
        others = (relevant - 1.0) / np.maximum(candidates - 1.0, 1.0)
        precision = (1.0 + (place - 1.0) * others[:, None]) / place
        inside = place <= candidates[:, None]
        return float(((precision * inside).sum(axis=1) / candidates).mean())

    @staticmethod
    def _discounts(k: int) -> np.ndarray:
        return 1.0 / np.log2(np.arange(k) + 2.0)

    def _ideal(self, relevant: np.ndarray) -> np.ndarray:
        assert self.k is not None  # nDCG has one
        return np.cumsum(self._discounts(self.k))[np.minimum(relevant, self.k) - 1]


def strict_wins(positive: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """(rows,) 1.0 where the positive score (rows,) is strictly above all its negatives (rows, negatives), else 0.0.

    >>> strict_wins(np.array([0.9, 0.5]), np.array([[0.1, 0.2], [0.5, 0.1]]))   # the tie in row 1 is a miss
    array([1., 0.])
    """
    best = negatives.astype(np.float64).max(axis=1)
    return (positive > best + tie_margin(best)).astype(np.float64)


def beats_all(positive: np.ndarray, negatives: np.ndarray) -> float:
    """Share of rows that win strictly, see ``strict_wins``."""
    return float(strict_wins(positive, negatives).mean())
