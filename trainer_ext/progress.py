"""What is seen while it runs: the Trainer's bar with the stage and both losses, and one readable line per log entry."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments


def log_line(logs: dict[str, Any], step: int, steps: int) -> str:
    """One log entry of ``JinaCLIPTrainer`` as a line for people; percentages are accuracies in the batch.

    >>> logs = {"loss": 4.31, "loss_image_text": 2.9, "loss_text": 1.41, "accuracy_image_text": 0.5,
    ...         "accuracy_text": 0.75, "temperature": 0.0625, "learning_rate": 9e-4, "stage": "pairs"}
    >>> log_line(logs, 120, 481)
    'step 120/481 pairs | loss 4.310 | image_text 2.900 (50%) | text 1.410 (75%) | temperature 0.0625 | lr 9.0e-04'
    """
    parts = [f"step {step}/{steps} {logs['stage']}", f"loss {logs['loss']:.3f}"]
    for side in ("image_text", "text"):
        if f"loss_{side}" in logs:
            parts.append(f"{side} {logs[f'loss_{side}']:.3f} ({logs[f'accuracy_{side}']:.0%})")
    return " | ".join([*parts, f"temperature {logs['temperature']:.4f}", f"lr {logs['learning_rate']:.1e}"])


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
        """Write the line above the bar, and the newest losses beside it. Evaluations are shown by the report."""
        if not state.is_world_process_zero or self.training_bar is None or "loss" not in (logs or {}):
            return
        self.training_bar.write(log_line(logs, state.global_step, state.max_steps))
        losses = [f"{side} {logs[f'loss_{side}']:.2f}" for side in ("image_text", "text") if f"loss_{side}" in logs]
        self.training_bar.set_postfix_str(", ".join([logs["stage"], *losses]))


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
