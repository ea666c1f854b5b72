"""The Matryoshka example on the tiny run: both runs train, and the table has every width of both."""

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.trainer_ext.own_process import tiny_suite
from tests.trainer_ext.tiny_run import write_data, write_recipe
from trainer_ext.run import train as training_run

SCRIPT = Path(__file__).parents[2] / "examples" / "train_matryoshka.py"


@pytest.mark.slow
def test_two_runs_and_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "load_suite", tiny_suite)
    monkeypatch.setattr(training_run, "picture_task", lambda tasks: tasks[0])
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "data")
    runs = tmp_path / "runs"
    more = ["evaluation=tiny", "save_strategy=no"]
    command = [str(runs), "--recipe", str(recipe), "--steps", "3", "--dims", "8,2", *more]
    runpy.run_path(str(SCRIPT))["main"](command)
    recipes = {
        name: json.loads((runs / name / "run.json").read_text())["recipe"] for name in ("with-matryoshka", "without")
    }
    assert recipes["with-matryoshka"].pop("matryoshka") == {"dims": [16, 8, 2], "weights": None}
    assert recipes["without"].pop("matryoshka") is None
    assert recipes["with-matryoshka"] == recipes["without"]
    assert [stage["steps"] for stage in recipes["without"]["stages"]] == [3]
    shown = capsys.readouterr().out
    lines = re.findall(r"^(.{22}) *(16|8|2) +([\d.]+) +\(?\d*%?\)? +([\d.]+)", shown, re.MULTILINE)
    assert [width for _, width, *_ in lines] == ["16", "8", "2"] * (len(lines) // 3)
    metrics = json.loads((runs / "without" / "metrics.json").read_text())["rows"][-1]["metrics"]
    assert {name.rpartition("/")[0] for name in metrics} >= {"bars", "bars@8", "bars@2", "text@2", "hard@2"}
    cells = {(kind.strip(), width): float(without) for kind, width, _, without in lines}
    assert cells["text to image R@5", "16"] == pytest.approx(100 * metrics["bars/t2i_r5"], abs=0.06)


def test_a_recipe_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    with pytest.raises(SystemExit, match="add evaluation=SUITE"):
        runpy.run_path(str(SCRIPT))["main"]([str(tmp_path / "runs"), "--recipe", str(write_recipe(tmp_path / "data"))])
