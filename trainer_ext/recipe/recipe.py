"""``Recipe``, the whole of a training run, and how it is read, compared and cut to one stage.

``load_recipe`` refuses unknown keys with the nearest valid name, before any data is read or any model is built:

1. read the YAML file; expand source lists and relative paths; apply the overrides (``reading``);
2. split off the training arguments (``arguments``);
3. validate the rest by type (``schema``) and as a whole (``checks``);
4. look at the files it names: tower checkpoints, and the embedding's width in the model's configuration.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trainer_ext.recipe.checks import (
    component_problems,
    embedding_width,
    left_out_problems,
    matryoshka_problems,
    read_model_config,
    source_problems,
    stage_problems,
    tuning_problems,
    width_problems,
)
from trainer_ext.recipe.evaluation import EvaluationSpec
from trainer_ext.recipe.layer_checks import (
    compiled_layer_problems,
    depth_problems,
    layer_problems,
    side_layer_problems,
    tower_depths,
)
from trainer_ext.recipe.problems import (
    Problem,
    RecipeError,
    describe_validation,
    nearest,
    raise_problems,
    shorten,
    with_source_names,
)
from trainer_ext.recipe.reading import (
    apply_overrides,
    beside,
    expand_sources,
    find_resource,
    finish_sources,
    locate_cache,
    locate_suite,
    locate_towers,
    read_yaml,
    split_override,
)
from trainer_ext.recipe.schema import CAPTION_KEYS, SIDES, TERMS, Matryoshka, Side, Source, Strict
from trainer_ext.recipe.stages import (
    AttentionName,
    ImageCacheSpec,
    ImageDecoding,
    InitializeSpec,
    LoraSpec,
    Stage,
    TeacherSpec,
    TokenizerSpec,
)
from trainer_ext.recipe.start_checks import (
    cache_folder_problems,
    initialize_problems,
    lora_problems,
    merge_problems,
    merge_start_problems,
    missing_towers,
    picture_problems,
    teacher_problems,
    teacher_width_problems,
)


class Recipe(Strict):
    """One training run. ``training`` holds the recipe's top-level keys that are TrainingArguments fields.

    ``attn_implementation`` names an attention backend of transformers that can train both towers.
    ``image_decoding: fast`` decodes large JPEGs at a smaller size, ``image_cache`` keeps pictures; in training alone.
    ``matryoshka`` is for every loss of every stage that says nothing else. ``evaluation`` may be a suite's bare name.
    ``merge_with_start`` keeps models between the start and the finished one, too: 0.5 is half of the way.
    """

    name: str
    model: str
    initialize: InitializeSpec | None = None
    tokenizer: TokenizerSpec | str | None = None
    attn_implementation: AttentionName | None = None
    image_decoding: ImageDecoding = "exact"
    image_cache: ImageCacheSpec | None = None
    sources: list[Source]
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluation: EvaluationSpec | None = None
    matryoshka: Matryoshka | None = None
    lora: LoraSpec | None = None
    teacher: TeacherSpec | None = None
    merge_with_start: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("evaluation", mode="before")
    @classmethod
    def _suite_alone(cls, value: Any) -> Any:
        return {"suite": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        problems = [*source_problems(self.sources), *stage_problems(self.sources, self.stages, self.teacher)]
        if self.initialize is not None:
            problems += initialize_problems(self.initialize, isinstance(self.tokenizer, TokenizerSpec))
        if self.matryoshka is not None:
            problems += matryoshka_problems("matryoshka", self.matryoshka)
            problems += layer_problems(self.matryoshka, self.stages, self.lora)
        problems += side_layer_problems(self.stages)
        problems += compiled_layer_problems(self.matryoshka, self.training)
        if self.evaluation is not None:
            problems += self.evaluation.problems(self.sources)
        if self.teacher is not None:
            problems += teacher_problems(self.teacher, self.stages, self.sources)
        problems += picture_problems(self.image_decoding, self.image_cache, self.stages, self.teacher)
        problems += self._tuning_problems()
        problems += merge_problems(self.merge_with_start or [], self.initialize, self.stages)
        if problems:
            raise PydanticCustomError("recipe_checks", "{text}", {
                "problems": problems, "text": "; ".join(f"{path}: {message}" for path, message in problems)
            })  # fmt: skip
        return self

    def _tuning_problems(self) -> Iterator[Problem]:
        if self.lora is not None:
            yield from lora_problems(self.lora)
        for position, stage in enumerate(self.stages):
            sides = [name for name, _ in stage.sides()]
            yield from tuning_problems(f"stages.{position}", stage.trainable, stage.learning_rates, sides, self.lora)

    def used_sources(self) -> list[Source]:
        """The sources that at least one stage takes rows from."""
        names = {name for stage in self.stages for _, side in stage.sides() for name in side.sources}
        return [source for source in self.sources if source.name in names]

    def width_problems(self, width: int) -> Iterator[Problem]:
        """The Matryoshka losses, principal components and truncated evaluations that this width cannot have."""
        accumulated = self.training.get("gradient_accumulation_steps") or 1
        yield from component_problems(self.stages, width, accumulated)
        if self.matryoshka is not None:
            yield from left_out_problems("matryoshka", self.matryoshka, width)
        for position, stage in enumerate(self.stages):
            for name, side in stage.sides():
                if side.matryoshka is not None:
                    yield from left_out_problems(f"stages.{position}.{name}.matryoshka", side.matryoshka, width)
        dims = self.evaluation.truncate_dims if self.evaluation else []
        yield from width_problems("evaluation.truncate_dims", dims, width)

    def depth_problems(self, depths: Mapping[str, int]) -> Iterator[Problem]:
        """The Matryoshka layers that towers of these depths cannot have."""
        yield from depth_problems(self.matryoshka, depths)


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
    # Here and not above, so that `import trainer_ext.recipe` does not wait for torch and transformers' Trainer.
    from trainer_ext.recipe.arguments import refused_fields, split_training, training_fields

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
    if isinstance(tree.get("teacher"), dict) and tree["teacher"].get("model") is not None:
        tree["teacher"] = tree["teacher"] | {"model": beside(tree["teacher"]["model"], path.parent)}
    if "evaluation" in tree:
        tree["evaluation"] = locate_suite(tree["evaluation"], path.parent)
    locate_cache(tree, path.parent)
    tree["sources"] = expand_sources(tree.get("sources", []), path.parent)
    for _, value in lists:
        tree["sources"] = expand_sources(value, Path.cwd())
    apply_overrides(tree, [change for change in changes if change[0] != ["sources"]])
    locate_cache(tree, Path.cwd())
    finish_sources(tree, SIDES)
    training, problems = split_training(tree, set(Recipe.model_fields))
    try:
        recipe = Recipe.model_validate({**tree, "training": training})
    except ValidationError as error:
        problems += describe_validation(error, Recipe, training_fields().keys() - refused_fields().keys(), {"training"})
        raise_problems(str(path), with_source_names(problems, tree))
    problems += missing_towers(recipe.initialize) if recipe.initialize else []
    problems += cache_folder_problems(recipe.image_cache) if recipe.image_cache else []
    raise_problems(str(path), problems)
    start = find_resource("models", recipe.model)
    raise_problems(str(path), list(merge_start_problems(recipe.merge_with_start, recipe.model, start)))
    width = embedding_width(start)
    raise_problems(str(path), list(recipe.width_problems(width)) if width else [])
    raise_problems(str(path), list(recipe.depth_problems(tower_depths(read_model_config(start)))))
    raise_problems(str(path), list(teacher_width_problems(recipe.teacher, width)) if recipe.teacher else [])
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
_HARMLESS = ("name", "evaluation", "merge_with_start", "image_cache")


def _identity(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude=set(_HARMLESS))
    content["training"] = {k: v for k, v in content["training"].items() if not k.startswith(_HARMLESS_TRAINING)}
    for source in content["sources"]:
        del source["max_broken_rows"]  # a run that met one broken row too many may go on with a larger budget
        # Runs of versions without them go on.
        for key in ("holdout", "background", "image_folder", "balance", "repeat_words"):
            if source[key] is None:
                del source[key]
    for stage in content["stages"]:  # the same of keys with these values
        for key in ("augmentation", "images"):
            if stage[key] is None:
                del stage[key]
        for side in filter(None, map(stage.get, SIDES)):
            for key in ("label_smoothing", "hardness", *TERMS, *CAPTION_KEYS):
                if side[key] == Side.model_fields[key].default:
                    del side[key]
    sides = [side for stage in content["stages"] for side in map(stage.get, SIDES) if side]
    for prefixes in filter(None, [content["matryoshka"], *(side["matryoshka"] for side in sides)]):
        if prefixes["layers"] is None:
            del prefixes["layers"]
    if content["teacher"] is None:
        del content["teacher"]
    elif content["teacher"]["kind"] != "margins":
        del content["teacher"]["scale"]
    if content["image_decoding"] == "exact":
        del content["image_decoding"]
    return content


def recipe_fingerprint(recipe: Recipe) -> str:
    """Hex digest of everything in the recipe that decides the trained weights, the same on every machine."""
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


def only_stage(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one of its stages by itself, from the first row of its sources on.

    Meant to start from a model folder, whose tokenizer then takes the place of one that the recipe would train.

    Raises:
        ValueError: no such stage.

    >>> from trainer_ext.recipe import load_recipe
    >>> [stage.name for stage in only_stage(load_recipe("openmoji"), "long-captions").stages]
    ['long-captions']
    """
    found = [stage for stage in recipe.stages if stage.name == name]
    if not found:
        close = nearest(name, [stage.name for stage in recipe.stages])
        hint = f" Did you mean {close!r}?" if close else ""
        raise ValueError(
            f"{name!r} is not a stage of recipe {recipe.name!r}.{hint} "
            f"Stages: {', '.join(stage.name for stage in recipe.stages)}."
        )
    trained = isinstance(recipe.tokenizer, TokenizerSpec) and find_resource("models", recipe.model).is_dir()
    return recipe.model_copy(update={"stages": found} | ({"tokenizer": None} if trained else {}))
