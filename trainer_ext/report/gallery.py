"""One retrieval task seen from near: its best and worst queries with what they found, and how its cosines lie.

``task_details`` takes what ``RetrievalTask.details`` measured and keeps what a page shows of it.
"""

from collections.abc import Iterable

import numpy as np

from trainer_ext.evaluation.items import Embeddings
from trainer_ext.evaluation.retrieval import RetrievalDetails, RetrievalTask
from trainer_ext.report.data import GalleryEntry, Histogram, Shown, TaskDetails
from trainer_ext.report.thumbnails import data_uri, opened
from trainer_ext.report.words import plain

# Queries at each end, results of each, and letters of a text.
QUERIES, RESULTS, LETTERS = 4, 5, 280


def details_of(tasks: Iterable[object], embeddings: Embeddings, model: str = "") -> list[TaskDetails]:
    """``task_details`` of every retrieval task among ``tasks``, for ``save_details`` or ``report_of_measurement``."""
    found = [task for task in tasks if isinstance(task, RetrievalTask)]
    return [task_details(task, task.details(embeddings, RESULTS), model) for task in found]


def task_details(
    task: RetrievalTask, details: RetrievalDetails, model: str = "", queries: int = QUERIES
) -> TaskDetails:
    """The page's part of a task: histograms, and the ``queries`` best and worst queries with small pictures.

    The worst are those whose right answer stands furthest behind. The best are those that find it first, with the
    widest lead over the first wrong answer. None is in both, and of queries with the same answers one is shown.
    """
    worst_first = np.argsort(-details.first_rank, kind="stable")
    best_first = np.lexsort((-_lead(task, details), details.first_rank))
    count = min(queries, len(worst_first) // 2) or 1
    best = _apart(task, best_first, count)
    worst = _apart(task, [place for place in worst_first if place not in best], count)
    return TaskDetails(
        task=task.label,
        model=model,
        histograms=[
            Histogram("true pairs", details.edges.tolist(), details.true_counts.tolist()),
            Histogram("other pairs", details.edges.tolist(), details.other_counts.tolist()),
        ],
        best=[_entry(task, details, place) for place in best],
        worst=[_entry(task, details, place) for place in worst],
        candidates=len(task.candidates),
    )


def _apart(task: RetrievalTask, order: Iterable[int], count: int) -> list[int]:
    """The first ``count`` queries whose right answers differ."""
    chosen: dict[tuple[int, ...], int] = {}
    for place in order:
        if len(chosen) == count:
            break
        chosen.setdefault(tuple(task.relevant[place]), int(place))
    return list(chosen.values())


def _lead(task: RetrievalTask, details: RetrievalDetails) -> np.ndarray:
    """How far the best right answer scores above the best wrong one, among those shown; 0 where one is missing."""
    lead = np.zeros(len(details.first_rank))
    for place, (top, scores) in enumerate(zip(details.top, details.top_scores, strict=True)):
        top, scores = top[top >= 0], scores[top >= 0]
        right = np.isin(top, task.relevant[place])
        if right.any() and not right.all():
            lead[place] = scores[right].max() - scores[~right].max()
    return lead


def _entry(task: RetrievalTask, details: RetrievalDetails, place: int) -> GalleryEntry:
    """A query with its results. If none of them is right, a right answer stands behind them.

    Of several right answers the task's first one is shown, without a rank: ``first_rank`` may be another's.
    """
    relevant = set(task.relevant[place])
    rank = int(details.first_rank[place]) + 1
    order = [candidate for candidate in details.top[place][:RESULTS] if candidate >= 0]
    results = [
        shown(task.candidates[candidate], number, float(score), int(candidate) in relevant)
        for number, (candidate, score) in enumerate(zip(order, details.top_scores[place], strict=False), start=1)
    ]
    if not any(result.right for result in results):
        results.append(shown(task.candidates[min(relevant)], rank if len(relevant) == 1 else None, None, True))
    return GalleryEntry(shown(task.queries[place]), rank, results)


def shown(item: object, rank: int | None = None, score: float | None = None, right: bool = False) -> Shown:
    """A text, an image, or a picture that is opened for it, as the page shows it."""
    if isinstance(item, str):
        return Shown(plain(item, LETTERS), None, rank, score, right)
    return Shown(None, data_uri(opened(item)), rank, score, right)
