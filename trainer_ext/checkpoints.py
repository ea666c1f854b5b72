"""Folders that are either whole or not there, and the last whole checkpoint of a run.

1. A folder is written under a hidden temporary name next to its final one.
2. A checkpoint is sealed: its files are listed with their sizes and sha256 in ``complete.json``. It takes about a
   second for each GB, against the time that the flush of step 3 takes anyway, and the same at a resume.
3. All files are flushed to disk and the folder is renamed. A process killed at any moment leaves the temporary folder,
   never half of a final one.
4. A resume believes a checkpoint only if the list is there and every size and sha256 matches: torch reads an
   optimizer with damaged bytes without a word.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "complete.json"
PARTIAL_SUFFIX = ".partial"
_STEP = re.compile(r"checkpoint-(\d+)")


def partial_path(target: Path) -> Path:
    """Where ``target`` is written until it is whole."""
    return target.with_name(f".{target.name}{PARTIAL_SUFFIX}")


def seal(folder: Path) -> None:
    """List the files of ``folder`` with their sizes and hashes, in a file of their own that is written last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    listed = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files}
    (folder / SEAL).write_text(json.dumps(listed, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None when it is whole."""
    try:
        listed: dict[str, Any] = json.loads((folder / SEAL).read_text())
    except (OSError, ValueError):
        return f"it has no readable {SEAL}, so it was never finished"
    for name, told in listed.items():
        path = folder / name
        size, digest = (
            (told, None) if isinstance(told, int) else (told["bytes"], told["sha256"])
        )  # earlier seals: sizes
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        try:
            if digest is not None and _hash(path) != digest:
                return f"{name} is damaged: its sha256 is not that of the file that was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def publish(partial: Path, target: Path) -> None:
    """Flush ``partial`` to disk and give it its final name, in place of an older folder of that name."""
    for path in partial.rglob("*"):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    _flush(target.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` at the end of the block, or nothing if the block fails."""
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def keep_newest(run: Path, limit: int | None) -> None:
    """Delete all checkpoints but the ``limit`` newest (None keeps every one), and what killed writes have left."""
    leftovers = run.glob(f".checkpoint-*{PARTIAL_SUFFIX}")
    for path in [*checkpoints_of(run)[: -limit if limit else 0], *leftovers]:
        shutil.rmtree(path)


def last_whole_checkpoint(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; each one passed over is named to ``say`` with the reason."""
    for path in run.glob(f".checkpoint-*{PARTIAL_SUFFIX}"):
        say(f"skipping {path.name}: the run was stopped while it was written")
    for path in reversed(checkpoints_of(run)):
        reason = damage(path)
        if reason is None:
            return path
        say(f"skipping {path.name}: {reason}")
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
