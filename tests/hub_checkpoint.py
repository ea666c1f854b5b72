"""A finished run as the trainer leaves it, to build Hub folders from."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trainer_ext.recipe import load_recipe
from trainer_ext.report import Report
from trainer_ext.run_folder import RunFolder

# Put together here, so that no scanner takes this file for a leak.
TOKEN = "hf_" + "Abcdefgh1234" * 3


def run_record(recipe: str = "openmoji", *changes: str) -> dict[str, Any]:
    """`run.json` of a run, by default of the demo's recipe, started in a place nobody needs to know."""
    loaded = load_recipe(recipe, changes)
    with tempfile.TemporaryDirectory() as place:
        command = ["trainer", "--output_dir", "/home/somebody/secret-project"]
        RunFolder(Path(place) / "run", loaded, command).claim()
        return json.loads((Path(place) / "run" / "run.json").read_text())


def finished_run(golden: Path, folder: Path) -> Path:
    """The golden model, its measurements, and files nobody should publish."""
    shutil.copytree(golden / "tiny_model", folder)
    report = Report(folder)
    report.add("before training", {"concepts_short/t2i_r5": 0.031, "words/ndcg10": 0.12})
    report.add("chance", {"concepts_short/t2i_r5": 0.029}, kind="reference")
    report.add("triplets", {"concepts_short/t2i_r5": 0.314, "words/ndcg10": 0.42, "concepts_short@64/t2i_r5": 0.2})
    report.save()
    (folder / "run.json").write_text(json.dumps(run_record()))
    (folder / "optimizer.pt").write_bytes(pickle.dumps({"not": "for the Hub"}))
    return folder
