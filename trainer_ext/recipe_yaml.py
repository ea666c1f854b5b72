"""YAML in and out of recipes: strict reading, and the command line's ``dotted.key=value`` overrides."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from trainer_ext.recipe_errors import RecipeError, shorten
from trainer_ext.resources import nearest


class _StrictLoader(yaml.SafeLoader):
    """``yaml.safe_load`` that refuses a key given twice, reads ``1e-4`` as a number and ``no`` as a word.

    Plain YAML 1.1 keeps the last of two equal keys without a word, takes ``1e-4`` (no dot) for a text, and
    ``save_strategy: no`` for false.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_line: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in first_line:
                raise RecipeError(
                    f"{self.name}: key {key_node.value!r} is given twice, on lines {first_line[key_node.value]} and"
                    f" {line}. Keep one of them."
                )
            first_line[key_node.value] = line
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse one YAML document; ``origin`` names it in errors.

    >>> parse_yaml("{steps: 3, learning_rate: 1e-4}", "example")
    {'steps': 3, 'learning_rate': 0.0001}
    """
    loader = _StrictLoader(text)
    loader.name = origin
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{origin} is not valid YAML: {detail}") from error
    finally:
        loader.dispose()


def read_yaml(path: Path) -> Any:
    """Read one YAML file strictly. Errors name the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read {path}: {error}") from error
    return parse_yaml(text, str(path))


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

    Only the way there is checked here (list positions, no step into a plain value). Whether a key exists in the
    schema is judged with the rest of the recipe, by the same rules and with the same messages.
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
