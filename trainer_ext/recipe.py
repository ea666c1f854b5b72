"""The schema of a training run: a YAML recipe becomes a validated ``Recipe``.

``configuration/`` holds the values, this file says which values are allowed. Unknown keys are refused with the
nearest valid name, before any data is read or any model is built.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trainer_ext.recipe_errors import Problem, RecipeError, describe_validation, raise_problems, shorten
from trainer_ext.recipe_files import beside, expand_sources, finish_sources, with_source_names
from trainer_ext.recipe_objective import (
    SIDE_TASK,
    Matryoshka,
    SideLoss,
    SideName,
    embedding_width,
    left_out_problems,
    loss_problems,
    matryoshka_problems,
    width_problems,
)
from trainer_ext.recipe_sources import CropScale, Source, Strict, Task, shares_problem, source_problems
from trainer_ext.recipe_start import InitializeSpec, locate_towers
from trainer_ext.recipe_training import refused_fields, split_training, training_fields
from trainer_ext.recipe_tuning import Decay, LayerDecay, LoraSpec, Part, trained_parts
from trainer_ext.recipe_tuning import stage_problems as tuning_problems
from trainer_ext.recipe_yaml import apply_overrides, read_yaml, split_override
from trainer_ext.resources import find_resource, nearest

Schedule = Literal["cosine", "linear", "constant"]
AttentionName = Literal["eager", "sdpa"]

SIDES: tuple[SideName, ...] = ("image_text", "text")


class Side(SideLoss):
    """One half of a joint step: which sources feed it, how many rows a step takes, and its loss.

    ``batch_size`` counts the rows of one optimiser step over all processes and all accumulated micro-batches, so that
    a recipe means the same run on one process and on eight.
    ``sources`` are names; a pattern such as ``pairs-*`` stands for all sources it matches. A step's rows come from one
    of them, drawn by P(source) = rows ** sampling_alpha * weight / sum: 1 is the paper's (arXiv 2405.20204), lower
    values help small sources (XLM-R's alpha, arXiv 1911.02116), and at 0 weights alone decide.
    """

    sources: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt
    sampling_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0


class Stage(Strict):
    """One training stage: everything that may change at a boundary.

    ``warmup_steps`` below 1 is a share of the steps, as in TrainingArguments; what is kept is their number.

    >>> Stage(name="short", steps=50, learning_rate=1e-3, warmup_steps=0.1, max_length=77).warmup_steps
    5
    """

    name: str
    steps: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "cosine"
    max_length: PositiveInt
    image_size: PositiveInt | None = None
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    random_resized_crop: CropScale | None = None
    trainable: Annotated[list[Part], Field(min_length=1)] | None = None
    learning_rates: dict[Part, PositiveFloat] = {}
    layer_decay: Decay | LayerDecay = 1.0
    reset_optimizer: bool = False
    image_text: Side | None = None
    text: Side | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_warmup(cls, values: Any) -> Any:
        if isinstance(values, dict):
            share, steps = values.get("warmup_steps"), values.get("steps")
            if isinstance(share, float) and 0 <= share < 1 and isinstance(steps, int):
                return {**values, "warmup_steps": int(share * steps)}
        return values

    def sides(self) -> Iterator[tuple[SideName, Side]]:
        """The halves of this stage's joint step that are switched on, image-text first."""
        for side_name in SIDES:
            side = getattr(self, side_name)
            if side is not None:
                yield side_name, side


class TokenizerSpec(Strict):
    """Train a WordPiece tokenizer on the texts of the recipe's own training sources."""

    vocab_size: PositiveInt


class EvaluationSpec(Strict):
    """Which suite is measured; and again with embeddings cut to each of ``truncate_dims`` (Matryoshka)."""

    suite: str
    truncate_dims: list[PositiveInt] = Field(default_factory=list)


class Recipe(Strict):
    """One training run. ``training`` holds the recipe's top-level keys that are TrainingArguments fields.

    ``attn_implementation`` names an attention backend of transformers that can train both towers.
    ``matryoshka`` is for every loss of every stage that says nothing else. ``evaluation`` may be the suite's bare name.
    """

    name: str
    model: str
    initialize: InitializeSpec | None = None
    tokenizer: TokenizerSpec | str | None = None
    attn_implementation: AttentionName | None = None
    sources: list[Source]
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluation: EvaluationSpec | None = None
    matryoshka: Matryoshka | None = None
    lora: LoraSpec | None = None
    seed: Annotated[int, Field(ge=0)] = 42
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("evaluation", mode="before")
    @classmethod
    def _suite_alone(cls, value: Any) -> Any:
        return {"suite": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        problems = [*source_problems(self.sources), *_stage_problems(self.sources, self.stages)]
        if self.initialize is not None:
            problems += self.initialize.problems(isinstance(self.tokenizer, TokenizerSpec))
        if self.matryoshka is not None:
            problems += matryoshka_problems("matryoshka", self.matryoshka)
        problems += self._tuning_problems()
        if problems:
            raise PydanticCustomError("recipe_checks", "{text}", {
                "problems": problems, "text": "; ".join(f"{path}: {message}" for path, message in problems)
            })  # fmt: skip
        return self

    def _tuning_problems(self) -> Iterator[Problem]:
        if self.lora is not None:
            yield from self.lora.problems()
        for position, stage in enumerate(self.stages):
            sides = [name for name, _ in stage.sides()]
            yield from tuning_problems(f"stages.{position}", stage.trainable, stage.learning_rates, sides, self.lora)

    def trained_parts(self, stage: Stage) -> frozenset[Part]:
        """The parts of the model that a stage trains."""
        return trained_parts(stage.trainable, self.lora)

    def used_sources(self) -> list[Source]:
        """The sources that at least one stage takes rows from."""
        names = {name for stage in self.stages for _, side in stage.sides() for name in side.sources}
        return [source for source in self.sources if source.name in names]

    def width_problems(self, width: int) -> Iterator[Problem]:
        """The Matryoshka losses and truncated evaluations that an embedding of this width cannot have."""
        if self.matryoshka is not None:
            yield from left_out_problems("matryoshka", self.matryoshka, width)
        for position, stage in enumerate(self.stages):
            for name, side in stage.sides():
                if side.matryoshka is not None:
                    yield from left_out_problems(f"stages.{position}.{name}.matryoshka", side.matryoshka, width)
        dims = self.evaluation.truncate_dims if self.evaluation else []
        yield from width_problems("evaluation.truncate_dims", dims, width)


def _stage_problems(sources: Sequence[Source], stages: Sequence[Stage]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for position, stage in enumerate(stages):
        place = f"stages.{position}"
        if stage.name in first:
            yield f"{place}.name", f"{stage.name!r} is taken by stages.{first[stage.name]}. Give it another name."
        first.setdefault(stage.name, position)
        if stage.warmup_steps >= stage.steps:
            yield f"{place}.warmup_steps", f"must be less than steps ({stage.steps}), got {stage.warmup_steps}."
        if not any(True for _ in stage.sides()):
            yield place, "trains nothing: give it image_text, text, or both."
        for side_name, side in stage.sides():
            yield from _side_problems(f"{place}.{side_name}", side_name, side, sources)


def _side_problems(place: str, side_name: SideName, side: Side, sources: Sequence[Source]) -> Iterator[Problem]:
    tasks: dict[str, Task] = {source.name: source.task for source in sources}
    yield from loss_problems(place, side_name, side)
    task = SIDE_TASK.get((side_name, side.loss))
    if task is None:
        return
    shares = shares_problem(sources, side.sources, side.sampling_alpha)
    if shares is not None:
        yield f"{place}.sampling_alpha", shares
    for position, name in enumerate(side.sources):
        if name not in tasks:
            close = nearest(name, tasks)
            hint = f" Did you mean {close!r}?" if close else ""
            yield (
                f"{place}.sources.{position}",
                (
                    f"{name!r} {'matches' if '*' in name else 'is'} none of this recipe's sources.{hint}"
                    f" Sources: {', '.join(tasks) or 'none (add them under sources)'}."
                ),
            )
        elif name in side.sources[:position]:
            yield f"{place}.sources.{position}", f"{name!r} is listed twice. Raise its weight instead."
        elif tasks[name] != task:
            yield (
                f"{place}.sources.{position}",
                (f"{name!r} has task {tasks[name]}, but {side_name} with loss {side.loss} needs task {task}."),
            )


# --- reading -----------------------------------------------------------------------------------------------------


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, complete and check a recipe.

    Args:
        path_or_name: a YAML file, or the name of a packaged recipe (``configuration/recipes/NAME.yaml``).
        overrides: ``dotted.key=value`` items; list items by position or by name; values are read as YAML.

    Relative paths (sources' locations, source lists, model, tokenizer, initialize) are taken from the folder of the
    file they stand in, those in overrides from the working directory. Locations are absolute in the result.

    Raises:
        RecipeError: everything that is wrong with the recipe, one line per problem.
        FileNotFoundError: no such recipe, source list or model preset.

    >>> load_recipe("openmoji", ["stages.0.steps=120", "save_steps=3"]).stages[0].steps
    120
    """
    path = find_resource("recipes", path_or_name)
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} is not a recipe: expected keys such as name, model and stages, got {shorten(tree)}.")
    changes = [split_override(item) for item in overrides]
    # A new source list has to be there before it can be expanded; other changes may point into the expanded one.
    lists = [change for change in changes if change[0] == ["sources"]]
    tree |= {key: beside(tree[key], path.parent) for key in ("model", "tokenizer") if key in tree}
    if "initialize" in tree:
        tree["initialize"] = locate_towers(tree["initialize"], path.parent)
    tree["sources"] = expand_sources(tree.get("sources", []), path.parent)
    for _, value in lists:
        tree["sources"] = expand_sources(value, Path.cwd())
    apply_overrides(tree, [change for change in changes if change[0] != ["sources"]])
    finish_sources(tree, SIDES)
    training, problems = split_training(tree, set(Recipe.model_fields))
    try:
        recipe = Recipe.model_validate({**tree, "training": training})
    except ValidationError as error:
        problems += describe_validation(error, Recipe, training_fields().keys() - refused_fields().keys(), {"training"})
        raise_problems(str(path), with_source_names(problems, tree))
    problems += recipe.initialize.missing() if recipe.initialize else []
    raise_problems(str(path), problems)
    width = embedding_width(find_resource("models", recipe.model))
    raise_problems(str(path), list(recipe.width_problems(width)) if width else [])
    return recipe


# --- identity ----------------------------------------------------------------------------------------------------

# Settings that change what is shown or kept, not what is learnt: a run may be resumed with other ones.
_HARMLESS_TRAINING = (
    "logging_",
    "save_",
    "eval_",
    "dataloader_",
    "log_",
    "hub_",
    "push_to_hub",
    "report_to",
    "disable_tqdm",
    "run_name",
)
_HARMLESS = ("name", "evaluation")


def _identity(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude=set(_HARMLESS))
    content["training"] = {k: v for k, v in content["training"].items() if not k.startswith(_HARMLESS_TRAINING)}
    for source in content["sources"]:
        del source["max_broken_rows"]  # a run that met one broken row too many may go on with a larger budget
    return content


def recipe_fingerprint(recipe: Recipe) -> str:
    """Hex digest of everything in the recipe that decides the trained weights; equal on every machine and process."""
    return hashlib.sha256(json.dumps(_identity(recipe), sort_keys=True).encode()).hexdigest()


def recipe_differences(before: Recipe, after: Recipe) -> list[str]:
    """What changed between two recipes, one ``path: old -> new`` per line; empty when the fingerprints are equal."""
    old, new = dict(_leaves(_identity(before))), dict(_leaves(_identity(after)))
    absent = "absent"
    return [
        f"{path}: {old.get(path, absent)} -> {new.get(path, absent)}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path, absent) != new.get(path, absent)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, repr(value)
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))
