"""Retrieval: rank candidates for each query, by the cosine of their vectors or by another scorer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer_ext.evaluation.base import Task, flattened
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, Rows, is_text, key_of, refuse_empty
from trainer_ext.evaluation.metrics import Metric, relevant_ranks
from trainer_ext.evaluation.search import pad, search

# Scores of a scorer held at once: 4 million are 32 MB in float64.
SCORES = 2**22
# Bins of the histograms of cosines, each 0.02 wide.
BINS = 100


@dataclass(frozen=True)
class RetrievalDetails:
    """What stands behind the figures, for a report.

    ``first_rank``: (queries,) int64, from 0, of the best right answer. ``top``: (queries, shown) int64, the best
    candidates in order, -1 where there are no more; ``top_scores`` their cosines. ``true_counts`` and ``other_counts``:
    pairs of a query with a right and with another candidate, by cosine, between ``edges`` (one more than bins).
    """

    first_rank: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray
    true_counts: np.ndarray
    other_counts: np.ndarray
    edges: np.ndarray


class RetrievalTask(Task):
    """Rank ``candidates`` for each query; ``relevant[i]`` are the candidate indices that answer query i.

    ``prefix`` goes before the metric (``t2i_``). Either side may hold texts or images. ``exclude[i]`` are candidates
    left out for query i, as the query itself is where pictures search pictures. Empty texts, a query without an answer
    and indices out of range are refused here, before any model runs.

    >>> task = RetrievalTask("toy", ["a", "b"], ["first", "second"], [[0], [1]], (Metric("recall", 1), Metric("mrr")))
    >>> task.chance()
    {'toy/r1': 0.5, 'toy/mrr': 0.75}
    """

    kind = "retrieval"

    def __init__(
        self,
        name: str,
        queries: Sequence[Item],
        candidates: Sequence[Item],
        relevant: Sequence[Iterable[int]],
        metrics: Sequence[Metric],
        prefix: str = "",
        exclude: Sequence[Iterable[int]] | None = None,
    ) -> None:
        self.name, self.prefix, self.metrics = name, prefix, tuple(metrics)
        self.queries, self.candidates = list(queries), list(candidates)
        self.relevant = [sorted(set(indices)) for indices in relevant]
        self.exclude = None if exclude is None else [sorted(set(indices)) for indices in exclude]
        refuse_empty(name, "queries", self.queries)
        refuse_empty(name, "candidates", self.candidates)
        self._refuse_wrong_answers()

    def _refuse_wrong_answers(self) -> None:
        if len(self.relevant) != len(self.queries):
            raise ValueError(
                f"Task {self.name!r}: {len(self.queries)} queries but {len(self.relevant)} sets of answers."
            )
        for index, answers in enumerate(self.relevant):
            if not answers or answers[0] < 0 or answers[-1] >= len(self.candidates):
                raise ValueError(
                    f"Task {self.name!r}: query {index} has the answers {answers}; give at least one index between 0 "
                    f"and {len(self.candidates) - 1}."
                )
        if self.exclude is None:
            return
        if len(self.exclude) != len(self.queries):
            raise ValueError(
                f"Task {self.name!r}: {len(self.queries)} queries but {len(self.exclude)} lists to exclude."
            )
        for index, (left_out, answers) in enumerate(zip(self.exclude, self.relevant, strict=True)):
            if left_out and (left_out[0] < 0 or left_out[-1] >= len(self.candidates)):
                raise ValueError(
                    f"Task {self.name!r}: query {index} excludes {left_out}; give indices between 0 and "
                    f"{len(self.candidates) - 1}."
                )
            if both := sorted(set(left_out) & set(answers)):
                raise ValueError(f"Task {self.name!r}: query {index} excludes its own answers {both}.")

    @property
    def label(self) -> str:
        """Short name of this direction, as in ``concepts_short/t2i``."""
        return f"{self.name}/{self.prefix}".rstrip("/_")

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.queries, *self.candidates]

    @property
    def size(self) -> str:
        """How much is ranked, in words, for the report."""
        return f"{len(self.queries)} queries, {len(self.candidates)} candidates"

    @property
    def answers(self) -> list[np.ndarray]:
        """The right and the excluded candidates of each query."""
        return [*flattened(self.relevant), *flattened(self.exclude or [])]

    @property
    def queries_count(self) -> int:
        """Every query has its value."""
        return len(self.queries)

    def with_corpus(self, items: Iterable[Item]) -> "RetrievalTask":
        """The same task among more candidates that answer nothing; those that are candidates already are left out.

        Raises:
            ValueError: no item is of the candidates' kind, texts or pictures.
        """
        kinds = {is_text(item) for item in self.candidates}
        known = set(map(key_of, self.candidates))
        more = {key_of(item): item for item in items if is_text(item) in kinds}
        if not more:
            raise ValueError(f"Task {self.label!r}: its corpus has no {'text' if True in kinds else 'picture'} to add.")
        extra = [item for key, item in more.items() if key not in known]
        task = RetrievalTask(
            self.name, self.queries, [*self.candidates, *extra], self.relevant, self.metrics, self.prefix, self.exclude
        )
        task.splits, task.lengths = self.splits, self.lengths
        return task

    def measure(self, score_rows: Callable[[slice], np.ndarray]) -> dict[str, float]:
        """Metrics of a scorer: ``score_rows(rows)`` gives (rows, candidates) for that slice of the queries."""
        named = self._named(self._quantities(self._ranks_of(score_rows)))
        return {name: quantity.value for name, quantity in named.items()}

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Values per query of the cosine similarity of these embeddings."""
        return self.quantities_of(*self._sides(embeddings))

    def quantities_of(self, queries: Rows, candidates: Rows) -> dict[str, Quantity]:
        """The same of any vectors whose product is the score."""
        return self._quantities(block.ranks for block in search(queries, candidates, self.relevant, self.exclude))

    def details(self, embeddings: Embeddings, shown: int = 5) -> RetrievalDetails:
        """The best ``shown`` candidates of each query, the place of its first answer, and histograms of all cosines."""
        found = list(search(*self._sides(embeddings), self.relevant, self.exclude, shown, BINS))
        return RetrievalDetails(
            first_rank=np.concatenate([block.ranks[:, 0] for block in found]),
            top=np.concatenate([block.top for block in found]),
            top_scores=np.concatenate([block.top_scores for block in found]),
            true_counts=np.sum([block.true_counts for block in found], axis=0),
            other_counts=np.sum([block.other_counts for block in found], axis=0),
            edges=np.linspace(-1.0, 1.0, BINS + 1),
        )

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """The exact expected metrics of a uniformly random order."""
        counts = np.array([len(self.relevant[place]) for place in chosen])
        candidates: int | np.ndarray = len(self.candidates)
        if self.exclude is not None:
            candidates = candidates - np.array([len(self.exclude[place]) for place in chosen])
        return {self.prefix + metric.name: metric.chance(counts, candidates) for metric in self.metrics}

    def _sides(self, embeddings: Embeddings) -> tuple[Rows, Rows]:
        queries = embeddings.rows_of(self.queries, f"{self.label}, queries")
        return queries, embeddings.rows_of(self.candidates, f"{self.label}, candidates")

    def _ranks_of(self, score_rows: Callable[[slice], np.ndarray]) -> Iterator[np.ndarray]:
        block = max(1, SCORES // len(self.candidates))
        for start in range(0, len(self.queries), block):
            rows = slice(start, start + block)
            scores = score_rows(rows)
            if self.exclude is not None:
                left_out = pad(self.exclude[rows])
                row, slot = np.nonzero(left_out >= 0)
                scores = scores.astype(np.float64)
                scores[row, left_out[row, slot]] = np.finfo(np.float64).min  # finite, and behind every score
            yield relevant_ranks(scores, pad(self.relevant[rows]))

    def _quantities(self, blocks: Iterable[np.ndarray]) -> dict[str, Quantity]:
        # Values instead of ranks are kept: a query may have thousands of right answers.
        values = [[metric.per_query(ranks) for metric in self.metrics] for ranks in blocks]
        columns = [np.concatenate(column) for column in zip(*values, strict=True)]
        return {
            self.prefix + metric.name: Quantity(column, np.median if metric.kind == "median_rank" else None)
            for metric, column in zip(self.metrics, columns, strict=True)
        }
