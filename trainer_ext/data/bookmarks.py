"""Notes of where the windows of a stream begin, so that a resumed run need not read from the first row on.

One line each, in the run's ``sources/streams/NAME.jsonl``: the numbers of a ``Bookmark``, and their checksum. A line
that is cut or damaged is no note: a wrong number in it would give the run other rows without a word.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple


class Bookmark(NamedTuple):
    """Where a window begins: its number in the epoch, the shard's place in the epoch's order, the row in that shard."""

    position: int
    epoch: int = 0
    window: int = 0
    shard: int = 0
    row: int = 0


class Bookmarks:
    """The bookmarks of one stream, those of earlier runs and other processes included.

    Args:
        file: where they are kept; None keeps them in memory.

    >>> marks = Bookmarks(None)
    >>> marks.note(Bookmark(100, window=1))
    >>> marks.last(99), marks.last(100)
    (Bookmark(position=0, epoch=0, window=0, shard=0, row=0), Bookmark(position=100, epoch=0, window=1, shard=0, row=0))
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._marks = {Bookmark(0)}
        self.damaged = 0
        if file is not None and file.is_file():
            lines = file.read_bytes().splitlines(keepends=True)
            found = [_read(line) for line in lines if line.endswith(b"\n")]  # the last one may be cut by a kill
            self.damaged = found.count(None)
            self._marks.update(mark for mark in found if mark is not None)

    def note(self, mark: Bookmark) -> None:
        """Keep a bookmark."""
        if self._file is None or mark in self._marks:
            self._marks.add(mark)
            return
        self._marks.add(mark)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut = size and os.pread(handle, 1, size - 1) != b"\n"
            # One write in append mode: lines of several processes follow each other and do not mix.
            os.write(handle, b"\n" * bool(cut) + _line(mark))
        finally:
            os.close(handle)

    def last(self, position: int) -> Bookmark:
        """The last bookmark at or before a position."""
        return max(mark for mark in self._marks if mark.position <= position)


def _line(mark: Bookmark) -> bytes:
    return json.dumps([*mark, _checksum(mark)]).encode() + b"\n"


def _checksum(mark: Any) -> int:
    return zlib.crc32(json.dumps(list(mark)).encode())


def _read(line: bytes) -> Bookmark | None:
    """The bookmark of a line; None for one that is damaged, or of an older version, which had no checksum."""
    try:
        *mark, checksum = json.loads(line)
        return Bookmark(*mark) if checksum == _checksum(mark) and len(mark) == len(Bookmark._fields) else None
    except (ValueError, TypeError, RecursionError):
        return None
