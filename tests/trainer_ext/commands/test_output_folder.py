"""A folder that cannot be written is named in a line at every command, before anything is read, and nothing is made."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub_upload
from trainer_ext.__main__ import main
from trainer_ext.files import refuse_unwritable

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "out.txt").write_text("a day's work")
    (tmp_path / "lost").symlink_to(tmp_path / "nothing here")
    return tmp_path


BAD = {
    "out.txt": "out.txt is a file; give another",
    "out.txt/x": "out.txt/x lies below .*out.txt, which is a file; give another",
    "out.txt/x/y/z": "lies below .*out.txt, which is a file",
    "lost": "lost is a link to nothing",
    "lost/x": "lies below .*lost, which is a link to nothing",
    "n" * 300: "nnn cannot be a folder: its name is longer than 180 bytes",
    "n" * 250: "its name is longer than 180 bytes",
    "ä" * 100: "its name is longer than 180 bytes",
    "n" * 300 + "/x": "cannot be a folder: File name too long",
    "/".join(["n" * 100] * 50): "cannot be a folder: File name too long",
}
# The commands up to the folder's name. What else they name is not there: the folder is looked at first.
COMMANDS: dict[str, list[str]] = {
    "train": ["train", "openmoji", "--output_dir"],
    "resume": ["train", "openmoji", "--resume", "--output_dir"],
    "evaluate": ["evaluate", "no model", "no tasks.yaml", "--output_dir"],
    "check": ["check", "no recipe.yaml", "--output_dir"],
    "compare": ["compare", "no run", "--output_dir"],
    "evaluate, cache": ["evaluate", "no model", "no tasks.yaml", "--output_dir", "fine", "--cache"],
    "mine, cache": ["mine", "no.yaml", "--source", "x", "--retriever", "bm25", "--out", "fine.parquet", "--cache"],
}
HUB = {"build": ["build", "no checkpoint"], "verify": ["verify"], "push": ["push", "--repo_id", "me/x"]}


def run(work: Callable[[list[str]], int], arguments: list[str], place: Path, capsys: pytest.CaptureFixture) -> str:
    before = sorted(place.rglob("*"))
    assert work(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert "[Errno" not in said
    assert sorted(place.rglob("*")) == before
    assert (place / "out.txt").read_text() == "a day's work"
    return said


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("name", "words"), BAD.items(), ids=[name[:12] for name in BAD])
def test_every_command_names_the_folder(
    place: Path, command: list[str], name: str, words: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    said = run(main, [*command, str(place / name)], place, capsys)
    assert re.search(rf"error: {command[-1]} .*{words}", said), said


@pytest.mark.parametrize("name", ["out.txt", "lost", "n" * 300])
def test_the_folder_of_a_table_is_looked_at(place: Path, name: str, capsys) -> None:
    out = str(place / name / "x.parquet")
    said = run(main, ["mine", "no.yaml", "--source", "x", "--retriever", "bm25", "--out", out], place, capsys)
    assert said.startswith("error: the folder of --out ")


@pytest.mark.parametrize("command", HUB.values(), ids=HUB)
@pytest.mark.parametrize("name", [name for name in BAD if "lost" not in name])  # a link may lead to a new folder
def test_every_step_to_the_hub_names_the_folder(place: Path, command: list[str], name: str, capsys) -> None:
    said = run(hub_upload.main, [*command, str(place / name)], place, capsys)
    assert name[:12] in said


EXAMPLES = {
    "convert_checkpoint": ["{}", "--checkpoint", "nothing"],
    "export_onnx": ["no model", "{}"],
    "pretrain_text_tower": ["openmoji", "{}"],
    "train_from_scratch": ["no pictures", "no.csv", "no.csv", "--output_dir", "{}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_look_at_the_folder_first(place: Path, name: str) -> None:
    arguments = [part.format(place / "out.txt" / "x") for part in EXAMPLES[name]]
    program = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert program.returncode == 2
    assert "lies below" in program.stderr
    assert "Traceback" not in program.stderr


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root may write everywhere; anybody else not where the owner forbids it."""
    folder.chmod(0o500)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    with as_nobody(tmp_path), pytest.raises(ValueError, match=r"--output_dir .*(may not be written to|denied)"):
        refuse_unwritable(tmp_path / "x", "--output_dir")
    refuse_unwritable(tmp_path / "x" / "y", "--output_dir")
    assert not (tmp_path / "x").exists()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=300))
def test_any_name_is_a_folder_or_a_line(tmp_path: Path, name: str) -> None:
    try:
        refuse_unwritable(tmp_path / name.lstrip("/"), "--output_dir")
    except ValueError as error:
        said = str(error)
    else:
        (tmp_path / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return
    assert said.startswith("--output_dir ")
    assert "\n" not in said
    said.encode()
