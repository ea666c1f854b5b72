"""How fast a run was, step by step, for its report.

``sources/speed.csv`` has a line per log entry: the step, and pairs and tokens a second since the entry before. The
trainer's own log leaves the speed out, so that a resumed run has the history of the run that was never stopped.
"""

import csv
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.files import write_whole
from trainer_ext.report.folder import SPEED_FILE
from trainer_ext.training.monitoring import RATES

_HEADER = ["step", *RATES]


class SpeedRecord(TrainerCallback):
    """Writes ``sources/speed.csv`` of a run; a resumed run cuts it back to its checkpoint and goes on."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / SPEED_FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the lines up to the step where training goes on."""
        if state.is_world_process_zero:
            lines = self.path.read_text(encoding="utf-8").splitlines()[1:] if self.path.is_file() else []
            kept = [line for line in lines if _step_of(line) <= state.global_step]
            write_whole(self.path, "".join(f"{line}\n" for line in [",".join(_HEADER), *kept]).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the entry's line."""
        if state.is_world_process_zero and logs is not None and all(name in logs for name in RATES):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(
                    [state.global_step, *(f"{logs[name]:.6g}" for name in RATES)]
                )


def _step_of(line: str) -> float:
    """The step of a line; that of a line cut by a kill lies behind all others."""
    cells = line.split(",")
    return int(cells[0]) if len(cells) == len(_HEADER) and cells[0].isdecimal() else float("inf")
