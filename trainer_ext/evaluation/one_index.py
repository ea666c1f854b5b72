"""One index of pictures and texts: do queries still find their answer among everything at once?"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, Rows, is_text, key_of
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.retrieval import RetrievalTask

METRICS = (*(Metric("hit", k) for k in (1, 5, 10)), Metric("mrr"), Metric("ndcg", 10))
CORRECTED = "corrected_"
# Items among which uniformity is measured, spread evenly: 12.5 million pairs.
UNIFORMITY_ITEMS = 5000
BLOCK = 4096


class OneIndexTask(Task):
    """The queries of ``tasks``, each among the candidates of all of them.

    A query must find its own task's answers. Left out for it are the query itself, its answers in another task, and
    what has an answer in common with it (another caption of its picture): these are not wrong. Figures are given for
    all queries together and for each task's own, as ``NAME[shop/t2i]/r5``.

    Texts lie nearer to texts than to pictures. ``corrected_`` figures count each score in standard deviations above the
    mean that this query has with all candidates of that kind, one of the two ways the authors advise. ``modality_gap``
    is the distance of the mean text from the mean picture; ``alignment`` the mean squared distance of a query to its
    answers, ``uniformity`` the log of the mean of exp(-2 x squared distance) of all pairs (Wang and Isola 2020).

    Raises:
        ValueError: the tasks have candidates of one kind only.
    """

    kind = "one-index"

    def __init__(self, name: str, tasks: Sequence[RetrievalTask]) -> None:
        self.name = name
        pool = {key_of(item): item for task in tasks for item in task.candidates}
        kinds = {is_text(item) for item in pool.values()}
        if len(kinds) < 2:
            raise ValueError(
                f"Task {name!r}: its candidates are all {'texts' if True in kinds else 'pictures'}; one index needs "
                "tasks whose candidates are texts and tasks whose candidates are pictures."
            )
        self.pool = list(pool.values())
        links = _Links(tasks, {key: place for place, key in enumerate(pool)})
        self.task = RetrievalTask(
            name,
            [query for task in tasks for query in task.queries],
            self.pool,
            links.answers,
            METRICS,
            exclude=list(links.left_out()),
        )
        self.splits = [task.label for task in tasks for _ in task.queries]

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return self.task.items

    @property
    def size(self) -> str:
        """How much is ranked, in words, for the report."""
        texts = sum(map(is_text, self.pool))
        return f"{len(self.task.queries)} queries, {texts} texts and {len(self.pool) - texts} pictures in one index"

    @property
    def answers(self) -> list[np.ndarray]:
        """The right and the excluded candidates of each query."""
        return self.task.answers

    @property
    def queries_count(self) -> int:
        """Every query has its value."""
        return self.task.queries_count

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Retrieval with and without the correction, and how the vectors lie."""
        queries = embeddings.rows_of(self.task.queries, f"{self.label}, queries")
        pool = embeddings.rows_of(self.pool, f"{self.label}, candidates")
        texts = np.array([is_text(item) for item in self.pool])
        found = self.task.quantities_of(queries, pool)
        corrected = self.task.quantities_of(*_corrected(queries, pool, texts))
        found |= {CORRECTED + metric: quantity for metric, quantity in corrected.items()}
        means = [_moments(pool, np.flatnonzero(chosen))[0] for chosen in (texts, ~texts)]
        gap = float(np.linalg.norm(means[0] - means[1]))
        found["modality_gap"] = Quantity(np.array([gap]), per_query=False)
        found["alignment"] = Quantity(self._distances(queries, pool))
        found["uniformity"] = Quantity(np.array([_uniformity(pool)]), per_query=False)
        return found

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """The exact expected metrics of a uniformly random order; how vectors lie has no expectation."""
        plain = self.task.expected(chosen)
        return plain | {CORRECTED + metric: value for metric, value in plain.items()}

    def _distances(self, queries: Rows, pool: Rows) -> np.ndarray:
        """(queries,) mean squared distance to the answers: 2 - 2 x cosine of unit vectors."""
        query = np.repeat(np.arange(len(queries)), [len(answers) for answers in self.task.relevant])
        answer = np.concatenate([np.array(answers) for answers in self.task.relevant])
        cosines = np.empty(len(query))
        for start in range(0, len(query), BLOCK):
            part = slice(start, start + BLOCK)
            cosines[part] = np.einsum("pd,pd->p", queries.take(query[part]), pool.take(answer[part]), dtype=np.float64)
        return 2.0 - 2.0 * np.bincount(query, weights=cosines) / np.bincount(query)


class _Links:
    """Answers of every query in the common pool, and what else is not wrong for it."""

    def __init__(self, tasks: Sequence[RetrievalTask], place: dict[Hashable, int]) -> None:
        self.place = place
        self.keys = [key_of(query) for task in tasks for query in task.queries]
        self.answers: list[set[int]] = []
        self.task_leaves_out: list[set[int]] = []
        for task in tasks:
            own = [place[key_of(item)] for item in task.candidates]
            self.answers += [{own[answer] for answer in answers} for answers in task.relevant]
            left_out = task.exclude or [[] for _ in task.queries]
            self.task_leaves_out += [{own[other] for other in others} for others in left_out]
        self.anywhere: dict[Hashable, set[int]] = {}
        self.asks_for: dict[int, set[int]] = {}  # an answer -> the places of the pool's items that ask for it
        for key, answers in zip(self.keys, self.answers, strict=True):
            self.anywhere.setdefault(key, set()).update(answers)
            if key in place:
                for answer in answers:
                    self.asks_for.setdefault(answer, set()).add(place[key])

    def left_out(self) -> Iterator[set[int]]:
        """For each query the candidates that must not count against the model."""
        for key, answers, own in zip(self.keys, self.answers, self.task_leaves_out, strict=True):
            itself = {self.place[key]} if key in self.place else set()
            siblings = set().union(*(self.asks_for.get(answer, set()) for answer in answers))
            yield (own | itself | siblings | self.anywhere[key]) - answers


def _moments(pool: Rows, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dim,) mean and (dim, dim) mean of products of the rows at these places, float64."""
    total, products = np.zeros(0), np.zeros((0, 0))
    for start in range(0, len(places), BLOCK):
        rows = pool.take(places[start : start + BLOCK]).astype(np.float64)
        total = rows.sum(axis=0) + (total if start else 0.0)
        products = rows.T @ rows + (products if start else 0.0)
    return total / len(places), products / len(places)


def _corrected(queries: Rows, pool: Rows, texts: np.ndarray) -> tuple[Rows, Rows]:
    """Vectors whose product is the corrected score, in the unit of the kind that spreads most for a query.

    (score - mean) / spread is linear in the candidate: each kind gets components of its own, and one for the mean.
    """
    asked = queries.whole().astype(np.float64)
    means, spreads = [], []
    for chosen in (texts, ~texts):
        center, products = _moments(pool, np.flatnonzero(chosen))
        mean = asked @ center
        square = np.einsum("qd,qd->q", asked @ products, asked)
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        means.append(mean)
        spreads.append(np.where(spread < 1e-6, 1.0, spread))  # one candidate, or all alike
    widest = np.maximum(*spreads)
    scaled = [(widest / spread)[:, None] for spread in spreads]
    sides = [scale * np.hstack([asked, -mean[:, None]]) for scale, mean in zip(scaled, means, strict=True)]
    dim = asked.shape[1]
    wide = np.zeros((len(pool), 2 * (dim + 1)), np.float32)
    for chosen, offset in ((texts, 0), (~texts, dim + 1)):
        places = np.flatnonzero(chosen)
        wide[places, offset : offset + dim] = pool.take(places)
        wide[places, offset + dim] = 1.0
    return Rows(np.hstack(sides).astype(np.float32)), Rows(wide)


def _uniformity(pool: Rows) -> float:
    places = np.linspace(0, len(pool) - 1, min(len(pool), UNIFORMITY_ITEMS)).round().astype(np.int64)
    rows = pool.take(places)
    total = 0.0
    for start in range(0, len(rows), 512):
        cosines = (rows[start : start + 512] @ rows.T).astype(np.float64)
        total += float(np.exp(4.0 * cosines - 4.0).sum())  # exp(-2 |x - y|^2)
    itself = float(np.exp(4.0 * np.einsum("pd,pd->p", rows, rows, dtype=np.float64) - 4.0).sum())
    return float(np.log((total - itself) / (len(rows) * (len(rows) - 1))))
