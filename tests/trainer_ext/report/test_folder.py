"""A run's folder as data: what is read of it, and what a damaged or partial one gives."""

import pytest

from tests.trainer_ext.report.run_folders import run_folder
from tests.trainer_ext.report.samples import page
from trainer_ext.evaluation.report import Report
from trainer_ext.report import report_of_measurement, report_of_run
from trainer_ext.report.data import Series, StageSpan, read_json, save_details, to_json


def test_all_of_a_run_is_read(tmp_path):
    folder = run_folder(tmp_path / "my run")
    save_details(folder, page().details)
    data = report_of_run(folder)
    run = data.runs[0]
    assert data.title == "my run"
    assert [(row.name, row.kind) for row in data.rows][:2] == [("chance", "reference"), ("before training", "stage")]
    low, high = data.rows[-1].intervals["shop/t2i_r5"]
    assert low < data.rows[-1].metrics["shop/t2i_r5"] < high
    assert data.details == page().details
    assert run.curves.stages == [StageSpan("short", 1, 20), StageSpan("long", 21, 30)]
    assert run.curves.series["loss"] == Series([10, 20, 30], [1 / 10, 1 / 20, 1 / 30])
    assert sorted(run.curves.series) == ["eval_shop/t2i_r5", "learning_rate", "loss"]
    assert run.versions == {"torch": "2.6.0", "commit": "abc"}
    assert run.hardware == {"cores": "2"}
    assert run.shares == {"text": {"photos": {"rows": 9, "share": 1.0}}}
    assert [(rows.count, len(rows.examples)) for rows in run.broken_rows] == [(7, 5)]
    assert read_json(to_json(data)) == data


def test_seconds_are_pairs_by_their_rate_stage_by_stage(tmp_path):
    short, long = report_of_run(run_folder(tmp_path)).runs[0].speed
    assert (short.steps, long.steps) == (20, 10)
    assert short.seconds == pytest.approx(10 * 12 / 12 + 10 * 12 / 24)  # 12 pairs a step, both sides
    assert short.pairs_per_second == pytest.approx(240 / 15)
    assert (long.seconds, long.pairs_per_second) == (pytest.approx(10 * 8 / 8), pytest.approx(8))


def test_what_a_folder_does_not_have_is_left_out(tmp_path):
    run_folder(tmp_path / "run")
    for name in (
        "trainer_state.json",
        "metrics.json",
        "sources/speed.csv",
        "sources/shares.json",
        "sources/broken_rows.jsonl",
    ):
        (tmp_path / "run" / name).unlink()
    data = report_of_run(tmp_path / "run")
    assert (data.rows, data.runs[0].curves.series, data.runs[0].shares) == ([], {}, {})
    assert [stage.seconds for stage in data.runs[0].speed] == [None, None]


def test_curves_of_a_run_that_was_stopped_come_from_its_newest_checkpoint(tmp_path):
    run_folder(tmp_path)
    state = (tmp_path / "trainer_state.json").rename(tmp_path / "state").read_text()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state if step == 10 else "{}")
    assert report_of_run(tmp_path).runs[0].curves.series["loss"].steps == [10, 20, 30]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has neither run.json nor metrics.json; give the folder of a run"):
        report_of_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("trainer_state.json", "null"),
        ("sources/speed.csv", "step,pairs_per_second\n1,x\n"),
        ("metrics.json", '{"format": 99}'),
        ("sources/shares.json", "1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    run_folder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"Cannot read .*{name}"):
        report_of_run(tmp_path)


def test_models_measured_beside_each_other(tmp_path):
    record = Report(tmp_path)
    record.add("ours", {"shop/t2i_r5": 0.5}, "model")
    record.add("peer", {"shop/t2i_r5": 0.4}, "model")
    record.notes.append("peer has no image tower")
    data = report_of_measurement(record, page().details)
    assert (data.title, data.notes, data.details) == ("ours, peer", ["peer has no image tower"], page().details)
