"""The record of a run: metrics by stage as JSON, and as a Markdown table.

``metrics.json`` is what all other files are drawn from, the pictures and the page of ``trainer_ext.report`` too; a
resumed run loads it and goes on. Files are written whole or not at all and hold no dates, so equal runs write equal
files.
"""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from trainer_ext.evaluation.figures import Figure, measured_on, paired_difference
from trainer_ext.evaluation.markdown import Interval, cell, in_cell, markdown, metric_words
from trainer_ext.evaluation.tasks import Task
from trainer_ext.files import write_whole

FORMAT = 2
READ = (1, 2)  # formats that can be read; 1 had no intervals and no differences
SAMPLES_FILE = "samples.safetensors"
NOTES = """Percentages; higher is better; equal scores count against the model; "-" marks what was not measured.
*chance* is the exact expectation of a random order. R@k between images and texts: is a right answer among the first k?
R@k between texts: the share of the right answers that are among the first k. Accuracy: the positive scores strictly
higher than every one of its hard negatives."""
MORE_NOTES = """In brackets: the 95% interval (bootstrap over queries). The median rank (from 1), the threshold and the
fit of a match, the gap, alignment and uniformity are no percentages; of ranks, gap and ECE less is better."""
PARTS_HEAD = "Parts (`task[part]`), widths and precisions (`task@64`, `task@int8`, `task@64@int8`)"
# Ends the name under which a figure's value for each draw is kept.
_DRAWS = "\0draws"

DIFFERENCE_NOTES = """How much more the second model has than the first, with the 95% interval of the differences per
query (bootstrap over queries, the same for both). \\* marks those that chance alone would hardly make."""

# Rows of a run in the order they were measured; models beside each other; what a model has to beat.
Kind = Literal["reference", "stage", "model"]


@dataclass(frozen=True)
class ReportRow:
    """Metrics of a ``stage`` of the run (before training counts as one), a ``model``, or a ``reference`` like chance.

    ``intervals`` are the 95% intervals of those metrics that have one; ``samples`` the values per query, whose mean the
    metric is, and ``draws`` its value for each draw of the queries where it is no mean.
    """

    name: str
    kind: Kind
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    draws: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def figures(self) -> dict[str, Figure]:
        """Its figures, with the values per query or per draw where they are kept."""
        return {
            key: Figure(value, samples=self.samples.get(key), draws=self.draws.get(key))
            for key, value in self.metrics.items()
        }

    def without(self, labels: Collection[str]) -> "ReportRow":
        """The row without what was measured on these."""
        kept = {key: value for key, value in self.metrics.items() if measured_on(key) not in labels}
        intervals = {key: ends for key, ends in self.intervals.items() if key in kept}
        return replace(self, metrics=kept, intervals=intervals)

    def stored(self) -> dict[str, Any]:
        """As ``metrics.json`` has it."""
        kept = {"name": self.name, "kind": self.kind, "metrics": self.metrics}
        return kept | ({"intervals": self.intervals} if self.intervals else {})


@dataclass(frozen=True)
class PairedDifference:
    """``second`` minus ``first`` on the metrics that both rows have, with intervals of the differences per query."""

    first: str
    second: str
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)


class Report:
    """Rows of metrics of one run, kept in ``folder``.

    The notes below the table list the sizes of ``tasks`` and, in ``shares``, how many rows each source gave.
    ``contents`` tells tasks over other data from these by hashes, see ``Task.contents``.

    >>> report = Report("unused")
    >>> report.add("before training", {"concepts_short/t2i_r5": 0.031})
    >>> report.add("chance", {"concepts_short/t2i_r5": 0.029}, kind="reference")
    >>> print(report.table())
    | task           | metric            | chance | before training |
    |:---------------|:------------------|-------:|----------------:|
    | concepts short | text to image R@5 |    2.9 |             3.1 |
    """

    def __init__(self, folder: str | os.PathLike, tasks: Sequence[Task] = ()) -> None:
        self.folder = Path(folder)
        self.rows: list[ReportRow] = []
        self.tasks = list(tasks)
        self.sizes = {task.label: task.size for task in tasks}
        self.stored_contents: dict[str, str] = {}
        self.shares: dict[str, dict[str, dict[str, float]]] = {}
        self.notes: list[str] = []
        self.differences: list[PairedDifference] = []

    @cached_property
    def contents(self) -> dict[str, str]:
        """What the tasks are measured on; asked for when their splits and lengths are set."""
        return self.stored_contents | {
            label: content for task in self.tasks for label, content in task.contents().items()
        }

    @classmethod
    def load(cls, folder: str | os.PathLike, tasks: Sequence[Task] = ()) -> "Report":
        """The report kept in ``folder``, or an empty one if none has been saved.

        Figures of tasks that hold other rows than ``tasks`` of these names do are left out, with a note.

        Raises:
            ValueError: ``metrics.json`` is there but is not a report of this version.
        """
        report = cls(folder, tasks)
        path = report.folder / "metrics.json"
        if not path.exists():
            return report
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] not in READ:
                raise ValueError(f"its format is {stored['format']!r}, not {' or '.join(map(str, READ))}")
            report.sizes = stored["sizes"] | report.sizes
            report.shares, report.notes = stored.get("shares", {}), stored.get("notes", [])
            report.stored_contents = stored.get("contents", {})
            samples = _read_samples(report.folder / SAMPLES_FILE)
            for row in stored["rows"]:
                kept, draws = _apart(samples.get(row["name"], {}))
                report.add(**row, samples=kept, draws=draws)
            report.differences = [
                PairedDifference(**item | {"intervals": _pairs(item["intervals"])})
                for item in stored.get("differences", [])
            ]
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"Cannot read the report {path} ({error!r}): move it away to start a new one.") from error
        report._leave_out_others()
        return report

    def _leave_out_others(self) -> None:
        before = self.stored_contents
        others = {label for label, content in self.contents.items() if before.get(label, content) != content}
        if others:
            self.rows = [row for row in (row.without(others) for row in self.rows) if row.metrics]
            self.differences = []
            names = ", ".join(sorted({label.partition("[")[0] for label in others}))
            self.notes.append(f"{names}: the data have changed since the run began; earlier figures are left out")

    def add(
        self,
        name: str,
        metrics: Mapping[str, float],
        kind: Kind = "stage",
        intervals: Mapping[str, Sequence[float]] | None = None,
        samples: Mapping[str, np.ndarray] | None = None,
        draws: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add a row, or replace the one of that name in place: a resumed run may measure a stage again."""
        if bad := {key: value for key, value in metrics.items() if not math.isfinite(value)}:
            raise ValueError(f"Row {name!r} has metrics that are not finite: {bad}.")
        values = {key: float(value) for key, value in metrics.items()}
        row = ReportRow(name, kind, values, _pairs(intervals or {}), dict(samples or {}), dict(draws or {}))
        names = [other.name for other in self.rows]
        if name in names:
            self.rows[names.index(name)] = row
        else:
            self.rows.append(row)

    def add_figures(self, name: str, figures: Mapping[str, Figure], kind: Kind = "model") -> None:
        """Add a row of figures, with their intervals and their values per query."""
        self.add(
            name,
            {key: figure.value for key, figure in figures.items()},
            kind,
            {key: (f.low, f.high) for key, f in figures.items() if f.low is not None and f.high is not None},
            {key: figure.samples for key, figure in figures.items() if figure.samples is not None},
            {key: figure.draws for key, figure in figures.items() if figure.draws is not None},
        )

    def compare(self, first: Mapping[str, Figure], second: Mapping[str, Figure], names: tuple[str, str]) -> None:
        """Add how much higher the ``second`` row's figures are than the ``first`` one's, query by query."""
        found = {key: paired_difference(second[key], first[key]) for key in first if key in second}
        intervals = {k: (d.low, d.high) for k, d in found.items() if d.low is not None and d.high is not None}
        values = {key: difference.value for key, difference in found.items()}
        self.differences = [item for item in self.differences if (item.first, item.second) != names]
        self.differences.append(PairedDifference(*names, values, intervals))

    def compare_rows(self, first: str, second: str) -> None:
        """``compare`` of two rows by their names; nothing where one is not there."""
        rows = {row.name: row for row in self.rows}
        if first in rows and second in rows and first != second:
            self.compare(rows[first].figures(), rows[second].figures(), (first, second))

    def columns(self) -> list[ReportRow]:
        """References first, then stages in the order of measurement."""
        return sorted(self.rows, key=lambda row: row.kind != "reference")

    def metrics(self) -> list[str]:
        """Every metric name, in the order of the row that measures most."""
        fullest_first = sorted((list(row.metrics) for row in self.rows), key=len, reverse=True)
        return list(dict.fromkeys(name for names in fullest_first for name in names))

    def main_metrics(self) -> list[str]:
        """The metric names of whole tasks at full width and precision."""
        return [name for name in self.metrics() if not {"[", "@"} & set(name)]

    def table(self, names: Sequence[str] | None = None) -> str:
        """Metrics (all, or these) down, references and stages across, in percent: Markdown that a terminal shows well,
        too."""
        rows = [["task", "metric", *(in_cell(row.name) for row in self.columns())]]
        for name in self.metrics() if names is None else names:
            task, metric = metric_words(name)
            figures = [(row.metrics.get(name), row.intervals.get(name)) for row in self.columns()]
            rows.append([in_cell(task), metric, *(cell(name, value, interval) for value, interval in figures)])
        return markdown(rows)

    def differences_table(self) -> str:
        """Differences of the main metrics, in percent points; ``*`` marks those whose interval leaves out 0."""
        rows = [["task", "metric", *(in_cell(f"{item.second} - {item.first}") for item in self.differences)]]
        for name in [name for name in self.main_metrics() if any(name in item.metrics for item in self.differences)]:
            found = [(item.metrics.get(name), item.intervals.get(name)) for item in self.differences]
            rows.append([*metric_words(name), *(cell(name, value, interval, "+") for value, interval in found)])
        return markdown(rows)

    def save(self) -> None:
        """Write ``metrics.json`` and ``metrics.md``, each whole or not at all.

        Values per query go to ``samples.safetensors`` under ``ROW\\0METRIC``, values per draw under
        ``ROW\\0METRIC\\0draws``.
        """
        stored: dict[str, Any] = {"format": FORMAT, "sizes": self.sizes, "shares": self.shares}
        stored |= {"contents": self.contents} if self.contents else {}
        stored |= {"notes": self.notes} if self.notes else {}
        stored["rows"] = [row.stored() for row in self.rows]
        if self.differences:
            stored["differences"] = [asdict(item) for item in self.differences]
        sizes = "".join(f"- {name.replace('_', ' ')}: {size}\n" for name, size in self.sizes.items())
        shares = "".join(
            f"- rows of {side} from {name}: {item['rows']:,} ({item['share']:.1%})\n"
            for side, sources in self.shares.items()
            for name, item in sources.items()
        )
        write_whole(self.folder / "metrics.json", (json.dumps(stored, indent=1) + "\n").encode())
        notes = "".join(f"- {note}\n" for note in self.notes)
        write_whole(self.folder / "metrics.md", f"{self._tables()}\n{sizes}{shares}{notes}".encode())
        samples = {f"{row.name}\0{key}": value for row in self.rows for key, value in row.samples.items()}
        samples |= {f"{row.name}\0{key}{_DRAWS}": value for row in self.rows for key, value in row.draws.items()}
        if samples:
            write_whole(self.folder / SAMPLES_FILE, safetensors_bytes(samples))

    def _tables(self) -> str:
        main = self.main_metrics()
        parts = [name for name in self.metrics() if name not in main]
        text = f"{self.table(main)}\n\n{NOTES}\n"
        if any(row.intervals for row in self.rows):
            text += f"\n{MORE_NOTES}\n"
        if self.differences:
            text += f"\n{self.differences_table()}\n\n{DIFFERENCE_NOTES}\n"
        return text + (f"\n{PARTS_HEAD}:\n\n{self.table(parts)}\n" if parts else "")


def _pairs(intervals: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    return {key: (float(low), float(high)) for key, (low, high) in intervals.items()}


def _apart(kept: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values per query and values per draw, by metric."""
    draws = {key.removesuffix(_DRAWS): values for key, values in kept.items() if key.endswith(_DRAWS)}
    return {key: values for key, values in kept.items() if not key.endswith(_DRAWS)}, draws


def _read_samples(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Row -> metric -> values per query."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file():
        for key, values in load_file(path).items():
            row, _, metric = key.partition("\0")
            found.setdefault(row, {})[metric] = values
    return found
