"""Tasks made of rows, and ``evaluate``, which measures a model on them.

A model is two callables here, texts -> vectors and images -> vectors. In steps:

1. collect every distinct text and image of all tasks and encode each once (``items``);
2. per task, refuse embeddings that cannot be ranked (not finite, zero, or all alike);
3. score queries against candidates in blocks, so that the score matrix stays small (``search``);
4. turn scores into the rank of every relevant candidate, **ties counted against the model** (``metrics``);
5. turn ranks into values per query and their mean with its interval (``figures``), under flat names such as
   ``concepts_short/t2i_r5``.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import cast

from PIL import Image

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Figure, Quantity
from trainer_ext.evaluation.hard_negatives import HardNegativeTask
from trainer_ext.evaluation.items import Embeddings, ImageEncoder, Item, Picture, TextEncoder, encode_items, key_of
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.retrieval import RetrievalTask

__all__ = [
    "ALL_HITS",
    "ALL_RECALLS",
    "IMAGE_TEXT_METRICS",
    "TEXT_METRICS",
    "Embeddings",
    "HardNegativeTask",
    "ImageEncoder",
    "Item",
    "Picture",
    "RetrievalTask",
    "Task",
    "TextEncoder",
    "encode_items",
    "evaluate",
    "figures_of",
    "image_text_tasks",
    "same_item_task",
    "text_task",
]

IMAGE_TEXT_METRICS = (Metric("hit", 1), Metric("hit", 5))
TEXT_METRICS = (Metric("ndcg", 10), Metric("recall", 5))

_FIRST_AND_ORDER = (Metric("mrr"), Metric("ndcg", 10), Metric("map", 10), Metric("median_rank"))
# All that is usual: R@k between images and texts counts any right answer, between texts the share of them.
ALL_HITS = (*(Metric("hit", k) for k in (1, 5, 10)), *_FIRST_AND_ORDER)
ALL_RECALLS = (*(Metric("recall", k) for k in (1, 5, 10)), *_FIRST_AND_ORDER)


def image_text_tasks(
    name: str,
    images: Sequence[Image.Image | Picture],
    captions: Sequence[Sequence[str]],
    metrics: Sequence[Metric] = IMAGE_TEXT_METRICS,
    ids: Sequence[Hashable] | None = None,
    by: Sequence[str] | None = None,
) -> list[RetrievalTask]:
    """Text -> image and image -> text over the same rows; ``captions[i]`` are all captions of ``images[i]``.

    A caption that several images share is one query with several right images, never a false negative. The same holds
    for rows of one id (None: the row has none), and for rows of equal ``Picture`` objects, which are one image with the
    captions of all. ``by`` is a label for each row, such as its language, for figures of each label alone; a query in
    several rows has the label of the first.
    """
    links = _Links([_row_key(image, row) for row, image in enumerate(images)], captions, ids)
    pictures, texts = links.first_of(images), cast(list[str], list(links.rights))
    to_images = RetrievalTask(name, texts, pictures, links.lefts_of_right, metrics, prefix="t2i_")
    to_texts = RetrievalTask(name, pictures, texts, links.rights_of_left, metrics, prefix="i2t_")
    if by is not None:
        to_images.splits = [by[row] for row in links.rights.values()]
        to_texts.splits = [by[row] for row in links.lefts.values()]
    return [to_images, to_texts]


def text_task(
    name: str,
    pairs: Iterable[tuple[str, str]],
    metrics: Sequence[Metric] = TEXT_METRICS,
    ids: Sequence[Hashable] | None = None,
    by: Sequence[str] | None = None,
) -> RetrievalTask:
    """Query -> text retrieval over (query, positive) pairs; equal queries share their positives, as do equal texts.

    ``ids`` and ``by`` are one for each pair, as in ``image_text_tasks``.
    """
    pairs = list(pairs)
    links = _Links([query for query, _ in pairs], [[positive] for _, positive in pairs], ids)
    queries, candidates = cast(list[str], list(links.lefts)), cast(list[str], list(links.rights))
    task = RetrievalTask(name, queries, candidates, links.rights_of_left, metrics)
    task.splits = None if by is None else [by[row] for row in links.lefts.values()]
    return task


def same_item_task(
    name: str,
    items: Sequence[Item],
    labels: Sequence[Iterable[Hashable]],
    metrics: Sequence[Metric] = ALL_HITS,
    prefix: str = "i2i_",
    by: Sequence[str] | None = None,
) -> RetrievalTask:
    """Find the other items that share a label (an id, a caption) with an item; the item itself is left out.

    Items without a partner are no queries but stay candidates.

    Raises:
        ValueError: no item has a partner.
    """
    links = _Links([_row_key(item, row) for row, item in enumerate(items)], [list(own) for own in labels], None)
    partners = [
        sorted({other for label in own for other in links.lefts_of_right[label]} - {place})
        for place, own in enumerate(links.rights_of_left)
    ]
    queries = [place for place, others in enumerate(partners) if others]
    if not queries:
        raise ValueError(
            f"Task {name!r}: none of its {len(partners)} items shares an id or a caption with another, so no query has "
            "an answer. Give equal ids to items that belong together, or leave out this direction."
        )
    candidates = links.first_of(items)
    task = RetrievalTask(
        name,
        [candidates[place] for place in queries],
        candidates,
        [partners[place] for place in queries],
        metrics,
        prefix,
        exclude=[[place] for place in queries],
    )
    rows = list(links.lefts.values())
    task.splits = None if by is None else [by[rows[place]] for place in queries]
    return task


def evaluate(
    encode_text: TextEncoder,
    encode_image: ImageEncoder,
    tasks: Sequence[Task],
    progress: bool = True,
    truncate_dims: Sequence[int] = (),
    precisions: Sequence[str] = (),
) -> dict[str, float]:
    """Measure a model on tasks: ``evaluate(model.encode_text, model.encode_image, load_suite("openmoji"))``.

    Returns flat names to figures, ready for ``Trainer.log``. Vectors need not be normalised. All tasks are measured
    again, without encoding again, on the first ``truncate_dims`` components (``concepts_short@64/t2i_r5``), in each of
    ``precisions`` (``concepts_short@int8/t2i_r5``), and on those components in those precisions (``@64@int8``), each
    task as a whole, without its splits and lengths.
    """
    embeddings = encode_items(encode_text, encode_image, (item for task in tasks for item in task.items), progress)
    found = {name: value for task in tasks for name, value in task.evaluate(embeddings).items()}
    return found | {name: quantity.value for name, quantity in _variants(embeddings, tasks, truncate_dims, precisions)}


def figures_of(
    embeddings: Embeddings, tasks: Sequence[Task], truncate_dims: Sequence[int] = (), precisions: Sequence[str] = ()
) -> dict[str, Figure]:
    """The figures of ``evaluate``, under the same names, with their intervals and values per query."""
    found = {name: figure for task in tasks for name, figure in task.figures(embeddings).items()}
    return found | {
        name: quantity.figure() for name, quantity in _variants(embeddings, tasks, truncate_dims, precisions)
    }


def figure_names(tasks: Sequence[Task], truncate_dims: Sequence[int] = (), precisions: Sequence[str] = ()) -> list[str]:
    """The names of all figures of ``figures_of`` that models are ranked by: those that chance has, too."""
    marks = [_mark(dim, precision) for dim, precision in _kept(truncate_dims, precisions)]
    names = [(task, name) for task in tasks for name in task.chance()]
    whole = [(task, name) for task, name in names if "[" not in name.removeprefix(task.name)]
    return [*(name for _, name in names), *(_marked(task, mark, name) for mark in marks for task, name in whole)]


def _kept(dims: Sequence[int], precisions: Sequence[str]) -> list[tuple[int | None, str | None]]:
    """What is kept of vectors: of their width, of their precision, and of both; None for all."""
    both: list[tuple[int | None, str | None]] = [(dim, precision) for dim in dims for precision in precisions]
    return [*((dim, None) for dim in dims), *((None, precision) for precision in precisions), *both]


def _variants(
    embeddings: Embeddings, tasks: Sequence[Task], truncate_dims: Sequence[int], precisions: Sequence[str]
) -> Iterator[tuple[str, Quantity]]:
    """The figures of all tasks as wholes, of vectors cut to each width, coded in each precision, and both."""
    for dim, precision in _kept(truncate_dims, precisions):
        cut = embeddings if dim is None else embeddings.truncated(dim)
        for task in tasks:
            # The ranges of int8 come from the task alone: its figures do not depend on what else is measured.
            vectors = cut if precision is None else cut.quantized(precision, task.items)
            for name, quantity in task.whole(vectors).items():
                yield _marked(task, _mark(dim, precision), name), quantity


def _mark(dim: int | None, precision: str | None) -> str:
    return "".join(f"@{kept}" for kept in (dim, precision) if kept is not None)


def _marked(task: Task, mark: str, name: str) -> str:
    return f"{task.name}{mark}{name.removeprefix(task.name)}"


def _row_key(item: Item, row: int) -> Hashable:
    """Texts and ``Picture`` objects are the same where they are equal; a PIL image is told by its row."""
    return ("row", row) if isinstance(item, Image.Image) else key_of(item)


class _Links:
    """Which lefts and rights of some rows belong together: those of one row, and of rows with the same id.

    ``lefts`` and ``rights``: key -> its first row. ``rights_of_left`` and ``lefts_of_right``: places, one set each.
    """

    def __init__(
        self, lefts: Sequence[Hashable], rights: Sequence[Sequence[Hashable]], ids: Sequence[Hashable] | None
    ) -> None:
        if not len(lefts) == len(rights) == len(ids if ids is not None else rights):
            raise ValueError(f"{len(lefts)} rows, but {len(rights)} lists beside them and {len(ids or rights)} ids.")
        groups = [("row", row) if ids is None or ids[row] is None else ("id", ids[row]) for row in range(len(lefts))]
        self.lefts: dict[Hashable, int] = {}
        self.rights: dict[Hashable, int] = {}
        for row, (left, own) in enumerate(zip(lefts, rights, strict=True)):
            self.lefts.setdefault(left, row)
            for right in own:
                self.rights.setdefault(right, row)
        left_place = {key: place for place, key in enumerate(self.lefts)}
        right_place = {key: place for place, key in enumerate(self.rights)}
        of_group: dict[Hashable, tuple[set[int], set[int]]] = {group: (set(), set()) for group in groups}
        for left, own, group in zip(lefts, rights, groups, strict=True):
            of_group[group][0].add(left_place[left])
            of_group[group][1].update(right_place[right] for right in own)
        self.rights_of_left: list[set[int]] = [set() for _ in left_place]
        self.lefts_of_right: list[set[int]] = [set() for _ in right_place]
        for some_lefts, some_rights in of_group.values():
            for place in some_lefts:
                self.rights_of_left[place] |= some_rights
            for place in some_rights:
                self.lefts_of_right[place] |= some_lefts

    def first_of(self, items: Sequence[Item]) -> list[Item]:
        """The item of each left."""
        return [items[row] for row in self.lefts.values()]
