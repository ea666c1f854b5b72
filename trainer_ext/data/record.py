"""What a run takes from its sources, in ``DIR/sources``: each step's source, the shares at the end, rows left out.

DIR/sources/steps.csv            one line per step: its number from 1, its stage, the source of each side (of
                                 ``images`` only where a stage has it)
DIR/sources/speed.csv            pairs and tokens a second of each log entry (written by trainer_ext.run.speed)
DIR/sources/shares.json          rows that each source gave to each side and their share; broken rows by source
DIR/sources/broken_rows.jsonl    rows that were left out: source, file, row, column and reason
DIR/sources/streams/NAME.jsonl   bookmarks of a streaming source: where its windows begin
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.data.broken_rows import BROKEN_ROWS_FILE, BrokenRows
from trainer_ext.data.sources import Rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.files import write_whole
from trainer_ext.recipe.schema import SIDES
from trainer_ext.recipe.stages import Stage

Shares = dict[str, dict[str, dict[str, float]]]


class SourceRecord(TrainerCallback):
    """Writes the files above. The trainer says by ``note`` which sources a micro-batch came from.

    A resumed run cuts ``steps.csv`` back to its checkpoint and goes on: the file is that of a run never stopped.

    Args:
        output_dir: the run's folder, untouched until training begins.
        broken: what was found while the data were read; from now on it is listed in the folder.
    """

    def __init__(self, output_dir: str | os.PathLike, stages: Sequence[Stage], broken: BrokenRows) -> None:
        self.folder = Path(output_dir) / "sources"
        self.broken = broken
        self._stages = list(stages)
        self._sides = [side for side in SIDES if side != "images" or any(stage.images for stage in stages)]
        self._step: list[str] = []
        self._streams: list[SourceStream] = []
        broken.keep_in(self.folder / BROKEN_ROWS_FILE)

    def attach(self, tables: Mapping[str, Rows]) -> None:
        """Let streaming sources list their broken rows, and note where their windows begin."""
        self._streams = [rows for rows in tables.values() if isinstance(rows, SourceStream)]
        for rows in self._streams:
            rows.broken, rows.bookmarks = self.broken, self.folder / "streams"

    def note(self, stage: str, sources: Mapping[str, str]) -> None:
        """The current step's stage, and the source of each of its sides."""
        self._step = [stage, *(sources.get(side, "") for side in self._sides)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cut the list of steps back to where training goes on, and list the rows left out so far."""
        if state.is_world_process_zero:
            self.broken.write()
            lines, damaged = self._lines(state.global_step)
            self._write("steps.csv", "".join(lines))
            if damaged:
                tqdm.write(
                    f"{self.folder / 'steps.csv'}: {damaged} lines are damaged or of another recipe, and left out"
                )
            for stream in self._streams:
                if damaged := stream.damaged_bookmarks():
                    tqdm.write(
                        f"source {stream.source.name}: {damaged} damaged bookmarks are left out; same rows, later"
                    )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the step's line."""
        if state.is_world_process_zero:
            with (self.folder / "steps.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow([state.global_step, *self._step])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the shares, and tell them."""
        if state.is_world_process_zero:
            shares, broken = self.shares(), self.broken.counts()
            self._write("shares.json", json.dumps({**shares, "broken_rows": broken}, indent=1) + "\n")
            for side, sources in shares.items():
                tqdm.write(f"rows of {side}: {describe_shares(sources)}")
            for name, rows in broken.items():
                tqdm.write(f"{rows:,} rows of {name} were left out: {self.folder / BROKEN_ROWS_FILE}")

    def shares(self) -> Shares:
        """Rows that each source gave to each side, from the list of steps, and their share of that side's rows."""
        rows: dict[str, dict[str, int]] = {}
        stages = {stage.name: stage for stage in self._stages}
        with (self.folder / "steps.csv").open(newline="", encoding="utf-8") as file:
            for step in csv.DictReader(file):
                for side_name, side in stages[step["stage"]].sides():
                    taken = rows.setdefault(side_name, {})
                    taken[step[side_name]] = taken.get(step[side_name], 0) + side.batch_size
        return {
            side: {name: {"rows": n, "share": n / sum(taken.values())} for name, n in sorted(taken.items())}
            for side, taken in rows.items()
        }

    def _lines(self, steps: int) -> tuple[list[str], int]:
        """The lines up to a step that can be read, under the header; and how many there are missing."""
        path, header = self.folder / "steps.csv", ",".join(["step", "stage", *self._sides]) + "\n"
        if steps == 0 or not path.is_file():
            return [header], steps
        kept: dict[int, str] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[1:]:
            if (number := self._step_of(line)) is not None and number <= steps:
                kept[number] = line
        return [header, *(line for _, line in sorted(kept.items()))], steps - len(kept)

    def _step_of(self, line: str) -> int | None:
        """The step of a line; None if the line is not one that ``on_step_end`` has written."""
        try:
            number, name, *names = next(csv.reader([line]))
            stage = next(stage for stage in self._stages if stage.name == name)
            sides = dict(stage.sides())
            known = all(
                (side in sides and source in sides[side].sources) or (side not in sides and not source)
                for side, source in zip(self._sides, names, strict=True)
            )
            return int(number) if known and line.endswith("\n") and int(number) > 0 else None
        except (ValueError, csv.Error, StopIteration):
            return None

    def _write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, text.encode())


def describe_shares(sources: Mapping[str, Mapping[str, float]]) -> str:
    """The shares of a side in one line, the largest first.

    >>> describe_shares({"a": {"rows": 32, "share": 0.25}, "b": {"rows": 96, "share": 0.75}})
    'b 75.0% (96), a 25.0% (32)'
    """
    ordered = sorted(sources.items(), key=lambda item: -item[1]["rows"])
    return ", ".join(f"{name} {100 * item['share']:.1f}% ({item['rows']:,})" for name, item in ordered)
