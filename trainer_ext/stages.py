"""The schedule: which stage a step belongs to, and what changes at a boundary.

The stage is a function of the global step alone, so a resumed run needs nothing but its step count.
What a boundary changes, and who reads it:

1. data, batch size: the batch plan; text length, image size: the collator;
2. loss: ``JinaCLIPTrainer.compute_loss``, by the stage that each batch carries;
3. learning rate: one scheduler over all stages (``optimization.stage_scheduler``);
4. the temperatures and biases that it does not train: left as they are;
5. patch dropout: ``StageCallback``, which also asks for a log line, an evaluation and a model folder at the last step.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from trainer_ext.losses import clamp_logit_scale_
from trainer_ext.objective import JointObjective
from trainer_ext.optimization import stage_at
from trainer_ext.recipe import Stage
from trainer_ext.recipe_errors import Problem
from trainer_ext.recipe_objective import trains_temperature


def finished_stage(stages: Sequence[Stage], steps_done: int) -> int | None:
    """Index of the stage whose last step was just done, None in the middle of a stage."""
    ends = list(accumulate(stage.steps for stage in stages))
    return ends.index(steps_done) if steps_done in ends else None


def image_parameters(model: JinaCLIPModel) -> list[nn.Parameter]:
    """What a text loss cannot reach: the image tower and the trained temperature."""
    return [*model.vision_model.parameters(), model.logit_scale]


def image_size_problems(stages: Sequence[Stage], config: JinaCLIPConfig) -> Iterator[Problem]:
    """The stages whose pictures the image tower could not cut into patches; it would tell at their first step only.

    >>> stage = {"steps": 1, "learning_rate": 1e-3, "max_length": 8}
    >>> images = {"sources": ["photos"], "batch_size": 4}
    >>> stages = [Stage(name=str(size), image_size=size, image_text=images, **stage) for size in (224, 230)]
    >>> [place for place, _ in image_size_problems(stages, JinaCLIPConfig())]
    ['stages.1.image_size']
    """
    patch, trained = config.vision_config.patch_size, config.vision_config.image_size
    for position, stage in enumerate(stages):
        size = stage.image_size
        if size is None or stage.image_text is None or size == trained or (size % patch == 0 and size >= patch):
            continue
        near = sorted({max(size // patch, 1) * patch, (size // patch + 1) * patch})
        yield (
            f"stages.{position}.image_size",
            f"{size} px cannot be cut into the model's patches of {patch} px. Use a multiple of {patch}, such as "
            f"{' or '.join(map(str, near))}, or {trained}, which it was trained with.",
        )


class StageCallback(TrainerCallback):
    """Keeps the model in step with the schedule, and asks the trainer for what belongs to a stage's end."""

    def __init__(self, stages: Sequence[Stage], own_patch_dropout: float, objective: JointObjective) -> None:
        self.stages = stages
        self.own_patch_dropout = own_patch_dropout
        self.objective = objective

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Patch dropout of the step's stage; one that says nothing has the model's own."""
        dropout = self._stage(state).patch_dropout
        model.vision_model.set_patch_dropout(self.own_patch_dropout if dropout is None else dropout)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """What a stage does not train stays as it is: no weight decay, no momentum of an earlier stage."""
        side = self._stage(state).image_text
        if side is None:
            for parameter in image_parameters(model):
                parameter.grad = None
        elif not trains_temperature("image_text", side):
            model.logit_scale.grad = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Clamp the trained temperatures after each update; the trainer clears the gradients of the model alone."""
        clamp_logit_scale_(model.logit_scale)
        self.objective.clamp_()
        self.objective.zero_grad()

    def on_step_end(
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

    def _stage(self, state: TrainerState) -> Stage:
        return self.stages[stage_at(self.stages, state.global_step)[0]]
