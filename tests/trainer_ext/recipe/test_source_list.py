"""Sources of a list, a recipe or tasks, for commands that train nothing."""

from pathlib import Path

import pytest
import yaml

from trainer_ext.recipe import load_recipe
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.source_list import find_source, load_source_list

ENTRY = {
    "name": "pairs",
    "task": "text-pair",
    "format": "csv",
    "location": "pairs.csv",
    "columns": {"query": "q", "positive": "a"},
}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_list_a_recipe_and_a_packaged_name(tmp_path: Path) -> None:
    [source] = load_source_list(write(tmp_path / "list.yaml", [ENTRY]))
    assert source.location == str(tmp_path / "pairs.csv")
    assert load_source_list(write(tmp_path / "tasks.yaml", {"sources": [ENTRY], "tasks": []})) == [source]
    assert load_source_list("openmoji") == load_recipe("openmoji").sources


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([ENTRY | {"taks": 1}], r"sources\.0 \(pairs\)\.taks: unknown key \(value 1\)\. Did you mean 'task'\?"),
        ([ENTRY, ENTRY], r"sources\.1 \(pairs\)\.name: 'pairs' is taken by sources\.0"),
        ([ENTRY | {"columns": {"query": "q"}}], "is required by task text-pair"),
        ({"name": "x"}, "lists no sources"),
        ([], "lists no sources"),
    ],
)
def test_problems_name_their_place(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_source_list(write(tmp_path / "list.yaml", content))


def test_an_unknown_source_names_the_nearest() -> None:
    sources = load_source_list("openmoji")
    assert find_source(sources, "gcide-triplets", "openmoji").task == "triplet"
    with pytest.raises(RecipeError, match=r"openmoji has no source 'gcide-triplet'\. Did you mean 'gcide-triplets'"):
        find_source(sources, "gcide-triplet", "openmoji")
