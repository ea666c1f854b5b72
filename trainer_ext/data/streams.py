"""Streaming sources: rows read one after the other, of unknown number, and still the same rows at every step.

A stream is an endless sequence, a function of the seed and the data alone:

1. In each epoch the shards (files) follow each other in an order drawn from (seed, source, epoch).
2. Their rows are taken in windows of ``shuffle_buffer`` rows, across shard borders. Rows that cannot be used are left
   out, the rest is put into an order drawn from (seed, source, epoch, window). Images are bytes here, not pixels.
3. Position p of the sequence is the p-th row of all windows, epoch after epoch.

Every process and every loader worker reads the whole stream and keeps the rows of its own steps: with one process or
eight, no worker or four, the steps are the same. Skipped windows are read and checked, but their images not decoded.
To resume, a reader starts at the last bookmark before its position: the run's folder notes where each window began.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import ArrowBasedBuilder, Features, Image
from datasets.packaged_modules.json.json import Json

from trainer_ext.data.bookmarks import Bookmark, Bookmarks
from trainer_ext.data.broken_rows import BrokenRow, BrokenRows
from trainer_ext.data.columns import mapped_columns, usual_types, usual_values
from trainer_ext.data.faults import (
    as_numbers,
    concatenated,
    find_faults,
    reported_faults,
    texts_are_texts,
    usual_negatives,
)
from trainer_ext.data.formats import READ_ERRORS, DataError, Opened, Unreadable, unreadable
from trainer_ext.data.images import (
    IMAGE_ERRORS,
    Opener,
    missing_files,
    open_image,
    paths_without_bytes,
    stored_with_absolute_paths,
    undecodable,
)
from trainer_ext.data.readers import FAULT, json_features, json_tables
from trainer_ext.recipe.schema import SHUFFLE_BUFFER, Source

# First words of a stream's seeds; plan.py has 1 and 2.
_ORDER_OF_SHARDS, _ORDER_IN_WINDOW = 3, 4
_READ_AT_ONCE = 1000
# A row's number in its shard and the shard's own one, as one whole number.
_SHARD = 2**40


class _Window(NamedTuple):
    """Usable rows in their shuffled order, and their identities (shard * 2**40 + row in the shard)."""

    begin: Bookmark
    end: Bookmark
    table: pa.Table
    identities: np.ndarray


class StreamRow(NamedTuple):
    """A row of a stream, the epoch it was read in, and its identity: the same in every epoch."""

    epoch: int
    identity: int
    row: dict[str, Any]


class SourceStream:
    """The rows of a streaming source by their position. Opens the source at once: names and types are checked here.

    Args:
        broken: where rows that cannot be used are listed, and counted against the source's budget.
        bookmarks: a folder for the notes that make resuming cheap; None for no notes.

    Raises:
        DataError: no such file, data set, split or column, a wrong type, or (when read) a row that cannot be used.
    """

    def __init__(self, source: Source, seed: int, broken: BrokenRows | None = None, bookmarks: Path | None = None):
        self.source = source
        self.broken = BrokenRows(None) if broken is None else broken
        self.bookmarks = bookmarks
        name = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8])
        self._seed = [seed, name]
        self._buffer = source.shuffle_buffer or SHUFFLE_BUFFER
        self._opened = Opened(source)
        try:
            self._open()
        except Unreadable:
            if not self._opened.by_lines():
                raise
            self._open()
        self._window: _Window | None = None
        self._windows: Iterator[_Window] | None = None
        self._kept: Bookmarks | None = None

    @property
    def files(self) -> list[str]:
        """The files that the stream reads, in the order of its shards."""
        return self._opened.files

    def __getstate__(self) -> dict[str, Any]:
        """Without the place it has come to: the copy in a worker starts anew."""
        return {**self.__dict__, "_window": None, "_windows": None}

    def read(self, positions: Sequence[int], opener: Opener = open_image) -> list[StreamRow]:
        """The rows at ``positions``, images decoded. Going forward is cheap, going back starts at a bookmark.

        A row whose image cannot be decoded is replaced by another one of its window, the same one in every process.

        Raises:
            DataError: more rows that cannot be used than the source's budget allows.
        """
        return [self._row(position, opener) for position in positions]

    def first_rows(self, number: int) -> pa.Table:
        """Rows from the beginning of the first shard, with our names: at most ``number`` of them, usable or not."""
        held: list[pa.Table] = []
        for table in self._rest(0, 0):
            held.append(table.slice(0, number - sum(map(len, held))))
            if sum(map(len, held)) == number:
                break
        return concatenated(held)

    def tables(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Every row that can be used once, in the order of the files: identities (rows,), and images as stored.

        Raises:
            DataError: more rows that cannot be used than the source's budget allows.
        """
        for shard in range(self._shards):
            row = 0
            for table in self._rest(shard, 0):
                identities = shard * _SHARD + np.arange(row, row + len(table))
                row += len(table)
                good = self._usable(table, identities)
                yield identities[good], _finished(table.take(good))

    def place(self, identity: int) -> tuple[str, int]:
        """The file of a row of this stream, and its number in there, from 0."""
        shard, row = divmod(identity, _SHARD)
        return self._file(shard), row

    # --- before the first step -----------------------------------------------------------------------------------

    def _open(self) -> None:
        self._dataset = self._opened.stream()
        self._arrow = isinstance(self._opened.builder, ArrowBasedBuilder)
        self._first_look()

    def _first_look(self) -> None:
        """Columns and types, told by the first rows where the format does not tell them."""
        features = self._dataset.features
        if features is None:
            first = next(self._tables(0), None)
            if first is None:
                raise DataError(f"Source {self.source.name!r}: {self._opened.name} holds no rows. Fill it.")
            features = Features.from_arrow_schema(first.schema)
        columns = mapped_columns(self._opened, features)
        found = {ours: _nested_feature(features, theirs) for ours, theirs in columns.items()}
        usual_types(self._opened, Features(found))
        self._columns = columns
        self._negatives: int | None = None
        if "negatives" in columns:  # the first rows say how many each must have
            self._negatives = usual_negatives(self._ours(next(self._tables(0))))

    # --- windows -------------------------------------------------------------------------------------------------

    def _row(self, position: int, opener: Opener) -> StreamRow:
        window = self._window_at(position)
        offset = position - window.begin.position
        while True:
            row = window.table.slice(offset, 1).to_pylist()[0]
            if "image" not in row:
                break
            try:
                row["image"], row["image_label"] = opener(row["image"], self.source.background)
                break
            except IMAGE_ERRORS as error:
                reason = undecodable(row["image"]["path"], error)
                self.broken.add(self.source, self._broken_row(int(window.identities[offset]), "image", reason))
                offset = (offset + 1) % len(window.table)
        return StreamRow(window.begin.epoch, int(window.identities[offset]), row)

    def _window_at(self, position: int) -> _Window:
        if self._window is None or self._windows is None or position < self._window.begin.position:
            self._windows = self._windows_from(self._marks().last(position))
            self._window = next(self._windows)
        while position >= self._window.end.position:
            self._window = next(self._windows)
        return self._window

    def _windows_from(self, mark: Bookmark) -> Iterator[_Window]:
        while True:
            begin = mark
            for window in self._epoch(mark):
                self._marks().note(window.begin)
                mark = window.end
                if len(window.table):
                    yield window
            if mark.position == begin.position and begin.row == begin.shard == 0:
                raise DataError(f"Source {self.source.name!r}: {self._opened.name} holds no row that can be used.")
            mark = Bookmark(mark.position, mark.epoch + 1)

    def _epoch(self, mark: Bookmark) -> Iterator[_Window]:
        """The windows of one epoch from a bookmark on."""
        shards = np.random.default_rng([*self._seed, _ORDER_OF_SHARDS, mark.epoch]).permutation(self._shards)
        held: list[pa.Table] = []
        numbers: list[np.ndarray] = []
        count, row = 0, mark.row
        for place in range(mark.shard, self._shards):
            shard = int(shards[place])
            for table in self._rest(shard, row):
                while len(table):
                    part = table.slice(0, self._buffer - count)
                    held.append(part)
                    numbers.append(shard * _SHARD + np.arange(row, row + len(part)))
                    count, row, table = count + len(part), row + len(part), table.slice(len(part))
                    if count == self._buffer:
                        end = mark._replace(window=mark.window + 1, shard=place, row=row)
                        yield (window := self._made(mark, end, held, numbers))
                        mark, held, numbers, count = window.end, [], [], 0
            row = 0
        if held:
            yield self._made(mark, mark._replace(window=mark.window + 1, shard=self._shards), held, numbers)

    def _made(self, begin: Bookmark, end: Bookmark, held: list[pa.Table], numbers: list[np.ndarray]) -> _Window:
        """Leave out what cannot be used, shuffle the rest."""
        table, identities = concatenated(held), np.concatenate(numbers)
        good = self._usable(table, identities)
        order = np.random.default_rng([*self._seed, _ORDER_IN_WINDOW, begin.epoch, begin.window]).permutation(good)
        end = end._replace(position=begin.position + len(order))
        return _Window(begin, end, _finished(table.take(order)), identities[order])

    def _usable(self, table: pa.Table, identities: np.ndarray) -> np.ndarray:
        faults = list(reported_faults(table, self.source.columns))
        faults += find_faults(table, [name for name in table.column_names if name != FAULT], self._negatives)
        if "image" in table.column_names:
            dataset = self.source.location if self.source.format == "hub" else None
            faults += missing_files(paths_without_bytes(table.column("image")), dataset)
        broken: set[int] = set()
        for fault in faults:
            for row in fault.rows.tolist():
                if row not in broken:
                    broken.add(row)
                    self.broken.add(self.source, self._broken_row(int(identities[row]), fault.column, fault.message))
        return np.setdiff1d(np.arange(len(table)), list(broken))

    def _broken_row(self, identity: int, column: str, reason: str) -> BrokenRow:
        file, row = self.place(identity)
        return BrokenRow(self.source.name, file, row, self.source.columns[column], reason)

    # --- tables --------------------------------------------------------------------------------------------------

    @property
    def _shards(self) -> int:
        return self._dataset.num_shards

    def _file(self, shard: int) -> str:
        """What a shard is called in messages."""
        files = self._opened.files
        return files[shard] if len(files) == self._shards else f"{self._opened.name}, shard {shard}"

    def _tables(self, number: int, skip: int = 0) -> Iterator[pa.Table]:
        """A shard's rows from ``skip`` on, some at a time, as the data names them."""
        shard = self._dataset.shard(num_shards=self._shards, index=number)
        shard = shard.skip(skip) if skip else shard
        try:
            if self._arrow:
                yield from shard.with_format("arrow").iter(_READ_AT_ONCE)
                return
            # Formats read row by row may have another order of columns in each row. Iterated by ``iter``, as above:
            # iter(shard) would deal the shard's rows out to the loader's workers. One row at a time, because early
            # versions of ``datasets`` want batches of one order.
            rows = ({name: values[0] for name, values in one.items()} for one in shard.decode(False).iter(1))
            features = self._dataset.features
            schema = None if features is None else features.arrow_schema
            while batch := list(islice(rows, min(_READ_AT_ONCE, self._buffer))):
                yield pa.Table.from_pylist(batch, schema=schema)
        except READ_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise unreadable(self._opened, error, self._file(number)) from error

    def _check_block(self, table: pa.Table, shard: int) -> None:
        """What ``datasets`` lets pass: a block of numbers between blocks of texts, and bytes that are no UTF-8."""
        try:
            table.validate(full=True)
            if not texts_are_texts(table):
                raise ValueError(f"numbers among texts ({table.schema.to_string(show_schema_metadata=False)})")
        except (ValueError, pa.ArrowInvalid) as error:
            raise unreadable(self._opened, error, self._file(shard)) from error

    def _rest(self, number: int, row: int) -> Iterator[pa.Table]:
        """A shard's rows under our names. Where its reader gives up, its lines are read one by one from there on."""
        try:
            for table in self._tables(number, row):
                ours = self._ours(table)
                self._check_block(ours, number)
                row += len(ours)
                yield ours
        except Unreadable:
            if self.source.format == "hub" or not isinstance(self._opened.builder, Json):
                raise
            for table in json_tables(self._file(number), json_features(self._columns), row):
                yield self._ours(table)

    def _ours(self, table: pa.Table) -> pa.Table:
        """The mapped columns under our names; images as ``datasets`` stores them, with absolute paths."""
        found: dict[str, pa.ChunkedArray | pa.Array] = {}
        for ours, theirs in self._columns.items():
            flat = table
            while theirs not in flat.column_names and any(pa.types.is_struct(type) for type in flat.schema.types):
                flat = flat.flatten()
            # A file without the column has rows without a value.
            found[ours] = flat.column(theirs) if theirs in flat.column_names else pa.nulls(len(table), pa.string())
        if FAULT in table.column_names:
            found[FAULT] = table.column(FAULT)
        found |= {ours: usual_values(ours, found[ours]) for ours in self._columns}
        if "image" in found:
            found["image"] = self._stored_images(found["image"])
        return pa.table(found)

    def _stored_images(self, column: pa.ChunkedArray) -> pa.Array:
        stored = Image().cast_storage(column.combine_chunks())
        if self.source.format == "hub":
            return stored
        return stored_with_absolute_paths(stored, self._opened.folder, self.source.name)

    # --- bookmarks -----------------------------------------------------------------------------------------------

    def _marks(self) -> Bookmarks:
        """The notes of earlier runs and other processes when this one began to read, and its own."""
        if self._kept is None:
            self._kept = Bookmarks(None if self.bookmarks is None else self.bookmarks / f"{self.source.name}.jsonl")
        return self._kept

    def damaged_bookmarks(self) -> int:
        """Notes of the run so far that cannot be read: its rows are the same, but found again from an earlier one."""
        return self._marks().damaged


def _finished(table: pa.Table) -> pa.Table:
    """Rows that are known to be good: nothing about faults, scores as numbers."""
    if FAULT in table.column_names:
        table = table.drop_columns([FAULT])
    if "score" in table.column_names:
        table = table.set_column(table.column_names.index("score"), "score", as_numbers(table.column("score")))
    return table


def _nested_feature(features: Any, name: str) -> Any:
    while name not in features:
        outer = next(key for key in features if name.startswith(f"{key}."))
        features, name = features[outer], name.removeprefix(f"{outer}.")
    return features[name]
