"""Rows of the user's sources become tasks, through the data room's readers: same files, same faults, same pictures.

1. ``load_task_rows`` reads the sources that tasks name, with the columns of classes and splits beside the usual ones.
2. ``build_tasks`` makes the tasks: ``rows`` (``Table``) has the items of a task's rows, ``evaluation`` the tasks' own
   constructors.

Two rows belong together if they share an id, a caption (or a query), or a picture; their pictures and texts are right
answers for each other.
"""

from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.columns import with_labels
from trainer_ext.data.holdout import hold_out
from trainer_ext.data.sources import DataError, load_source
from trainer_ext.evaluation.classification import ClassificationTask
from trainer_ext.evaluation.hard_negatives import HardNegativeTask
from trainer_ext.evaluation.items import Item, Picture, Record
from trainer_ext.evaluation.match import match_task
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.one_index import OneIndexTask
from trainer_ext.evaluation.records import among_records
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.similarity import SimilarityTask
from trainer_ext.evaluation.tasks import ALL_HITS, ALL_RECALLS, Task, image_text_tasks, same_item_task, text_task
from trainer_ext.measuring.rows import ChosenRows, Table, TaskRows
from trainer_ext.recipe.evaluation import DIRECTIONS, TaskSpec, sources_of
from trainer_ext.recipe.schema import Source

TEMPLATES = ("a photo of a {}.",)  # CLIP's own, where a task has none

Say = Callable[[str], object]


def load_task_rows(
    specs: Sequence[TaskSpec], sources: Sequence[Source], broken: BrokenRows | None = None
) -> dict[str, TaskRows]:
    """The rows of the sources that the tasks read, by name, with their columns of classes and splits.

    Of a source with ``holdout`` the held-out rows are measured; as a corpus it is there as a whole.

    Raises:
        DataError: no such file or column, or more rows that cannot be used than a source's budget.
    """
    found = {}
    for source in sources_of(specs, sources):
        labels = [name for spec in specs if spec.source == source.name for name in spec.columns()]
        labelled = with_labels(source, labels)
        rows = load_source(labelled, broken)
        held = rows if source.holdout is None else hold_out(source.name, rows, source.holdout)[1]
        found[source.name] = TaskRows(labelled, held, rows)
    return found


def build_tasks(
    specs: Sequence[TaskSpec],
    sources: Mapping[str, TaskRows],
    broken: BrokenRows | None = None,
    say: Say = tqdm.write,
    progress: bool = True,
) -> list[Task]:
    """The tasks of ``specs``, in their order; an image-text source gives one for each direction.

    Args:
        sources: the rows of every source that they name, as ``load_task_rows`` gives them.
        broken: takes note of pictures that cannot be decoded; each source's budget counts all the same.
        say: gets a line where queries are left out.

    Raises:
        ValueError: nothing to measure, such as one class only, or no partner for any picture.
    """
    broken = BrokenRows(None) if broken is None else broken
    known: dict[str, Picture] = {}
    tables = {name: Table(rows.source, rows.rows, broken, known, progress) for name, rows in sources.items()}
    corpora = dict(tables)
    for name, rows in sources.items():
        if rows.every is not rows.rows:
            corpora[name] = Table(rows.source, rows.every, broken, known, progress)
    built: dict[str, list[Task]] = {}
    for spec in specs:
        if spec.mix is None:
            built[spec.name] = _tasks_of(spec, tables, corpora, say)
    for spec in specs:
        if spec.mix is not None:
            mixed = [task for name in spec.mix for task in built[name] if isinstance(task, RetrievalTask)]
            built[spec.name] = [OneIndexTask(spec.name, mixed)]
    return [task for spec in specs for task in built[spec.name]]


def _tasks_of(spec: TaskSpec, tables: Mapping[str, Table], corpora: Mapping[str, Table], say: Say) -> list[Task]:
    assert spec.source is not None  # the schema has seen to it
    rows = tables[spec.source].of(spec)
    measure = spec.measured_as(rows.source.task)
    if measure == "retrieval":
        more: Sequence[Item] = []
        if spec.corpus is not None:
            corpus = corpora[spec.corpus].of(spec.model_copy(update={"limit": None}))
            more = corpus.candidates() if spec.fuse is None else corpus.records(spec.fuse)
        return [task.with_corpus(more) if more else task for task in _retrieval(spec, rows, say)]
    if measure == "classification":
        return [_classification(spec, rows)]
    if measure == "match":
        return [match_task(spec.name, _true_pairs(spec, rows))]
    task: Task
    if measure == "similarity":
        scores = [float(score) for score in rows.values("score")]
        task = SimilarityTask(spec.name, rows.texts("query"), rows.texts("positive"), scores)
    else:
        task = _hard_negatives(spec, rows)
    task.splits = rows.labels(spec.by)
    return [task]


# --- retrieval -----------------------------------------------------------------------------------------------------


def _retrieval(spec: TaskSpec, rows: ChosenRows, say: Say) -> list[RetrievalTask]:
    if rows.source.task == "image-text":
        return _picture_retrieval(spec, rows, say)
    if rows.source.task == "image-pair":
        return [_picture_to_picture(spec, rows, _metrics(spec, ALL_HITS), say)]
    pairs = zip(rows.texts("query"), rows.texts("positive"), strict=True)
    task = text_task(spec.name, pairs, _metrics(spec, ALL_RECALLS), rows.ids(), rows.labels(spec.by))
    if rows.source.task == "triplet":
        task = task.with_corpus(text for texts in rows.lists("negatives") for text in texts)
    return [task]


def _picture_retrieval(spec: TaskSpec, rows: ChosenRows, say: Say) -> list[RetrievalTask]:
    by, ids, metrics = rows.labels(spec.by), rows.ids(), _metrics(spec, ALL_HITS)
    directions = spec.directions or (DIRECTIONS if spec.fuse is None else DIRECTIONS[:1])
    pictures, captions = rows.pictures, rows.lists("caption")
    found = {
        task.prefix.rstrip("_"): task for task in image_text_tasks(spec.name, pictures, captions, metrics, ids, by)
    }
    if "i2i" in directions:
        found["i2i"] = _picture_to_picture(spec, rows, metrics, say)
    if spec.fuse is None:
        return [found[direction] for direction in directions]
    return [_among_records(found[direction], rows.records(spec.fuse), say) for direction in directions]


def _among_records(task: RetrievalTask, records: Sequence[Record], say: Say) -> RetrievalTask:
    fused = among_records(task, records)
    alone = len(task.queries) - len(fused.queries)
    if alone:
        say(f"{task.label}: {alone:,} of {len(task.queries):,} queries are in all of their records, and left out")
    return fused


def _picture_to_picture(spec: TaskSpec, rows: ChosenRows, metrics: Sequence[Metric], say: Say) -> RetrievalTask:
    ids, pictures = rows.ids(), rows.pictures
    texts = rows.lists("caption") if "caption" in rows.source.columns else [[] for _ in pictures]
    labels = [[("caption", text) for text in own] for own in texts]
    if ids is not None:
        labels = [[*own, ("id", str(id))] for own, id in zip(labels, ids, strict=True)]
    try:
        task = same_item_task(spec.name, pictures, labels, metrics, by=rows.labels(spec.by))
    except ValueError as error:
        raise ValueError(
            f"Task {spec.name!r}: none of the {len(pictures):,} pictures of source {rows.source.name!r} has a partner "
            "for i2i, one with the same id or caption. Map an id column that pictures of one thing share, or take i2i "
            "out of directions."
        ) from error
    alone = len(task.candidates) - len(task.queries)
    if alone:
        say(f"{task.label}: {alone:,} of {len(task.candidates):,} pictures have no partner and are no queries")
    return task


def _metrics(spec: TaskSpec, usual: Sequence[Metric]) -> list[Metric]:
    by_name = {metric.name: metric for metric in usual}
    return [by_name[name] for name in spec.metrics or by_name]


# --- other measures ------------------------------------------------------------------------------------------------


def _classification(spec: TaskSpec, rows: ChosenRows) -> ClassificationTask:
    assert spec.classes is not None  # the schema has seen to it
    labels = rows.labels(spec.classes) or []
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"Task {spec.name!r}: column {spec.classes!r} of source {rows.source.name!r} has one class only, "
            f"{classes[0]!r}, in all {len(labels):,} rows. Classification needs two; name the right column in classes."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    templates = spec.templates or TEMPLATES
    return ClassificationTask(spec.name, rows.pictures, [numbers[name] for name in labels], classes, templates)


def _true_pairs(spec: TaskSpec, rows: ChosenRows) -> RetrievalTask:
    """Pairs that match, as answers to queries; a text asks for a picture."""
    if rows.source.task != "image-text":
        return text_task(spec.name, zip(rows.texts("query"), rows.texts("positive"), strict=True), ids=rows.ids())
    return image_text_tasks(spec.name, rows.pictures, rows.lists("caption"), ids=rows.ids())[0]


def _hard_negatives(spec: TaskSpec, rows: ChosenRows) -> HardNegativeTask:
    queries: Sequence[Item]
    if rows.source.task == "image-text":  # the right caption, the first of several, among the wrong ones
        queries, positives = rows.pictures, [texts[0] for texts in rows.lists("caption")]
    else:
        queries, positives = rows.texts("query"), rows.texts("positive")
    negatives = rows.lists("negatives")
    for place, (positive, wrong) in enumerate(zip(positives, negatives, strict=True)):
        if positive in wrong:
            raise DataError(
                f"Task {spec.name!r}: row {rows.places[place]:,} of source {rows.source.name!r} has its positive "
                f"{positive[:60]!r} among its negatives. Remove it there, or remove the row."
            )
    return HardNegativeTask(spec.name, queries, positives, negatives)
