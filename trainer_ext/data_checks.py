"""Faults in the values of a table, found column by column without turning rows into Python objects."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.table import Table


class Fault(NamedTuple):
    """The first faulty row of a column, how many rows share the fault, and the fault in words with its cure."""

    row: int
    column: str
    count: int
    message: str


def first_fault(table: Table, columns: Sequence[str]) -> Fault | None:
    """Look through ``columns``, under our names, and stop at the first with a fault."""
    for column in columns:
        values = table.column(column)
        for find, message in _CHECKS[column]:
            rows = _rows(values, find)
            if len(rows):
                return Fault(int(rows[0]), column, len(rows), message)
        if column == "negatives":
            fault = _uneven(values)
            if fault is not None:
                return fault
    return None


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
    if not isinstance(chunk, pa.ListArray | pa.LargeListArray):
        return _blank(chunk)
    marked = _lengths(chunk) == 0
    parents = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
    marked[parents[_blank(pc.list_flatten(chunk))]] = True
    return marked


def _no_number(chunk: pa.Array) -> np.ndarray:
    return ~pc.fill_null(pc.is_finite(chunk), False).to_numpy(zero_copy_only=False)


def _lengths(chunk: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)


def _uneven(values: pa.ChunkedArray) -> Fault | None:
    lengths = np.concatenate([_lengths(chunk) for chunk in values.chunks])
    rows = np.flatnonzero(lengths != lengths[0])
    if not len(rows):
        return None
    return Fault(
        int(rows[0]), "negatives", len(rows),
        f"{lengths[rows[0]]} negatives, but the rows before have {lengths[0]}. Give every row the same number.",
    )  # fmt: skip


_EMPTY = "empty text. Fill it or remove the row."
_CHECKS: dict[str, list[tuple[Callable[[pa.Array], np.ndarray], str]]] = {
    "image": [(_no_image, "no image: neither bytes nor a path. Fill it or remove the row.")],
    "id": [(_missing, "no id. Fill it, or take id out of the source's columns.")],
    "caption": [(_no_text, _EMPTY)],
    "query": [(_no_text, _EMPTY)],
    "positive": [(_no_text, _EMPTY)],
    "negatives": [(_no_text, _EMPTY)],
    "score": [(_no_number, "no finite number. Fill it or remove the row.")],
}
