"""The schedule: which stage a step belongs to, and what changes at a boundary.

The stage is a function of the global step alone, so a resumed run needs only its step count. What a boundary changes,
and who reads it:

1. data, batch size: the batch plan; text length, image size: the collator;
2. loss: ``JointObjective``, by the stage that each batch carries;
3. learning rate: one scheduler over all stages (``optimization.stage_scheduler``);
4. trained parts: ``trained_in`` says what a stage trains, ``StageCallback`` enforces it, with a fresh optimizer state
   where the recipe asks for one;
5. patch dropout: ``StageCallback``, which also asks for a log line, an evaluation and a model folder at the last step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from trainer_ext.losses.joint import JointObjective, own_parameters
from trainer_ext.losses.logits import clamp_logit_scale_
from trainer_ext.recipe.layer_checks import tower_depths
from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import trains_temperature
from trainer_ext.recipe.stages import LoraSpec, Part, Stage, part_names, reached_parts, trained_parts
from trainer_ext.training.model_parts import drop_gradients_except, train_only


def stage_at(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """(index of the stage, step within it) of the optimizer step ``step``, counted from 0.

    Raises:
        IndexError: the step lies behind the last stage.

    >>> stages = [Stage(name=name, steps=3, learning_rate=1.0, max_length=8) for name in ("pairs", "long")]
    >>> stage_at(stages, 2), stage_at(stages, 3)
    ((0, 2), (1, 0))
    """
    for index, stage in enumerate(stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise IndexError(f"the {len(stages)} stages end {step} steps before the step asked for")


def finished_stage(stages: Sequence[Stage], steps_done: int) -> int | None:
    """Index of the stage whose last step was just done, None in the middle of a stage."""
    ends = list(accumulate(stage.steps for stage in stages))
    return ends.index(steps_done) if steps_done in ends else None


@dataclass(frozen=True)
class Trained:
    """What one stage trains.

    ``parts`` of the model take gradients; ``moved`` are those among them that the stage's losses reach, which the
    optimizer moves. The others have gradients of zero, which count in the norm but must not meet weight decay or the
    momentum of an earlier stage. ``objective`` are the names of the objective's trained parameters.
    """

    parts: frozenset[Part]
    moved: frozenset[Part]
    objective: frozenset[str]


def trained_in(stage: Stage, lora: LoraSpec | None = None) -> Trained:
    """What a stage trains, of the model and of the objective.

    >>> texts = {"sources": ["pairs"], "batch_size": 4, "temperature": "trained"}
    >>> stage = Stage(name="texts", steps=1, learning_rate=1e-3, max_length=8, text=texts)
    >>> trained = trained_in(stage)
    >>> len(trained.parts), sorted(trained.moved), sorted(trained.objective)
    (5, ['text', 'text_projection'], ['text_logit_scale'])
    """
    parts = trained_parts(stage.trainable, lora)
    moved = parts & reached_parts(name for name, _ in stage.sides())
    if stage.image_text is not None and not trains_temperature("image_text", stage.image_text):
        moved -= {"temperature"}
    objective = frozenset(name for side_name, side in stage.sides() for name in own_parameters(side_name, side))
    return Trained(parts, moved, objective)


def model_problems(recipe: Recipe, config: JinaCLIPConfig) -> Iterator[Problem]:
    """What the recipe asks of a model that this one cannot do: widths, layers, picture sizes, two views of a text."""
    yield from recipe.width_problems(config.projection_dim)
    yield from recipe.depth_problems(tower_depths(config.to_dict()))
    yield from image_size_problems(recipe.stages, config)
    yield from equal_view_problems(recipe, config)


def equal_view_problems(recipe: Recipe, config: JinaCLIPConfig) -> Iterator[Problem]:
    """Texts without pairs whose two views would be equal, so that there were nothing to learn but their neighbours."""
    text, lora = config.text_config, recipe.lora
    if max(text.hidden_dropout_prob, text.attention_probs_dropout_prob) > 0:
        return
    if lora is not None and "text" in lora.towers and lora.dropout > 0:
        return
    same = {source.name for source in recipe.sources if source.task == "text" and source.repeat_words is None}
    for position, stage in enumerate(recipe.stages):
        changed = stage.augmentation is not None and stage.augmentation.changes_texts()
        names = [] if stage.text is None or changed else [name for name in stage.text.sources if name in same]
        if names:
            yield (
                f"stages.{position}.text.sources",
                f"{names[0]!r} has texts without pairs, whose two views would be equal: this model's text tower has no "
                "dropout. Give the source repeat_words: 0.32, or the model hidden_dropout_prob: 0.1.",
            )


def image_size_problems(stages: Sequence[Stage], config: JinaCLIPConfig) -> Iterator[Problem]:
    """The stages whose pictures the image tower cannot cut into patches; it would fail only at their first step.

    >>> stage = {"steps": 1, "learning_rate": 1e-3, "max_length": 8}
    >>> images = {"sources": ["photos"], "batch_size": 4}
    >>> stages = [Stage(name=str(size), image_size=size, image_text=images, **stage) for size in (224, 230)]
    >>> [place for place, _ in image_size_problems(stages, JinaCLIPConfig())]
    ['stages.1.image_size']
    """
    patch, trained = config.vision_config.patch_size, config.vision_config.image_size
    for position, stage in enumerate(stages):
        size = stage.image_size
        if size is None or not stage.has_pictures() or size == trained or (size % patch == 0 and size >= patch):
            continue
        near = sorted({max(size // patch, 1) * patch, (size // patch + 1) * patch})
        yield (
            f"stages.{position}.image_size",
            f"{size} px cannot be cut into the model's patches of {patch} px. Use a multiple of {patch}, such as "
            f"{' or '.join(map(str, near))}, or {trained}, which it was trained with.",
        )


class StageCallback(TrainerCallback):
    """Keeps the model in step with the schedule, and asks the trainer for what belongs to a stage's end.

    It enforces ``trained_in``, from the outside in: ``prepare`` before the optimizer is made, ``on_step_begin``,
    ``before_forward`` and ``after_backward`` around each micro-batch, ``on_pre_optimizer_step``.

    Args:
        own_patch_dropout: the model's, for stages without a value of their own.
        lora: the recipe's.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        own_patch_dropout: float,
        objective: JointObjective,
        lora: LoraSpec | None = None,
    ) -> None:
        self.stages = stages
        self.own_patch_dropout = own_patch_dropout
        self.objective = objective
        self.trained = [trained_in(stage, lora) for stage in stages]
        self._index: int | None = None

    def prepare(self, model: JinaCLIPModel) -> None:
        """Leave to the optimizer only what some stage trains: the rest gets no gradient and no optimizer state.

        Raises:
            ValueError: a stage trains a part that the model does not have.
        """
        for trained in self.trained:
            train_only(model, trained.parts)
        train_only(model, frozenset().union(*(trained.parts for trained in self.trained)))

    def on_step_begin(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Patch dropout and trained parts of the step's stage; at its first step, if asked, a fresh optimizer state."""
        index, inner = stage_at(self.stages, state.global_step)
        stage = self.stages[index]
        dropout = stage.patch_dropout
        model.vision_model.set_patch_dropout(self.own_patch_dropout if dropout is None else dropout)
        if args.world_size == 1 and index != self._index:  # with several processes: after_backward
            train_only(model, self.trained[index].parts)
        self._index = index
        if stage.reset_optimizer and inner == 0:
            kwargs["optimizer"].state.clear()

    def before_forward(self, model: JinaCLIPModel, index: int) -> None:
        """A tower that the stage leaves alone is a fixed function, without dropout (LiT, arXiv 2111.07991, section 3).

        For the trainer to call: the base class sets training mode between its events.
        """
        if not self.trained[index].parts & part_names("text"):
            model.text_model.eval()
        if not self.trained[index].parts & part_names("vision"):
            model.vision_model.eval()

    def after_backward(self, args: TrainingArguments, model: JinaCLIPModel, index: int) -> None:
        """Several processes: take back the gradients of what the stage does not train, before they count in the norm.

        DDP fixes at its start which parameters it waits for, so a part that another stage trains goes through the
        backward pass as well. For the trainer to call: the base class clips before its next event.
        """
        if args.world_size > 1:
            drop_gradients_except(model, self.trained[index].parts)

    def on_pre_optimizer_step(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """What a stage does not train stays as it is: no weight decay, no momentum of an earlier stage."""
        trained = self.trained[stage_at(self.stages, state.global_step)[0]]
        drop_gradients_except(model, trained.moved)
        for name, parameter in self.objective.named_parameters():
            if name not in trained.objective:
                parameter.grad = None

    def on_optimizer_step(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Clamp the trained temperatures after each update; the trainer clears the gradients of the model alone."""
        clamp_logit_scale_(model.logit_scale)
        self.objective.clamp_()
        self.objective.zero_grad()

    def on_step_end(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """At a stage's end: evaluate and keep the model, as itself again. There and before each checkpoint: log.

        Running means are not saved, so a checkpoint must find them empty for a resumed run to log the same values.
        """
        if finished_stage(self.stages, state.global_step) is not None:
            model.vision_model.set_patch_dropout(self.own_patch_dropout)
            control.should_evaluate = True
            control.should_log = True
        if control.should_save:
            control.should_log = True
