"""The Python entry ``trainer_ext.train``: the same run as the command line's, from a file or from a ``Recipe``."""

import json
from pathlib import Path

import pytest
from transformers.utils import logging

import trainer_ext
from tests.trainer_ext.own_process import tiny_suite
from trainer_ext import TrainedRun, load_recipe, train
from trainer_ext.__main__ import main
from trainer_ext.run.train import equivalent_command

OVERRIDES = ["evaluation=tiny", "save_steps=1", "save_total_limit=8"]


@pytest.fixture(autouse=True)
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)


@pytest.fixture(scope="module")
def by_command(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command line leaves."""
    folder = tmp_path_factory.mktemp("command") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)
        assert main([str(tiny_recipe), "--output_dir", str(folder), *OVERRIDES]) == 0
    return folder


def assert_same_files(left: Path, right: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json", "metrics.json", "stages/1-larger/config.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def last_row(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())["rows"][-1]["metrics"]


def test_a_recipe_file_trains_what_the_command_line_trains(by_command: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    run = train(tiny_recipe, tmp_path / "run", overrides=OVERRIDES)
    assert run == TrainedRun(tmp_path / "run", last_row(tmp_path / "run"))
    assert {"bars/t2i_r5", "text/ndcg10", "hard/accuracy"} <= run.metrics.keys()
    assert_same_files(run.folder, by_command)
    told, other = (json.loads((folder / "run.json").read_text()) for folder in (run.folder, by_command))
    assert told["command"] == [str(tiny_recipe), "--output_dir", str(run.folder), *OVERRIDES]
    assert other["command"] == [str(tiny_recipe), "--output_dir", str(by_command), *OVERRIDES]
    assert {**told, "command": None} == {**other, "command": None}


@pytest.mark.slow
def test_a_recipe_object_trains_and_its_run_is_resumed_by_the_file(
    by_command: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Cut back to step 4, in the second stage: the file with the same overrides goes on with what the object began."""
    recipe = load_recipe(tiny_recipe, OVERRIDES)
    assert train(recipe, tmp_path / "run").folder == tmp_path / "run"
    assert_same_files(tmp_path / "run", by_command)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"][0] == "tiny"
    for step in (5, 6, 7, 8):
        (tmp_path / "run" / f"checkpoint-{step}" / "complete.json").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="already holds a run; go on with it by --resume"):
        train(recipe, tmp_path / "run")
    resumed = train(tiny_recipe, str(tmp_path / "run"), resume=True, overrides=OVERRIDES)
    assert_same_files(resumed.folder, by_command)
    assert resumed.metrics == last_row(by_command)


def test_a_finished_run_that_is_resumed_returns_its_figures(by_command: Path, tiny_recipe: Path) -> None:
    assert train(tiny_recipe, by_command, resume=True, overrides=OVERRIDES).metrics == last_row(by_command)


def test_without_evaluation_there_are_no_figures(tiny_recipe: Path, tmp_path: Path) -> None:
    """Of one stage alone; and the bars of file writing are shown again afterwards."""
    shown = logging.is_progress_bar_enabled()
    run = train(tiny_recipe, tmp_path / "run", only_stage="larger")
    assert run == TrainedRun(tmp_path / "run", {})
    assert [path.name for path in (run.folder / "stages").iterdir()] == ["0-larger"]
    assert logging.is_progress_bar_enabled() == shown


@pytest.mark.slow
def test_a_changed_recipe_is_accepted_on_request(tiny_recipe: Path, tmp_path: Path) -> None:
    train(tiny_recipe, tmp_path / "run", only_stage="larger")
    with pytest.raises(ValueError, match="seed: 7 -> 8"):
        train(tiny_recipe, tmp_path / "run", True, ["seed=8"], "larger")
    train(tiny_recipe, tmp_path / "run", True, ["seed=8"], "larger", allow_recipe_change=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["seed"] == 8


def test_overrides_of_a_recipe_object_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"overrides \['seed=1'\] .* recipe 'tiny' .* load_recipe\(path, overrides\)"):
        train(load_recipe(tiny_recipe), tmp_path / "run", overrides=["seed=1"])
    assert not (tmp_path / "run").exists()


def test_the_recorded_command_is_the_command_line_s() -> None:
    command = equivalent_command("openmoji", "out", True, ["seed=1"], "pairs", True)
    options = trainer_ext.__main__.parse(command)
    assert vars(options) == {
        "recipe": "openmoji",
        "overrides": ["seed=1"],
        "output_dir": "out",
        "only_stage": "pairs",
        "resume": True,
        "allow_recipe_change": True,
        "traceback": False,
    }


@pytest.mark.parametrize("name", trainer_ext.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(trainer_ext, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        trainer_ext.trian  # noqa: B018
