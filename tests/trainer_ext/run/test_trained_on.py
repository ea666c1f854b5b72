"""Rows that are measured and trained on, too: one line a task when a run begins, and none where there are none."""

from pathlib import Path

import pytest
import yaml

from tests.trainer_ext.own_files import write_csv
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.evaluating import evaluation_tasks
from trainer_ext.run.start import training_arguments
from trainer_ext.run.train import _read_data


def recipe_of(tiny_recipe: Path, folder: Path, tasks: list[dict], holdout: float | None = None) -> Path:
    """The tiny run, with pairs of a file ``own.csv`` to measure on, which two rows cannot be used of."""
    pairs = [("One is AFTER!", "two"), ("", "x"), ("three", "two is after"), ("red", "blue"), ("one is after", "nine")]
    write_csv(folder / "own.csv", ["q", "a"], pairs)
    tree = yaml.safe_load(tiny_recipe.read_text())
    own = {"name": "own", "task": "text-pair", "format": "csv", "location": str(folder / "own.csv")}
    tree["sources"].append(own | {"columns": {"query": "q", "positive": "a"}, "max_broken_rows": 1})
    if holdout is not None:
        tree["sources"][0]["holdout"] = holdout
    tree["evaluation"] = {"tasks": tasks}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def warnings_of(path: Path) -> list[str]:
    recipe, said, broken = load_recipe(path), [], BrokenRows(None)
    tables, _ = load_with_holdout(recipe.used_sources(), recipe.seed, broken)
    evaluation_tasks(recipe, broken, said.append, progress=False, trained=tables)
    return [line for line in said if "trained on" in line]


def test_pairs_are_met_in_either_order_and_named_by_their_rows(tiny_recipe: Path, tmp_path: Path) -> None:
    """Case and signs aside; a query alone, with another answer, is not the row. Rows count with the broken one."""
    assert warnings_of(recipe_of(tiny_recipe, tmp_path, [{"name": "mine", "source": "own"}])) == [
        "warning: task 'mine': 2 of 4 rows of source 'own' are also trained on, from source 'successors', 'triplets' "
        "(rows 0, 2, from 0): its figures show what was learnt by heart. Take them out of the training data; "
        "`python -m trainer_ext check` lists them."
    ]


def test_pictures_of_the_same_source_ask_for_a_holdout(tiny_recipe: Path, tmp_path: Path) -> None:
    tasks = [{"name": "bars", "source": "pictures"}, {"name": "few", "source": "pictures", "limit": 3}]
    bars, few = warnings_of(recipe_of(tiny_recipe, tmp_path, tasks))
    assert "task 'bars': 36 of 36 rows" in bars
    assert "(rows 0, 1, 2, 3, 4, ..., from 0)" in bars
    assert bars.endswith("Give the source a holdout, or measure on a file of its own.")
    assert "3 of 3 rows of source 'pictures' are also trained on, from the same source (rows 0, 18, 35" in few


def test_held_out_rows_and_sources_of_no_stage_are_no_matter(tiny_recipe: Path, tmp_path: Path) -> None:
    tasks = [{"name": "bars", "source": "pictures"}, {"name": "alone", "source": "own", "limit": 1}]
    assert [line[:20] for line in warnings_of(recipe_of(tiny_recipe, tmp_path, tasks, 0.25))] == [
        "warning: task 'alone"
    ]
    assert warnings_of(recipe_of(tiny_recipe, tmp_path, tasks[:1], 0.25)) == []


@pytest.mark.parametrize("process", [0, 1])
def test_a_run_says_it_once(tiny_recipe: Path, tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process alone compares, as it alone speaks."""
    recipe, said = load_recipe(recipe_of(tiny_recipe, tmp_path, [{"name": "mine", "source": "own"}])), []
    arguments = training_arguments(recipe, tmp_path / "run")
    monkeypatch.setattr(type(arguments), "process_index", property(lambda _: process))
    _read_data(recipe, arguments, said.append)
    assert sum("also trained on" in line for line in said) == (process == 0)
