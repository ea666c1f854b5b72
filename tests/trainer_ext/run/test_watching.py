"""Measuring while training: figures every N steps, the best model kept, an early stop; and no weight changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.own_process import in_two_processes, run_command
from trainer_ext import train
from trainer_ext.__main__ import main
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.watching import best_of, stopped_at

TASKS = [{"name": "bars", "source": "pictures", "metrics": ["r1", "r5", "mrr"]}]


def write(tiny_recipe: Path, folder: Path, evaluation: dict[str, Any] | None, **changes: Any) -> Path:
    tree = yaml.safe_load(tiny_recipe.read_text())
    tree["sources"][0]["holdout"] = 0.25
    tree |= changes
    if evaluation is not None:
        tree["evaluation"] = evaluation
    path = folder / "measured.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def measured(folder: Path, figure: str) -> dict[int, float]:
    """Step -> figure, from the last checkpoint's log."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[f"eval_{figure}"] for entry in history if f"eval_{figure}" in entry}


def test_measuring_changes_no_weight(tiny_recipe: Path, tmp_path: Path) -> None:
    """Every step against never, the latter without a section at all."""
    train(write(tiny_recipe, tmp_path, None), tmp_path / "plain")
    spec = {"tasks": TASKS, "every": 1, "keep_best": "bars/t2i_mrr", "validation_loss": True}
    run = train(write(tiny_recipe, tmp_path, spec), tmp_path / "measured")
    assert_same(tmp_path / "plain", tmp_path / "measured")
    assert {"bars/t2i_r1", "bars/i2t_r5", "validation/loss", "validation/loss_image_text"} <= run.metrics.keys()
    assert sorted(measured(run.folder, "bars/t2i_mrr")) == list(range(9))


def test_the_best_model_is_kept_with_its_figures(tiny_recipe: Path, tmp_path: Path) -> None:
    spec = {"tasks": TASKS, "every": 2, "keep_best": "bars/t2i_mrr"}
    run = train(write(tiny_recipe, tmp_path, spec), tmp_path / "run")
    kept = json.loads((run.folder / "best" / "best.json").read_text())
    history = measured(run.folder, "bars/t2i_mrr")
    assert sorted(history) == [0, 2, 3, 4, 5, 6, 8]  # every 2 steps, and where stages end
    assert kept["figure"] == "bars/t2i_mrr"
    assert kept["figures"]["bars/t2i_mrr"] == max(history.values())
    assert kept["step"] == min(step for step, value in history.items() if value == max(history.values()))
    model = JinaCLIPModel.from_pretrained(run.folder / "best")
    assert model.encode_text(["one red bar"]).shape == (1, 16)
    if (run.folder / f"checkpoint-{kept['step']}").is_dir():
        assert_same(run.folder / "best", run.folder / f"checkpoint-{kept['step']}")


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_whole_one(tiny_recipe: Path, tmp_path: Path) -> None:
    spec = {"tasks": TASKS, "every": 1, "keep_best": "bars/t2i_mrr", "patience": 50, "validation_loss": True}
    path = write(tiny_recipe, tmp_path, spec, save_steps=1, save_total_limit=10)
    train(path, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in range(5, 9):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    (tmp_path / "cut" / "model.safetensors").unlink()
    train(path, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert_same(tmp_path / "whole" / "best", tmp_path / "cut" / "best")
    for name in ("best/best.json", "metrics.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()


def test_it_stops_when_nothing_gets_better_and_stays_stopped(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nearly nothing is learned, so no figure moves. The last stage has 6 steps; 3 measurements in it are enough."""
    tree = yaml.safe_load(tiny_recipe.read_text())
    stages = [stage | {"learning_rate": 1e-12} for stage in tree["stages"]]
    stages[-1]["steps"] = 6
    spec = {"tasks": TASKS, "every": 1, "keep_best": "bars/t2i_r5", "patience": 3}
    path = write(tiny_recipe, tmp_path, spec, stages=stages, save_steps=100)
    run = train(path, tmp_path / "run")
    assert "stopped at step 8: 3 measurements in a row were no better than bars/t2i_r5" in capsys.readouterr().out
    assert sorted(measured(run.folder, "bars/t2i_r5")) == list(range(9))
    assert (run.folder / "checkpoint-8").is_dir()
    assert (run.folder / "stages" / "2-hard" / "config.json").is_file()
    assert run.metrics["bars/t2i_r5"] == measured(run.folder, "bars/t2i_r5")[8]
    before = weights(run.folder)
    again = train(path, tmp_path / "run", resume=True)
    assert not (run.folder / "checkpoint-9").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again.folder).items())
    assert again.metrics == run.metrics


def test_losses_alone_can_be_measured(tiny_recipe: Path, tmp_path: Path) -> None:
    spec = {"validation_loss": True, "every": 4, "keep_best": "validation/loss"}
    run = train(write(tiny_recipe, tmp_path, spec), tmp_path / "run")
    assert run.metrics.keys() == {"validation/loss", "validation/loss_image_text"}
    kept = json.loads((run.folder / "best" / "best.json").read_text())
    assert kept["figures"]["validation/loss"] == min(measured(run.folder, "validation/loss").values())


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"tasks": TASKS, "keep_best": "bars/t2i_r7"}, "'bars/t2i_r7'"),
        ({"tasks": TASKS, "keep_best": "bras/t2i_r5"}, "Did you mean 'bars'?"),
        ({"tasks": TASKS, "patience": 3}, "Give keep_best"),
        ({"every": 3}, "measures nothing"),
        ({"tasks": TASKS, "every": 0}, "evaluation.every"),
    ],
)
def test_bad_sections_are_one_line_and_leave_the_folder_free(
    tiny_recipe: Path, tmp_path: Path, evaluation: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tiny_recipe, tmp_path, evaluation)
    assert main([str(path), "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_losses_without_held_out_rows_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(tiny_recipe.read_text()) | {"evaluation": {"validation_loss": True}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=r"evaluation\.validation_loss.*no source holds some out.*holdout: 0\.05"):
        train(path, tmp_path / "run")


def test_streams_hold_nothing_out_and_strategies_need_something_to_measure(tiny_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"sources\.0.*holdout.*streaming"):
        load_recipe(tiny_recipe, ["sources.0.holdout=0.1", "sources.0.streaming=true"])
    with pytest.raises(RecipeError, match=r"eval_strategy: is 'steps', but nothing is measured"):
        train(tiny_recipe, "never-made", overrides=["eval_strategy=steps", "eval_steps=1"])
    with pytest.raises(RecipeError, match=r"evaluation\.keep_best"):
        load_recipe(tiny_recipe, ["metric_for_best_model=bars/t2i_r5"])


def test_the_best_of_a_history() -> None:
    history = [{"step": step, "eval_a/median_rank": value} for step, value in ((0, 9.0), (2, 4.0), (4, 4.0), (6, 5.0))]
    assert best_of(history, "a/median_rank") == (4.0, 2)
    assert best_of(history, "a/r5") is None


def test_earlier_stages_run_to_their_end(tiny_recipe: Path) -> None:
    stages = load_recipe(tiny_recipe).stages  # of 3, 2 and 3 steps
    history = [{"step": step, "eval_a/r1": 0.5} for step in range(9)]
    assert stopped_at(history, "a/r1", 2, stages) == 7
    assert stopped_at(history[:7], "a/r1", 2, stages) is None


@pytest.mark.slow
def test_two_processes_measure_keep_and_stop_as_one_does(tiny_recipe: Path, tmp_path: Path) -> None:
    """The main process measures by itself, held-out losses included, while the other one waits; both stop together.

    Without dropout, whose random numbers two processes draw in another order.
    """
    tree = yaml.safe_load(tiny_recipe.read_text())
    stages = [stage | {"learning_rate": 1e-12, "patch_dropout": 0.0} for stage in tree["stages"][:1]]
    spec = {"tasks": TASKS, "every": 1, "keep_best": "bars/t2i_r5", "patience": 2, "validation_loss": True}
    path = write(tiny_recipe, tmp_path, spec, stages=stages, save_steps=100)
    train(path, tmp_path / "one")
    assert in_two_processes(run_command, [str(path), "--output_dir", str(tmp_path / "two")]) == [0, 0]
    rows = [json.loads((tmp_path / name / "metrics.json").read_text())["rows"][-1] for name in ("one", "two")]
    assert rows[0]["metrics"] == pytest.approx(rows[1]["metrics"], abs=1e-4)
    assert "validation/loss_image_text" in rows[1]["metrics"]
    for name in ("one", "two"):
        assert (tmp_path / name / "checkpoint-2").is_dir()
        assert json.loads((tmp_path / name / "best" / "best.json").read_text())["step"] == 0
