"""YAML as a recipe's author means it: what YAML 1.1 reads as something else in silence is a word here, or refused.

| written | YAML 1.1 | here |
|---|---|---|
| ``no``, ``on``, ``yes`` | true or false | a word |
| ``2026-01-31`` | a date | a word |
| ``1e-4`` | a word | a number |
| ``1:30``, ``010`` | 90, 8 | refused |
| ``1e400`` | infinity | refused; ``.inf`` is infinity |
| ``1_000``, ``0x10`` | 1000, 16 | the same |
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from trainer_ext.recipe.problems import RecipeError, shorten

_TAG = "tag:yaml.org,2002:"
# Types of YAML 1.1 that nobody means in a recipe: `no` and `on`, a day, a lone equals sign.
_WORDS_IN_DISGUISE = (f"{_TAG}bool", f"{_TAG}timestamp", f"{_TAG}value")


class _StrictLoader(yaml.SafeLoader):
    """``yaml.safe_load`` that refuses a key given twice, reads ``1e-4`` as a number, ``no`` and days as words.

    Plain YAML 1.1 silently keeps the last of two equal keys, takes ``1e-4`` (no dot) for a text,
    ``save_strategy: no`` for false, and ``name: 2026-01-31`` for something that is no text.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _WORDS_IN_DISGUISE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_line: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_TAG}merge":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in first_line:
                raise RecipeError(
                    f"{self.name}: key {key_node.value!r} is given twice, on lines {first_line[key_node.value]} and"
                    f" {line}. Keep one of them."
                )
            first_line[key_node.value] = line
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    """``yaml.safe_dump`` that puts quotes around the word ``1e4``, which is a number here."""


for _kind in (_StrictLoader, _Writer):
    _kind.add_implicit_resolver(
        f"{_TAG}float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
_StrictLoader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


# Values of a recipe with its aliases (&name, *name) written out; a few lines of aliases can stand for billions.
_MAX_VALUES = 100_000


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a document has with its aliases written out."""
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_VALUES  # an alias inside of what it names would have no end
        inner = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
        if sizes[id(node)] > _MAX_VALUES:
            raise RecipeError(
                f"{node.start_mark.name}, line {node.start_mark.line + 1}: with its aliases written out it has more"
                f" than {_MAX_VALUES:,} values. Write it without aliases."
            )
    return sizes[id(node)]


# What YAML 1.1 reads as another number than people do: 1:30 is 90 and 010 is 8.
_DISGUISED = ((":", re.compile(r"[-+]?[0-9_]+(:[0-9_.]+)+"), 60), ("0", re.compile(r"[-+]?0[0-7_]+"), 8))


def _refuse_disguised(node: yaml.Node, place: str, done: set[int], loader: _StrictLoader) -> None:
    """Raise for a number, written without quotes, that is another one than it seems; name its key."""
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _refuse_disguised(key, place, done, loader)
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            _refuse_disguised(value, f"{place}.{name}" if place else name, done, loader)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _refuse_disguised(value, f"{place}.{position}" if place else str(position), done, loader)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in (f"{_TAG}int", f"{_TAG}float"):
        where = f"{loader.name}, line {node.start_mark.line + 1}: {f'{place}: ' if place else ''}{shorten(node.value)}"
        for mark, pattern, base in _DISGUISED:
            if mark in node.value and pattern.fullmatch(node.value):
                number = loader.construct_object(node)
                raise RecipeError(
                    f"{where} means {shorten(number)} in YAML, which counts to the base {base} here."
                    f" Write the number itself, or quotes around a text."
                )
        if node.tag == f"{_TAG}float" and "inf" not in node.value.lower() and math.isinf(loader.construct_object(node)):
            raise RecipeError(f"{where} is beyond all numbers. Write a smaller one, or quotes around a text.")


def parse_yaml(text: str, origin: str) -> Any:
    """Parse one YAML document; ``origin`` names it in errors.

    >>> parse_yaml("{steps: 3, learning_rate: 1e-4}", "example")
    {'steps': 3, 'learning_rate': 0.0001}
    """
    try:
        loader = _StrictLoader(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    loader.name = origin
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        _refuse_disguised(node, "", set(), loader)
        return loader.construct_document(node)
    except RecursionError as error:
        raise RecipeError(f"{origin} is nested too deeply to be a recipe.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        detail = " ".join(str(error).split())
        raise RecipeError(f"{origin} is not valid YAML: {detail}") from error
    finally:
        loader.dispose()


def write_yaml(value: Any, **options: Any) -> str:
    """YAML that ``parse_yaml`` reads as ``value`` again; ``options`` are those of ``yaml.dump``.

    >>> write_yaml({"name": "1e4"})
    "name: '1e4'\\n"
    """
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, **options)


def read_yaml(path: Path) -> Any:
    """Read one YAML file strictly. Errors name the file and the line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        # Zero bytes stand between letters in UTF-16 and UTF-32, and nowhere in text in other encodings.
        kind = "UTF-16 or UTF-32" if b"\0" in content else f"not in UTF-8 (byte {error.start:,})"
        raise RecipeError(f"Cannot read {path}: its text is {kind}. Save it as UTF-8.") from error
    if "\0" in text:
        raise RecipeError(f"Cannot read {path}: its text is UTF-16 or UTF-32, or no text. Save it as UTF-8.")
    return parse_yaml(text, str(path))
