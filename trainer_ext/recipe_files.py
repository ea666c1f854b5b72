"""What a recipe's files mean by names and paths: source lists in place of their names, patterns, relative paths.

Works on the plain tree that YAML gives; whatever has an unexpected form is left as it is, for the schema to judge.
"""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_ext.recipe_errors import Problem, RecipeError
from trainer_ext.recipe_yaml import read_yaml
from trainer_ext.resources import find_resource


def expand_sources(items: Any, folder: Path) -> Any:
    """Replace names of source lists by their items; make locations absolute. What is not a list is judged later."""
    if not isinstance(items, list):
        return items
    expanded: list[Any] = []
    for item in items:
        if isinstance(item, str):
            neighbour = folder / item
            path = neighbour if neighbour.is_file() else find_resource("sources", item)
            content = read_yaml(path)
            if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
                raise RecipeError(f"{path} is not a source list: expected a list of items with name, task, location.")
            expanded += [_locate(entry, path.parent) for entry in content]
        else:
            expanded.append(_locate(item, folder))
    return expanded


def beside(value: Any, folder: Path) -> Any:
    """A path that exists beside the recipe, made absolute. A bare name is never one: it means a preset."""
    if isinstance(value, str) and "/" in value and (folder / value).exists():
        return str(folder.absolute() / value)
    return value


def _locate(item: Any, folder: Path) -> Any:
    """A source item with its location made absolute. Embedded tables and the Hub's data sets are names, not paths."""
    if not isinstance(item, dict) or not isinstance(item.get("location"), str):
        return item
    if item.get("format") in ("embedded", "hub"):
        return item
    return {**item, "location": str(folder.absolute() / Path(item["location"]).expanduser())}


def finish_sources(tree: dict[str, Any], sides: Sequence[str]) -> None:
    """Locations set by overrides become absolute; patterns in the sides' sources become names."""
    sources = tree["sources"]
    if not isinstance(sources, list):
        return
    tree["sources"] = sources = [_locate(item, Path.cwd()) for item in sources]
    names = [item["name"] for item in sources if isinstance(item, dict) and isinstance(item.get("name"), str)]
    for stage in tree["stages"] if isinstance(tree.get("stages"), list) else []:
        for side in [stage.get(name) for name in sides] if isinstance(stage, dict) else []:
            if isinstance(side, dict) and isinstance(side.get("sources"), list):
                side["sources"] = [found for item in side["sources"] for found in _matches(item, names)]


def _matches(item: Any, names: list[str]) -> list[Any]:
    if not isinstance(item, str) or "*" not in item:
        return [item]
    return fnmatch.filter(names, item) or [item]


def with_source_names(problems: Sequence[Problem], tree: dict[str, Any]) -> list[Problem]:
    """Write ``sources.12 (pairs-gooaq).weight`` for ``sources.12.weight``: who counts items over several lists?"""
    sources = tree["sources"] if isinstance(tree["sources"], list) else []
    named: list[Problem] = []
    for path, message in problems:
        found = re.match(r"sources\.(\d+)", path)
        item = sources[int(found[1])] if found else None
        if found and isinstance(item, dict) and "name" in item:
            path = f"{found[0]} ({item['name']}){path[found.end() :]}"
        named.append((path, message))
    return named
