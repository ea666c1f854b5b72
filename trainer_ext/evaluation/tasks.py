"""Retrieval tasks, and ``evaluate``, which measures a model on them.

A model is two callables here, texts -> vectors and images -> vectors. In steps:

1. collect every distinct text and image of all tasks and encode each once;
2. per task, refuse embeddings that cannot be ranked (not finite, zero, or all alike);
3. score queries against candidates in blocks of rows, so that the score matrix stays small;
4. turn scores into the rank of every relevant candidate, **ties counted against the model**;
5. turn ranks into metrics, under flat names such as ``concepts_short/t2i_r5``.

Metrics are fractions between 0 and 1; ``metrics`` defines them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from trainer_ext.evaluation.metrics import TIE_TOLERANCE, Metric, beats_all, relevant_ranks

Item = str | Image.Image
TextEncoder = Callable[[list[str]], np.ndarray]
ImageEncoder = Callable[[list[Image.Image]], np.ndarray]

# Rows of the score matrix held at once; 512 x 2,000 float32 candidates are 4 MB.
SCORE_BLOCK = 512
# Items handed to an encoder in one call: large enough to be efficient, small enough for a moving progress bar.
ENCODE_BLOCK = 256

IMAGE_TEXT_METRICS = (Metric("hit", 1), Metric("hit", 5))
TEXT_METRICS = (Metric("ndcg", 10), Metric("recall", 5))


class RetrievalTask:
    """Rank ``candidates`` for each query; ``relevant[i]`` are the candidate indices that answer query i.

    ``prefix`` goes before the metric (``t2i_``). Either side may hold texts or images. Empty texts, a query without an
    answer and indices out of range are refused here, before any model runs.

    >>> task = RetrievalTask("toy", ["a", "b"], ["first", "second"], [[0], [1]], TEXT_METRICS)
    >>> task.chance()
    {'toy/ndcg10': 0.815..., 'toy/r5': 1.0}
    """

    def __init__(
        self,
        name: str,
        queries: Sequence[Item],
        candidates: Sequence[Item],
        relevant: Sequence[Iterable[int]],
        metrics: Sequence[Metric],
        prefix: str = "",
    ) -> None:
        self.name, self.prefix, self.metrics = name, prefix, tuple(metrics)
        self.queries, self.candidates = list(queries), list(candidates)
        self.relevant = [sorted(set(indices)) for indices in relevant]
        _refuse_empty(name, "queries", self.queries)
        _refuse_empty(name, "candidates", self.candidates)
        if len(self.relevant) != len(self.queries):
            raise ValueError(f"Task {name!r}: {len(self.queries)} queries but {len(self.relevant)} sets of answers.")
        for index, answers in enumerate(self.relevant):
            if not answers or answers[0] < 0 or answers[-1] >= len(self.candidates):
                raise ValueError(
                    f"Task {name!r}: query {index} has the answers {answers}; give at least one index between 0 and "
                    f"{len(self.candidates) - 1}."
                )

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

    def measure(self, score_rows: Callable[[slice], np.ndarray]) -> dict[str, float]:
        """Metrics of a scorer: ``score_rows(rows)`` gives (rows, candidates) for that slice of the queries."""
        padded = np.full((len(self.relevant), max(map(len, self.relevant))), -1)
        for row, answers in zip(padded, self.relevant, strict=True):
            row[: len(answers)] = answers
        blocks = (slice(start, start + SCORE_BLOCK) for start in range(0, len(padded), SCORE_BLOCK))
        ranks = np.concatenate([relevant_ranks(score_rows(rows), padded[rows]) for rows in blocks])
        return {self._key(metric): metric.measure(ranks) for metric in self.metrics}

    def evaluate(self, embeddings: "Embeddings") -> dict[str, float]:
        """Metrics of the cosine similarity of these embeddings."""
        queries = embeddings.of(self.queries, f"{self.label}, queries")
        candidates = embeddings.of(self.candidates, f"{self.label}, candidates")
        return self.measure(lambda rows: queries[rows] @ candidates.T)

    def chance(self) -> dict[str, float]:
        """The exact expected metrics of a uniformly random order."""
        counts = np.array([len(answers) for answers in self.relevant])
        return {self._key(metric): metric.chance(counts, len(self.candidates)) for metric in self.metrics}

    def _key(self, metric: Metric) -> str:
        return f"{self.name}/{self.prefix}{metric.name}"


class HardNegativeTask:
    """Accuracy of preferring the positive to its own hard negatives: it must score strictly highest.

    ``negatives`` has one list per query, all of the same length (the paper: 7, arXiv 2405.20204, section 4).
    """

    def __init__(
        self, name: str, queries: Sequence[str], positives: Sequence[str], negatives: Sequence[Sequence[str]]
    ) -> None:
        self.name = name
        self.queries, self.positives = list(queries), list(positives)
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
        _refuse_empty(name, "texts", self.items)

    @property
    def label(self) -> str:
        """Short name, as in ``hard_negatives``."""
        return self.name

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.queries, *self.positives, *(text for texts in self.negatives for text in texts)]

    @property
    def size(self) -> str:
        """How much is ranked, in words, for the report."""
        return f"{len(self.queries)} queries, 1 positive and {len(self.negatives[0])} negatives each"

    def measure(self, positive_scores: np.ndarray, negative_scores: np.ndarray) -> dict[str, float]:
        """Accuracy from scores (queries,) and (queries, negatives)."""
        return {f"{self.name}/accuracy": beats_all(positive_scores, negative_scores)}

    def evaluate(self, embeddings: "Embeddings") -> dict[str, float]:
        """Accuracy of the cosine similarity of these embeddings."""
        queries = embeddings.of(self.queries, f"{self.label}, queries")
        positives = embeddings.of(self.positives, f"{self.label}, positives")
        texts = [text for texts in self.negatives for text in texts]
        negatives = embeddings.of(texts, f"{self.label}, negatives").reshape(len(queries), -1, queries.shape[1])
        return self.measure((queries * positives).sum(axis=1), np.einsum("qd,qnd->qn", queries, negatives))

    def chance(self) -> dict[str, float]:
        """The exact expected accuracy of random scores."""
        return {f"{self.name}/accuracy": 1.0 / (1 + len(self.negatives[0]))}


Task = RetrievalTask | HardNegativeTask


def image_text_tasks(
    name: str, images: Sequence[Image.Image], captions: Sequence[Sequence[str]]
) -> list[RetrievalTask]:
    """Text -> image and image -> text over the same rows; ``captions[i]`` are all captions of ``images[i]``.

    A caption that several images share is one query with several right images, never a false negative.
    """
    place: dict[str, int] = {}
    pairs = [(place.setdefault(text, len(place)), image) for image, texts in enumerate(captions) for text in texts]
    to_images: list[list[int]] = [[] for _ in place]
    to_texts: list[list[int]] = [[] for _ in images]
    for text, image in pairs:
        to_images[text].append(image)
        to_texts[image].append(text)
    return [
        RetrievalTask(name, list(place), images, to_images, IMAGE_TEXT_METRICS, prefix="t2i_"),
        RetrievalTask(name, images, list(place), to_texts, IMAGE_TEXT_METRICS, prefix="i2t_"),
    ]


def text_task(name: str, pairs: Iterable[tuple[str, str]]) -> RetrievalTask:
    """Query -> text retrieval over (query, positive) pairs; equal queries share their positives, as do equal texts."""
    queries: dict[str, list[int]] = {}
    place: dict[str, int] = {}
    for query, positive in pairs:
        queries.setdefault(query, []).append(place.setdefault(positive, len(place)))
    return RetrievalTask(name, list(queries), list(place), list(queries.values()), TEXT_METRICS)


class Embeddings:
    """Unit vectors of distinct items, each encoded once: texts by their characters, images by identity."""

    def __init__(self, vectors: Mapping[str | int, np.ndarray]) -> None:
        self.vectors = vectors

    def truncated(self, dim: int) -> "Embeddings":
        """The first ``dim`` components of each, as Matryoshka embeddings are used; ``of`` normalises them again."""
        width = len(next(iter(self.vectors.values())))
        if not 0 < dim <= width:
            raise ValueError(f"truncate_dims holds {dim}, but the embeddings have {width} dimensions; use 1 to {width}")
        return Embeddings({key: vector[:dim] for key, vector in self.vectors.items()})

    def of(self, items: Sequence[Item], where: str) -> np.ndarray:
        """(items, dim) unit vectors; refuses rows that are not finite or zero, and distinct items all alike."""
        keys = [_key(item) for item in items]
        rows = np.stack([self.vectors[key] for key in keys]).astype(np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        bad = np.asarray(~np.isfinite(rows).all(axis=1))
        if bad.any():
            raise ValueError(
                f"Task {where}: {bad.sum()} of {len(rows)} embeddings are not finite (first: {_show(items, bad)}). "
                "Look for empty inputs, a learning rate that is too high, or half-precision overflow."
            )
        zero = norms[:, 0] < 1e-12
        if zero.any():
            raise ValueError(
                f"Task {where}: {zero.sum()} of {len(rows)} embeddings have norm zero (first: {_show(items, zero)}). "
                "They have no direction to compare; look for inputs that are masked out whole."
            )
        rows /= norms
        if len(set(keys)) > 1 and np.abs(rows - rows[0]).max() < TIE_TOLERANCE:
            raise ValueError(
                f"Task {where}: all {len(rows)} of {len(rows)} embeddings are the same vector. The encoder has "
                "collapsed or ignores its input; a ranking of them would mean nothing."
            )
        return rows


def encode_items(
    encode_text: TextEncoder, encode_image: ImageEncoder, items: Iterable[Item], progress: bool = True
) -> Embeddings:
    """Encode every distinct item once: texts sorted by length, longest first, so that a batch has little padding."""
    distinct = {_key(item): item for item in items}
    texts = sorted((item for item in distinct.values() if isinstance(item, str)), key=len, reverse=True)
    images = [item for item in distinct.values() if not isinstance(item, str)]
    vectors: dict[str | int, np.ndarray] = {}
    with tqdm(total=len(distinct), desc="evaluating", unit="item", leave=False, disable=not progress) as bar:
        for name, encoder, group in (("encode_text", encode_text, texts), ("encode_image", encode_image, images)):
            for block in _blocks(group):
                rows = np.asarray(encoder(block))
                if rows.ndim != 2 or len(rows) != len(block):
                    raise ValueError(f"{name} returned shape {rows.shape} for {len(block)} items; expected (n, dim).")
                vectors.update(zip(map(_key, block), rows, strict=True))
                bar.update(len(block))
    if len(widths := {len(row) for row in vectors.values()}) > 1:
        raise ValueError(f"Texts and images must share one space, but the encoders return widths {sorted(widths)}.")
    return Embeddings(vectors)


def evaluate(
    encode_text: TextEncoder,
    encode_image: ImageEncoder,
    tasks: Sequence[Task],
    progress: bool = True,
    truncate_dims: Sequence[int] = (),
) -> dict[str, float]:
    """Measure a model on tasks: ``evaluate(model.encode_text, model.encode_image, load_suite("openmoji"))``.

    Returns flat names to fractions, ready for ``Trainer.log``. Vectors need not be normalised. All tasks are measured
    again, without encoding again, on the first ``truncate_dims`` components: ``concepts_short@64/t2i_r5``.
    """
    embeddings = encode_items(encode_text, encode_image, (item for task in tasks for item in task.items), progress)
    metrics = {name: value for task in tasks for name, value in task.evaluate(embeddings).items()}
    for dim in truncate_dims:
        shorter = embeddings.truncated(dim)
        for task in tasks:
            metrics |= {f"{task.name}@{dim}/{name.rpartition('/')[2]}": v for name, v in task.evaluate(shorter).items()}
    return metrics


def _key(item: Item) -> str | int:
    return item if isinstance(item, str) else id(item)


def _blocks(items: list) -> Iterator[list]:
    return (items[start : start + ENCODE_BLOCK] for start in range(0, len(items), ENCODE_BLOCK))


def _show(items: Sequence[Item], bad: np.ndarray) -> str:
    item = items[int(np.argmax(bad))]
    return repr(item[:60]) if isinstance(item, str) else "an image"


def _refuse_empty(name: str, side: str, items: Sequence[Item]) -> None:
    empty = sum(isinstance(item, str) and not item.strip() for item in items)
    if empty or not items:
        raise ValueError(f"Task {name!r}: {empty} of {len(items)} {side} are empty; give at least one, none blank.")
