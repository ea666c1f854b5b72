"""A run that is told to stop says what it keeps and how to go on; one folder has one run at a time."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.source_imports import ROOT
from tests.trainer_ext.own_process import in_own_process, settle
from trainer_ext import __main__ as command_line
from trainer_ext.locks import held
from trainer_ext.run import train as training_run
from trainer_ext.training.trainer import JinaCLIPTrainer


class SignalAfter(TrainerCallback):
    """A signal to the own process after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def run_until_told_to_stop(command: list[str], steps: int, said: Path) -> None:
    """The command line with its bar, as ``kill`` ends it."""
    settle()

    class Stopping(JinaCLIPTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(SignalAfter(steps))

    training_run.JinaCLIPTrainer = Stopping
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os._exit(command_line.main(command))


def test_a_terminated_run_says_what_it_keeps_and_its_command_goes_on(tiny_recipe: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "the run", tmp_path / "said"
    command = [str(tiny_recipe), "--output_dir", str(run), "save_steps=1", "disable_tqdm=false"]
    assert in_own_process(run_until_told_to_stop, command, 3, said) == 143
    error = next(line for line in said.read_text().splitlines() if line.startswith("error: "))  # not behind the bar
    assert f"interrupted (SIGTERM). {run / 'checkpoint-2'} is kept. Go on with: python -m trainer_ext " in error
    assert not list(run.glob(".*"))
    assert not list(tmp_path.glob(".*"))  # the lock
    words = shlex.split(error.partition("Go on with: python -m trainer_ext ")[2])
    assert command_line.main(words) == 0
    assert (run / "model.safetensors").is_file()


TWICE = """
import os, signal
from trainer_ext.run.signals import Stopped, say_to_user, stops_are_told
with stops_are_told(say_to_user):
    try:
        os.kill(os.getpid(), signal.{})
    except Stopped as stop:
        print(stop, stop.exit_code, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
print("never")
"""


@pytest.mark.parametrize(
    ("name", "words"), [pytest.param("SIGINT", "Ctrl-C 130", marks=pytest.mark.slow), ("SIGTERM", "SIGTERM 143")]
)
def test_a_second_signal_ends_at_once_with_a_word(name: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE.format(name)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, f"{words}\n")
    assert done.stderr == "stopped at once by a second signal (Ctrl-C)\n"


def test_a_second_run_in_one_folder_is_refused_before_it_reads(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_recipe), "--output_dir", str(tmp_path / "run"), "sources.0.location=nowhere.parquet"]
    with held(tmp_path / "run", ["python", "-m", "trainer_ext", "first"], print):
        assert command_line.main(command) == 2
    error = capsys.readouterr().err
    assert f"run is in use by process {os.getpid()} on " in error
    assert "(python -m trainer_ext first)" in error
