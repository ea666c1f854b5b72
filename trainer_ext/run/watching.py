"""Figures while it trains: measured every N steps, the best model kept, training stopped when it gets no better.

Everything is decided by the log, which a checkpoint holds: a resumed run goes on as the uninterrupted one. Measuring
draws no random number and changes no weight.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.evaluation.figures import less_is_better
from trainer_ext.recipe.stages import Stage


class Best(NamedTuple):
    """The best measurement so far: the figure's value and the step it was measured at."""

    value: float
    step: int


def best_of(history: Sequence[dict[str, Any]], figure: str) -> Best | None:
    """The first best measurement in a trainer's ``log_history``; None if the figure has not been measured.

    >>> best_of([{"step": 0, "eval_shop/t2i_r5": 0.1}, {"step": 2, "loss": 1.0}, {"step": 4, "eval_shop/t2i_r5": 0.3}],
    ...         "shop/t2i_r5")
    Best(value=0.3, step=4)
    """
    measured = [Best(entry[f"eval_{figure}"], entry["step"]) for entry in history if f"eval_{figure}" in entry]
    if not measured:
        return None
    sign = -1 if less_is_better(figure) else 1
    return max(measured, key=lambda best: (sign * best.value, -best.step))


def stopped_at(history: Sequence[dict[str, Any]], figure: str, patience: int, stages: Sequence[Stage]) -> int | None:
    """The step at which ``patience`` ends a run: that many measurements of the last stage without a better one.

    Earlier stages run to their end: each prepares the next one, and a stage of other texts may cost a figure at first.

    >>> stage = Stage(name="only", steps=9, learning_rate=1.0, max_length=8)
    >>> history = [{"step": step, "eval_a/r1": value} for step, value in enumerate([0.1, 0.4, 0.3, 0.4, 0.2])]
    >>> stopped_at(history, "a/r1", 2, [stage]), stopped_at(history, "a/r1", 4, [stage])
    (3, None)
    """
    start = sum(stage.steps for stage in stages[:-1])
    steps = sorted({entry["step"] for entry in history if f"eval_{figure}" in entry and entry["step"] > start})
    for step in steps:
        best = best_of([entry for entry in history if entry["step"] <= step], figure)
        assert best is not None  # this step has measured it
        if sum(max(best.step, start) < other <= step for other in steps) >= patience:
            return step
    return None


class WatchCallback(TrainerCallback):
    """Asks for a measurement every ``every`` steps, keeps the best model, and stops by ``patience``.

    Args:
        keep: called on the main process with (step, figures) when ``keep_best`` is better than ever; gives the folder.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        every: int | None,
        keep_best: str | None,
        patience: int | None,
        keep: Callable[[int, dict[str, float]], Path],
    ) -> None:
        self.stages, self.every, self.keep_best, self.patience, self.keep = stages, every, keep_best, patience, keep

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a measurement, and for a log line first: where training stops, a checkpoint follows."""
        if self.every is not None and state.global_step % self.every == 0:
            control.should_evaluate = control.should_log = True

    def on_evaluate(  # type: ignore[override]  # the trainer gives the metrics by name
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Keep the model if it is the best one so far; stop if none has been better for long enough."""
        if self.keep_best is None:
            return
        best = best_of(state.log_history, self.keep_best)
        if best is None:
            names = sorted(name.removeprefix("eval_") for name in metrics)
            measured = ", ".join(names) or "none"
            raise ValueError(f"evaluation.keep_best: {self.keep_best!r} was not measured. Choose one of: {measured}")
        if best.step == state.global_step and state.is_world_process_zero:
            folder = self.keep(state.global_step, {name.removeprefix("eval_"): x for name, x in metrics.items()})
            tqdm.write(f"best model so far ({self.keep_best} {best.value:.4g}, step {best.step}) is kept in {folder}")
        if (
            self.patience is not None
            and stopped_at(state.log_history, self.keep_best, self.patience, self.stages) is not None
        ):
            control.should_training_stop = control.should_save = True
            if state.is_world_process_zero:
                tqdm.write(
                    f"stopped at step {state.global_step}: {self.patience} measurements in a row were no better than "
                    f"{self.keep_best} {best.value:.4g} of step {best.step}"
                )
