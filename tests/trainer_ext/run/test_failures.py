"""Runs that end because the machine does not go along: a full disk, a limit, a worker that is killed."""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.trainer_ext.own_process import in_own_process, settle
from trainer_ext import __main__ as command_line
from trainer_ext.files import damage
from trainer_ext.run import train as training_run
from trainer_ext.run.failures import explain
from trainer_ext.training.trainer import JinaCLIPTrainer

PAGE = 4096
COMMAND = ["save_steps=1", "save_total_limit=null"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


class FillDisk(TrainerCallback):
    """After the first checkpoint leaves room for the next one up to the middle of one of its files."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            sizes = {path.name: path.stat() for path in (self.run / "checkpoint-1").iterdir()}
            last = sizes[self.name].st_mtime_ns
            before = [item.st_size for item in sizes.values() if item.st_mtime_ns < last]
            room = sum(-(-size // PAGE) * PAGE for size in before) + sizes[self.name].st_size // 2
            disk = os.statvfs(self.run)
            with (self.run.parent / "filler").open("wb") as file:
                file.write(b"x" * max(disk.f_bavail * disk.f_frsize - room, 0))


def full_in(monkeypatch: pytest.MonkeyPatch, run: Path, name: str) -> None:
    class Filling(JinaCLIPTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(FillDisk(run, name))

    monkeypatch.setattr(training_run, "JinaCLIPTrainer", Filling)


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert command_line.main([str(tiny_recipe), "--output_dir", str(folder), *COMMAND]) == 0
    return folder


def error_line(text: str) -> str:
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


# Where each library writes, and Python by itself.
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("optimizer.pt", "modeling_jina_clip.py", "trainer_state.json")
        ),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tiny_recipe: Path,
    finished: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    run = small_disk / "run"
    command = [str(tiny_recipe), "--output_dir", str(run), *COMMAND]
    with monkeypatch.context() as patch:
        full_in(patch, run, name)
        assert command_line.main(command) == 2
    line = error_line(capfd.readouterr().err)
    assert re.search(rf"{run} cannot be written to any more: .*[\d.]+ MB are free there", line)
    assert f"--resume --output_dir {run}; the checkpoints of earlier steps are kept" in line
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "run.json", "sources"]
    assert damage(run / "checkpoint-1") is None
    (small_disk / "filler").unlink()
    assert command_line.main([*command, "--resume"]) == 0
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def train_with_small_files(command: list[str], limit: int, said: Path) -> None:
    """The command line where no file may be larger than ``limit`` bytes."""
    settle()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os._exit(command_line.main(command))


@pytest.mark.parametrize("share", [0.5, pytest.param(1.1, marks=pytest.mark.slow)], ids=["weights", "optimizer"])
def test_a_limit_of_file_size_is_one_line(tiny_recipe: Path, finished: Path, tmp_path: Path, share: float) -> None:
    """Another full disk that is real, and needs no rights."""
    run, said = tmp_path / "run", tmp_path / "said"
    command = [str(tiny_recipe), "--output_dir", str(run), *COMMAND]
    limit = int(share * (finished / "checkpoint-1" / "model.safetensors").stat().st_size)
    assert in_own_process(train_with_small_files, command, limit, said) == 2
    line = error_line(said.read_text())
    assert f"{run} cannot be written to any more: " in line
    assert "MB are free there" in line
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "sources"]
    assert command_line.main([*command, "--resume"]) == 0
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def train_and_lose_a_worker(command: list[str], said: Path) -> None:
    """The command line, one of whose loader's workers is killed, as the kernel does when memory runs out."""
    settle()
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)

    class Losing(JinaCLIPTrainer):
        def get_train_dataloader(self) -> Any:
            loader = super().get_train_dataloader()
            collate = loader.collate_fn

            def killed(rows: Any) -> Any:
                os.kill(os.getpid(), signal.SIGKILL)
                return collate(rows)

            loader.collate_fn = killed
            return loader

    training_run.JinaCLIPTrainer = Losing
    os._exit(command_line.main(command))


def test_a_killed_worker_is_one_line(tiny_recipe: Path, tmp_path: Path) -> None:
    command = [str(tiny_recipe), "--output_dir", str(tmp_path / "run"), "dataloader_num_workers=1"]
    assert in_own_process(train_and_lose_a_worker, command, tmp_path / "said") == 2
    line = error_line((tmp_path / "said").read_text())
    assert re.search(r"a worker that loads the data \(process \d+\) (was killed|has ended)", line)
    assert "smaller dataloader_num_workers or 0, then go on with --resume" in line


WORDS = {
    "/torch_12_34 on a full /dev/shm": (
        RuntimeError("unable to write to file </torch_12_34>: No space left on device (28)"),
        "/dev/shm, is used up",
    ),
    "another process": (
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:12"),
        "another process of this run has ended",
    ),
    "a worker's error": (
        ValueError("Caught ValueError in worker.\nOriginal Traceback (most recent call last):\nValueError: row 3"),
        "ValueError: row 3",
    ),
}


@pytest.mark.parametrize(("error", "words"), WORDS.values(), ids=WORDS.keys())
def test_foreseen_errors_in_words(tmp_path: Path, error: Exception, words: str) -> None:
    found = explain(error, tmp_path)
    assert found is not None
    assert words in found
    assert "\n" not in found


def test_a_full_disk_behind_another_error_is_found(tmp_path: Path) -> None:
    error = RuntimeError("An error occurred while generating the dataset")
    error.__cause__ = OSError(28, "No space left on device", "/caches/datasets/part-0.arrow")
    assert "/caches/datasets cannot be written to any more: no space is left" in str(explain(error, tmp_path))


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), tmp_path) is None


TRACKER = """
run = config = None
class UsageError(Exception): ...
def init(*args, **kwargs):
    raise UsageError("No API key configured.\\nSecond line")
"""


def test_a_tracker_that_refuses_is_one_line(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name on the path, whose ``init`` fails as a real one's does without a login."""
    (tmp_path / "site" / "trackio").mkdir(parents=True)
    (tmp_path / "site" / "trackio" / "__init__.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "trackio", None)  # so that what is imported now is taken out again
    del sys.modules["trackio"]
    run = tmp_path / "run"
    assert command_line.main([str(tiny_recipe), "--output_dir", str(run), "report_to=trackio"]) == 2
    line = error_line(capsys.readouterr().err)
    assert line.startswith("error: report_to names trackio, which ends in UsageError: No API key configured. ")
    assert line.endswith(f"Or leave it out of report_to, and go on with --resume --output_dir {run}")


def test_the_tracker_is_known_by_the_code_that_gave_up(tmp_path: Path) -> None:
    code = {"__name__": "wandb.sdk.wandb_init"}
    exec(TRACKER, code)
    with pytest.raises(code["UsageError"]) as caught:
        code["init"]()
    assert "Log in with `wandb login`" in str(explain(caught.value, tmp_path))
