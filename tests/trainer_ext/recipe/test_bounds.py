"""Numbers that no run could follow are named when the recipe is read, not when memory or a library gives up."""

from pathlib import Path

import pytest

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=99999999999999999999", "seed: must be less than 4294967296"),
        ("stages.0.steps=10000000000000000000000", r"stages\.0\.steps: must be less than or equal to 100000000"),
        ("stages.0.max_length=2", r"stages\.0\.max_length: must be greater than or equal to 3"),
        ("stages.0.image_size=1000000", r"stages\.0\.image_size: must be less than or equal to 8192"),
    ],
)
def test_numbers_out_of_bounds_are_named(tiny_recipe: Path, change: str, words: str) -> None:
    """A limit of two tokens is two special ones: texts would not be cut at all."""
    with pytest.raises(RecipeError, match=words):
        load_recipe(tiny_recipe, [change])
