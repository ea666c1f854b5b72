"""What every task has: a name, items to encode, and figures with their splits."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from trainer_ext.evaluation.figures import Figure, Quantity
from trainer_ext.evaluation.items import Embeddings, Item, content_of

# Bands of text length, in tokens: CLIP cuts at 77, BERT at 512, this model at 8,192.
LENGTH_BANDS = (32, 77, 256, 512, 2048, 8192)
# Queries that a band must have to get figures: of fewer, a share is known to within 18 points at best.
BAND_QUERIES = 30


class Task(ABC):
    """Something to measure. A kind of task says what it computes in ``quantities``; the rest is common.

    ``splits`` has one label per query, such as its language: all figures are then also given for each label alone,
    as ``NAME[LABEL]/METRIC``. ``lengths`` has the tokens of each query: ``NAME[up to 77 tokens]/METRIC``, one for each
    band that has ``BAND_QUERIES``, if there are two at least. Both may be set after the task is made.
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

    @property
    @abstractmethod
    def answers(self) -> list[np.ndarray]:
        """What is right for the items, as numbers: with the items, all that makes two tasks the same."""

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

    def whole(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """What the figures of all queries together are computed from, without those of splits and lengths."""
        return {self._key(metric): quantity for metric, quantity in self.quantities(embeddings).items()}

    def contents(self) -> dict[str, str]:
        """Hashes of what is measured: of the task (its ``label``), and of each split and length (``LABEL[PART]``).

        Equal where two tasks have equal items and answers, whatever prompts or instructions the model asks for.
        """
        digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
        for item in self.items:
            content = content_of(item)
            digest.update(len(content).to_bytes(8) + content)
        for numbers in self.answers:
            digest.update(np.ascontiguousarray(numbers, np.float64).tobytes())
        found = {}
        for group, chosen in self._groups().items():
            part = digest.copy()
            part.update(chosen.astype(np.int64).tobytes() if group else b"")
            found[f"{self.label}[{group}]" if group else self.label] = part.hexdigest()
        return found

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
            numbers, counts = np.unique(bands, return_counts=True)
            found = numbers[counts >= BAND_QUERIES]
            groups |= {_band(band): np.flatnonzero(bands == band) for band in found if len(found) > 1}
        return groups

    def _one_each(self, what: str, values: Sequence) -> Sequence:
        if len(values) != self.queries_count:
            raise ValueError(f"Task {self.label!r}: {len(values)} {what} for {self.queries_count} queries; one each.")
        return values


def flattened(lists: Iterable[Iterable[int]]) -> list[np.ndarray]:
    """Lists of places as two arrays: how many each has, and all of them.

    >>> flattened([[3, 1], [], [2]])
    [array([2, 0, 1]), array([3, 1, 2])]
    """
    rows = [list(row) for row in lists]
    return [np.array([len(row) for row in rows]), np.array([place for row in rows for place in row], np.int64)]


def _band(place: int) -> str:
    if place == len(LENGTH_BANDS):
        return f"over {LENGTH_BANDS[-1]} tokens"
    return f"up to {LENGTH_BANDS[place]} tokens"
