"""CSV files row by row: every cell is the text that stands there, and a row that does not fit the header is named.

Readers that guess make 5 of 00005, take "NA" for nothing, and a first row with one cell too many for an index, which
shifts every column. Here the header decides:

- a row with more cells than the header is a fault, unless the extra cells are empty (a comma at each line's end);
- a row with fewer cells has empty ones;
- a header one name short, as R writes it beside its row names, makes every row a fault;
- a cell that is not UTF-8 is a fault of its row; a file in UTF-16 is refused as a whole;
- a quote that is never closed is an error: it would swallow the rest of the file in silence.
"""

import csv
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from datasets import Features
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import Csv
from datasets.utils.file_utils import xopen
from datasets.utils.version import Version

from trainer_ext.data.readers import FAULT, ROWS_AT_ONCE, reported

SEPARATORS = (",", ";", "\t", "|")
MAX_CELL = 2**24  # characters of one cell
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UTF_32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
# gzip, bzip2, xz, zstd, and zip, which an Excel workbook is, too.
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
_NOT_CLOSED = "unexpected end of data"


class _CellLimit:
    """Inside, cells may have ``MAX_CELL`` characters. The csv module's limit, 131,072, is one of the whole process."""

    def __init__(self) -> None:
        self._lock, self._found = threading.Lock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._found = csv.field_size_limit(MAX_CELL)

    def __exit__(self, *error: object) -> None:
        csv.field_size_limit(self._found)
        self._lock.release()


_LARGE_CELLS = _CellLimit()


class CsvRows(Csv):
    """CSV files as tables of ``config.features``, texts all of them. The base has files and shards."""

    VERSION = Version("2.0.0")  # a part of the cache's path: tables that an older reader made are not taken

    def _generate_tables(self, base_files: Any, files_iterables: Any) -> Iterator[tuple[Key, pa.Table]]:
        for shard, files in enumerate(files_iterables):
            for file in files:
                for number, table in enumerate(csv_tables(file, self.config.features, self.config.sep)):
                    yield Key(shard, number), table


def read_header(file: str, separator: str) -> list[str]:
    """The cells of the first row that is not blank."""
    return next((cells for _, cells in _records(file, separator)), [])


def separator_of(file: str, wanted: Sequence[str], suffix: str) -> str:
    """The separator that puts most of the ``wanted`` column names into the header; tabs for ``.tsv``."""
    if suffix == ".tsv":
        return "\t"
    return max(SEPARATORS, key=lambda separator: len(set(read_header(file, separator)) & set(wanted)))


def csv_tables(file: str, features: Features, separator: str, skip: int = 0) -> Iterator[pa.Table]:
    """The rows of one file from ``skip`` on, some at a time.

    Raises:
        ValueError: the file is UTF-16, a cell is longer than ``MAX_CELL``, or a quote is never closed.
    """
    records = _records(file, separator)
    header = next(records, (0, []))[1]
    names = [name for name in features if name != FAULT]
    places = {name: header.index(name) for name in names}
    schema = features.arrow_schema.remove_metadata()  # once: it takes half a second for 1,500 columns
    rows: list[list[str | None]] = []
    for number, (_, cells) in enumerate(records):
        if number < skip:
            continue
        rows.append(_row(cells, header, places))
        if len(rows) == ROWS_AT_ONCE:
            yield _table(rows, names, schema)
            rows = []
    if rows:
        yield _table(rows, names, schema)


def line_of(file: str, row: int, separator: str) -> int:
    """The line, from 1, on which a row, from 0, begins. Reads the file: for messages only."""
    records = _records(file, separator)
    next(records, None)
    return next((line for number, (line, _) in enumerate(records) if number == row), 0)


def _row(cells: list[str], header: list[str], places: dict[str, int]) -> list[str | None]:
    """The cells of ``places``, and the row's fault."""
    fault = None
    if any(cells[len(header) :]):
        fault = reported(
            "",
            f"{len(cells)} cells, but the header names {len(header)} columns, so it is unclear which cell is whose. "
            "Put a cell that holds the separator in quotes, or name every column.",
        )
    values: list[str | None] = []
    for name, place in places.items():
        cell = cells[place] if place < len(cells) else None
        if cell is not None and any("\udc80" <= letter <= "\udcff" for letter in cell):
            stored = cell.encode("utf-8", "surrogateescape")
            shown = stored if len(stored) <= 60 else stored[:57] + b"..."
            fault = fault or reported(
                name, f"{shown!r} is not UTF-8. Convert the file: iconv -f LATIN1 -t UTF-8, if that is what it is."
            )
            cell = None
        values.append(cell)
    return [*values, fault]


def _table(rows: list[list[str | None]], names: list[str], schema: pa.Schema) -> pa.Table:
    columns = dict(zip([*names, FAULT], zip(*rows, strict=True), strict=True))
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _records(file: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line that it begins on, from 1."""
    _refuse_other_kinds(file)
    held: list[str] = []  # the lines of the record that is being read
    with xopen(file, "r", encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:

        def kept() -> Iterator[str]:
            for line in lines:
                held.append(line)
                yield line

        reader = csv.reader(kept(), delimiter=separator)
        before = 0
        while True:
            held.clear()
            try:
                with _LARGE_CELLS:
                    cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"line {before + 1}: {error}") from None
            if cells is None:
                return
            if reader.line_num - before > 1 or not held[-1].endswith(("\n", "\r")):
                _refuse_open_quote(held, separator, before + 1)
            if cells:
                yield before + 1, cells
            before = reader.line_num


def _refuse_other_kinds(file: str) -> None:
    """Raise for what is no text in UTF-8: the header would be letters that nobody wrote."""
    with xopen(file, "rb") as lines:
        header = lines.read(2**16).partition(b"\n")[0]
    if header.startswith(_PACKED):
        raise ValueError("it is packed, or an Excel workbook. Unpack it, or save the sheet as CSV in UTF-8.")
    if header.startswith(_UTF_32):
        raise ValueError("it is UTF-32. Convert the file: iconv -f UTF-32 -t UTF-8")
    if header.startswith(_UTF_16):
        raise ValueError("it is UTF-16. Convert the file: iconv -f UTF-16 -t UTF-8")
    if b"\0" in header:
        kind = "UTF-16BE" if header.startswith(b"\0") else "UTF-16LE"
        raise ValueError(f"its header holds zero bytes, as in UTF-16. Convert the file: iconv -f {kind} -t UTF-8")


def _refuse_open_quote(lines: list[str], separator: str, line: int) -> None:
    """Only the last record of a file can have a quote that is never closed; the lenient reader would not say so."""
    try:
        with _LARGE_CELLS:
            list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        if str(error) == _NOT_CLOSED:
            raise ValueError(f"line {line}: a quote is opened and never closed") from None
