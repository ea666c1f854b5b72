"""One process at a time: who works in a folder, and a word for whoever waits for another process.

The lock is the kernel's, on ``.NAME.lock`` beside the folder: it ends with its process, however that ends. What the
kernel does not tell, who holds it, stands in ``.NAME.lock.json``. Both are gone when the holder has left in order.
"""

import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainer_ext.files import write_json

# Seconds to wait for the lock of a process that is gone: its loader's workers have the lock, too, until they notice.
_ORPHANS = 20.0


class FolderInUseError(ValueError):
    """Another process works in the folder; the message tells which one, and since when."""


@contextmanager
def held(folder: str | Path, command: Sequence[str], say: Callable[[str], object]) -> Iterator[None]:
    """Inside the block the folder is this process's alone. The folder need not exist, and nothing is written into it.

    Args:
        command: what holds it, in words for whoever finds it held.
        say: gets one line if a process that held it has ended without giving it back.

    Raises:
        FolderInUseError: another process holds it.

    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> with held(folder, ["train", "my.yaml"], print):
    ...     with held(folder, ["train", "other.yaml"], print):
    ...         pass
    Traceback (most recent call last):
    trainer_ext.locks.FolderInUseError: .../run is in use by process ... since ... (train my.yaml). Wait until it ...
    """
    folder = Path(os.path.realpath(folder))
    made = [parent for parent in folder.parents if not parent.exists()]
    place = _place(folder)
    note = place.with_name(f"{place.name}.json")
    lock = FileLock(place)
    try:
        _take(lock, folder, note)
    except NotImplementedError:  # a file system without locks
        say(f"{folder} lies where files cannot be locked: nothing keeps a second process out of it")
    try:
        if (before := _read(note)) is not None:
            say(f"{folder} was in use by {_words(before)}, which ended without giving it back; taken over")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(note, {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": [*command]})
        yield
    finally:
        if lock.is_locked:
            note.unlink(missing_ok=True)
            place.unlink(missing_ok=True)  # while it is held: whoever opened it before finds it gone, and tries again
        lock.release()
        for parent in made:  # folders for the lock alone
            with suppress(OSError):
                parent.rmdir()


def _place(folder: Path) -> Path:
    """The lock's file; where nothing may be written beside the folder, in the system's folder for temporary files."""
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if os.access(parent, os.W_OK):
            return parent / f".{folder.name}.lock"
    except OSError:
        pass
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f".jina-clip-{name}.lock"


def _take(lock: FileLock, folder: Path, note: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(note)
        try:
            lock.acquire(timeout=_ORPHANS if holder is not None and _has_ended(holder) else 0)
        except Timeout:
            raise FolderInUseError(
                f"{folder} is in use by {_words(_read(note))}. Wait until it has ended, or name another folder"
            ) from None


def _read(note: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process was one of this machine and is none any more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _words(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    command = holder.get("command")
    shown = " ".join(map(str, command)) if isinstance(command, list) else "unknown command"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')} ({shown})"


# --- waiting -----------------------------------------------------------------------------------------------------


@contextmanager
def waiting_is_said(say: Callable[[str], object]) -> Iterator[None]:
    """Inside the block ``say`` gets one line for each lock that this process waits for, whichever library takes it.

    Data are read and prepared by one process at a time; without a word, the others would seem to hang.
    """
    logger = logging.getLogger("filelock")
    level, shown, said = logger.level, logger.getEffectiveLevel(), set[str]()

    def tell(record: logging.LogRecord) -> bool:
        if "not acquired on" in str(record.msg) and isinstance(record.args, tuple) and len(record.args) > 1:
            name = str(record.args[1])
            if name not in said:
                said.add(name)
                say(f"waiting for another process, which holds {name}")
        return record.levelno >= shown

    logger.addFilter(tell)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeFilter(tell)
        logger.setLevel(level)
