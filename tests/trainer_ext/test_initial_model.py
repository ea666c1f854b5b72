"""Presets and checkpoint folders, and tokenizers that fit them or not."""

import json
from pathlib import Path

import pytest
import torch

from tests.trainer_ext.tiny_run import make_model, make_processor, make_tokenizer
from trainer_ext.initial_model import initial_model
from trainer_ext.recipe import load_recipe


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def test_a_preset_gets_weights_of_the_seed_and_its_own_image_size(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        model, processor = initial_model(recipe)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert processor.image_processor.size == 16
    assert model.config.text_config.vocab_size == 64  # the preset's: the tokenizer was loaded, not trained


def test_a_checkpoint_brings_weights_and_tokenizer(tiny_recipe: Path, checkpoint: Path) -> None:
    model, processor = initial_model(load_recipe(tiny_recipe, [f"model={checkpoint}", "tokenizer=null"]))
    expected = make_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_a_resumed_run_takes_the_tokenizer_of_its_checkpoint(tiny_recipe: Path, checkpoint: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["tokenizer={vocab_size: 5000}"])
    model, processor = initial_model(recipe, resumed_from=checkpoint)
    assert processor.tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert model.config.text_config.vocab_size == len(make_tokenizer())


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    tiny_recipe: Path, tiny_data: Path, tmp_path: Path, checkpoint: Path
) -> None:
    preset = json.loads((tiny_data / "model.json").read_text())
    preset["text_config"]["vocab_size"] = 10
    small = tmp_path / "small.json"
    small.write_text(json.dumps(preset))
    with pytest.raises(ValueError, match=f"tokenizer has {len(make_tokenizer())} entries, but .* is 10"):
        initial_model(load_recipe(tiny_recipe, [f"model={small}"]))
    grown = make_tokenizer()
    grown.add_tokens([f"new{number}" for number in range(60)])
    grown.save_pretrained(tmp_path / "grown")
    with pytest.raises(ValueError, match="vocab_size is 64"):
        initial_model(load_recipe(tiny_recipe, [f"model={checkpoint}", f"tokenizer={tmp_path / 'grown'}"]))


def test_a_tokenizer_without_padding_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "unpadded")
    with pytest.raises(ValueError, match="no padding token"):
        initial_model(load_recipe(tiny_recipe, [f"tokenizer={tmp_path / 'unpadded'}"]))
