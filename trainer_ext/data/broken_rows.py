"""Rows that cannot be used: left out within the source's budget, each of them listed in the run's folder."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trainer_ext.data.formats import DataError
from trainer_ext.data.places import where_to_look
from trainer_ext.recipe.schema import Source

BROKEN_ROWS_FILE = "broken_rows.jsonl"


class BrokenRow(NamedTuple):
    """A row that cannot be used: its number in its file, from 0, the data's own name of the column, and why."""

    source: str
    file: str
    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"Source {self.source!r}, {self.file}, row {self.row}, column {self.column!r}: {self.reason}"


class BrokenRows:
    """The list of broken rows, shared by all processes of a run through a file of JSON lines.

    A row counts once, however often it is met; a resumed run continues the list. Rows found while the data are read
    are held until ``write``, because the run's folder is not touched before the first step.

    Args:
        path: the file; None keeps the list in memory.

    >>> columns = {"query": "q", "positive": "a"}
    >>> source = Source(name="pairs", task="text-pair", location="x", format="csv", columns=columns, max_broken_rows=1)
    >>> broken = BrokenRows(None)
    >>> broken.add(source, BrokenRow("pairs", "x.csv", 7, "q", "empty text."))
    >>> broken.add(source, BrokenRow("pairs", "x.csv", 9, "q", "empty text."))
    Traceback (most recent call last):
    trainer_ext.data.formats.DataError: Source 'pairs', x.csv, row 9, column 'q': empty text. 2 rows of the source cannot be used, but its max_broken_rows is 1. (Rows count from 0.)
    """  # noqa: E501

    def __init__(self, path: str | os.PathLike | None) -> None:
        self._path = None if path is None else Path(path)
        self._known: dict[tuple[str, str, int], BrokenRow] = {}

    def keep_in(self, path: Path) -> None:
        """List the rows in this file from now on."""
        self._path = path

    def found(self, source: Source, rows: Iterable[BrokenRow]) -> None:
        """Take note of rows met while the data are read; their number was checked there."""
        self._known.update({row[:3]: row for row in rows})

    def write(self) -> None:
        """Put what was found while reading into the file. One process does this."""
        waiting = [row for place, row in self._known.items() if place not in self._read()]
        self._append(waiting)

    def add(self, source: Source, row: BrokenRow) -> None:
        """List a row met while training.

        Raises:
            DataError: it is one more than the source's ``max_broken_rows``.
        """
        if source.max_broken_rows == 0:
            raise DataError(f"{row} {where_to_look(source, row.file, row.row)}")
        if row[:3] in self._known:
            return
        # Written before it is counted: of several processes, the last one sees all rows.
        if row[:3] not in self._read():
            self._append([row])
        self._known |= {row[:3]: row, **self._read()}
        count = sum(place[0] == source.name for place in self._known)
        if count > source.max_broken_rows:
            raise DataError(f"{row} {over_budget(source, count)} {where_to_look(source, row.file, row.row)}")

    def counts(self) -> dict[str, int]:
        """Broken rows of each source that has any."""
        rows = self._known | self._read()
        names = [place[0] for place in rows]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def _read(self) -> dict[tuple[str, str, int], BrokenRow]:
        if self._path is None or not self._path.is_file():
            return {}
        text = self._path.read_text(encoding="utf-8", errors="replace")
        # A line that a kill or a full disk cut is none: whoever meets that row again, lists it again.
        rows = [row for line in text.splitlines() if (row := _listed(line)) is not None]
        return {row[:3]: row for row in rows}

    def _append(self, rows: list[BrokenRow]) -> None:
        if self._path is None or not rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
        # One write in append mode: lines of several processes follow each other and do not mix.
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                lines = "\n" + lines  # behind a line that was cut
            os.write(handle, lines.encode())
        finally:
            os.close(handle)


def _listed(line: str) -> BrokenRow | None:
    try:
        return BrokenRow(**json.loads(line))
    except (ValueError, TypeError):
        return None


def over_budget(source: Source, count: int) -> str:
    """The words for more broken rows than allowed."""
    return f"{count:,} rows of the source cannot be used, but its max_broken_rows is {source.max_broken_rows}."
