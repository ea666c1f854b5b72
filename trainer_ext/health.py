"""Warnings of a run that learns nothing: a loss that stays at chance, vectors that all point the same way."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.optimization import stage_at
from trainer_ext.recipe import Stage

logger = logging.getLogger(__name__)

# So many steps in a row, warm-up not counted: a fresh model may well stand still for some.
PATIENCE = 50
# A loss above this share of its value at chance has not begun to fall.
AT_CHANCE = 0.98
# Mean cosine between different rows of a batch: at temperature 0.01 it leaves logits that differ by 0.1. Fresh towers
# reach 0.99 and recover.
COLLAPSED = 0.999


class HealthCallback(TrainerCallback):
    """Looks at each log entry of a joint step and warns once for each stage and figure.

    ``chance`` holds the value of each ``loss_*`` for vectors that are all the same, ln(candidates) per direction;
    the trainer sets it when a stage begins (``JointObjective.chance``).
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.chance: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._said: set[tuple[int, str]] = set()
        self._seen = 0

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
        if fresh <= 0:
            return
        for name, bad, words in self._signs(logs):
            self._steps[name] = self._steps.get(name, 0) + fresh if bad else 0
            if self._steps[name] >= PATIENCE and (number, name) not in self._said:
                self._said.add((number, name))
                logger.warning("step %d (stage %s): %s", state.global_step, stage.name, words)

    def _signs(self, logs: dict[str, Any]) -> Iterator[tuple[str, bool, str]]:
        """Each figure's name, whether it is a bad sign, and what to say then."""
        for name, chance in self.chance.items():
            if name in logs and chance > 0:
                words = (
                    f"{name} has been {logs[name]:.3f} or so for {PATIENCE} steps, and guessing costs {chance:.3f}: "
                    "nothing is learnt. Look whether the rows of its source belong together; try another learning "
                    "rate or a longer warm-up"
                )
                yield name, logs[name] >= AT_CHANCE * chance, words
        for name, value in logs.items():
            if name.startswith("similarity_"):
                part = name.removeprefix("similarity_")
                words = (
                    f"the vectors of {part} are almost the same for all rows (mean cosine {value:.4f} for {PATIENCE} "
                    "steps): the embedding has collapsed. Go back to an earlier checkpoint with a smaller learning "
                    "rate or a longer warm-up"
                )
                yield name, value >= COLLAPSED, words
