"""The command line with LoRA, averaged weights, and one stage alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.trainer_ext.own_process import tiny_suite
from tests.trainer_ext.tiny_run import make_model, make_processor
from trainer_ext.__main__ import main


@pytest.fixture(autouse=True)
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_lora_with_averaged_weights(tiny_recipe: Path, base: Path, tmp_path: Path) -> None:
    """Every folder of the run is a whole model; resuming the finished run writes them again."""
    command = [str(tiny_recipe), "--output_dir", str(tmp_path / "run"), f"model={base}", "tokenizer=null"]
    command += ["lora={r: 2}", "ema_decay=0.5", "evaluation=tiny"]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    run = tmp_path / "run"
    found = {}
    for folder in (run, run / "ema", run / "stages" / "0-pairs", run / "stages" / "2-hard"):
        model = JinaCLIPModel.from_pretrained(folder)
        model.processor = JinaCLIPProcessor.from_pretrained(folder)
        found[folder.name] = model.encode_text(["one red bar"])
        assert sorted(path.name for path in (folder / "adapter").glob("adapter_*")) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
    np.testing.assert_array_equal(found["run"], found["2-hard"])
    assert np.abs(found["run"] - found["ema"]).max() > 1e-6
    rows = [row["name"] for row in json.loads((run / "metrics.json").read_text())["rows"]]
    assert rows[-4:] == ["pairs", "larger", "hard", "EMA"]


@pytest.mark.slow
def test_one_stage_alone_from_the_stage_before(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a recipe that holds this stage only; a tokenizer is not trained a second time."""
    whole, alone, single = (tmp_path / name for name in ("whole", "alone", "single"))
    assert main([str(tiny_recipe), "--output_dir", str(whole), "tokenizer={vocab_size: 60}"]) == 0
    start = f"model={whole / 'stages' / '1-larger'}"
    command = [str(tiny_recipe), start, "tokenizer={vocab_size: 60}", "--only_stage"]
    assert main([*command, "hard", "--output_dir", str(alone)]) == 0
    tree = yaml.safe_load(tiny_recipe.read_text())
    tree["stages"] = [stage for stage in tree["stages"] if stage["name"] == "hard"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(tree))
    assert main([str(tmp_path / "one.yaml"), "--output_dir", str(single), start, "tokenizer=null"]) == 0
    stored = [load_file(folder / "model.safetensors") for folder in (alone, single, whole / "stages" / "1-larger")]
    assert all(torch.equal(value, stored[1][name]) for name, value in stored[0].items())
    assert not torch.equal(stored[0]["logit_scale"], stored[2]["logit_scale"])
    assert [path.name for path in (alone / "stages").iterdir()] == ["0-hard"]
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in (alone, single, whole)]
    assert tokenizers[0] == tokenizers[1] == tokenizers[2]

    assert main([*command, "hart", "--output_dir", str(tmp_path / "none")]) == 2
    assert "'hart' is not a stage of recipe 'tiny'. Did you mean 'hard'? Stages: pairs, larger, hard." in (
        capsys.readouterr().err
    )
