"""Where a row lies: its file, its number and its line in there. For messages and lists of rows."""

import glob
from bisect import bisect_right
from pathlib import Path

import pyarrow.parquet as pq

from trainer_ext.data.csv_reader import line_of, separator_of
from trainer_ext.data.formats import SUFFIXES, Opened, Unreadable, prepare, source_files
from trainer_ext.data.readers import json_line_of
from trainer_ext.recipe.schema import Source


def where_to_look(source: Source, file: str, row: int) -> str:
    """How to find a row that a message names: what its number counts from, and its line in a file that has lines."""
    line = 0
    suffix = Path(file).suffix.lower()
    try:
        if suffix in SUFFIXES["csv"]:
            separator = source.separator or separator_of(file, list(source.columns.values()), suffix)
            line = line_of(file, row, separator)
        elif suffix in (".json", ".jsonl"):
            line = json_line_of(file, row)
    except (OSError, ValueError):  # a message about a file need not read it
        pass
    return f"(Rows count from 0; this one begins on line {line:,}.)" if line else "(Rows count from 0.)"


def locate_row(source: Source, row: int) -> tuple[str, int]:
    """File of a row of a loaded source, and its number in there, from 0. Reads each file once: for messages only."""
    return RowPlaces(source)(row)


class RowPlaces:
    """``locate_row`` for many rows of one source: its files are listed once, and counted as far as it is asked."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = [] if source.format == "hub" else source_files(source)
        self._begins = [0]  # first row of each file, and of the one behind the last that was counted

    def __call__(self, row: int) -> tuple[str, int]:
        """File of a row, by its number in the whole source, and its number in there."""
        source = self._source
        if not self._files:
            return f"{source.location} at {source.revision}, split {source.split}", row
        while row >= self._begins[-1] and len(self._begins) < len(self._files):
            self._begins.append(self._begins[-1] + _row_count(source, self._files[len(self._begins) - 1]))
        place = bisect_right(self._begins, row) - 1
        return str(self._files[place]), row - self._begins[place]


_COUNTED: dict[tuple[str, str, int], int] = {}


def _row_count(source: Source, path: Path) -> int:
    place = (source.name, str(path), path.stat().st_mtime_ns)
    if place not in _COUNTED and path.suffix.lower() == ".parquet":
        _COUNTED[place] = pq.read_metadata(path).num_rows
    if place not in _COUNTED:
        opened = Opened(source.model_copy(update={"location": glob.escape(str(path)), "format": _format(path)}))
        try:
            prepare(opened)
        except Unreadable:
            if not opened.by_lines():
                raise
            prepare(opened)
        _COUNTED[place] = opened.builder.info.splits["train"].num_examples
    return _COUNTED[place]


def _format(path: Path) -> str:
    return next(name for name, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes)
