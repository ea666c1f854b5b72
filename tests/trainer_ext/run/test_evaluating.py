"""The record that a run's figures go into."""

import sys
from pathlib import Path

import pytest

from trainer_ext.evaluation.tasks import text_task
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.evaluating import start_report
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
