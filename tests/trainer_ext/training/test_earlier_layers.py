"""``matryoshka.layers`` in whole runs: the formula, the ways a step may be computed, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from modeling_jina_clip import shortened
from tests.trainer_ext.losses.test_joint_options import CONTRASTED, IMAGES, PAIRS, QUIET, SCORED, TRIPLETS, state_of
from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, deep_preset, entries_of, trained
from trainer_ext.losses.layers import drawn_layer
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe, recipe_differences, recipe_fingerprint
from trainer_ext.training.lora import add_lora
from trainer_ext.training.trainer import JinaCLIPTrainer

SEED = 7  # the tiny run's
LAYERS = "matryoshka={dims: [16, 4], layers: [1, 2, 4]}"
# An optimizer in which weights differ as gradients do: Adam would make a step of a rounding error.
SGD = ["optim=sgd", "max_grad_norm=0", "stages.0.learning_rate=2e-3"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deep_preset(tmp_path_factory.mktemp("presets"))


def layered(factory: RunFactory, folder: Path, deep: Path, *more: str, dropout: float = 0.0) -> JinaCLIPTrainer:
    return factory(folder, *overrides(deep, *more), dropout=dropout)


def overrides(deep: Path, *more: str) -> list[str]:
    return [*QUIET, f"model={deep}", IMAGES % "", PAIRS % "", LAYERS, *more]


def steps_of(trainer: JinaCLIPTrainer) -> list[dict[str, Any]]:
    return [entry for entry in entries_of(trainer) if "loss" in entry]


def pair_loss(left: Tensor, right: Tensor, temperature: Tensor | float) -> Tensor:
    """InfoNCE in both directions at both widths."""
    total = torch.tensor(0.0)
    for dim in (16, 4):
        logits = F.normalize(left[:, :dim], dim=1) @ F.normalize(right[:, :dim], dim=1).T / temperature
        labels = torch.arange(len(logits))
        total = total + F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    return total


@pytest.mark.parametrize("layers", ["[1, 2, 4]", "{text: [2, 4], image: [1, 3, 4]}", "{image: [2, 4]}"])
def test_a_step_is_its_formula(make_trainer: RunFactory, tmp_path: Path, deep: Path, layers: str) -> None:
    """From the shorter models themselves: their vectors, their losses, and the divergence from the whole one's."""
    key = f"matryoshka={{dims: [16, 4], layers: {layers}}}"
    trainer = layered(make_trainer, tmp_path, deep, key, "false_negatives=keep")
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model, given = trainer.model.eval(), trainer.recipe.matryoshka.layers_by_tower()
    drawn = {tower: drawn_layer(numbers, SEED, tower, 0) for tower, numbers in given.items()}
    short = shortened(model, drawn.get("text"), drawn.get("image"))
    assert set(drawn.values()).isdisjoint({4})
    with torch.no_grad():
        whole, early = ({} for _ in range(2))
        for found, encoder in ((whole, model), (early, short)):
            pixels = trainer._embed._embed.normalized(inputs["image_text"]["pixel_values"])
            found["image"] = encoder(pixel_values=pixels).image_embeds
            texts = {"caption": inputs["image_text"], "query": inputs["text"]["query"]}
            for name, column in (texts | {"positive": inputs["text"]["positive"]}).items():
                ids = {key: column[key] for key in ("input_ids", "attention_mask")}
                found[name] = encoder(**ids).text_embeds
        _, terms = trainer.objective(trainer.recipe.stages[0], inputs, trainer._embeddings(model, inputs))
    temperature = 1 / model.logit_scale.exp().detach()
    for side, columns, t in (("image_text", ("image", "caption"), temperature), ("text", ("query", "positive"), 0.05)):
        tower_columns = [name for name in columns if ("image" if name == "image" else "text") in drawn]
        if not tower_columns:
            assert f"earlier_{side}" not in terms
            continue
        torch.testing.assert_close(terms[f"loss_{side}"], pair_loss(*(whole[name] for name in columns), t))
        expected = pair_loss(*(early[name] for name in columns), t)
        torch.testing.assert_close(terms[f"earlier_{side}"], expected, rtol=1e-5, atol=1e-5)
        p, q = (torch.cat([x[name] for name in tower_columns]).div(0.3).softmax(dim=1) for x in (whole, early))
        divergence = 0.3 * (p * (p / q).log()).sum(dim=1).mean()
        torch.testing.assert_close(terms[f"divergence_{side}"], divergence, rtol=1e-3, atol=1e-7)


def test_the_terms_are_in_the_loss_and_not_in_chance(make_trainer: RunFactory, tmp_path: Path, deep: Path) -> None:
    trainer = layered(make_trainer, tmp_path, deep, TRIPLETS % ", weight: 2.0")
    trained(trainer)
    for entry in steps_of(trainer):
        sides = {side: sum(entry[f"{term}_{side}"] for term in ("loss", "earlier", "divergence")) for side in SIDES}
        assert entry["loss"] == pytest.approx(sides["image_text"] + 2.0 * sides["text"], rel=1e-5)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        embeddings = trainer._embeddings(trainer.model, inputs)
        chance = trainer.objective.chance(trainer.recipe.stages[0], inputs, embeddings)
    plain = {name: value for name, value in embeddings.items() if name != "earlier"}
    assert "earlier" in embeddings
    assert chance == trainer.objective.chance(trainer.recipe.stages[0], inputs, plain)
    assert chance["loss_image_text"].item() == pytest.approx(4 * math.log(4), rel=1e-5)  # 2 widths, 2 directions


SIDES = ("image_text", "text")


def test_the_layers_of_a_step_depend_on_nothing_but_seed_tower_and_step(
    make_trainer: RunFactory, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(layers: list[int], seed: int, tower: str, step: int) -> int:
        layer = drawn_layer(layers, seed, tower, step)
        seen.append((step, tower, layer))
        return layer

    monkeypatch.setattr("trainer_ext.training.earlier_layers.drawn_layer", note)
    more = ["gradient_accumulation_steps=2", "gradient_cache_chunk_size=1"]
    trained(layered(make_trainer, tmp_path, deep, *more))
    assert {step for step, _, _ in seen} == set(range(4))
    pairs = {(step, tower) for step, tower, _ in seen}
    assert set(seen) == {(step, tower, drawn_layer([1, 2, 4], SEED, tower, step)) for step, tower in pairs}
    assert len(seen) > 4 * 2 * 2


SAME = {
    "chunk 1": ["gradient_cache_chunk_size=1"],
    "chunk 3, kept, tiles": ["gradient_cache_chunk_size=3", "gradient_cache_keep_last=true", "tile_size=3"],
    "checkpointing": ["gradient_checkpointing=true", "gradient_cache_chunk_size=3"],
    "checkpointing, reentrant": ["gradient_checkpointing=true", "gradient_checkpointing_kwargs={use_reentrant: true}"],
    "padding computed": ["gradient_cache_chunk_size=2", "attn_implementation=eager"],
}

LOSSES = {
    "pairs": [],
    "negatives": [CONTRASTED % ", uniformity: 0.5", TRIPLETS % ""],
    "captions": [IMAGES % ", captions_per_image: 2"],
}


@pytest.mark.parametrize("way", SAME)
@pytest.mark.parametrize("losses", LOSSES)
def test_no_way_of_computing_a_step_changes_it(
    make_trainer: RunFactory, tmp_path: Path, deep: Path, way: str, losses: str
) -> None:
    sides = [*SGD, *LOSSES[losses]]
    plain = trained(layered(make_trainer, tmp_path / "plain", deep, *sides))
    other = trained(layered(make_trainer, tmp_path / "other", deep, *sides, *SAME[way]))
    moved = 0.0
    start = layered(make_trainer, tmp_path / "start", deep).model.state_dict()
    for name, value in state_of(plain).items():
        torch.testing.assert_close(value, state_of(other)[name], rtol=0.0, atol=5e-6)
        moved = max(moved, (value - start[name]).abs().max().item())
    assert moved > 1e-3
    for one, two in zip(steps_of(plain), steps_of(other), strict=True):
        for name in ("loss", "earlier_text", "earlier_image_text", "divergence_image_text"):
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("key", ["torch_compile=true", "torch_compile_backend=eager"])
def test_compiled_towers_are_refused(tiny_recipe: Path, deep: Path, key: str) -> None:
    words = f"{key.partition('=')[0]}: compiles the towers anew for each earlier layer that is drawn. Take"
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, [*overrides(deep), key])
    assert words in str(caught.value)
    assert load_recipe(tiny_recipe, [*overrides(deep), key, "matryoshka={dims: [16]}"]).matryoshka.layers is None


def test_scored_pairs_and_siglip_have_earlier_layers_too(make_trainer: RunFactory, tmp_path: Path, deep: Path) -> None:
    trainer = trained(layered(make_trainer, tmp_path, deep, IMAGES % ", loss: siglip", SCORED % ""))
    for entry in steps_of(trainer):
        assert entry["earlier_text"] > 0
        assert entry["earlier_image_text"] > 0
    assert trainer.objective.image_text_bias.item() != -10.0


def test_lora_trains_the_earlier_layers(make_trainer: RunFactory, tmp_path: Path, deep: Path) -> None:
    trainer = layered(make_trainer, tmp_path / "whole", deep)
    trainer.model.save_pretrained(tmp_path / "model")
    recipe = load_recipe(make_trainer.recipe, [*overrides(deep), f"model={tmp_path / 'model'}", "lora={}"])
    assert recipe.lora is not None
    add_lora(trainer.model, recipe.lora)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    embeddings = trainer._embeddings(trainer.model, inputs)
    loss, _ = trainer.objective(trainer.recipe.stages[0], inputs, embeddings)
    loss.backward()
    moved = {name for name, item in trainer.model.named_parameters() if item.grad is not None and item.grad.any()}
    assert any("blocks.3" in name for name in moved)
    assert any("blocks.0" in name for name in moved)
    assert all("lora_" in name or name == "logit_scale" for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["gradient_cache_chunk_size=1", "tile_size=3"], ["fully_shard=true"], [TRIPLETS % "", "fully_shard=true"]],
    ids=["plain", "cache, tiles", "sharded", "sharded, negatives"],
)
def test_two_processes_equal_one(make_trainer: RunFactory, tmp_path: Path, deep: Path, more: list[str]) -> None:
    given = overrides(deep, *SGD, *more)
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", given, 0.0) == [0, 0]
    one = trained(make_trainer(tmp_path / "one", *given, dropout=0.0))
    logs = [torch.load(tmp_path / "two" / f"log-{rank}.pt") for rank in range(2)]
    assert logs[0] == logs[1]
    for left, right in zip([entry for entry in logs[0] if "loss" in entry], steps_of(one), strict=True):
        for name in ("loss", "earlier_image_text", "earlier_text", "divergence_image_text"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6), name
    two, single = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("two", "one"))
    for name, value in single.items():
        torch.testing.assert_close(two[name], value, rtol=0.0, atol=5e-6)


@pytest.mark.slow
def test_two_processes_where_a_stage_has_no_images(make_trainer: RunFactory, tmp_path: Path, deep: Path) -> None:
    """Every parameter has a gradient in every step, as DDP wants it."""
    texts = "text: {sources: [successors], batch_size: 4}"
    images = "image_text: {sources: [pictures], batch_size: 4}"
    stages = ", ".join(
        f"{{name: {name}, steps: 2, learning_rate: 1e-3, max_length: 8, patch_dropout: 0.0, {side}}}"
        for name, side in (("a", texts), ("b", images))
    )
    given = [f"stages=[{stages}]", f"model={deep}", LAYERS, "save_steps=4"]
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", given, 0.0) == [0, 0]


@pytest.mark.parametrize("more", [[], ["gradient_cache_chunk_size=2"]], ids=["plain", "cache"])
def test_a_resumed_run_is_the_same_run(make_trainer: RunFactory, tmp_path: Path, deep: Path, more: list[str]) -> None:
    through = trained(layered(make_trainer, tmp_path, deep, *more, dropout=0.1))
    again = trained(layered(make_trainer, tmp_path, deep, *more, dropout=0.1), tmp_path / "checkpoint-2")
    assert_same_weights(through.model, again.model)
    assert entries_of(through) == entries_of(again)
    assert load_file(tmp_path / "checkpoint-4" / "model.safetensors").keys() == through.model.state_dict().keys()


REFUSED = {
    "not at the end": (
        "{dims: [16], layers: [1, 2]}",
        "matryoshka.layers: [1, 2] must end at the last layer of the text tower, which has 4: give [1, 2, 4].",
    ),
    "beyond the end": (
        "{dims: [16], layers: {image: [2, 6]}}",
        "matryoshka.layers.image: [2, 6] must end at the last layer of the image tower, which has 4: give [2, 4].",
    ),
    "nothing earlier": (
        "{dims: [16], layers: {text: [6, 12]}}",
        "matryoshka.layers.text: [6, 12] must end at the last layer of the text tower, which has 4: leave this tower",
    ),
    "out of order": ("{dims: [16], layers: [2, 1, 4]}", "layers: [2, 1, 4] must rise, each layer once: [1, 2, 4]."),
    "twice": ("{dims: [16], layers: {text: [2, 2, 4]}}", "matryoshka.layers.text: [2, 2, 4] must rise"),
    "one alone": ("{dims: [16], layers: {text: [4]}}", "matryoshka.layers.text: List should have at least 2 items"),
    "none": ("{dims: [16], layers: {}}", "matryoshka.layers: names no tower: give it text, image, or both"),
    "layer 0": ("{dims: [16], layers: {text: [0, 4]}}", "matryoshka.layers.text.0: must be greater than 0, got 0."),
    "another name": ("{dims: [16], layers: {vision: [2, 4]}}", "layers.vision: unknown key (value [2, 4])."),
    "a number": ("{dims: [16], layers: 4}", "matryoshka.layers: must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_layers_are_refused_at_load(tiny_recipe: Path, deep: Path, case: str) -> None:
    value, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, [*overrides(deep), f"matryoshka={value}"])
    assert words in str(caught.value)


def test_layers_that_nothing_would_train_are_refused(tiny_recipe: Path, deep: Path) -> None:
    texts = [*QUIET, f"model={deep}", PAIRS % "", "matryoshka={dims: [16], layers: {image: [2, 4]}}"]
    with pytest.raises(RecipeError, match="no stage has images, so nothing would train them"):
        load_recipe(tiny_recipe, texts)
    frozen = [*overrides(deep), "stages.0.trainable=[text]"]
    with pytest.raises(RecipeError, match="no stage trains the image tower, so its earlier layers would learn nothing"):
        load_recipe(tiny_recipe, frozen)


def test_layers_of_a_side_are_refused(tiny_recipe: Path, deep: Path) -> None:
    side = PAIRS % ", matryoshka: {dims: [16], layers: [2, 4]}"
    with pytest.raises(RecipeError, match=r"stages\.0\.text\.matryoshka\.layers: is for the whole run, .* Move it to"):
        load_recipe(tiny_recipe, [*overrides(deep), side])


def test_a_configuration_that_states_no_depth_is_checked_with_the_model(
    make_trainer: RunFactory, tmp_path: Path
) -> None:
    """By default a configuration has 12 layers; the tiny run's factory makes a model of one."""
    bare = tmp_path / "bare.json"
    bare.write_text('{"model_type": "jina_clip", "projection_dim": 16}')
    given = [*QUIET, f"model={bare}", PAIRS % "", "matryoshka={dims: [16], layers: {text: [1, 12]}}"]
    with pytest.raises(RecipeError, match=r"\[1, 12\] must end at the last layer of the text tower, which has 1"):
        make_trainer(tmp_path, *given)


def test_only_recipes_with_layers_have_them_in_their_fingerprint(tiny_recipe: Path, deep: Path) -> None:
    given = [*overrides(deep), "matryoshka={dims: [16, 4]}"]
    before, after = load_recipe(tiny_recipe, given), load_recipe(tiny_recipe, overrides(deep))
    assert recipe_fingerprint(before) != recipe_fingerprint(after)
    changes = recipe_differences(before, after)
    assert changes == [f"matryoshka.layers.{i}: absent -> {layer}" for i, layer in enumerate((1, 2, 4))]
    content = before.model_dump(mode="json")
    assert content["matryoshka"].pop("layers") is None  # as an older version wrote it
    assert recipe_fingerprint(type(before).model_validate(content)) == recipe_fingerprint(before)
