"""Files and folders that are either whole or absent, their hashes, and the last whole checkpoint of a run.

1. A file or folder is written under a hidden temporary name next to its final one, flushed to disk, and renamed.
   A process killed at any moment leaves the temporary name, never half of the final file or folder.
2. A checkpoint is also sealed: ``complete.json`` lists its files with their sizes and sha256. Hashing takes about a
   second for each GB, when it is saved and again at a resume.
3. A resume accepts a checkpoint only if that list is there and every size and sha256 matches: torch loads an optimizer
   with damaged bytes without an error.

Standard library only.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "complete.json"
STATE = "trainer_state.json"  # the Trainer's; every checkpoint has it
PARTIAL_SUFFIX = ".partial"
_STEP = re.compile(r"checkpoint-(\d+)")


# --- whole files and folders ---------------------------------------------------------------------------------------
def partial_path(target: Path) -> Path:
    """Where ``target`` is written until it is whole."""
    return target.with_name(f".{target.name}{PARTIAL_SUFFIX}")


def write_whole(path: Path, content: bytes, flush: bool = True) -> None:
    """Write a file, and its folder where missing. A reader sees the old content or the new, never part of either.

    Two writers of one file at a time are fine, too: each has a temporary name of its own, and the last one wins.
    Without ``flush`` this holds unless the machine itself stops: much faster, for files that are checked when read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        partial.write_bytes(content)
        if flush:
            _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people, whole or not at all: indented, and not escaped to ASCII."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes ``target`` at the end of the block, or nothing if the block fails."""
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, target: Path) -> None:
    """Flush ``partial`` to disk and give it its final name, in place of an older folder of that name."""
    readable_as_the_folder(partial)
    for path in partial.rglob("*"):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    _flush(target.parent)


def readable_as_the_folder(folder: Path) -> None:
    """Let all who may read the folder read its files: safetensors writes weights that only their owner can read."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o444))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- folders that a user names -----------------------------------------------------------------------------------
LONGEST_NAME = 180  # bytes of a folder's own name; locks and temporary names beside it are longer, and may have 255


def refuse_unwritable(folder: str | Path, option: str) -> None:
    """Check, before any work, that ``folder`` is one to write into, or can become it; nothing is made.

    Args:
        option: what the user gave it as, for the message.

    Raises:
        ValueError: it is a file, lies below one, may not be written, or is no path.

    >>> refuse_unwritable(Path(__file__) / "run", "--output_dir")
    Traceback (most recent call last):
    ValueError: --output_dir .../files.py/run lies below .../files.py, which is a file; give another folder
    """
    folder = Path(folder)
    try:
        if len(os.fsencode(folder.name)) > LONGEST_NAME:
            raise ValueError(f"its name is longer than {LONGEST_NAME} bytes")
        place = folder.absolute()
        while not _is_there(place):
            place = place.parent
    except (OSError, ValueError) as error:  # ValueError: zero bytes, half letters
        words = getattr(error, "strerror", None) or str(error)
        name = " ".join(str(folder).encode(errors="replace").decode().replace("\0", "\\0").split())
        raise ValueError(f"{option} {name[:100]} cannot be a folder: {words}; give another one") from None
    if not place.is_dir():
        what = "is a file" if place.exists() else "is a link to nothing"
        words = what if place == folder.absolute() else f"lies below {place}, which {what}"
        raise ValueError(f"{option} {folder} {words}; give another folder")
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ValueError(f"{option} {folder}: {place} may not be written to; give another folder")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def words_of(error: OSError) -> str:
    """An error of the system without its number; one that a program wrote as it is.

    >>> words_of(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: no such file or directory'
    >>> words_of(FileNotFoundError("no folder of that name; give another"))
    'no folder of that name; give another'
    """
    if error.errno is None or error.strerror is None:
        return str(error)
    reason = error.strerror[:1].lower() + error.strerror[1:]
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


# --- hashes and seals ----------------------------------------------------------------------------------------------
def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """List the files of ``folder`` with their sizes and hashes in a file of its own, written last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    (folder / SEAL).write_text(json.dumps(listed, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None if it is whole."""
    try:
        listed: dict[str, Any] = read_json(folder / SEAL)
    except (OSError, ValueError, RecursionError):
        return f"it has no readable {SEAL}, so it was never finished or is damaged"
    if not isinstance(listed, dict) or STATE not in listed:
        return f"its {SEAL} does not list {STATE}, without which nothing can be resumed: it is damaged"
    for name, entry in listed.items():
        path = folder / name
        # Seals of earlier versions list sizes alone.
        size, digest = (entry, None) if isinstance(entry, int) else _size_and_hash(entry)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        try:
            if digest is not None and file_hash(path) != digest:
                return f"{name} is damaged: its sha256 is not that of the file that was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _size_and_hash(entry: Any) -> tuple[Any, Any]:
    """Of an entry that is damaged itself something that no file has."""
    return (entry.get("bytes"), entry.get("sha256", "")) if isinstance(entry, dict) else (None, "")


# --- checkpoints of a run ------------------------------------------------------------------------------------------
def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def keep_newest(run: Path, limit: int | None) -> None:
    """Delete all but the ``limit`` newest checkpoints (None keeps them all), and what interrupted writes have left."""
    leftovers = run.glob(f".checkpoint-*{PARTIAL_SUFFIX}")
    for path in [*checkpoints_of(run)[: -limit if limit else 0], *leftovers]:
        shutil.rmtree(path)


def clear_leftovers(run: Path) -> None:
    """Delete the folders that interrupted writes have left in a run, which is finished or the caller's alone."""
    for path in [*run.glob(f".*{PARTIAL_SUFFIX}"), *run.glob(f"*/.*{PARTIAL_SUFFIX}")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def last_whole_checkpoint(run: Path, say: Callable[[str], object]) -> Path | None:
    """The newest whole checkpoint; ``say`` gets one line, with the reason, for each one that is skipped."""
    for path in run.glob(f".checkpoint-*{PARTIAL_SUFFIX}"):
        say(f"skipping {path.name}: the run was stopped while it was written")
    for path in reversed(checkpoints_of(run)):
        reason = damage(path)
        if reason is None:
            return path
        say(f"skipping {path.name}: {reason}")
    return None
