"""What is mined: queries, candidates, and which candidates are right for a query. Everything is known by its number.

Equal queries share their right answers; equal candidates are one. A query is a text, or a picture: known by its
content, opened only when it is encoded.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from PIL import Image

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.holdout import hold_out
from trainer_ext.data.images import IMAGE_ERRORS
from trainer_ext.data.sources import ROW_NUMBER, DataError, broken_image, load_source, read_rows, undecoded
from trainer_ext.recipe.schema import Source

_MINED_TASKS = ("text-pair", "image-text")
_ROWS_AT_ONCE = 256


class _Row(NamedTuple):
    query: str
    positives: list[str]
    id: str | None


class PictureRows(NamedTuple):
    """Where the pictures of an image-text source lie."""

    source: Source
    dataset: Dataset
    broken: BrokenRows


@dataclass(frozen=True)
class Pairs:
    """Queries and candidates by number.

    ``rights[q]`` are the candidates that are right for query q, in the data's order. ``query_ids`` and
    ``candidate_ids`` are what the data's ``id`` says of them. ``first_rows[q]`` is the first row of query q, and
    ``numbers`` has the rows' numbers in the data, where some are left out.
    For pictures, ``queries`` are hashes of their content, and ``pictures`` has them.
    """

    queries: list[str]
    candidates: list[str]
    rights: list[list[int]]
    query_ids: list[set[str]]
    candidate_ids: list[set[str]]
    first_rows: list[int]
    rows: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    pictures: PictureRows | None = None
    numbers: Sequence[int] = ()

    @classmethod
    def of_texts(cls, rows: Iterable[Sequence[str]], prompts: Mapping[str, str] | None = None) -> "Pairs":
        """Of (query, positive) or (query, positive, id) rows; ``prompts`` go before the texts when encoded.

        >>> pairs = Pairs.of_texts([("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")])
        >>> pairs.queries, pairs.candidates, pairs.rights
        (['a', 'b'], ['1', '2', '3'], [[0, 2], [1]])
        """
        found = (_Row(query, [positive], rest[0] if rest else None) for query, positive, *rest in rows)
        return _collected(found, prompts or {})

    def open_pictures(self, queries: Sequence[int]) -> Iterator[Image.Image | None]:
        """The pictures of these queries; None for one that cannot be decoded, which counts as a broken row.

        Raises:
            DataError: more broken rows than the source's budget allows.
        """
        assert self.pictures is not None
        source, dataset, broken = self.pictures
        for query in queries:
            row = self.first_rows[query]
            try:
                [found] = read_rows(source, dataset, [row])
                yield found["image"]
            except IMAGE_ERRORS as error:
                broken.add(source, broken_image(source, dataset, row, error))
                yield None


def read_pairs(source: Source, broken: BrokenRows | None = None) -> Pairs:
    """The pairs that a source of task text-pair or image-text gives to training, read and checked as there.

    Rows that its ``holdout`` keeps from training are neither queries nor candidates.

    Args:
        broken: takes note of the rows left out.

    Raises:
        DataError: a source of another task, one that streams, or what ``load_source`` refuses.
    """
    if source.task not in _MINED_TASKS:
        raise DataError(
            f"Source {source.name!r} has task {source.task}, but negatives are mined for sources of task"
            f" {' or '.join(_MINED_TASKS)}. Name another source, or one with the pairs that it was made of."
        )
    if source.streaming:
        raise DataError(
            f"Source {source.name!r} is streaming, but mining compares all rows with each other. Take streaming and"
            " shuffle_buffer out of its entry; the rows then go through a cache on disk."
        )
    broken = BrokenRows(None) if broken is None else broken
    dataset = load_source(source, broken)
    if source.holdout is not None:
        dataset = hold_out(source.name, dataset, source.holdout)[0]
    if source.task == "text-pair":
        names = [name for name in ("query", "positive", "id") if name in dataset.column_names]
        columns = [dataset[name] for name in names]
        pairs = Pairs.of_texts(zip(*(map(str, column) for column in columns), strict=True), source.prompts)
    else:
        pairs = _collected(_captioned(dataset), source.prompts, PictureRows(source, dataset, broken))
    return replace(pairs, numbers=dataset[ROW_NUMBER][:]) if ROW_NUMBER in dataset.column_names else pairs


def _captioned(dataset: Dataset) -> Iterator[_Row]:
    """The rows of a source of pictures, without decoding one."""
    stored = undecoded(dataset)
    for start in range(0, len(stored), _ROWS_AT_ONCE):
        block = stored[start : start + _ROWS_AT_ONCE]
        ids: Sequence[Any] = block.get("id") or [None] * len(block["image"])
        for image, caption, one in zip(block["image"], block["caption"], ids, strict=True):
            captions = [caption] if isinstance(caption, str) else list(caption)
            yield _Row(_content(image), captions, None if one is None else str(one))


def _content(image: Mapping[str, Any]) -> str:
    """A hash of the encoded picture, wherever it is stored."""
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _collected(rows: Iterable[_Row], prompts: Mapping[str, str], pictures: PictureRows | None = None) -> Pairs:
    queries: dict[str, int] = {}
    candidates: dict[str, int] = {}
    rights: list[dict[int, None]] = []
    query_ids: list[set[str]] = []
    candidate_ids: list[set[str]] = []
    first_rows: list[int] = []
    count = 0
    for count, row in enumerate(rows, 1):
        query = queries.setdefault(row.query, len(queries))
        if query == len(rights):
            rights.append({})
            query_ids.append(set())
            first_rows.append(count - 1)
        for positive in row.positives:
            candidate = candidates.setdefault(positive, len(candidates))
            if candidate == len(candidate_ids):
                candidate_ids.append(set())
            rights[query][candidate] = None
            if row.id is not None:
                candidate_ids[candidate].add(row.id)
        if row.id is not None:
            query_ids[query].add(row.id)
    return Pairs(
        queries=list(queries),
        candidates=list(candidates),
        rights=[list(numbers) for numbers in rights],
        query_ids=query_ids,
        candidate_ids=candidate_ids,
        first_rows=first_rows,
        rows=count,
        prompts=prompts,
        pictures=pictures,
    )
