"""The record that a run's figures go into."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer_ext.tiny_run import RunFactory, make_model, make_processor
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.evaluation.tasks import text_task
from trainer_ext.measuring.models import encoders_of
from trainer_ext.measuring.texts import Instructed
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.evaluating import Evaluator, encoders, evaluation_tasks, start_report
from trainer_ext.run.folder import RunFolder


def test_a_run_without_bm25s_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [text_task("words", [("what is red", "a red car"), ("what is blue", "a blue car")])]
    folder = RunFolder(tmp_path, load_recipe("openmoji"), [])
    assert [row.name for row in start_report(folder, tasks).rows] == ["chance", "BM25"]
    monkeypatch.setitem(sys.modules, "bm25s", None)
    start_report(folder, tasks).save()
    report = start_report(folder, tasks)  # as a resumed run begins
    assert [row.name for row in report.rows] == ["chance"]
    assert report.notes == ["BM25 is left out. The BM25 baseline needs bm25s: pip install '.[demo]'."]
    assert report.notes[0] in capsys.readouterr().out


def test_texts_are_encoded_under_their_instructions_as_by_evaluate() -> None:
    """A recipe's task with ``instructions`` measures what ``evaluate`` measures on the finished model."""
    model = make_model().eval()
    model.processor = make_processor()
    model.config.text_config.task_instructions = {"retrieval.query": "number after "}
    texts = [Instructed("one", "retrieval.query"), "one", Instructed("two", "retrieval.query")]
    found = encoders(model)[0](texts)
    assert np.array_equal(found, encoders_of(model, "same").encode_text(texts))
    assert np.allclose(found[0], model.encode_text("number after one"), atol=1e-6)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_a_run_measures_by_length_too(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tokens of its own tokenizer, as ``evaluate`` does."""
    monkeypatch.setattr("trainer_ext.evaluation.base.BAND_QUERIES", 1)
    task = {"name": "pairs", "source": "successors"}
    recipe = load_recipe(tiny_recipe, [f"evaluation={{tasks: [{task}]}}"])
    tasks = evaluation_tasks(recipe, BrokenRows(None), print, progress=False)
    tasks.append(text_task("long", [("one", "two " * 40), ("three", "four")]))
    trainer = RunFactory(tiny_recipe)(tmp_path / "run")
    trainer.model.processor = make_processor()
    evaluator = Evaluator(recipe, tasks, {})
    evaluator.attach(trainer)
    names = {name.partition("/")[0] for name in evaluator.measure(trainer.model)}
    assert names == {"pairs", "long", "long[up to 32 tokens]", "long[up to 77 tokens]"}
