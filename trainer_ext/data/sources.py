"""Sources to rows: a ``Source`` of the recipe becomes a ``datasets.Dataset`` with our column names.

1. The files of the source, or a data set of the Hub (``formats``).
2. ``datasets`` reads them into its cache (memory-mapped, so a source may be larger than memory). A streaming source is
   read during training instead (``streams``).
3. The mapped columns, and no others, under our names: image, caption, id | query, positive, negatives or score.
4. Checks, before any training step: column types, empty texts, missing images, uneven negatives (``faults``). Rows that
   cannot be used are left out within the source's budget, and listed.

Images stay undecoded until a step asks for them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image

from trainer_ext.data.balance import balances
from trainer_ext.data.broken_rows import BrokenRow, BrokenRows, over_budget
from trainer_ext.data.columns import BALANCE, TEXT, our_columns, with_balance
from trainer_ext.data.faults import Fault, as_numbers, find_faults, reported_faults
from trainer_ext.data.formats import DataError, Opened, Unreadable
from trainer_ext.data.images import (
    Opener,
    absolute_paths,
    missing_files,
    open_image,
    paths_without_bytes,
    stored_with_absolute_paths,
    undecodable,
)
from trainer_ext.data.picture_pairs import picture_groups
from trainer_ext.data.places import locate_row, where_to_look
from trainer_ext.data.plan import RowCount
from trainer_ext.data.readers import FAULT
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe.schema import Source

# Number of a row in the source as it was read; a column of sources that some rows were left out of.
ROW_NUMBER = "row"


Rows: TypeAlias = Dataset | SourceStream


def load_sources(sources: Sequence[Source], seed: int = 0, broken: BrokenRows | None = None) -> dict[str, Rows]:
    """The rows of each source, by name: a ``datasets.Dataset``, or a ``SourceStream`` of one that streams.

    Args:
        seed: decides the order of streaming sources; the others are shuffled by their readers.
        broken: takes note of rows left out.
    """
    return {
        source.name: SourceStream(source, seed, broken) if source.streaming else load_source(source, broken)
        for source in sources
    }


def load_source(source: Source, broken: BrokenRows | None = None) -> Dataset:
    """Read and check one source that does not stream.

    Args:
        broken: takes note of the rows left out; without it the source's budget counts all the same.

    Returns:
        A dataset with the columns of the source's task: ``image`` (decoded when read), ``caption`` (a text or a list of
        texts), ``id`` where given | ``query``, ``positive`` | and ``negatives`` (the same number in every row) or
        ``score`` (a number). Where rows were left out, ``row`` has the others' numbers; where the source is balanced,
        ``balance`` has the values of its key.

    Raises:
        DataError: no such file, no such column, a wrong type, or more rows that cannot be used than allowed.
    """
    source = with_balance(source)
    opened = Opened(source)
    try:
        dataset = our_columns(opened, opened.rows())
    except Unreadable:
        if not opened.by_lines():
            raise
        dataset = our_columns(opened, opened.rows())
    faults = list(reported_faults(dataset.data, source.columns))
    dataset = dataset.remove_columns([name for name in dataset.column_names if name == FAULT])
    if "image" in dataset.column_names:
        dataset, missing = _as_images(opened, dataset)
        faults += missing
    faults += find_faults(dataset.data, dataset.column_names)
    if not faults:
        return _numbered(dataset)
    rows = np.unique(np.concatenate([fault.rows for fault in faults]))
    first = faults[0]
    if len(rows) > source.max_broken_rows:
        more = f" {len(first.rows) - 1:,} more rows have this fault." if len(first.rows) > 1 else ""
        budget = f" {over_budget(source, len(rows))}" if source.max_broken_rows else ""
        row = _broken_row(source, int(first.rows[0]), first)
        raise DataError(f"{row}{more}{budget} {where_to_look(source, row.file, row.row)}")
    if len(rows) == len(dataset):
        raise DataError(f"Source {source.name!r}: none of the rows of {opened.name} can be used: {first.message}")
    if broken is not None:
        broken.found(source, _one_fault_each(source, faults))
    dataset = dataset.add_column(ROW_NUMBER, np.arange(len(dataset)))
    return _numbered(dataset.select(np.setdiff1d(np.arange(len(dataset)), rows)))


def _numbered(dataset: Dataset) -> Dataset:
    """Scores that were read as texts become numbers."""
    if dataset.features.get("score") in TEXT:
        scores = as_numbers(dataset.with_format("arrow")["score"][:])
        return dataset.remove_columns("score").add_column("score", scores.to_numpy())
    return dataset


def _one_fault_each(source: Source, faults: Sequence[Fault]) -> Iterator[BrokenRow]:
    listed: set[int] = set()
    for fault in faults:
        for row in fault.rows.tolist():
            if row not in listed:
                listed.add(row)
                yield _broken_row(source, row, fault)


def _broken_row(source: Source, row: int, fault: Fault) -> BrokenRow:
    file, number = locate_row(source, row)
    return BrokenRow(source.name, file, number, source.columns[fault.column], fault.message)


# --- rows --------------------------------------------------------------------------------------------------------


def read_rows(
    source: Source, dataset: Dataset, indices: Sequence[int], opener: Opener = open_image
) -> list[dict[str, Any]]:
    """The rows at ``indices`` of a loaded source, images decoded by ``opener``, each with its ``image_label``.

    Raises:
        OSError, ValueError, SyntaxError: an image that cannot be decoded; ``broken_image`` says which one.
    """
    columns = undecoded(dataset)[list(indices)]
    for name in (ROW_NUMBER, BALANCE):
        columns.pop(name, None)
    if isinstance(dataset.features.get("image"), Image):
        opened = [opener(stored, source.background) for stored in columns["image"]]
        columns |= {"image": [one[0] for one in opened], "image_label": [one[1] for one in opened]}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def undecoded(dataset: Dataset) -> Dataset:
    """The dataset with its images as they are stored. Cheap, but not for every batch of a large one."""
    if getattr(dataset.features.get("image"), "decode", False):
        return dataset.cast_column("image", Image(decode=False))
    return dataset


def broken_image(source: Source, dataset: Dataset, index: int, error: Exception) -> BrokenRow:
    """The row at ``index``, whose image could not be decoded, as it is listed."""
    stored = undecoded(dataset)[index]
    file, number = locate_row(source, stored.get(ROW_NUMBER, index))
    return BrokenRow(source.name, file, number, source.columns["image"], undecodable(stored["image"]["path"], error))


def _as_images(opened: Opened, dataset: Dataset) -> tuple[Dataset, list[Fault]]:
    """Give the image column the Image feature, with absolute paths, and find the files that are not there."""
    source = opened.source
    name, of_hub = source.name, source.location if source.format == "hub" else None
    if dataset.features["image"] in TEXT and not of_hub:
        dataset = dataset.map(
            _absolute_batch,
            batched=True,
            input_columns=["image"],
            fn_kwargs={"folder": opened.folder, "source": name},
            desc=f"{name}: image paths",
        )
        return dataset.cast_column("image", Image()), list(missing_files(dataset["image"]))
    dataset = dataset.cast_column("image", Image())
    paths = paths_without_bytes(dataset.data.column("image"))
    if not of_hub and any(path and not os.path.isabs(path) for path in paths):
        stored = (
            undecoded(dataset)
            .with_format("arrow")
            .map(
                _absolute_table,
                batched=True,
                fn_kwargs={"folder": opened.folder, "source": name},
                desc=f"{name}: image paths",
            )
        )
        dataset = stored.with_format(None).cast_column("image", Image())
        paths = paths_without_bytes(dataset.data.column("image"))
    return dataset, list(missing_files(paths, of_hub))


def _absolute_batch(paths: list[str | None], folder: str | None, source: str) -> dict[str, list[str | None]]:
    return {"image": absolute_paths(paths, folder, source)}


def _absolute_table(table: pa.Table, folder: str | None, source: str) -> pa.Table:
    images = stored_with_absolute_paths(table.column("image").combine_chunks(), folder, source)
    return table.set_column(table.column_names.index("image"), "image", images)


def row_count(rows: Rows) -> int | None:
    """Rows of a source; None for a streaming one, whose rows are not counted."""
    return None if isinstance(rows, SourceStream) else len(rows)


def planned_rows(sources: Sequence[Source], tables: Mapping[str, Rows]) -> dict[str, RowCount]:
    """What the plan of a run has to know of each table: its number of rows or, where it is balanced, their shares.

    Of pictures that are paired by id it is the number of ids (``picture_pairs``).
    """
    found: dict[str, RowCount] = {name: row_count(rows) for name, rows in tables.items()}
    found |= {name: len(groups) for name, groups in picture_groups(sources, tables).items()}
    return found | {name: balanced.shares for name, balanced, _ in balances(sources, tables)}
