"""What the trained model has to beat: a random order, and BM25 on the text tasks.

The third baseline, the untrained model, is ``evaluate`` before the first step. It scores above chance, because
mean-pooled random vectors of shared word pieces already match.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np

from trainer_ext.evaluation.tasks import HardNegativeTask, RetrievalTask, Task


def chance(tasks: Sequence[Task]) -> dict[str, float]:
    """The exact expected metrics of a uniformly random order, for every task."""
    return {name: value for task in tasks for name, value in task.chance().items()}


def bm25(tasks: Sequence[Task]) -> dict[str, float]:
    """Metrics of BM25 (``bm25s``: Lucene's formula, k1 1.5, b 0.75, English stop words) where texts search texts.

    Each task has an index of its candidates; for hard negatives, of its distinct positives and negatives. Tasks with
    images are left out. A query without a known word scores 0 everywhere, which counts as a miss.

    Raises:
        ImportError: ``bm25s`` is not installed.
    """
    metrics: dict[str, float] = {}
    for task in tasks:
        if not all(isinstance(item, str) for item in task.items):
            continue
        if isinstance(task, HardNegativeTask):
            metrics |= _hard_negatives(task)
        elif isinstance(task, RetrievalTask):
            queries, index = cast(list[str], task.queries), _Index(cast(list[str], task.candidates))
            metrics |= task.measure(lambda rows: index.scores(queries[rows]))  # noqa: B023  # called in this round
    return metrics


def _hard_negatives(task: HardNegativeTask) -> dict[str, float]:
    rows = [[positive, *texts] for positive, texts in zip(task.positives, task.negatives, strict=True)]
    column = {text: place for place, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
    scores = _Index(list(column)).scores(cast(list[str], task.queries))
    own = np.take_along_axis(scores, np.array([[column[text] for text in row] for row in rows]), axis=1)
    return task.measure(own[:, 0], own[:, 1:])


class _Index:
    """A BM25 index over texts; a query without a known word scores zero everywhere."""

    def __init__(self, texts: list[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("The BM25 baseline needs bm25s: pip install '.[demo]'.") from error
        self.tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        self.retriever = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        words = self.tokenize(texts)
        self.has_words = any(words)  # the library cannot make an index of none
        if self.has_words:
            self.retriever.index(words, show_progress=False)
        self.size = len(texts)

    def scores(self, queries: list[str]) -> np.ndarray:
        """(queries, texts) float32."""
        rows = self.tokenize(queries) if self.has_words else [[]] * len(queries)
        return np.stack([self.retriever.get_scores(row) if row else np.zeros(self.size, np.float32) for row in rows])
