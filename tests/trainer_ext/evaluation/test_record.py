"""The record of figures: format 2 with intervals, differences and samples; format 1 is still read."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer_ext.evaluation.figures import Figure, Quantity
from trainer_ext.evaluation.markdown import metric_words
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import text_task

OURS = {"a/r5": Figure(0.75, 0.5, 1.0, np.array([1.0, 1.0, 0.0, 1.0])), "a/median_rank": Figure(12.0, 3.0, 20.0)}
THEIRS = {"a/r5": Figure(0.25, 0.0, 0.5, np.array([0.0, 1.0, 0.0, 0.0])), "a/median_rank": Figure(40.0, 30.0, 50.0)}


def filled(folder: Path) -> Report:
    report = Report(folder)
    report.add("chance", {"a/r5": 0.1, "a@8/r5": 0.1}, kind="reference")
    report.add_figures("theirs", THEIRS)
    report.add_figures("ours", OURS)
    report.compare(THEIRS, OURS, ("theirs", "ours"))
    report.notes.append("a note")
    return report


def test_it_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    filled(tmp_path / "one").save()
    report = Report.load(tmp_path / "one")
    assert report.rows[2].intervals == {"a/r5": (0.5, 1.0), "a/median_rank": (3.0, 20.0)}
    assert report.rows[2].samples["a/r5"].tolist() == [1, 1, 0, 1]
    report.folder = tmp_path / "two"
    report.save()
    for name in ("metrics.json", "metrics.md", "samples.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_difference_is_of_every_query(tmp_path: Path) -> None:
    [difference] = filled(tmp_path).differences
    assert difference.metrics == {"a/r5": 0.5, "a/median_rank": -28.0}
    low, high = difference.intervals["a/r5"]
    assert 0 <= low < 0.5 < high <= 1
    assert "a/median_rank" not in difference.intervals


def test_tables_show_intervals_shares_in_percent_and_ranks_as_they_are(tmp_path: Path) -> None:
    report = filled(tmp_path)
    report.save()
    text = (tmp_path / "metrics.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["a", "R@5", "10.0", "25.0 [0.0, 50.0]", "75.0 [50.0, 100.0]"] in cells
    assert "12 [3, 20]" in text
    assert "ours - theirs" in text
    assert text.index("Parts") < text.index("| a@8"), "widths stand apart"
    assert text.endswith("- a note\n")


def test_a_difference_that_leaves_out_0_is_marked(tmp_path: Path) -> None:
    report = Report(tmp_path)
    first, second = np.zeros(50), np.ones(50)
    figures = [{"a/r5": Figure(values.mean(), 0.0, 1.0, values)} for values in (first, second)]
    for name, one in zip("xy", figures, strict=True):
        report.add_figures(name, one)
    report.compare(*figures, ("x", "y"))
    report.compare(figures[0], figures[0], ("x", "x"))
    assert "+100.0* [+100.0, +100.0] | +0.0 [+0.0, +0.0]" in report.differences_table()


def test_draws_of_a_median_are_kept_and_compared_in_another_process(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    places = random.integers(1, 30, 90).astype(float)
    both = {
        name: {"a/median_rank": Quantity(values, lambda rows: float(np.median(rows))).figure()}
        for name, values in {"x": places, "y": places + random.integers(0, 9, 90)}.items()
    }
    report = Report(tmp_path)
    for name, figures in both.items():
        report.add_figures(name, figures)
    report.compare(both["x"], both["y"], ("x", "y"))
    report.save()
    again = Report.load(tmp_path)
    again.differences = []
    again.compare_rows("x", "y")
    assert again.differences == report.differences
    low, high = again.differences[0].intervals["a/median_rank"]
    assert 0 < low <= again.differences[0].metrics["a/median_rank"] <= high


def test_figures_of_other_rows_are_left_out_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """A test file that was changed between two starts of a run."""
    before = [text_task("a", [("q", "p"), ("r", "s")]), text_task("b", [("q", "p"), ("r", "s")])]
    after = [text_task("a", [("q", "p"), ("r", "other")]), before[1]]
    report = Report(tmp_path, before)
    report.add("chance", {"a/r5": 0.4}, "reference")
    report.add("stage", {"a/r5": 0.5, "a@8/r5": 0.4, "b/r5": 0.2}, intervals={"a/r5": (0.4, 0.6), "b/r5": (0.1, 0.3)})
    report.save()
    assert Report.load(tmp_path, before).rows == report.rows
    again = Report.load(tmp_path, after)
    assert [(row.name, row.metrics, row.intervals) for row in again.rows] == [
        ("stage", {"b/r5": 0.2}, {"b/r5": (0.1, 0.3)})
    ]
    assert again.notes == ["a: the data have changed since the run began; earlier figures are left out"]
    again.save()
    assert Report.load(tmp_path, after).notes == again.notes, "said once"


def test_format_1_is_still_read(tmp_path: Path) -> None:
    old = {"format": 1, "sizes": {"a": "2 queries"}, "rows": [{"name": "x", "kind": "stage", "metrics": {"a/r5": 0.5}}]}
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    [row] = Report.load(tmp_path).rows
    assert (row.name, row.kind, row.metrics, row.intervals) == ("x", "stage", {"a/r5": 0.5}, {})


@pytest.mark.parametrize("intervals", [{"a/r5": [0.1]}, {"a/r5": 3}, 4])
def test_intervals_that_are_none_are_refused(tmp_path: Path, intervals: object) -> None:
    row = {"name": "x", "kind": "stage", "metrics": {"a/r5": 0.5}, "intervals": intervals}
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 2, "sizes": {}, "rows": [row]}))
    with pytest.raises(ValueError, match="Cannot read the report"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shop[de]/i2i_median_rank", ("shop[de]", "image to image median rank")),
        ("kinds/acc5", ("kinds", "accuracy@5")),
        ("one-index/corrected_ndcg10", ("one-index", "nDCG@10, corrected")),
        ("one-index[shop/t2i]/corrected_mrr", ("one-index[shop/t2i]", "MRR, corrected")),
        ("match/threshold", ("match", "threshold")),
        ("a/map10", ("a", "MAP@10")),
    ],
)
def test_more_names_in_words(name: str, words: tuple[str, str]) -> None:
    assert metric_words(name) == words
