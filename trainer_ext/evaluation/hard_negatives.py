"""Accuracy of preferring the right text to a few chosen wrong ones."""

from collections.abc import Sequence

import numpy as np

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, refuse_empty
from trainer_ext.evaluation.metrics import beats_all, strict_wins


class HardNegativeTask(Task):
    """Accuracy of preferring the positive to its own hard negatives: it must score strictly highest.

    Queries are texts or pictures. ``negatives`` has one list per query, all of the same length (the paper: 7, arXiv
    2405.20204, section 4).
    """

    kind = "hard-negatives"

    def __init__(
        self, name: str, queries: Sequence[Item], positives: Sequence[str], negatives: Sequence[Sequence[str]]
    ) -> None:
        self.name = name
        self.queries: list[Item] = list(queries)
        self.positives = list(positives)
        self.negatives = [list(texts) for texts in negatives]
        widths = {len(texts) for texts in self.negatives}
        if not len(self.queries) == len(self.positives) == len(self.negatives) or len(widths) != 1 or 0 in widths:
            raise ValueError(
                f"Task {name!r}: {len(self.queries)} queries, {len(self.positives)} positives and "
                f"{len(self.negatives)} lists of {sorted(widths)} negatives; every query needs one positive and the "
                "same number of negatives, at least one."
            )
        for index, (positive, texts) in enumerate(zip(self.positives, self.negatives, strict=True)):
            if positive in texts:
                raise ValueError(f"Task {name!r}: row {index} has its positive {positive!r} among its negatives.")
        refuse_empty(name, "texts", self.items)

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.queries, *self.positives, *(text for texts in self.negatives for text in texts)]

    @property
    def size(self) -> str:
        """How much is ranked, in words, for the report."""
        return f"{len(self.queries)} queries, 1 positive and {len(self.negatives[0])} negatives each"

    @property
    def answers(self) -> list[np.ndarray]:
        """How many negatives each query has; which ones, the order of the items says."""
        return [np.array([len(texts) for texts in self.negatives])]

    @property
    def queries_count(self) -> int:
        """Every query has its value."""
        return len(self.queries)

    def measure(self, positive_scores: np.ndarray, negative_scores: np.ndarray) -> dict[str, float]:
        """Accuracy from scores (queries,) and (queries, negatives)."""
        return {f"{self.name}/accuracy": beats_all(positive_scores, negative_scores)}

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Wins of the cosine similarity of these embeddings."""
        queries = embeddings.of(self.queries, f"{self.label}, queries")
        positives = embeddings.of(self.positives, f"{self.label}, positives")
        texts = [text for texts in self.negatives for text in texts]
        negatives = embeddings.of(texts, f"{self.label}, negatives").reshape(len(queries), -1, queries.shape[1])
        wins = strict_wins((queries * positives).sum(axis=1), np.einsum("qd,qnd->qn", queries, negatives))
        return {"accuracy": Quantity(wins)}

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """The exact expected accuracy of random scores."""
        return {"accuracy": 1.0 / (1 + len(self.negatives[0]))}
