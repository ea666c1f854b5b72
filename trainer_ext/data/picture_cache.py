"""Fitted pictures kept on disk between epochs and runs: ``image_cache`` of a recipe. Only the time of a run changes.

1. A picture's name is a hash of its encoded bytes and of all that decides its pixels (``pictures``), and its size.
2. Its file is a checksum and then the pixels, (size, size, 3) uint8. It appears under its name when it is whole. One
   that a crash or a full disk has cut or damaged does not fit its checksum: it counts as absent, and is written again.
3. The names lie in 256 folders, each with its share of the limit, so any number of processes keep to it without a word
   between them: who adds a picture lists one small folder. Two that add at once may exceed it by one picture each.
4. A full folder makes room by removing what was not used since this run began, oldest first. What the run has used
   stays: it comes again in every epoch, and the pictures that found no room are decoded.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from trainer_ext.files import PARTIAL_SUFFIX, words_of, write_whole

logger = logging.getLogger(__name__)

FOLDERS = 256
_CHECKSUM = 16  # bytes
_NAME = re.compile(r"[0-9a-f]{32}-(\d{1,4})\.rgb")
# Seconds after which a temporary file is one of a process that was killed.
_LEFT_BEHIND = 600


class PictureCache:
    """Fitted pictures by name, in a folder of at most ``max_bytes``. Copies in other processes share the folder.

    Args:
        folder: made when the first picture is kept.
        max_bytes: all files together; what the file system needs for each comes on top.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = PictureCache(Path(folder), max_bytes=10**6)
    ...     cache.put("0" * 32, np.ones((2, 2, 3), np.uint8))
    ...     cache.get("0" * 32, 2).tolist(), cache.get("1" * 32, 2)
    ([[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]], None)
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._share = max_bytes // FOLDERS
        self._begun = time.time()
        self._full: set[str] = set()  # folders in which this run has used all there is
        self._writes = True

    def get(self, name: str, size: int) -> np.ndarray | None:
        """The picture (size, size, 3), or None."""
        path = self._path(name, size)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if len(content) != stored_bytes(size) or content[:_CHECKSUM] != _checksum(content[_CHECKSUM:]):
            return None
        with suppress(OSError):  # another process may have removed it, and a folder may be shared for reading alone
            os.utime(path)
        return np.frombuffer(content, dtype=np.uint8, offset=_CHECKSUM).reshape(size, size, 3)

    def put(self, name: str, pixels: np.ndarray) -> None:
        """Keep a picture, if there is room. A disk that refuses it ends no run: one line, and nothing more is kept."""
        path = self._path(name, len(pixels))
        if not self._writes or path.parent.name in self._full:
            return
        raw = pixels.tobytes()
        try:
            if self._make_room(path, stored_bytes(len(pixels))):
                write_whole(path, _checksum(raw) + raw, flush=False)
            else:
                self._full.add(path.parent.name)
        except OSError as error:
            self._writes = False
            logger.warning("image_cache: %s; no more pictures are kept, and training goes on", words_of(error))

    def _path(self, name: str, size: int) -> Path:
        return self._folder / name[:2] / f"{name}-{size}.rgb"

    def _make_room(self, path: Path, needed: int) -> bool:
        """Whether the file fits into its folder's share, after the removal of files that this run has not used."""
        held = {other: size for other, size in _held(path.parent) if other != path.name}
        over = sum(held.values()) + needed - self._share
        if over <= 0:
            return True
        unused = sorted((used, other) for other in held if (used := _used(path.parent / other)) < self._begun)
        for _, other in unused:
            (path.parent / other).unlink(missing_ok=True)
            over -= held[other]
            if over <= 0:
                return True
        return False


def stored_bytes(size: int) -> int:
    """Bytes of a kept picture of ``size`` x ``size`` pixels.

    >>> stored_bytes(224)
    150544
    """
    return _CHECKSUM + 3 * size * size


def least_gigabytes(size: int) -> float:
    """The smallest limit at which every folder has room for some pictures of ``size`` x ``size`` pixels.

    >>> least_gigabytes(224), least_gigabytes(64)
    (0.4, 0.1)
    """
    return -(-FOLDERS * 8 * stored_bytes(size) // 10**8) / 10


def _held(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of a folder's pictures, told by the names alone; removes what killed processes have left."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                yield entry.name, stored_bytes(int(match[1]))
            elif entry.name.endswith(PARTIAL_SUFFIX) and _used(Path(entry)) < time.time() - _LEFT_BEHIND:
                Path(entry).unlink(missing_ok=True)


def _used(path: Path) -> float:
    """When a file was last used; infinitely late if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _checksum(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_CHECKSUM).digest()
