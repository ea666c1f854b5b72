"""Fine-tuning keys of a recipe: what they mean, and what is refused at load."""

from pathlib import Path

import pytest

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.stages import trained_parts

EVERYTHING = {"text", "vision", "text_projection", "vision_projection", "temperature"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.0.steps=3", EVERYTHING),
        ("stages.0.trainable=[text]", {"text", "text_projection"}),
        ("stages.0.trainable=[text_projection, temperature]", {"text_projection", "temperature"}),
        ("lora={}", {"text", "vision", "temperature"}),
        ("lora={towers: [text]}", {"text", "temperature"}),
    ],
)
def test_trained_parts(tiny_recipe: Path, override: str, expected: set[str]) -> None:
    recipe = load_recipe(tiny_recipe, [override])
    assert trained_parts(recipe.stages[0].trainable, recipe.lora) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.0.trainable=[]"], r"stages.0.trainable"),
        (["stages.0.trainable=[txt]"], r"stages.0.trainable.0.*'txt'"),
        (["stages.0.trainable=[vision]"], r"stages.0.text: the text tower is frozen.*text: null"),
        (["stages.1.image_text=null", "stages.1.trainable=[text, vision]"], r"stages.1.trainable: 'vision' learns"),
        (["stages.0.trainable=[text]", "stages.0.learning_rates={vision: 1e-3}"], r"learning_rates.vision: this part"),
        (["stages.0.learning_rates={vision: 0}"], r"stages.0.learning_rates.vision"),
        (["stages.0.layer_decay=1.5"], r"stages.0.layer_decay"),
        (["stages.0.layer_decay={image: 0.5}"], r"stages.0.layer_decay"),
        (["stages.0.reset_optimizer=1"], r"stages.0.reset_optimizer"),
        (["lora={towers: [vision]}"], r"stages.0.text: the text tower is frozen"),
        (["lora={towers: [text, text]}"], r"lora.towers: .* lists a tower twice"),
        (["lora={towers: [text], target_modules: {vision: [w1]}}"], r"lora.target_modules.vision: .* no adapters"),
        (["lora={}", "stages.0.trainable=[text, vision_projection]"], r"'vision_projection' has no adapters"),
        (["lora={rank: 8}"], r"lora.rank"),
        (["lora={dropout: 1.0}"], r"lora.dropout"),
    ],
)
def test_refused_at_load(tiny_recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe, overrides)
