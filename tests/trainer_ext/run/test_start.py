"""Presets and checkpoint folders, and tokenizers that fit them or not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_jina_clip import JinaCLIPTextForMaskedLM
from tests.trainer_ext.tiny_run import make_model, make_processor, make_tokenizer
from trainer_ext import train
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import as_trained_here, initial_model


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


# --- towers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_tower(tmp_path: Path) -> Path:
    """A masked language model of the tiny run's text sizes, and the tokenizer it knows."""
    config = make_model().config.text_config
    torch.manual_seed(11)
    JinaCLIPTextForMaskedLM(config).save_pretrained(tmp_path / "text-tower")
    make_tokenizer().save_pretrained(tmp_path / "text-tower")
    return tmp_path / "text-tower"


def test_towers_of_a_recipe_arrive_unchanged(tiny_recipe: Path, text_tower: Path, tmp_path: Path) -> None:
    torch.manual_seed(12)
    vision = {name: torch.randn_like(tensor) for name, tensor in make_model().vision_model.state_dict().items()}
    save_file({"visual." + name: tensor for name, tensor in vision.items()}, tmp_path / "eva.safetensors")
    towers = [f"initialize.text={text_tower}", f"initialize.vision={tmp_path / 'eva.safetensors'}", "tokenizer=null"]
    said: list[str] = []
    model, processor = initial_model(load_recipe(tiny_recipe, towers), say=said.append)
    expected = JinaCLIPTextForMaskedLM.from_pretrained(text_tower).text_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.text_model.state_dict().items())
    assert all(torch.equal(tensor, vision[name]) for name, tensor in model.vision_model.state_dict().items())
    assert processor.tokenizer.get_vocab() == make_tokenizer().get_vocab()  # taken from beside the text tower
    assert [line.split(" tower from ")[0] for line in said] == ["text", "vision"]
    assert "0 left fresh, 5 of the file not used" in said[0]


def test_a_tower_replaces_that_of_a_checkpoint(tiny_recipe: Path, checkpoint: Path, text_tower: Path) -> None:
    recipe = load_recipe(tiny_recipe, [f"model={checkpoint}", f"initialize.text={text_tower}"])
    model, _ = initial_model(recipe)
    before = make_model()
    words = JinaCLIPTextForMaskedLM.from_pretrained(text_tower).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert not torch.equal(words, before.get_input_embeddings().weight)
    assert torch.equal(model.vision_model.cls_token, before.vision_model.cls_token)


def test_a_resumed_run_does_not_read_the_towers_again(tiny_recipe: Path, text_tower: Path, checkpoint: Path) -> None:
    recipe = load_recipe(tiny_recipe, [f"initialize.text={text_tower}"])
    said: list[str] = []
    initial_model(recipe, resumed_from=checkpoint, say=said.append)
    assert said == []


def test_a_relative_path_is_taken_from_the_recipes_folder(tiny_recipe: Path, text_tower: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny_recipe.read_text() + "initialize: {text: text-tower}\n")
    assert load_recipe(tmp_path / "recipe.yaml").initialize.text == str(text_tower)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("initialize={}", "initialize: names no tower: give it text, vision, or both"),
        ("initialize.text=nowhere", "initialize.text: 'nowhere' does not exist. Give a .safetensors file or a folder"),
        ("initialize.vision={here}", "initialize.vision: '{here}' is a folder without a .safetensors file. Pickles"),
        ("initialize.vision={here}/recipe.yaml", "initialize.vision: '{here}/recipe.yaml' is not a .safetensors file"),
        ("initialize.images=x", "initialize.images: unknown key (value 'x')"),
    ],
)
def test_towers_that_are_not_there_are_refused_at_load(tiny_recipe: Path, override: str, message: str) -> None:
    here = str(tiny_recipe.parent)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, [override.replace("{here}", here)])
    assert message.replace("{here}", here) in str(caught.value)


def test_a_new_tokenizer_for_old_embeddings_is_refused(tiny_recipe: Path, text_tower: Path) -> None:
    with pytest.raises(RecipeError, match=r"tokenizer: .* does not fit the word embeddings of initialize.text"):
        load_recipe(tiny_recipe, [f"initialize.text={text_tower}", "tokenizer={vocab_size: 100}"])


def test_a_tower_of_another_size_is_refused(tiny_recipe: Path, text_tower: Path, tiny_data: Path, tmp_path) -> None:
    preset = json.loads((tiny_data / "model.json").read_text())
    preset["text_config"]["num_hidden_layers"] = 2
    deeper = tmp_path / "deeper.json"
    deeper.write_text(json.dumps(preset))
    with pytest.raises(ValueError, match=r"without a tensor there: transformer.encoder.layers.1"):
        initial_model(load_recipe(tiny_recipe, [f"model={deeper}", f"initialize.text={text_tower}"]))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
@pytest.mark.parametrize("kernels", [True, False])
def test_bf16_without_kernels_for_it_is_float32_and_said(
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kernels: bool,
) -> None:
    """On a processor with AVX2 alone a bf16 step takes 20 times as long. The recipe itself stays as it was written."""
    monkeypatch.setattr("trainer_ext.run.start.has_bf16_kernels", lambda: kernels)
    train(tiny_recipe, tmp_path / "run", overrides=["bf16=true"], only_stage="larger")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["recipe"]["training"]["bf16"] is True
    assert told["setup"]["mixed_precision"] == ("bf16" if kernels else "no")
    assert ("has no kernels for it" in capsys.readouterr().out) == (not kernels)


def test_a_recipe_without_bf16_is_left_alone(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_ext.run.start.has_bf16_kernels", lambda: False)
    recipe, said = load_recipe(tiny_recipe), []
    assert as_trained_here(recipe, said.append) is recipe
    assert said == []
