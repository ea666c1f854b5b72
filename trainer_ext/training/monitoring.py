"""What people watch while a run trains, and what ends or warns of a bad one.

1. ``FiniteGradientsCallback``: a NaN or infinite gradient ends the run before it reaches a weight.
2. ``HealthCallback``: warnings of a run that learns nothing: a loss that stays at chance, vectors that all point the
   same way.
3. ``StageProgressCallback``, ``StagePrinterCallback``: the Trainer's bar with the stage and its figures, and one
   readable line per log entry.
4. ``ThroughputCallback``: pairs and tokens per second.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trainer_ext.losses.joint import LOSSES
from trainer_ext.recipe.schema import SIDES
from trainer_ext.recipe.stages import Stage
from trainer_ext.training.sharding import whole_tensor
from trainer_ext.training.stages import stage_at

# What the reader of the error can count on, and do.
KEPT = (
    "No weight was changed by it, and the checkpoints of earlier steps are kept. Try a smaller learning rate, a longer "
    "warm-up or bf16 instead of fp16, and go on from a stage's folder or a checkpoint"
)


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the run stops before it reaches a weight."""


class FiniteGradientsCallback(TrainerCallback):
    """Stops the run before a NaN gradient reaches the weights; with fp16 the gradient scaler skips such steps."""

    def on_pre_optimizer_step(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Check the norm of all gradients; of sharded ones every process sees the whole norm, so that all stop."""
        if args.fp16:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.isfinite(whole_tensor(torch.nn.utils.get_total_norm(gradients))):
            named = [(name, parameter.grad) for name, parameter in model.named_parameters()]
            names = [n for n, grad in named if grad is not None and not torch.isfinite(whole_tensor(grad)).all()]
            raise NonFiniteError(
                f"gradients are not finite at step {state.global_step + 1} ({len(names)} tensors: "
                f"{', '.join(names[:3])}). {KEPT}"
            )


# Steps in a row, warm-up not counted: a fresh model may well stand still for some.
PATIENCE = 50
# A loss above this share of its value at chance has not begun to fall.
AT_CHANCE = 0.98
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
        if not state.is_world_process_zero or logs is None or "stage" not in logs:
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
                highest = LOSSES[side.loss].chance_ceiling * chance
                yield name, AT_CHANCE * chance <= logs[name] <= highest, words
        for name, value in logs.items():
            if name.startswith("similarity_"):
                column = name.removeprefix("similarity_")
                words = (
                    f"the vectors of {column} are almost the same for all rows (mean cosine {value:.4f} for {PATIENCE} "
                    "steps): the embedding has collapsed. Go back to an earlier checkpoint with a smaller learning "
                    "rate or a longer warm-up"
                )
                yield name, value >= COLLAPSED, words


RATES = ("pairs_per_second", "tokens_per_second")


def log_line(logs: dict[str, Any], step: int, steps: int) -> str:
    """One log entry of ``JinaCLIPTrainer`` as a line for people; percentages are accuracies in the batch.

    >>> logs = {"loss": 4.31, "loss_image_text": 2.9, "loss_text": 1.41, "accuracy_image_text": 0.5,
    ...         "accuracy_text": 0.75, "temperature": 0.0625, "learning_rate": 9e-4, "stage": "pairs",
    ...         "pairs_per_second": 310.4, "tokens_per_second": 5123.0}
    >>> log_line(logs, 120, 481)
    'step 120/481 pairs | loss 4.310 | image_text 2.900 (50%) | text 1.410 (75%) | temperature 0.0625 | lr 9.0e-04 |
    310 pairs/s | 5,123 tokens/s'
    """
    parts = [f"step {step}/{steps} {logs['stage']}", f"loss {logs['loss']:.3f}"]
    for side in SIDES:
        if f"loss_{side}" in logs:
            parts.append(f"{side} {logs[f'loss_{side}']:.3f} ({logs[f'accuracy_{side}']:.0%})")
    parts += [f"temperature {logs['temperature']:.4f}", f"lr {logs['learning_rate']:.1e}"]
    return " | ".join([*parts, *_speed(logs)])


def bar_text(logs: dict[str, Any]) -> str:
    """The same beside the bar, shorter.

    >>> bar_text({"stage": "pairs", "loss_text": 1.41, "accuracy_text": 0.75, "temperature": 0.0625})
    'pairs, text 1.41 (75%), temperature 0.0625'
    """
    parts = [logs["stage"]]
    for side in SIDES:
        if f"loss_{side}" in logs:
            parts.append(f"{side} {logs[f'loss_{side}']:.2f} ({logs[f'accuracy_{side}']:.0%})")
    return ", ".join([*parts, f"temperature {logs['temperature']:.4f}", *_speed(logs)])


def _speed(logs: dict[str, Any]) -> list[str]:
    return [f"{logs[name]:,.0f} {name.removesuffix('_per_second')}/s" for name in RATES if name in logs]


class StageProgressCallback(ProgressCallback):
    """The base class's bar, with readable lines in place of printed dictionaries."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line above the bar, and the newest figures beside it. Evaluations are shown by the report."""
        if not state.is_world_process_zero or self.training_bar is None or "loss" not in (logs or {}):
            return
        self.training_bar.write(log_line(logs, state.global_step, state.max_steps))
        self.training_bar.set_postfix_str(bar_text(logs))


class StagePrinterCallback(PrinterCallback):
    """The same lines where no bar is wanted (``disable_tqdm``)."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line of a training step."""
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            print(log_line(logs, state.global_step, state.max_steps), flush=True)


class ThroughputCallback(TrainerCallback):
    """Counts pairs and text tokens, and the time they took: waiting for data is in it, evaluating and saving are not.

    A text pair, a triplet, two pictures and an image with each of its captions are one pair; tokens are those of texts,
    without padding.
    """

    def __init__(self) -> None:
        self._pairs = self._tokens = 0
        self._since = self._left = time.perf_counter()

    def count(self, batch: Mapping[str, Any]) -> None:
        """Add one micro-batch of this process, as ``JointCollator`` made it."""
        image_text, text = batch.get("image_text"), batch.get("text", {})
        parts = [*text.values(), *(image_text or {}).values()]
        masks = [part["attention_mask"] for part in parts if isinstance(part, Mapping)]
        pairs = len(text["query"]["input_ids"]) if text else 0
        if image_text is not None:
            masks.append(image_text["attention_mask"])
            pairs += len(image_text["input_ids"])
        if "images" in batch:
            pairs += len(batch["images"]["row_ids"])
        self._pairs += pairs
        self._tokens += sum(int(mask.sum()) for mask in masks)

    def take(self) -> tuple[tuple[int, int], float]:
        """(pairs, tokens) of this process and seconds since the last call; both begin anew."""
        now = time.perf_counter()
        taken = (self._pairs, self._tokens), now - self._since
        self._pairs, self._tokens, self._since = 0, 0, now
        return taken

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.take()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What follows may be an evaluation or a checkpoint."""
        self._left = time.perf_counter()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the time since the step, or since the entry that was logged after it, off the clock."""
        now = time.perf_counter()
        self._since += now - max(self._left, self._since)
        self._left = now

    on_save = on_evaluate
