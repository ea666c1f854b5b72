"""What ended a run, in one line with the cure, for errors that libraries raise as long tracebacks.

A full disk has four forms (Python's, safetensors' and two of torch). A killed loader worker and a process that lost the
others are both RuntimeErrors. An error not listed here is a bug and keeps its traceback.
"""

import errno
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from trainer_ext.files import words_of
from trainer_ext.run.folder import RUN_FILE
from trainer_ext.training.monitoring import NonFiniteError

# Errors whose text is written for the user.
_PLAIN = (ValueError, OSError, ImportError, NonFiniteError)
_DISK: dict[int | None, str] = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file would be larger than it may be (`ulimit -f`)",
}
# safetensors puts the number into its text; torch's archive writer does not say why a write failed.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = re.compile(r"inline_container\.cc|PytorchStreamWriter failed writing|basic_ios::clear|iostream error")
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+|\bshm\b")
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited)")
_LOST = re.compile(r"Connection (?:closed by|reset by) (?:remote )?peer|Broken pipe|Connection refused")

# Trackers by their package, and the usual cause.
_LOGIN = {
    "wandb": "Log in with `wandb login`, or keep the run here with WANDB_MODE=offline.",
    "trackio": "Its space needs a network and `hf auth login`; without trackio_space_id it keeps the run here.",
    **dict.fromkeys(
        ("clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "mlflow", "neptune", "swanlab"),
        "See that its server can be reached and that you are logged in.",
    ),
}


def explain(error: BaseException, output_dir: str | Path) -> str | None:
    """The error as one line; None if it is not a known one.

    >>> explain(OSError(errno.EFBIG, "File too large"), "/")
    '/ cannot be written to any more: a file would be larger than it may be (`ulimit -f`). ...'
    >>> explain(ValueError("steps is -3; set at least 1"), "out")
    'steps is -3; set at least 1'
    >>> explain(ZeroDivisionError("division by zero"), "out") is None
    True
    """
    for cause in _chain(error):
        words = _shared_memory(cause) or _full_disk(cause, Path(output_dir)) or _lost(cause, Path(output_dir))
        if words is not None:
            return words
    if (tracker := _tracker(error)) is not None:
        return (
            f"report_to names {tracker}, which ends in {type(error).__name__}: {_first_line(error)} {_LOGIN[tracker]} "
            f"Or leave it out of report_to, and go on with --resume --output_dir {output_dir}"
        )
    if not isinstance(error, _PLAIN):
        return None
    text = words_of(error) if isinstance(error, OSError) else str(error)
    # An error from a loader worker carries the worker's traceback in its text.
    return text.strip().splitlines()[-1] if "Original Traceback" in text else text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: a library may have wrapped a full disk in an error of its own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _tracker(error: BaseException) -> str | None:
    """The experiment tracker that raised the error, by the modules in its traceback."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name.split(".")[0] for name in frames if name.split(".")[0] in _LOGIN), None)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "no reason given").strip()
    return line if line.endswith(".") else f"{line}."


def _full_disk(error: BaseException, output_dir: Path) -> str | None:
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__module__.startswith("safetensors") and (found := _RUST_ERROR.search(text)):
        number = int(found[1])
    reason = _DISK.get(number)
    if reason is None and isinstance(error, RuntimeError) and _TORCH_WRITER.search(text):
        reason = "torch could not write a whole file"
    if reason is None:
        return None
    folder = _full_folder(error, output_dir)
    return (
        f"{folder} cannot be written to any more: {reason}. {_free(folder) / 1e6:,.1f} MB are free there, now that "
        f"what was half written is deleted. Make room, then go on with --resume --output_dir {output_dir}; the "
        "checkpoints of earlier steps are kept"
    )


def _full_folder(error: BaseException, output_dir: Path) -> Path:
    """The folder that is full: the run's own once it is claimed; before that it may be a cache."""
    for name in (getattr(error, "filename2", None), getattr(error, "filename", None)):
        if isinstance(name, str) and output_dir not in Path(name).parents and Path(name).is_absolute():
            return Path(name).parent
        if name is not None:
            return output_dir
    if (output_dir / RUN_FILE).is_file():
        return output_dir
    from datasets import config

    return min(output_dir, Path(config.HF_DATASETS_CACHE), Path(tempfile.gettempdir()), key=_free)


def _free(folder: Path) -> int:
    """Bytes free in a folder, or in the nearest parent that exists."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _shared_memory(error: BaseException) -> str | None:
    text = str(error)
    if not (isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text)):
        return None
    return (
        "the memory that the loader's workers share with the run, /dev/shm, is used up "
        f"({_free(Path('/dev/shm')) / 1e6:,.1f} MB are free). Set a smaller dataloader_num_workers or 0, or give it "
        "more; a container has it by --shm-size. Then go on with --resume"
    )


def _lost(error: BaseException, output_dir: Path) -> str | None:
    """A loader worker or another process of the run has ended."""
    text = str(error)
    if isinstance(error, RuntimeError) and (found := _WORKER.search(text)):
        how = f"was killed by the signal {found[2].strip()}" if found[2] else "has ended without a word"
        return (
            f"a worker that loads the data (process {found[1].strip()}) {how}: most often the system did it because "
            "memory ran out. Look at the system's log, set a smaller dataloader_num_workers or 0, then go on with "
            f"--resume --output_dir {output_dir}; the checkpoints of earlier steps are kept"
        )
    if isinstance(error, RuntimeError) and _LOST.search(text):
        return "another process of this run has ended; what it said tells why"
    return None
