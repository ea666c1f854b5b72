"""Warnings of a run that learns nothing: a loss that stays at chance, vectors that all point the same way."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.optimization import stage_at
from trainer_ext.recipe import Stage

# So many steps in a row, warm-up not counted: a fresh model may well stand still for some.
PATIENCE = 50
# A loss above this share of its value at chance has not begun to fall.
AT_CHANCE = 0.98
# SigLIP begins far above chance and may take long to come down, with a bias for more rows than most batches have.
SIGLIP_HIGHEST = 1.25
# Mean cosine between different rows of a batch: at temperature 0.01 it leaves logits that differ by 0.1. Fresh towers
# reach 0.99 and recover.
COLLAPSED = 0.999


class HealthCallback(TrainerCallback):
    """Looks at each log entry of a joint step and warns once for each stage and figure.

    ``chance`` holds the value of each ``loss_*`` for vectors that are all the same, ln(candidates) per direction;
    the trainer sets it when a stage begins (``JointObjective.chance``). Steps in a row are steps of one stage: what the
    one before has left behind says nothing about the new one's data, loss and learning rate.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.chance: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._said: set[tuple[int, str]] = set()
        self._seen = self._stage = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from here; a resumed run starts with patience anew."""
        self._seen = state.global_step
        self._steps.clear()
        self._said.clear()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count for how many steps each figure has been a bad sign."""
        if not state.is_world_process_zero or "stage" not in (logs or {}):
            return
        number, inner = stage_at(self.stages, state.global_step - 1)
        stage = self.stages[number]
        fresh = min(state.global_step - self._seen, inner + 1 - stage.warmup_steps)
        self._seen = state.global_step
        if number != self._stage:
            self._stage = number
            self._steps.clear()
        if fresh <= 0:
            return
        for name, bad, words in self._signs(stage, logs):
            self._steps[name] = self._steps.get(name, 0) + fresh if bad else 0
            if self._steps[name] >= PATIENCE and (number, name) not in self._said:
                self._said.add((number, name))
                # Not by a logger, whose lines would tear the bar apart.
                tqdm.write(f"warning: step {state.global_step} (stage {stage.name}): {words}", file=sys.stderr)

    def _signs(self, stage: Stage, logs: dict[str, Any]) -> Iterator[tuple[str, bool, str]]:
        """Each figure's name, whether it is a bad sign, and what to say then."""
        for name, chance in self.chance.items():
            if name in logs and chance > 0:
                words = (
                    f"{name} has been {logs[name]:.3f} or so for {PATIENCE} steps, and guessing costs {chance:.3f}: "
                    "nothing is learnt. Look whether the rows of its source belong together; try another learning "
                    "rate or a longer warm-up"
                )
                side = getattr(stage, name.removeprefix("loss_"))
                highest = SIGLIP_HIGHEST * chance if side.loss == "siglip" else math.inf
                yield name, AT_CHANCE * chance <= logs[name] <= highest, words
        for name, value in logs.items():
            if name.startswith("similarity_"):
                part = name.removeprefix("similarity_")
                words = (
                    f"the vectors of {part} are almost the same for all rows (mean cosine {value:.4f} for {PATIENCE} "
                    "steps): the embedding has collapsed. Go back to an earlier checkpoint with a smaller learning "
                    "rate or a longer warm-up"
                )
                yield name, value >= COLLAPSED, words
