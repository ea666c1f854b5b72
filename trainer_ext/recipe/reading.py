"""From files to the plain tree that a recipe is validated from: names, YAML, overrides, source lists, paths.

1. ``find_resource`` turns a name into a file. Presets, recipes and source lists are data files in ``configuration/``:
   beside the packages in a checkout, inside ``trainer_ext`` in an installed wheel (a top-level ``configuration`` in
   site-packages could be anybody's). All code asks here, so that a name means the same file in both.
2. ``read_yaml`` of ``strict_yaml`` reads strictly; ``split_override`` and ``apply_overrides`` set ``dotted.key=value``.
3. ``expand_sources``, ``beside``, ``locate_towers``, ``locate_cache`` and ``finish_sources`` replace the names
   of source lists, patterns and relative paths by what they mean.

A value of an unexpected form is left as it is, for the schema to refuse.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from trainer_ext.recipe.problems import RecipeError, nearest, shorten
from trainer_ext.recipe.strict_yaml import parse_yaml, read_yaml

Kind = Literal["models", "recipes", "sources", "evaluation"]
_WORDS = {"models": "model preset", "recipes": "recipe", "sources": "source list", "evaluation": "file of tasks"}
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "models": (".json",),
    "recipes": (".yaml", ".yml"),
    "sources": (".yaml", ".yml"),
    "evaluation": (".yaml", ".yml"),
}


def path_of(name: str | Path) -> Path:
    """A path as it is written, with ``~`` and ``~user`` as the home folder.

    Raises:
        RecipeError: there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise RecipeError(f"{str(name)!r}: {str(error).rstrip('.')}. Write the folder itself in place of ~.") from None


def configuration_folder() -> Path:
    """The folder of ``models/``, ``recipes/`` and so on: the installed one, else the checkout's."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "configuration", here.parent / "configuration"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"No configuration folder beside or inside {here}: the installation is incomplete. Install the package again."
    )


def available_resources(kind: Kind) -> list[str]:
    """The names that ``find_resource`` finds for ``kind``, sorted.

    >>> "openmoji" in available_resources("recipes")
    True
    """
    folder = configuration_folder() / kind
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.iterdir() if path.suffix in _SUFFIXES[kind])


def find_resource(kind: Kind, name: str | Path) -> Path:
    """Turn a name or a path into the path of a preset ("models"), a recipe, a source list or a file of tasks.

    A path that exists wins: a file of that kind, and for "models" also a checkpoint folder that holds a config.json.
    Otherwise ``name`` is looked up in the packaged configuration folder.

    Raises:
        FileNotFoundError: no such path and no such name; lists the names there are and the nearest.

    >>> find_resource("recipes", "openmoji").name
    'openmoji.yaml'
    """
    path = path_of(name)
    if path.is_file() or (kind == "models" and (path / "config.json").is_file()):
        return path
    if kind == "models" and (path / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds LoRA's adapters without the weights that they change, such as a checkpoint of a run with "
            "lora; start from a folder with the updates merged in: the run's stages/N-NAME, or the finished run's own"
        )
    text = str(name)
    for suffix in _SUFFIXES[kind]:
        candidate = configuration_folder() / kind / (text + suffix)
        # A name is one word: "../x" or an absolute path must not reach files outside the folder.
        if path.name == text and candidate.is_file():
            return candidate
    names = available_resources(kind)
    close = nearest(path.stem, names)
    hint = f" Did you mean {close!r}?" if close else ""
    raise FileNotFoundError(
        f"No {_WORDS[kind]} {text!r}: it is neither an existing file nor one of the packaged names.{hint}"
        f" Packaged {kind}: {', '.join(names) or 'none'}."
    )


def locate_towers(value: Any, folder: Path) -> Any:
    """``initialize`` with paths that exist beside the recipe made absolute. Other values are left to the schema."""
    if not isinstance(value, dict):
        return value
    return {
        tower: str(folder.absolute() / path) if isinstance(path, str) and (folder / path).exists() else path
        for tower, path in value.items()
    }


def locate_suite(value: Any, folder: Path) -> Any:
    """``evaluation`` with a file of tasks beside the recipe made absolute; a packaged suite's name is left alone."""
    if isinstance(value, str):
        return str(folder.absolute() / value) if (folder / value).is_file() else value
    if isinstance(value, dict) and isinstance(value.get("suite"), str):
        return {**value, "suite": locate_suite(value["suite"], folder)}
    return value


def locate_cache(tree: dict[str, Any], folder: Path) -> None:
    """The folder of ``image_cache`` made absolute; it need not exist."""
    cache = tree.get("image_cache")
    if isinstance(cache, dict) and isinstance(cache.get("folder"), str) and cache["folder"]:
        tree["image_cache"] = {**cache, "folder": str(folder.absolute() / path_of(cache["folder"]))}


def split_override(override: str) -> tuple[list[str], Any]:
    """``"stages.0.steps=12"`` becomes ``(["stages", "0", "steps"], 12)``; the value is read as YAML."""
    path, equals, value = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"Override {override!r} is not of the form dotted.key=value, for example stages.0.steps=12 or save_steps=3."
        )
    return parts, parse_yaml(value, f"the value of override {path.strip()!r}")


def apply_overrides(tree: dict[str, Any], overrides: Iterable[tuple[list[str], Any]]) -> None:
    """Set values in ``tree`` in place.

    Only the path is checked here: list positions, and no step into a plain value. Whether the schema has the key is
    checked with the rest of the recipe, with the same messages.
    """
    for parts, value in overrides:
        holder: Any = tree
        for depth, part in enumerate(parts):
            where = ".".join(parts[:depth]) or "the recipe"
            last = depth == len(parts) - 1
            if isinstance(holder, list):
                position = _list_position(holder, part, where, parts)
                if last:
                    holder[position] = value
                else:
                    holder = holder[position]
            elif isinstance(holder, dict):
                if last:
                    holder[part] = value
                else:
                    if holder.get(part) is None:
                        holder[part] = {}
                    holder = holder[part]
            else:
                raise RecipeError(
                    f"Override {'.'.join(parts)!r}: {where} is the plain value {shorten(holder)},"
                    f" it has no key {part!r}."
                )


def _list_position(items: list[Any], part: str, where: str, parts: list[str]) -> int:
    """A list item by position, or by its ``name`` (``stages.short-captions.steps``)."""
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [item["name"] for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if part in names:
        return names.index(part)
    close = nearest(part, names)
    hint = f" Did you mean {close!r}?" if close else ""
    listed = f" or one of the names {', '.join(names)}" if names else ""
    raise RecipeError(
        f"Override {'.'.join(parts)!r}: {where} has no item {part!r}.{hint}"
        f" Use a position from 0 to {len(items) - 1}{listed}."
    )


def expand_sources(items: Any, folder: Path) -> Any:
    """Replace names of source lists by their items; make locations absolute. Other values are left to the schema."""
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
    """A path that exists beside the recipe, made absolute. A bare name is left alone: it means a preset."""
    if isinstance(value, str) and "/" in value and (folder / value).exists():
        return str(folder.absolute() / value)
    return value


def _locate(item: Any, folder: Path) -> Any:
    """A source item with its paths made absolute. Embedded tables and the Hub's data sets are names, not paths."""
    if not isinstance(item, dict) or not isinstance(item.get("location"), str):
        return item
    if item.get("format") in ("embedded", "hub"):
        return item
    paths = {key: item[key] for key in ("location", "image_folder") if isinstance(item.get(key), str)}
    return item | {key: str(folder.absolute() / path_of(path)) for key, path in paths.items()}


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
