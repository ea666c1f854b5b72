"""Faults in the values of a table, found column by column without turning rows into Python objects."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_ext.data.readers import FAULT

# Begins our name of a column that is read beside those of the source's task; the data's own name follows.
LABEL = "label "

_TEXT_COLUMNS = ("caption", "query", "positive", "negatives", "text")


class Fault(NamedTuple):
    """The rows of a column, from 0 and in order, that share a fault, and the fault in words with its cure."""

    rows: np.ndarray
    column: str
    message: str


def find_faults(table: pa.Table, columns: Sequence[str], negatives: int | None = None) -> Iterator[Fault]:
    """Look through ``columns``, under our names; a row may have several faults.

    Args:
        negatives: how many each row must have; None for as many as most rows of this table.
    """
    for column in columns:
        values = table.column(column)
        for find, message in _CHECKS["label" if column.startswith(LABEL) else column]:
            rows = _rows(values, find)
            if len(rows):
                yield Fault(rows, column, message)
        if column == "negatives":
            yield from _uneven(values, negatives)
        if column == "score":
            yield from _no_numbers(values)
        if column == "margins":
            yield from _unlike_negatives(table)


def reported_faults(table: pa.Table, columns: Mapping[str, str]) -> Iterator[Fault]:
    """Faults that a reader reported of rows it could not read, in the mapped ``columns`` (ours to the data's)."""
    if FAULT not in table.column_names:
        return
    faults = table.column(FAULT)
    for row in _rows(faults, lambda chunk: ~_missing(chunk)).tolist():
        place, message = json.loads(faults[row].as_py())
        for ours, theirs in columns.items():
            if not place or theirs == place or theirs.startswith(f"{place}."):
                yield Fault(np.array([row]), ours, message)
                break


def texts_are_texts(table: pa.Table) -> bool:
    """No column of texts, under our names, holds values of another type; nulls are none."""
    types = [table.schema.field(name).type for name in _TEXT_COLUMNS if name in table.column_names]
    types = [getattr(type, "value_type", type) for type in types]
    return all(_is_text(type) or pa.types.is_null(type) for type in types)


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one source as one. Captions may be texts in some and lists in others; then they are lists in all."""
    if len({_is_list(table) for table in tables}) > 1:
        tables = [table if _is_list(table) else _with_lists(table) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _is_list(table: pa.Table) -> bool:
    return "caption" in table.column_names and hasattr(table.schema.field("caption").type, "value_type")


def _with_lists(table: pa.Table) -> pa.Table:
    texts = [None if text is None else [text] for text in table.column("caption").to_pylist()]
    place = table.column_names.index("caption")
    return table.set_column(place, "caption", pa.array(texts, pa.list_(pa.string())))


def usual_negatives(table: pa.Table) -> int | None:
    """How many negatives most rows have; None for a table without."""
    if "negatives" not in table.column_names:
        return None
    return int(np.bincount(_all_lengths(table.column("negatives"))).argmax())


def _rows(values: pa.ChunkedArray, find: Callable[[pa.Array], np.ndarray]) -> np.ndarray:
    """Row numbers that ``find`` marks, chunk by chunk: a chunk is what is held in memory at once."""
    return np.concatenate([begin + np.flatnonzero(find(chunk)) for begin, chunk in _chunks(values)])


def _chunks(values: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    begin = 0
    for chunk in values.chunks:
        yield begin, chunk
        begin += len(chunk)


def _missing(chunk: pa.Array) -> np.ndarray:
    return pc.is_null(chunk).to_numpy(zero_copy_only=False)


def _no_image(chunk: pa.Array) -> np.ndarray:
    """Neither bytes nor a path."""
    nothing = [_blank_binary(chunk.field("bytes")), _blank(chunk.field("path"))]
    return _missing(chunk) | (nothing[0] & nothing[1])


def _blank_binary(values: pa.Array) -> np.ndarray:
    return pc.equal(pc.fill_null(pc.binary_length(values), 0), 0).to_numpy(zero_copy_only=False)


def _blank(values: pa.Array) -> np.ndarray:
    """Texts that are null, empty, or white space only."""
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(values, ""))
    return pc.equal(pc.binary_length(trimmed), 0).to_numpy(zero_copy_only=False)


def _no_text(chunk: pa.Array) -> np.ndarray:
    """Rows whose text is blank; for lists, rows without a text or with a blank one among them."""
    return _of_each(chunk, _blank)


def _no_value(chunk: pa.Array) -> np.ndarray:
    """Rows without a value to balance by."""
    return _of_each(chunk, _no_id)


def _of_each(chunk: pa.Array, find: Callable[[pa.Array], np.ndarray]) -> np.ndarray:
    """What ``find`` marks; of lists those that are empty, or hold an item that it marks."""
    if not isinstance(chunk, pa.ListArray | pa.LargeListArray):
        return find(chunk)
    marked = _lengths(chunk) == 0
    parents = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
    marked[parents[find(pc.list_flatten(chunk))]] = True
    return marked


def as_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Scores that are written as texts, as numbers; null for those that are none.

    >>> as_numbers(pa.chunked_array([["1.50", "-2e3", "high", " "]])).to_pylist()
    [1.5, -2000.0, None, None]
    """
    if not _is_text(values.type):
        return values
    return pa.array([_number(text) for text in values.to_pylist()], pa.float64())


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _no_numbers(values: pa.ChunkedArray) -> Iterator[Fault]:
    """Scores that are texts and no numbers, value by value."""
    if not _is_text(values.type):
        return
    found: dict[str, list[int]] = {}
    for row, text in enumerate(values.to_pylist()):
        number = _number(text)
        if (text or "").strip() and (number is None or not np.isfinite(number)):
            found.setdefault(text, []).append(row)
    for text, rows in found.items():
        yield Fault(np.array(rows), "score", f"{text!r} is no finite number. Correct it or remove the row.")


def _no_id(chunk: pa.Array) -> np.ndarray:
    return _blank(chunk) if _is_text(chunk.type) else _missing(chunk)


def _no_number(chunk: pa.Array) -> np.ndarray:
    if _is_text(chunk.type):
        return _blank(chunk)
    return ~pc.fill_null(pc.is_finite(chunk), False).to_numpy(zero_copy_only=False)


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of numbers.

    >>> is_numbers(pa.list_(pa.int32())), is_numbers(pa.list_(pa.string())), is_numbers(pa.float32())
    (True, False, False)
    """
    inner, types = getattr(kind, "value_type", None), pa.types
    return inner is not None and any(
        is_kind(inner) for is_kind in (types.is_floating, types.is_integer, types.is_decimal)
    )


def _no_margins(chunk: pa.Array) -> np.ndarray:
    """Rows without a list of numbers, or with one among them that is missing or not finite."""
    if not is_numbers(chunk.type):
        return np.ones(len(chunk), bool)
    marked = _lengths(chunk) == 0
    parents = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
    finite = pc.fill_null(pc.is_finite(pc.list_flatten(chunk)), False).to_numpy(zero_copy_only=False)
    marked[parents[~finite]] = True
    return marked


def _lengths(chunk: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)


def _all_lengths(values: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([_lengths(chunk) for chunk in values.chunks])


def _uneven(values: pa.ChunkedArray, usual: int | None) -> Iterator[Fault]:
    lengths = _all_lengths(values)
    usual = int(np.bincount(lengths).argmax()) if usual is None else usual
    for other in np.unique(lengths[(lengths != usual) & (lengths > 0)]):  # none at all is an empty text already
        message = f"{other} negatives, but other rows have {usual}. Give every row the same number."
        yield Fault(np.flatnonzero(lengths == other), "negatives", message)


def _unlike_negatives(table: pa.Table) -> Iterator[Fault]:
    """Margins that are not one for each negative, or of a picture with several captions: which one are they of?"""
    if not is_numbers(table.column("margins").type):
        return
    found, wanted = (_all_lengths(table.column(name)) for name in ("margins", "negatives"))
    unlike = (found != wanted) & (found > 0) & (wanted > 0)  # none at all is a fault already
    for pair in np.unique(np.stack([found, wanted])[:, unlike], axis=1).T:
        message = f"{pair[0]} margins, but {pair[1]} negatives. Give one for each."
        yield Fault(np.flatnonzero(unlike & (found == pair[0]) & (wanted == pair[1])), "margins", message)
    if _is_list(table):
        several = np.flatnonzero(_all_lengths(table.column("caption")) > 1)
        message = "margins are of one caption, and there are several. Give each a row, or take margins out of columns."
        if len(several):
            yield Fault(several, "margins", message)


_EMPTY = "empty text. Fill it or remove the row."
_CHECKS: dict[str, list[tuple[Callable[[pa.Array], np.ndarray], str]]] = {
    "image": [(_no_image, "no image: neither bytes nor a path. Fill it or remove the row.")],
    "id": [(_no_id, "no id. Fill it, or take id out of the source's columns.")],
    "caption": [(_no_text, _EMPTY)],
    "query": [(_no_text, _EMPTY)],
    "positive": [(_no_text, _EMPTY)],
    "negatives": [(_no_text, _EMPTY)],
    "text": [(_no_text, _EMPTY)],
    "balance": [(_no_value, "no value to balance by. Fill it or remove the row.")],
    "label": [(_no_id, "no value. Fill it or remove the row.")],
    "margins": [(_no_margins, "no list of finite numbers. Fill it or remove the row.")],
    "score": [(_no_number, "no finite number. Fill it or remove the row.")],
}
