"""What the command line demands of a run that is resumed, beside its recipe; and a folder whose claim was cut short."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from safetensors.torch import load_file, save_file

from tests.trainer_ext.merging.families import make_folder
from tests.trainer_ext.own_process import in_own_process, in_two_processes, kill_self, run_command, settle
from trainer_ext.__main__ import main
from trainer_ext.run import train as training_run


@pytest.fixture
def command(tiny_recipe: Path, tiny_data: Path, tmp_path: Path) -> list[str]:
    """A run over a copy of the pictures."""
    shutil.copy(tiny_data / "pictures.parquet", tmp_path)
    places = [f"sources.0.location={tmp_path / 'pictures.parquet'}", "stages.2.steps=1"]
    return [str(tiny_recipe), "--output_dir", str(tmp_path / "run"), *places]


def setup_in(command: list[str]) -> dict[str, object]:
    return json.loads((Path(command[2]) / "run.json").read_text())["setup"]


@pytest.mark.slow
def test_rows_that_come_or_go_are_listed(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert setup_in(command)["rows"]["pictures"] == 36
    rows = datasets.Dataset.from_parquet(str(tmp_path / "pictures.parquet"))
    rows.select(range(30)).to_parquet(tmp_path / "pictures.parquet")
    assert main([*command, "--resume"]) == 2
    said = capsys.readouterr().err
    assert "was started with another setup: rows.pictures: 36 -> 30. It would not go on as the same run" in said
    assert main([*command, "--resume", "--allow_recipe_change"]) == 0
    assert setup_in(command)["rows"]["pictures"] == 30


def test_rows_that_were_rewritten_are_noticed(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as before, and other ones: the resumed run would not be the same."""
    assert main(command) == 0
    rows = datasets.Dataset.from_parquet(str(tmp_path / "pictures.parquet"))
    captions = rows["caption"][:]
    rows = rows.remove_columns("caption").add_column("caption", captions[::-1])
    rows.to_parquet(tmp_path / "pictures.parquet")
    assert main([*command, "--resume"]) == 2
    assert "was started with another setup: content.pictures: " in capsys.readouterr().err
    assert main([*command, "--resume", "--allow_recipe_change"]) == 0


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_pictures(folder: Path) -> None:
    content = json.loads((folder / "processor_config.json").read_text())
    content["image_processor"]["background"] = [1, 2, 3]
    (folder / "processor_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("role", "change"), [("teacher", change_weights), ("start", change_weights), ("start", change_pictures)]
)
def test_models_that_were_rewritten_are_noticed(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str, change: Callable[[Path], None]
) -> None:
    """A resumed run reads them again: a LoRA run the weights that it changes, a taught one its teacher."""
    for name in ("start", "teacher"):
        make_folder(tmp_path / name)
    words = [str(tiny_recipe), "--output_dir", str(tmp_path / "run"), f"model={tmp_path / 'start'}", "tokenizer=null"]
    words += ["stages.1.steps=1", "stages.2.steps=1", "lora={r: 2}"]
    words += [f"teacher={{model: {tmp_path / 'teacher'}, kind: scores}}"]
    assert main(words) == 0
    (tmp_path / "start" / "notes.md").write_text("for people")
    assert main([*words, "--resume"]) == 0
    change(tmp_path / role)
    assert main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"was started with another setup: models.{role}: " in said
    assert said.count("models.") == 1
    assert main([*words, "--resume", "--allow_recipe_change"]) == 0


def test_precision_given_by_the_launcher(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command) == 0
    found = {key: value for key, value in setup_in(command).items() if key not in ("rows", "content", "models")}
    assert found == {"processes": 1, "mixed_precision": "no", "device": "cpu"}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert main([*command, "--resume"]) == 2
    assert "mixed_precision: no -> bf16" in capsys.readouterr().err


@pytest.mark.slow
def test_number_of_processes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert in_two_processes(run_command, command) == [0, 0]
    assert main([*command, "--resume"]) == 2
    assert "processes: 2 -> 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_an_older_version_is_resumed_and_completed(command: list[str]) -> None:
    assert main(command) == 0
    path = Path(command[2]) / "run.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "setup"}))
    assert main([*command, "--resume", "logging_steps=2"]) == 0
    assert json.loads(path.read_text()) == told  # with the command it was started by


def run_command_until_killed_at_claim(command: list[str]) -> None:
    """The command line, dying when it is about to write whose folder it is."""
    settle()
    training_run.RunFolder.claim = lambda *arguments: kill_self()
    main(command)


def test_killed_before_the_claim_leaves_the_folder_free(command: list[str]) -> None:
    command = [*command, "report_to=tensorboard"]
    assert in_own_process(run_command_until_killed_at_claim, command) == -signal.SIGKILL
    assert not Path(command[2]).exists() or list(Path(command[2]).iterdir()) == []
    assert main(command) == 0
