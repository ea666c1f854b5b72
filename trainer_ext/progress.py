"""What is seen while it runs: the Trainer's bar with the stage and its figures, and one readable line per log entry."""

import time
from collections.abc import Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

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
    for side in ("image_text", "text"):
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
    for side in ("image_text", "text"):
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
        if state.is_world_process_zero and "loss" in (logs or {}):
            print(log_line(logs, state.global_step, state.max_steps), flush=True)


class ThroughputCallback(TrainerCallback):
    """Counts pairs and text tokens, and the time they took: waiting for data is in it, evaluating and saving are not.

    A text pair, a triplet and an image with its caption are one pair each; tokens are those of texts, without padding.
    """

    def __init__(self) -> None:
        self._pairs = self._tokens = 0
        self._since = self._left = time.perf_counter()

    def count(self, batch: Mapping[str, Any]) -> None:
        """Add one micro-batch of this process, as ``JointCollator`` made it."""
        image_text, text = batch.get("image_text"), batch.get("text", {})
        masks = [part["attention_mask"] for part in text.values() if isinstance(part, Mapping)]
        pairs = len(text["query"]["input_ids"]) if text else 0
        if image_text is not None:
            masks.append(image_text["attention_mask"])
            pairs += len(image_text["pixel_values"])
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
