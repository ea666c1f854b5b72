"""Similarity of texts (STS): does the cosine order pairs as people's scores do?"""

from collections.abc import Sequence

import numpy as np

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, refuse_empty
from trainer_ext.evaluation.statistics import pearson, spearman


class SimilarityTask(Task):
    """Spearman and Pearson correlation of the cosine of ``firsts[i]`` and ``seconds[i]`` with ``scores[i]``.

    >>> SimilarityTask("sts", ["a cat", "a dog"], ["the cat", "a bus"], [5.0, 0.5]).size
    '2 pairs'
    """

    kind = "similarity"

    def __init__(self, name: str, firsts: Sequence[Item], seconds: Sequence[Item], scores: Sequence[float]) -> None:
        self.name = name
        self.firsts, self.seconds = list(firsts), list(seconds)
        self.scores = np.array(scores, dtype=np.float64)
        refuse_empty(name, "firsts", self.firsts)
        refuse_empty(name, "seconds", self.seconds)
        if not len(self.firsts) == len(self.seconds) == len(self.scores):
            raise ValueError(
                f"Task {name!r}: {len(self.firsts)} firsts, {len(self.seconds)} seconds and {len(self.scores)} scores; "
                "every pair needs one of each."
            )
        if len(bad := np.flatnonzero(~np.isfinite(self.scores))):
            raise ValueError(f"Task {name!r}: pair {bad[0]} has the score {self.scores[bad[0]]}; scores are numbers.")
        if len(np.unique(self.scores)) == 1:
            raise ValueError(
                f"Task {name!r}: all {len(self.scores)} scores are {self.scores[0]:g}; a correlation needs scores that "
                "differ."
            )

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.firsts, *self.seconds]

    @property
    def size(self) -> str:
        """How many pairs, for the report."""
        return f"{len(self.firsts)} pairs"

    @property
    def answers(self) -> list[np.ndarray]:
        """The score of each pair."""
        return [self.scores]

    @property
    def queries_count(self) -> int:
        """Every pair has its score."""
        return len(self.firsts)

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Both correlations of the cosine similarity of these embeddings."""
        rows = np.stack([cosines(embeddings, self.label, self.firsts, self.seconds), self.scores], axis=1)
        return {
            "spearman": Quantity(rows, lambda pairs: spearman(pairs[:, 0], pairs[:, 1])),
            "pearson": Quantity(rows, lambda pairs: pearson(pairs[:, 0], pairs[:, 1])),
        }

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """Random scores correlate with nothing."""
        return {"spearman": 0.0, "pearson": 0.0}


def cosines(embeddings: Embeddings, label: str, firsts: Sequence[Item], seconds: Sequence[Item]) -> np.ndarray:
    """(pairs,) float64 cosine of each pair; the vectors of each side are checked as in retrieval."""
    left, right = embeddings.of(firsts, f"{label}, firsts"), embeddings.of(seconds, f"{label}, seconds")
    return np.einsum("pd,pd->p", left, right, dtype=np.float64)
