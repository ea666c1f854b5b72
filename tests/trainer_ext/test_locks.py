"""A folder has one holder at a time, who is named; and whoever waits for another process says so."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from tests.source_imports import ROOT
from trainer_ext.locks import FolderInUseError, held, waiting_is_said

HOLD = """
import sys, time
from trainer_ext.locks import held
with held(sys.argv[1], ["train", "my.yaml"], print):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_a_dead_ones_folder_is_taken_over(tmp_path: Path) -> None:
    folder, said = tmp_path / "deep" / "run", []
    process = holder(folder)
    try:
        words = rf"{folder} is in use by process {process.pid} on .* since \d{{4}}-.* \(train my.yaml\). Wait until"
        with pytest.raises(FolderInUseError, match=words), held(folder, ["other"], said.append):
            pass
        assert not folder.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held(folder, ["other"], said.append):
        assert sorted(path.name for path in folder.parent.iterdir()) == [".run.lock", ".run.lock.json"]
    [line] = said
    assert re.search(rf"was in use by process {process.pid} .* which ended without giving it back; taken over", line)
    assert list(folder.parent.iterdir()) == []


def test_one_folder_under_two_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run", [], print):
        with pytest.raises(FolderInUseError), held(tmp_path / "link", [], print):
            pass
        (tmp_path / ".run.lock.json").write_text("[1")  # whatever stands in the note
        with pytest.raises(FolderInUseError, match="in use by another process"), held(tmp_path / "run", [], print):
            pass
        with held(tmp_path / "other", [], print):
            pass


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run", [], print):
        raise ZeroDivisionError
    with held(tmp_path / "run", [], pytest.fail):
        pass


def test_folders_made_for_the_lock_go_with_it_while_they_are_empty(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "mine" / "run"
    with held(folder, [], pytest.fail):
        assert folder.parent.is_dir()
    assert not (tmp_path / "outputs").exists()
    with held(folder, [], pytest.fail):
        folder.mkdir()
    assert folder.is_dir()


def test_waiting_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    other = FileLock(tmp_path / "data.lock", thread_local=False)
    other.acquire()
    threading.Timer(0.3, other.release).start()
    with waiting_is_said(said.append), FileLock(tmp_path / "data.lock").acquire(timeout=20):
        pass
    with waiting_is_said(said.append), FileLock(tmp_path / "data.lock"):  # free
        pass
    assert said == [f"waiting for another process, which holds {tmp_path / 'data.lock'}"]
