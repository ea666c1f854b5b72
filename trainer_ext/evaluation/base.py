"""What every task has: a name, items to encode, and figures with their splits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from trainer_ext.evaluation.figures import Figure, Quantity
from trainer_ext.evaluation.items import Embeddings, Item

# Bands of text length, in tokens: CLIP cuts at 77, BERT at 512, this model at 8,192.
LENGTH_BANDS = (32, 77, 256, 512, 2048, 8192)


class Task(ABC):
    """Something to measure. A kind of task says what it computes in ``quantities``; the rest is common.

    ``splits`` has one label per query, such as its language: all figures are then also given for each label alone,
    as ``NAME[LABEL]/METRIC``. ``lengths`` has the tokens of each query: ``NAME[up to 77 tokens]/METRIC``, one for each
    band that has queries, if there are two at least. Both may be set after the task is made.
    """

    kind: ClassVar[str]
    name: str
    splits: Sequence[str] | None = None
    lengths: Sequence[int] | None = None

    @property
    def label(self) -> str:
        """Short name, as in ``hard_negatives``."""
        return self.name

    @property
    @abstractmethod
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""

    @property
    @abstractmethod
    def size(self) -> str:
        """How much is ranked, in words, for the report."""

    @abstractmethod
    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Metric -> what it is computed from, for the cosine similarity of these embeddings."""

    @abstractmethod
    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """Metric -> exact expectation of random scores, for the queries at these places."""

    @property
    @abstractmethod
    def queries_count(self) -> int:
        """How many queries, pairs or images have a value of their own."""

    def evaluate(self, embeddings: Embeddings) -> dict[str, float]:
        """Flat names to figures, such as ``concepts_short/t2i_r5``."""
        return {name: quantity.value for name, quantity in self._named(self.quantities(embeddings)).items()}

    def figures(self, embeddings: Embeddings) -> dict[str, Figure]:
        """The same as ``evaluate``, each with its interval and, where it is a mean, its value per query."""
        return {name: quantity.figure() for name, quantity in self._named(self.quantities(embeddings)).items()}

    def chance(self) -> dict[str, float]:
        """What random scores give, exactly; names as ``evaluate`` has them. Fitted figures have none."""
        return {
            self._key(metric, group): value
            for group, chosen in self._groups().items()
            for metric, value in self.expected(chosen).items()
        }

    def _named(self, quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
        whole = {self._key(metric): quantity for metric, quantity in quantities.items()}
        return whole | {
            self._key(metric, group): quantity.among(chosen)
            for group, chosen in self._groups().items()
            for metric, quantity in quantities.items()
            if group and quantity.per_query
        }

    def _key(self, metric: str, group: str = "") -> str:
        return f"{self.name}{f'[{group}]' if group else ''}/{metric}"

    def _groups(self) -> dict[str, np.ndarray]:
        """Label of a split -> places of its queries; the empty label is all of them."""
        groups = {"": np.arange(self.queries_count)}
        if self.splits is not None:
            labels = np.array(self._one_each("splits", self.splits), dtype=str)
            groups |= {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
        if self.lengths is not None:
            tokens = np.array(self._one_each("lengths", self.lengths), dtype=np.int64)
            bands = np.searchsorted(LENGTH_BANDS, tokens)
            found = np.unique(bands)
            groups |= {_band(band): np.flatnonzero(bands == band) for band in found if len(found) > 1}
        return groups

    def _one_each(self, what: str, values: Sequence) -> Sequence:
        if len(values) != self.queries_count:
            raise ValueError(f"Task {self.label!r}: {len(values)} {what} for {self.queries_count} queries; one each.")
        return values


def _band(place: int) -> str:
    if place == len(LENGTH_BANDS):
        return f"over {LENGTH_BANDS[-1]} tokens"
    return f"up to {LENGTH_BANDS[place]} tokens"
