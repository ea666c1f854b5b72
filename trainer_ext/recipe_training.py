"""The recipe's top-level keys that are arguments of the trainer: recognised, checked by type, some refused."""

import dataclasses
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trainer_ext.recipe_errors import Problem, reason, shorten

# Training arguments that no recipe may set, with the reason. Those that a recipe says in another place, and those that
# the trainer could not honour, are listed beside the arguments themselves.
_FIXED = {
    "dataloader_drop_last": "no row is dropped: an epoch's last batch goes on into the next epoch",
    "remove_unused_columns": "the trainer sets it",
    "label_names": "the trainer sets it",
    "hub_token": "a recipe is copied into the run's folder; log in with `hf auth login` instead",
}


@cache
def training_fields() -> dict[str, Any]:
    """Name and type of every training argument. Imported late: it costs the import of transformers' Trainer."""
    from trainer_ext.arguments import JinaCLIPTrainingArguments

    hints = get_type_hints(JinaCLIPTrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(JinaCLIPTrainingArguments) if field.init}


@cache
def refused_fields() -> dict[str, str]:
    """Training arguments that are errors at the top of a recipe, each with what to do instead."""
    from trainer_ext.arguments import CONTRADICTIONS, SAID_ELSEWHERE

    elsewhere = {name: f"it is said by {place}" for name, place in SAID_ELSEWHERE.items()}
    return {**elsewhere, **CONTRADICTIONS, **_FIXED, "training": "write its keys at the top level of the recipe"}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    annotation = training_fields()[name]
    options = get_args(annotation)
    if any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        # "one of these words, or any text": without the texts a misspelt word is found here.
        annotation = reduce(or_, [option for option in options if option is not str])
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def split_training(tree: dict[str, Any], own_fields: set[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Move the training arguments out of ``tree``, a recipe's top level whose own keys are ``own_fields``.

    What is neither stays in ``tree``, to be refused with the recipe's other unknown keys.
    """
    training: dict[str, Any] = {}
    problems: list[Problem] = []
    unknown = [key for key in tree if isinstance(key, str) and (key not in own_fields or key == "training")]
    for key in unknown:
        if key in refused_fields():
            value = tree.pop(key)
            problems.append((key, f"cannot be set here (value {shorten(value)}): {refused_fields()[key]}."))
        elif key in training_fields():
            value = tree.pop(key)
            try:
                # Strict for booleans only: True must not pass as the number 1, but "5" or 5 for 5.0 is harmless.
                training[key] = _adapter(key).validate_python(value, strict=isinstance(value, bool))
            except ValidationError as error:
                problems.append((key, f"{reason(error.errors()[0]['msg'])}, got {shorten(value)}."))
    return training, problems
