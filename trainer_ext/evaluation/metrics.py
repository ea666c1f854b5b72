"""Retrieval metrics on score matrices: ranks with ties counted against the model, then R@k and nDCG@k.

Pure numpy, without models or tasks. Every metric is a fraction between 0 and 1 and comes with its exact expectation
under a random order.
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
    """A figure computed from ranks, averaged over queries.

    ``hit``: is any relevant candidate among the first k (R@k of image-text retrieval since CLIP).
    ``recall``: the share of a query's relevant candidates among the first k (R@k of text retrieval, as in TREC).
    ``ndcg``: nDCG@k with binary gains. With one relevant candidate per query, hit and recall are the same.

    >>> ranks = np.array([[0, 7], [4, NOT_RELEVANT]])
    >>> [Metric(kind, 5).measure(ranks) for kind in ("hit", "recall")]
    [1.0, 0.75]
    """

    kind: Literal["hit", "recall", "ndcg"]
    k: int

    @property
    def name(self) -> str:
        """Short name for logs: ``r5`` or ``ndcg10``."""
        return f"{'ndcg' if self.kind == 'ndcg' else 'r'}{self.k}"

    def measure(self, ranks: np.ndarray) -> float:
        """Mean over queries of (queries, most relevant) ``ranks`` as ``relevant_ranks`` returns them."""
        within = ranks < self.k
        relevant = (ranks != NOT_RELEVANT).sum(axis=1)
        if self.kind == "hit":
            return float(within[:, 0].mean())
        if self.kind == "recall":
            return float((within.sum(axis=1) / relevant).mean())
        gains = np.where(within, 1.0 / np.log2(np.minimum(ranks, self.k) + 2.0), 0.0).sum(axis=1)
        return float((gains / self._ideal(relevant)).mean())

    def chance(self, relevant: np.ndarray, candidates: int) -> float:
        """Exact expectation under a uniformly random order; ``relevant`` is (queries,) counts.

        >>> round(Metric("hit", 5).chance(np.array([1, 1]), 200), 6)
        0.025
        """
        drawn = min(self.k, candidates)
        if self.kind == "recall":
            return drawn / candidates
        if self.kind == "ndcg":
            return float((relevant / candidates * self._discounts(drawn).sum() / self._ideal(relevant)).mean())
        # No hit: every one of the first k draws misses, each with (candidates - relevant - i) / (candidates - i).
        draws = np.arange(drawn)
        miss = np.prod(np.maximum(candidates - relevant[:, None] - draws, 0) / (candidates - draws), axis=1)
        return float((1.0 - miss).mean())

    @staticmethod
    def _discounts(k: int) -> np.ndarray:
        return 1.0 / np.log2(np.arange(k) + 2.0)

    def _ideal(self, relevant: np.ndarray) -> np.ndarray:
        return np.cumsum(self._discounts(self.k))[np.minimum(relevant, self.k) - 1]


def beats_all(positive: np.ndarray, negatives: np.ndarray) -> float:
    """Share of rows whose positive score (rows,) is strictly above all its negatives (rows, negatives).

    >>> beats_all(np.array([0.9, 0.5]), np.array([[0.1, 0.2], [0.5, 0.1]]))   # the tie in row 1 is a miss
    0.5
    """
    best = negatives.astype(np.float64).max(axis=1)
    return float((positive > best + tie_margin(best)).mean())
