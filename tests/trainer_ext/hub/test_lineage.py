"""The card of a merged model names its parents, and so does that of a model trained from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hub_upload import HubFolderError, build
from tests.hub_checkpoint import finished_run, run_record
from tests.loopback_card_rules import card_errors
from trainer_ext import merge


@pytest.fixture
def base(golden: Path, tmp_path: Path) -> Path:
    """A model to start from, in the cache of the Hub's client."""
    return Path(shutil.copytree(golden / "tiny_model", tmp_path / "hub/models--me--base-clip/snapshots" / ("0" * 40)))


def with_run(golden: Path, folder: Path, model: Path, name: str) -> Path:
    """The golden model as a fine-tune of another one leaves it."""
    shutil.copytree(golden / "tiny_model", folder)
    places = ["sources.pictures.location=x.csv", "sources.texts.location=y.csv"]
    (folder / "run.json").write_text(json.dumps(run_record("finetune", f"model={model}", f"name={name}", *places)))
    return folder


def card_of(folder: Path, out: Path, **options: Any) -> ModelCard:
    content = (build(folder, out, **options) / "README.md").read_text()
    assert card_errors(content) == []
    return ModelCard(content)


def test_a_merged_model_names_its_parents(golden: Path, base: Path, tmp_path: Path) -> None:
    first, second = (with_run(golden, tmp_path / name, base, name) for name in ("first", "second"))
    folder = merge(base, [first, second], tmp_path / "both", [0.6, 0.4], scale=0.5)
    card = card_of(folder, tmp_path / "out")
    assert "Merged from other models, without training. Tensor by tensor: from `me/base-clip`, 30% of " in card.text
    assert "30% of the way to the run of recipe `first` (" in card.text
    assert ", and 20% of the way to the run of recipe `second` (" in card.text
    assert card.data.base_model == "me/base-clip"
    assert str(tmp_path) not in card.content
    assert card_of(folder, tmp_path / "out", base_model=["a/b"]).data.base_model == "a/b"


def test_a_search_is_told(golden: Path, base: Path, tmp_path: Path) -> None:
    folder = merge(base, [golden / "tiny_model"], tmp_path / "m", scale=0.5)
    record = json.loads((folder / "merge.json").read_text())
    (folder / "merge.json").write_text(json.dumps(record | {"search": {"recipe": "my <probe>"}}))
    text = card_of(folder, tmp_path / "out").text
    assert "50% of the way to a checkpoint that is not named here. Found by the losses of recipe `my <probe>`." in text


def test_a_run_that_started_from_a_merged_model(golden: Path, base: Path, tmp_path: Path) -> None:
    first = with_run(golden, tmp_path / "first", base, "first")
    again = merge(merge(base, [first], tmp_path / "m", scale=0.5), [first], tmp_path / "n", scale=0.5)
    card = card_of(with_run(golden, tmp_path / "second", again, "second"), tmp_path / "out")
    assert "Started from merged weights. Tensor by tensor: from a merged model (Tensor by tensor: from " in card.text
    assert card.data.base_model == "me/base-clip"


def test_a_model_that_its_run_merged_has_the_runs_record(golden: Path, base: Path, tmp_path: Path) -> None:
    run = with_run(golden, tmp_path / "run", base, "tune")
    merge(base, [run], run / "merged-0.5", scale=0.5)
    metrics = json.loads((finished_run(golden, tmp_path / "other") / "metrics.json").read_text())
    stages = [row for row in metrics["rows"] if row["kind"] == "stage"]
    own = stages[-1] | {"name": "merged-0.5", "kind": "model"}
    more = stages[-1] | {"name": "merged-0.25", "kind": "model"}
    (run / "metrics.json").write_text(json.dumps(metrics | {"rows": [*metrics["rows"], more, own]}))
    card = card_of(run / "merged-0.5", tmp_path / "out")
    assert "The weights are at 50% of the way from the start to the run's end (merged)." in card.text
    assert "| task | metric | chance | before training | triplets | merged-0.5 |" in card.text
    assert len(card.data.eval_results) == 3
    whole = card_of(run, tmp_path / "whole")
    assert "| task | metric | chance | before training | triplets |\n" in whole.text
    later = card_of(with_run(golden, tmp_path / "later", run / "merged-0.5", "later"), tmp_path / "later-out")
    assert ", merged at 50% of the way from the start of that run to its end. That run: Started from `me" in later.text


@pytest.mark.parametrize("content", ['{"base": 1}', "[]", '{"scale": "x", "base": {}, "models": [{}]}'])
def test_a_lineage_that_is_none_is_one_line(golden: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(golden / "tiny_model", tmp_path / "m"))
    (folder / "merge.json").write_text(content)
    with pytest.raises(HubFolderError, match=r"is not the trainer's") as caught:
        build(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
