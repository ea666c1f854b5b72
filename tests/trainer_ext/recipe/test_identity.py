"""Two recipes are the same run if they train the same weights; otherwise it is told what changed."""

import json
from pathlib import Path

import pytest

from tests.trainer_ext.recipe_trees import base, write
from trainer_ext.recipe.recipe import Recipe, load_recipe, recipe_differences, recipe_fingerprint
from trainer_ext.recipe.schema import CAPTION_KEYS


def test_equal_recipes_have_equal_fingerprints(tmp_path: Path) -> None:
    before = load_recipe(write(tmp_path, base()))
    shuffled = load_recipe(write(tmp_path, dict(reversed(base().items()))))
    assert recipe_fingerprint(before) == recipe_fingerprint(shuffled)
    assert recipe_differences(before, shuffled) == []


@pytest.mark.parametrize("override", ["save_steps=7", "logging_steps=2", "dataloader_num_workers=2", "name=other"])
def test_what_does_not_change_the_weights_may_change(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, base())
    before, after = load_recipe(path), load_recipe(path, [override])
    assert before != after
    assert recipe_fingerprint(before) == recipe_fingerprint(after)
    assert recipe_differences(before, after) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("stages.0.steps=11", "stages.0.steps: 10 -> 11"),
        ("seed=1", "seed: 42 -> 1"),
        ("sources.1.weight=2", "sources.1.weight: 1.0 -> 2.0"),
        ("weight_decay=0.5", "training.weight_decay: absent -> 0.5"),
        ("stages.0.text.sources=[pairs-a]", "stages.0.text.sources.1: 'pairs-b' -> absent"),
    ],
)
def test_what_changes_the_weights_is_told(tmp_path: Path, override: str, difference: str) -> None:
    path = write(tmp_path, base())
    before, after = load_recipe(path), load_recipe(path, [override])
    assert recipe_fingerprint(before) != recipe_fingerprint(after)
    assert recipe_differences(before, after) == [difference]


def test_stored_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    """A run keeps its recipe as JSON and compares it when it is resumed."""
    overrides = ["save_strategy=no", "tokenizer={vocab_size: 9}", "sources.1.weight=2.5", "optim=sgd"]
    recipe = load_recipe(write(tmp_path, base() | {"sources": [*base()["sources"], "openmoji"]}), overrides)
    stored = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert recipe_differences(stored, recipe) == []
    assert recipe_fingerprint(stored) == recipe_fingerprint(recipe)


def test_runs_of_versions_without_a_key_go_on(tmp_path: Path) -> None:
    """A recipe as it was stored before there were several captions is the same run, and a change of them is told."""
    recipe = load_recipe(write(tmp_path, base() | {"sources": [*base()["sources"], "openmoji"]}), [SIDE % ""])
    content = recipe.model_dump(mode="json")
    for key in CAPTION_KEYS:
        del content["stages"][0]["image_text"][key]
    before = Recipe.model_validate(content)
    assert recipe_fingerprint(before) == recipe_fingerprint(recipe)
    path = tmp_path / "recipe.yaml"
    after = load_recipe(
        path, [SIDE % ", captions_per_image: 2, split_captions: sentences, short_caption: {principal_components: 3}"]
    )
    assert recipe_differences(before, after) == [
        "stages.0.image_text.captions_per_image: absent -> 2",
        "stages.0.image_text.split_captions: absent -> 'sentences'",
        "stages.0.image_text.short_caption.principal_components: absent -> 3",
        "stages.0.image_text.short_caption.weight: absent -> 1.0",
    ]


SIDE = "stages.0.image_text={sources: [openmoji-short], batch_size: 4%s}"
