"""Recipes as plain trees, for the tests of the schema: a valid one, changes to it, and what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe


def source(name: str, task: str = "text-pair", **changes: Any) -> dict[str, Any]:
    columns = {
        "image-text": {"image": "picture", "caption": "words"},
        "text-pair": {"query": "q", "positive": "a"},
        "triplet": {"query": "q", "positive": "a", "negatives": "n"},
    }[task]
    return {"name": name, "task": task, "location": f"{name}.csv", "format": "csv", "columns": columns, **changes}


def base() -> dict[str, Any]:
    """A valid recipe with both sides and all tasks."""
    return {
        "name": "try",
        "model": "openmoji-small",
        "sources": [source("photos", "image-text"), source("pairs-a"), source("pairs-b"), source("hard", "triplet")],
        "stages": [
            {
                "name": "first",
                "steps": 10,
                "learning_rate": 0.001,
                "warmup_steps": 2,
                "max_length": 32,
                "image_text": {"sources": ["photos"], "batch_size": 8},
                "text": {"sources": ["pairs-a", "pairs-b"], "batch_size": 8},
            },
            {
                "name": "second",
                "steps": 5,
                "learning_rate": 0.0001,
                "max_length": 64,
                "text": {"sources": ["hard"], "batch_size": 4, "loss": "info_nce_plus"},
            },
        ],
        "save_steps": 5,
    }


def write(folder: Path, content: Any, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def problems(folder: Path, content: Any, overrides: list[str] | None = None) -> list[str]:
    """The problem lines of a recipe that must not load."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, content), overrides or [])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(str(folder / "recipe.yaml"))
    return [line.strip() for line in lines]


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``tree`` with the value at a dotted path replaced."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    holder: Any = tree
    for part in way:
        holder = holder[part]
    holder[last] = value
    return tree
