"""What a stage trains of the model: its parts, with a fresh optimizer state where the recipe asks for one.

Like the stage itself this is a function of the step, so that a resumed run needs nothing but its step count.
"""

from collections.abc import Set
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.model_parts import part_of, train_only
from trainer_ext.optimization import stage_at
from trainer_ext.recipe import Recipe, TokenizerSpec
from trainer_ext.recipe_tuning import Part, part_names
from trainer_ext.resources import find_resource, nearest


def prepare_parts(model: JinaCLIPModel, recipe: Recipe) -> None:
    """Leave to the optimizer only what some stage trains: the rest gets no gradient and no optimizer state.

    Raises:
        ValueError: a stage trains a part that the model does not have.
    """
    for stage in recipe.stages:
        train_only(model, recipe.trained_parts(stage))
    train_only(model, frozenset().union(*(recipe.trained_parts(stage) for stage in recipe.stages)))


def rest_frozen_towers(model: JinaCLIPModel, parts: Set[Part]) -> None:
    """A tower that a stage leaves alone is a fixed function, without dropout (LiT, arXiv 2111.07991, section 3)."""
    if not parts & part_names("text"):
        model.text_model.eval()
    if not parts & part_names("vision"):
        model.vision_model.eval()


def drop_frozen_gradients(model: JinaCLIPModel, parts: Set[Part]) -> None:
    """Take back the gradients of what the stage does not train, before they count in the norm.

    DDP fixes at its start which parameters it waits for, so with many processes a part that another stage trains goes
    through the backward pass as well.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and part_of(name) not in parts:
            parameter.grad = None


class TuningCallback(TrainerCallback):
    """Keeps the trained parts in step with the schedule."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._index: int | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Trained parts of the step's stage; at a stage's first step, if asked, an optimizer without memory."""
        index, inner = stage_at(self.recipe.stages, state.global_step)
        stage = self.recipe.stages[index]
        if args.world_size == 1 and index != self._index:  # for many processes see drop_frozen_gradients
            train_only(model, self.recipe.trained_parts(stage))
        self._index = index
        if stage.reset_optimizer and inner == 0:
            kwargs["optimizer"].state.clear()


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
            f"{name!r} is no stage of recipe {recipe.name!r}.{hint} Stages: {', '.join(s.name for s in recipe.stages)}."
        )
    trained = isinstance(recipe.tokenizer, TokenizerSpec) and find_resource("models", recipe.model).is_dir()
    return recipe.model_copy(update={"stages": found} | ({"tokenizer": None} if trained else {}))
