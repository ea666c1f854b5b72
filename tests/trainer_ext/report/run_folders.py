"""Folders as a run leaves them, written by hand: the page reads files, so files are all it needs."""

import json
from pathlib import Path

import numpy as np

from tests.trainer_ext.report.samples import RECIPE
from trainer_ext.evaluation.figures import Figure, interval
from trainer_ext.evaluation.report import Report
from trainer_ext.files import write_json


def figure(samples) -> Figure:
    """A mean with its interval."""
    samples = np.asarray(samples, dtype=np.float64)
    return Figure(float(samples.mean()), *interval(samples), samples)


def run_folder(path: Path, hits=(1, 0, 1, 1), recipe: dict = RECIPE, speed: bool = True) -> Path:
    """A finished run with two stages; ``hits`` are the last stage's values per query."""
    setup = {"device": "cpu"}
    origin = {"recipe": recipe, "command": ["tiny", "--output_dir", "x"], "versions": {"torch": "2.6.0"}}
    write_json(path / "run.json", origin | {"commit": "abc", "hardware": {"cores": "2"}, "setup": setup})
    report = Report(path)
    report.add("chance", {"shop/t2i_r5": 0.1}, "reference")
    report.add("before training", {"shop/t2i_r5": 0.2})
    report.add_figures("short", {"shop/t2i_r5": figure([0, 0, 1, 1])}, "stage")
    report.add_figures("long", {"shop/t2i_r5": figure(hits), "match/threshold": Figure(0.3)}, "stage")
    report.sizes = {"shop/t2i": f"{len(hits)} queries, 9 candidates"}
    report.save()
    log = [{"step": step, "epoch": 0.1, "loss": 1 / step, "learning_rate": 1e-3, "stage": "x"} for step in (10, 20, 30)]
    log.append({"step": 30, "eval_shop/t2i_r5": 0.5, "eval_runtime": 3.0})
    write_json(path / "trainer_state.json", {"log_history": log})
    (path / "sources").mkdir()
    if speed:
        (path / "sources" / "speed.csv").write_text(
            "step,pairs_per_second,tokens_per_second\n10,12,9\n20,24,9\n30,8,9\n"
        )
    sources = path / "sources"
    write_json(sources / "shares.json", {"text": {"photos": {"rows": 9, "share": 1.0}}, "broken_rows": {"photos": 7}})
    rows = [{"source": "photos", "file": "a.csv", "row": n, "column": "image", "reason": "cut"} for n in range(7)]
    lines = [json.dumps(row) for row in rows] + ['{"source": "photos", "fi']
    (sources / "broken_rows.jsonl").write_text("\n".join(lines))
    return path
