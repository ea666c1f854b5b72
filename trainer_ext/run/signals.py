"""Ctrl-C and SIGTERM: a run that is told to stop says what is kept, and the command that goes on.

The first signal ends the run as an error does: what is half written is deleted, and the folder is given back. A second
one ends the process where it is; checkpoints are whole or hidden at any moment, so the same command goes on.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainer_ext.files import checkpoints_of

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
    """The run was told to stop by a signal; ``exit_code`` is that of a shell."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(_NAMES.get(signal.Signals(number), str(number)))
        self.exit_code = 128 + number


@contextmanager
def stops_are_told(say: Callable[[str], object]) -> Iterator[None]:
    """Inside the block the first Ctrl-C or SIGTERM raises ``Stopped``, and a second one ends the process with a line.

    Only the main thread may do this; in another one the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, stopped = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if os.getpid() != owner:  # a loader's worker, forked from the run: it has nothing to say
            os._exit(128 + number)
        if stopped:
            say(f"stopped at once by a second signal ({_NAMES.get(signal.Signals(number), number)})")
            os._exit(128 + number)
        stopped = True
        raise Stopped(number)

    numbers = _NAMES if is_main_process() else [signal.SIGINT]  # a launcher's other processes just end
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def how_to_go_on(command: Sequence[str], output_dir: str | Path) -> str:
    """What a stopped run keeps, and the command that goes on with it.

    >>> how_to_go_on(["my recipe.yaml", "seed=1", "--output_dir", "runs/1"], "runs/1")
    "No checkpoint was written yet, so it starts again. Go on with: python -m trainer_ext 'my recipe.yaml' seed=1
    --resume --output_dir runs/1"
    """
    words = [word for word in command if word != "--resume"]
    at = next((n for n, word in enumerate(words) if word.startswith("--output")), len(words))
    words.insert(at, "--resume")
    last = next(iter(reversed(checkpoints_of(Path(output_dir)))), None)
    kept = "No checkpoint was written yet, so it starts again." if last is None else f"{last} is kept."
    return f"{kept} Go on with: python -m trainer_ext {shlex.join(words)}"


def is_main_process() -> bool:
    """Whether this is the process of a launcher that speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def say_to_user(words: str) -> None:
    """One line on stderr, below a progress bar that was left open."""
    tqdm = sys.modules.get("tqdm.std")
    if tqdm is not None:
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
    print(words, file=sys.stderr, flush=True)
