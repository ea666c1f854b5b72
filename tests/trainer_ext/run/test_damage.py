"""A run that was killed and then damaged on disk: it goes on to the same weights, or one line says what is damaged."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer_ext.own_process import in_own_process, run_command_until_killed
from trainer_ext.__main__ import main
from trainer_ext.files import SEAL

STREAM = ["sources.1.streaming=true", "sources.1.shuffle_buffer=4", "stages.0.text.sampling_alpha=0.0", "save_steps=1"]


@pytest.fixture(scope="module")
def runs(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, bytes]:
    """The command, the folder of a run killed after 5 steps, and the weights of one that was left alone."""
    place = tmp_path_factory.mktemp("damage")
    command = [str(tiny_recipe), *STREAM, "--output_dir"]
    assert main([*command, str(place / "whole")]) == 0
    killed = place / "killed"
    assert in_own_process(run_command_until_killed, [*command, str(killed)], 5) == -signal.SIGKILL
    assert {path.name for path in killed.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    return command, killed, (place / "whole" / "model.safetensors").read_bytes()


def flip(content: bytes, share: float, bit: int) -> bytes:
    at = min(int(share * len(content)), len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.floats(0, 1, exclude_max=True), share=st.floats(0, 1), bit=st.integers(0, 7), kind=st.sampled_from("fct")
)
def test_any_damaged_file_is_the_same_run_or_one_line(
    runs: tuple[list[str], Path, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    which: float,
    share: float,
    bit: int,
    kind: str,
) -> None:
    command, killed, weights = runs
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(killed, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = files[int(which * len(files))]
    content = file.read_bytes()
    file.write_bytes({"f": flip(content, share, bit), "c": content[: int(share * len(content))], "t": b""}[kind])
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("trainer_ext.__main__.say_to_user", said.append)
        code = main([*command, str(folder), "--resume"])  # any traceback would come out of it
    if code == 0:
        assert (folder / "model.safetensors").read_bytes() == weights, file
    else:
        [line] = said
        assert "\n" not in line
        assert file.name in line or "recipe is not the one" in line or "another setup" in line, (file, line)
    shutil.rmtree(folder)


def empty_the_seal(folder: Path) -> None:
    (folder / "checkpoint-4" / SEAL).write_text("{}")


def spoil_the_records(folder: Path) -> None:
    """Another number in a bookmark, which only its checksum tells; and a list of steps that is cut."""
    file = folder / "sources" / "streams" / "successors.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) > 1
    file.write_text("".join(line.replace("[4, ", "[2, ") + "\n" for line in lines) + "\x00\xff[]\n[1, 2\n")
    (folder / "sources" / "steps.csv").write_bytes(b"step,stage\n1,paars,\xff\n")


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty seal": (empty_the_seal, "skipping checkpoint-4: its complete.json does not list trainer_state.json"),
    "records": (spoil_the_records, "damaged bookmarks are left out"),
}


@pytest.mark.parametrize("case", HARM)
def test_the_run_goes_on_from_an_older_whole_checkpoint(
    runs: tuple[list[str], Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    command, killed, weights = runs
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    (folder / ".checkpoint-9.partial").mkdir()  # of a kill; gone when the run is finished
    harm, words = HARM[case]
    harm(folder)
    assert main([*command, str(folder), "--resume"]) == 0
    assert words in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not list(folder.glob(".*"))


def test_a_damaged_run_file_is_one_line_and_may_be_written_anew(
    runs: tuple[list[str], Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, killed, weights = runs
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    (folder / "run.json").write_bytes((folder / "run.json").read_bytes()[:200] + b"\xff")
    assert main([*command, str(folder), "--resume"]) == 2
    said = capsys.readouterr().err
    assert "run.json cannot be read" in said
    assert "go on with --allow_recipe_change, which writes it anew" in said
    assert main([*command, str(folder), "--resume", "--allow_recipe_change"]) == 0
    assert (folder / "model.safetensors").read_bytes() == weights
    assert main([*command, str(folder), "--resume"]) == 0
