"""Recipe problems in words: one line each, with the place, the value and the cure."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None when nothing is close.

    >>> nearest("stepz", ["steps", "seed"])
    'steps'
    >>> nearest("banana", ["steps", "seed"]) is None
    True
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


Problem = tuple[str, str]  # dotted path ("" for the whole recipe), message


class RecipeError(ValueError):
    """A recipe that cannot be run. The message lists every problem found, one per line."""


def raise_problems(origin: str, problems: Sequence[Problem]) -> None:
    """Raise ``RecipeError`` for ``origin`` (a file name) if there is at least one problem."""
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"  {path}: {message}" if path else f"  {message}" for path, message in problems]
    raise RecipeError("\n".join([f"{origin} has {count}:", *lines]))


def shorten(value: Any, limit: int = 80) -> str:
    """``repr`` cut to ``limit`` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def reason(message: str) -> str:
    """Pydantic's sentence, to stand behind the place it is about."""
    return message.replace("Input should be", "must be")


# What other trainers call our keys; the last part of a dotted name is the key here.
_ALIASES = {
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "batch": "batch_size",
    "bs": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "max_len": "max_length",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "resolution": "image_size",
    "img_size": "image_size",
    "max_steps": "steps",
    "num_steps": "steps",
    "iterations": "steps",
    "dataset": "sources",
    "datasets": "sources",
    "data": "sources",
    "path": "location",
    "temp": "temperature",
    "tau": "temperature",
}
_EPOCHS = ("epoch", "epochs", "num_epochs", "num_train_epochs", "n_epochs", "max_epochs")
_NO_EPOCHS = "A stage has `steps`, and no epochs: for E epochs of N rows give steps = E * N / batch_size"


def unknown_key(key: str, value: Any, valid: Iterable[str], also_valid: Iterable[str] = ()) -> str:
    """Message for a key that does not exist: the nearest valid name, else the list of ``valid``."""
    valid = sorted(valid)
    if key.lower() in _EPOCHS:
        return f"unknown key (value {shorten(value)}). {_NO_EPOCHS}."
    close = _ALIASES.get(key.lower())
    if close not in valid:
        close = nearest(key, [*valid, *also_valid])
    if close:
        return f"unknown key (value {shorten(value)}). Did you mean {close!r}?"
    more = ", and every training argument" if also_valid else ""
    return f"unknown key (value {shorten(value)}). Valid keys: {', '.join(valid)}{more}."


def describe_validation(
    error: ValidationError, model: type[BaseModel], extra_names: Collection[str], hidden: Collection[str]
) -> list[Problem]:
    """Pydantic's errors as problems.

    ``extra_names`` are valid at the top level beside the model's own fields; ``hidden`` fields are not for users.
    """
    problems: list[Problem] = []
    details = error.errors()
    for detail in details:
        location, kind, value = detail["loc"], detail["type"], detail["input"]
        if kind == "recipe_checks":
            problems.extend(detail["ctx"]["problems"])
            continue
        if _is_other_branch(location, value, details):
            continue
        section, path = _walk(model, location)
        dotted = ".".join(map(str, path))
        if kind == "extra_forbidden":
            own = [name for name in section.model_fields if name not in hidden]
            problems.append(
                (dotted, unknown_key(str(location[-1]), value, own, extra_names if section is model else ()))
            )
        elif kind == "missing":
            problems.append((dotted, "is required and missing. Add it."))
        else:
            message = "must be a mapping of keys" if kind == "model_type" else reason(detail["msg"])
            choices = detail.get("ctx", {}).get("choices") or _literals(section, path)
            close = nearest(value, choices) if isinstance(value, str) else None
            hint = f" Did you mean {close!r}?" if close else " Write true or false." if kind == "bool_type" else ""
            problems.append((dotted, f"{message}, got {shorten(value)}.{hint}"))
    return problems


def _is_other_branch(location: tuple[int | str, ...], value: Any, details: Sequence[Any]) -> bool:
    """True for "not a string" when the value is a mapping that another branch of the same union has judged."""
    if not isinstance(value, dict) or not location or location[-1] != "str":
        return False
    prefix = location[:-1]
    return any(d["loc"] != location and d["loc"][: len(prefix)] == prefix for d in details)


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[type[BaseModel], list[int | str]]:
    """Follow an error's location: the section that holds its last key, and the path without pydantic's union tags."""
    path: list[int | str] = []
    section = model
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(part, int):
            path.append(part)
        elif part in section.model_fields:
            path.append(part)
            inner = _section_in(section.model_fields[part].annotation)
            if inner is not None and not last:
                section = inner
        elif part != section.__name__ and not (last and part == "str"):
            path.append(part)
    return section, path


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_in(arg)) is not None), None)


def _literals(section: type[BaseModel], path: list[int | str]) -> list[str]:
    """The allowed words of a Literal field, for "did you mean"."""
    field = section.model_fields.get(str(path[-1])) if path else None
    return [arg for arg in get_args(field.annotation) if isinstance(arg, str)] if field is not None else []


def with_source_names(problems: Sequence[Problem], tree: dict[str, Any]) -> list[Problem]:
    """Write ``sources.12 (pairs-gooaq).weight`` for ``sources.12.weight``: who counts items over several lists?"""
    sources = tree["sources"] if isinstance(tree["sources"], list) else []
    named: list[Problem] = []
    for path, message in problems:
        found = re.match(r"sources\.(\d+)", path)
        item = sources[int(found[1])] if found else None
        if found and isinstance(item, dict) and "name" in item:
            path = f"{found[0]} ({' '.join(str(item['name'])[:60].split())}){path[found.end() :]}"
        named.append((path, message))
    return named
