"""The pre-training example as a user runs it, and a recipe that starts from its result."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from examples import pretrain_text_tower
from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.tiny_run import write_data, write_recipe
from trainer_ext.__main__ import main
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import initial_model

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "pretrain_text_tower.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, with a tokenizer of its own texts."""
    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    path = write_recipe(folder)
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"tokenizer": {"vocab_size": 120}}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def tower(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tower"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        pretrain_text_tower.main(
            [str(recipe), str(out), "--steps=60", "--batch_size=8", "--learning_rate=5e-3", "--bf16"]
        )
    found = re.search(r"held-out texts: ([\d.]+) before, ([\d.]+) after", said.getvalue())
    before, after = map(float, found.groups())
    assert before == pytest.approx(4.6, abs=0.5)  # about ln(vocabulary)
    assert after < before - 0.5
    return out


def test_stage_1_starts_from_the_pretrained_tower(recipe: Path, tower: Path, tmp_path: Path) -> None:
    """A real run: the tower arrives to the last bit, and two steps move it."""
    preset = tmp_path / "model.json"  # the preset's vocabulary is the tower's, not the recipe's default
    weights = load_file(tower / "model.safetensors")
    tree = json.loads((recipe.parent / "model.json").read_text())
    tree["text_config"]["vocab_size"] = len(weights["text_model.transformer.embeddings.word_embeddings.weight"])
    preset.write_text(json.dumps(tree))
    overrides = [f"initialize.text={tower}", "tokenizer=null", f"model={preset}"]
    model, processor = initial_model(load_recipe(recipe, overrides))
    for name, tensor in model.text_model.state_dict().items():
        assert torch.equal(tensor, weights[f"text_model.{name}"]), name
    assert processor.tokenizer.mask_token == "[MASK]"

    out = tmp_path / "run"
    two_steps = ["stages.0.steps=2", "stages.1.steps=1", "stages.2.steps=1", "save_steps=1", "stages.0.warmup_steps=0"]
    assert main([str(recipe), "--output_dir", str(out), *overrides, *two_steps]) == 0
    trained = JinaCLIPModel.from_pretrained(out).text_model.state_dict()
    moved = (trained["transformer.emb_ln.weight"] - weights["text_model.transformer.emb_ln.weight"]).abs().max()
    assert 0 < moved < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["openmoji", ROOT / "docs"], "is not empty; give a new folder"),
        (["openmoji", "new", "--steps", "0"], "--steps 0 --batch_size 128: both must be at least 1"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        pretrain_text_tower.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 120
