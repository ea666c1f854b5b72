"""The record: its table and its file; that it survives a reload; that a failed write leaves the old file."""

import json
import os

import pytest

from trainer_ext.evaluation import report as report_module
from trainer_ext.evaluation.markdown import metric_words
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import text_task
from trainer_ext.files import write_whole

WORDS = {"words/ndcg10": 0.4234, "words/r5": 0.5}
PICTURES = {"concepts_short/t2i_r1": 0.101, "concepts_short/t2i_r5": 0.31}


def filled(folder) -> Report:
    report = Report(folder, [text_task("words", [("a", "b"), ("c", "d")])])
    report.add("BM25", WORDS, kind="reference")
    report.add("before training", {**PICTURES, **WORDS})
    report.add("chance", {**PICTURES, **WORDS}, kind="reference")
    report.add("stage one", {**PICTURES, **WORDS, "hard_negatives/accuracy": 1.0})
    return report


def test_table_has_metrics_down_and_stages_across_in_percent(tmp_path):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in filled(tmp_path).table().splitlines()]
    assert lines[0] == ["task", "metric", "BM25", "chance", "before training", "stage one"]
    assert lines[2] == ["concepts short", "text to image R@1", "-", "10.1", "10.1", "10.1"]
    assert lines[4] == ["words", "nDCG@10", "42.3", "42.3", "42.3", "42.3"]
    assert lines[6] == ["hard negatives", "accuracy", "-", "-", "-", "100.0"]
    assert len({len(line) for line in filled(tmp_path).table().splitlines()}) == 1, "columns must line up in a terminal"


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path):
    report = Report(tmp_path)
    report.add("a|b", WORDS)
    assert "a/b" in report.table()


def test_values_of_the_data_stay_in_their_cell(tmp_path):
    """Parts of a task are named by a column's values, whatever they hold."""
    report = Report(tmp_path)
    report.add("model", {"shop/r5": 0.5} | {f"shop[{part}]/r5": 0.5 for part in ("a|b", "a\nb", "<script>x</script>")})
    lines = [line for line in report.table().splitlines() if "shop" in line]
    assert [line.count("|") for line in lines] == [4] * 4
    assert [line.split("|")[1].strip() for line in lines] == [
        "shop", "shop[a/b]", "shop[a b]", r"shop[\<script>x\</script>]"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("concepts_long/i2t_r1", ("concepts long", "image to text R@1")),
        ("definition_example/r5", ("definition example", "R@5")),
        ("hard_negatives/accuracy", ("hard negatives", "accuracy")),
        ("x/ndcg10", ("x", "nDCG@10")),
    ],
)
def test_metric_names_in_words(name, words):
    assert metric_words(name) == words


def test_a_reloaded_report_goes_on_and_writes_the_same_files(tmp_path):
    filled(tmp_path / "whole").save()
    first = Report(tmp_path / "cut", [text_task("words", [("a", "b"), ("c", "d")])])
    for row in filled(tmp_path).rows[:2]:
        first.add(row.name, row.metrics, row.kind)
    first.save()
    resumed = Report.load(tmp_path / "cut")
    for row in filled(tmp_path).rows[1:]:  # the second row is measured again: replaced, not repeated
        resumed.add(row.name, row.metrics, row.kind)
    resumed.save()
    for name in ("metrics.json", "metrics.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [row.name for row in resumed.rows] == ["BM25", "before training", "chance", "stage one"]


def test_files_say_what_they_hold(tmp_path):
    filled(tmp_path).save()
    text = (tmp_path / "metrics.md").read_text()
    assert "equal scores count against the model" in text
    assert "words: 2 queries, 2 candidates" in text
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["rows"][1] == {"name": "before training", "kind": "stage", "metrics": {**PICTURES, **WORDS}}
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "metrics.md"], "no temporary file may stay"


def test_loading_where_nothing_was_saved_gives_an_empty_report(tmp_path):
    assert Report.load(tmp_path / "new").rows == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 99, "sizes": {}, "rows": []}',
        '{"format": 1}',
        '{"format": 1, "sizes": {}, "rows": [{"name": "x"}]}',
    ],
)
def test_a_foreign_or_cut_record_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"Cannot read the report .*metrics.json .* move it away"):
        Report.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"Row 'bad' has metrics that are not finite: \{'x/r5'"):
        Report(tmp_path).add("bad", {"x/r5": value})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_whole(tmp_path / "kept.txt", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "kept.txt", b"new")
    assert (tmp_path / "kept.txt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_an_empty_report_can_be_saved(tmp_path):
    Report(tmp_path).save()
    assert Report.load(tmp_path).rows == []
