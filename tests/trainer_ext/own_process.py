"""Training jobs in processes of their own, which may be killed or be two.

They are forked from a server that has imported everything and run nothing. Forking the test process itself is quicker
by one import but hangs now and then: its libraries have threads, which a fork does not take along.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.trainer_ext.tiny_run import COLOURS, NUMBERS, RunFactory, entries_of, picture, trained
from trainer_ext import __main__ as command_line
from trainer_ext import files
from trainer_ext.evaluation.tasks import HardNegativeTask, image_text_tasks, text_task
from trainer_ext.measuring.suites import Suite
from trainer_ext.run import evaluating
from trainer_ext.run import train as training_run
from trainer_ext.training import saving
from trainer_ext.training.trainer import JinaCLIPTrainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
TIMEOUT = 120


def exit_codes(*processes: BaseProcess) -> list[int | None]:
    """Wait for the processes; one that hangs is killed and has no exit code of its own (None)."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def in_own_process(job: Callable[..., object], *arguments: object) -> int | None:
    """Exit code of ``job(*arguments)``; negative: the signal that ended it."""
    return exit_codes(CONTEXT.Process(target=job, args=arguments))[0]


def in_two_processes(job: Callable[..., object], *arguments: object) -> list[int | None]:
    """Exit codes of ``job(*arguments)`` as rank 0 and rank 1 of a gloo group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return exit_codes(*(CONTEXT.Process(target=_rank, args=(rank, port, job, arguments)) for rank in range(2)))


def _rank(rank: int, port: int, job: Callable[..., object], arguments: tuple[object, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    job(*arguments)
    if torch.distributed.is_initialized():  # the command line has left the group by itself
        torch.distributed.barrier()
    os._exit(0)  # taking DDP and gloo down by hand may wait for a process that has gone


def settle() -> None:
    """One thread, as in the tests; and a loader's workers are children of the job, so that they end with it."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAfter(TrainerCallback):
    """SIGKILL to the own process right after a number of steps, before their checkpoint is written."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            kill_self()


def noisy_evaluation(model: Any, processor: Any) -> dict[str, float]:
    """Looks at the model and draws random numbers."""
    model.processor = processor
    return {"first": float(model.encode_text(["one red bar"])[0, 0]), "noise": float(torch.rand(()))}


def train_until_killed(recipe: Path, folder: Path, overrides: list[str], steps: int) -> None:
    """Dies after ``steps`` steps."""
    settle()
    callbacks = [KillAfter(steps)]
    RunFactory(recipe)(folder, *overrides, callbacks=callbacks, evaluate_fn=noisy_evaluation).train()


def train_until_killed_in_checkpoint(recipe: Path, folder: Path, overrides: list[str], name: str) -> None:
    """Dies while a checkpoint is written: half of its weights are there."""
    settle()
    real = files.seal

    def seal(folder: Path) -> None:
        if folder.name == name:
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
            kill_self()
        real(folder)

    saving.seal = seal
    RunFactory(recipe)(folder, *overrides, evaluate_fn=noisy_evaluation).train()


def train_rank(
    recipe: Path, folder: Path, overrides: list[str], dropout: float = 0.1, resume_from: Path | None = None
) -> None:
    """Trains as one of two ranks and leaves its log in ``folder``."""
    settle()
    made = RunFactory(recipe)(folder, *overrides, dropout=dropout, evaluate_fn=noisy_evaluation)
    trained(made, resume_from)
    torch.save(entries_of(made), folder / f"log-{made.args.process_index}.pt")


def run_command(command: list[str]) -> None:
    """The command line to its end."""
    settle()
    evaluating.open_suite = tiny_suite
    assert command_line.main(command) == 0
    assert not torch.distributed.is_initialized()  # left in order, not when the interpreter happens to end


def tiny_suite(name: str) -> Suite:
    """A small set of tasks in place of the embedded one, so that no data has to be prepared."""
    assert name == "tiny"
    pictures = [(colour, number) for colour in COLOURS for number in (2, 5)]
    captions = [[f"{NUMBERS[number - 1]} {colour} bar"] for colour, number in pictures]
    follows = [(f"{number} is after", after) for number, after in pairwise(NUMBERS)]
    negatives = HardNegativeTask("hard", ["one is after"], ["two"], [["not two", "five"]])
    bars = image_text_tasks("bars", [picture(*item) for item in pictures], captions)
    return Suite([*bars, text_task("text", follows), negatives], [], {})


def run_command_until_killed(command: list[str], steps: int) -> None:
    """The command line, dying after ``steps`` steps."""
    settle()

    class Killed(JinaCLIPTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(KillAfter(steps))

    evaluating.open_suite = tiny_suite
    training_run.JinaCLIPTrainer = Killed
    command_line.main(command)
