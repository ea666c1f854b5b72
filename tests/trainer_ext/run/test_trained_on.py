"""Rows that are measured and trained on, too: one line a task when a run begins, and none where there are none."""

from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from tests.trainer_ext.own_files import write_csv
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.evaluating import evaluation_tasks
from trainer_ext.run.start import training_arguments
from trainer_ext.run.train import _read_data
from trainer_ext.run.trained_on import trained_on_notes


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


def test_rows_of_a_suite_are_named_with_it(tiny_recipe: Path, tmp_path: Path) -> None:
    """A file of tasks of its own, whose sources the recipe does not know."""
    write_csv(tmp_path / "test.csv", ["q", "a"], [("one is after", "two"), ("what", "ever")])
    own = {"name": "successors", "task": "text-pair", "format": "csv", "location": "test.csv"}
    suite = {"sources": [own | {"columns": {"query": "q", "positive": "a"}}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite | {"tasks": [{"name": "pairs", "source": "successors"}]}))
    tree = yaml.safe_load(tiny_recipe.read_text()) | {"evaluation": {"suite": str(tmp_path / "mine.yaml")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert warnings_of(tmp_path / "recipe.yaml") == [
        "warning: task 'pairs': 1 of 2 rows of source 'mine/successors' are also trained on, from source 'successors', "
        "'triplets' (rows 0, from 0): its figures show what was learnt by heart. Take them out of the training data; "
        "`python -m trainer_ext check` lists them."
    ]


def test_a_stream_is_compared_from_its_begin_and_it_is_said(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken row in there is left to the run, whose list of them stays empty."""
    rows = [("first", "one"), ("", "broken"), *((f"question {n}", f"answer {n}") for n in range(8))]
    write_csv(tmp_path / "stream.csv", ["q", "a"], rows)
    path = recipe_of(tiny_recipe, tmp_path, [{"name": "mine", "source": "own"}])
    tree = yaml.safe_load(path.read_text())
    stream = {"name": "stream", "task": "text-pair", "format": "csv", "location": str(tmp_path / "stream.csv")}
    tree["sources"].append(stream | {"columns": {"query": "q", "positive": "a"}, "streaming": True})
    tree["stages"] = tree["stages"][:1]
    tree["stages"][0]["text"] = {"sources": ["stream"], "batch_size": 4}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    write_csv(tmp_path / "own.csv", ["q", "a"], [("Answer 1", "question 1"), ("question 7", "answer 7")])
    recipe, broken = load_recipe(path), BrokenRows(None)

    def said(most: int) -> list[str]:
        monkeypatch.setattr("trainer_ext.run.trained_on.STREAM_ROWS", most)
        lines: list[str] = []
        tables, _ = load_with_holdout(recipe.used_sources(), recipe.seed, broken)
        evaluation_tasks(recipe, broken, lines.append, progress=False, trained=tables)
        return lines

    [whole] = said(9)
    assert "2 of 2 rows of source 'own' are also trained on, from source 'stream'" in whole
    begin, bound = said(3)
    assert "1 of 2 rows of source 'own' are also trained on, from source 'stream' (rows 0, from 0)" in begin
    assert bound == (
        "of source 'stream' the first 3 rows were compared with what is measured; all of them by `python -m "
        "trainer_ext check`"
    )
    assert broken.counts() == {}


def test_nothing_is_read_where_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Dataset.from_dict({"query": ["a"], "positive": ["b"]})
    monkeypatch.setattr("trainer_ext.run.trained_on.row_marks", lambda *_: pytest.fail("read"))
    assert list(trained_on_notes([], {"texts": table})) == []


@pytest.mark.parametrize("process", [0, 1])
def test_a_run_says_it_once(tiny_recipe: Path, tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process alone compares, as it alone speaks."""
    recipe, said = load_recipe(recipe_of(tiny_recipe, tmp_path, [{"name": "mine", "source": "own"}])), []
    arguments = training_arguments(recipe, tmp_path / "run")
    monkeypatch.setattr(type(arguments), "process_index", property(lambda _: process))
    _read_data(recipe, arguments, said.append)
    assert sum("also trained on" in line for line in said) == (process == 0)
