"""The record of a run: metrics by stage as JSON, and as a Markdown table.

``metrics.json`` is what all other files are drawn from, the pictures and the page of ``trainer_ext.report`` too; a
resumed run loads it and goes on. Files are written whole or not at all and hold no dates, so equal runs write equal
files.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from trainer_ext.evaluation.figures import Figure, is_share, paired_difference
from trainer_ext.evaluation.tasks import Task
from trainer_ext.files import write_whole

FORMAT = 2
READ = (1, 2)  # formats that can be read; 1 had no intervals and no differences
SAMPLES_FILE = "samples.safetensors"
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text", "i2i": "image to image"}
_WORDS = {"ndcg": "nDCG@", "map": "MAP@", "acc": "accuracy@", "r": "R@"}
_NAMES = {"mrr": "MRR", "ece": "ECE", "auroc": "AUROC", "ap": "AP", "f1": "F1", "spearman": "Spearman"}
_NAMES |= {"pearson": "Pearson"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz_"
NOTES = """Percentages; higher is better; equal scores count against the model; "-" marks what was not measured.
*chance* is the exact expectation of a random order. R@k between images and texts: is a right answer among the first k?
R@k between texts: the share of the right answers that are among the first k. Accuracy: the positive scores strictly
higher than every one of its hard negatives."""
MORE_NOTES = """In brackets: the 95% interval (bootstrap over queries). The median rank (from 1), the threshold and the
fit of a match, the gap, alignment and uniformity are no percentages; of ranks, gap and ECE less is better."""
PARTS_HEAD = "Parts (`task[part]`), widths and precisions (`task@width`)"

DIFFERENCE_NOTES = """How much more the second model has than the first, with the 95% interval of the differences per
query (bootstrap over queries, the same for both). \\* marks those that chance alone would hardly make."""

# Rows of a run in the order they were measured; models beside each other; what a model has to beat.
Kind = Literal["reference", "stage", "model"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class ReportRow:
    """Metrics of a ``stage`` of the run (before training counts as one), a ``model``, or a ``reference`` like chance.

    ``intervals`` are the 95% intervals of those metrics that have one; ``samples`` the values per query, whose mean the
    metric is.
    """

    name: str
    kind: Kind
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def figures(self) -> dict[str, Figure]:
        """Its figures, with the values per query where they are kept."""
        return {key: Figure(value, samples=self.samples.get(key)) for key, value in self.metrics.items()}

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
        self.sizes = {task.label: task.size for task in tasks}
        self.shares: dict[str, dict[str, dict[str, float]]] = {}
        self.notes: list[str] = []
        self.differences: list[PairedDifference] = []

    @classmethod
    def load(cls, folder: str | os.PathLike, tasks: Sequence[Task] = ()) -> "Report":
        """The report kept in ``folder``, or an empty one if none has been saved.

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
            samples = _read_samples(report.folder / SAMPLES_FILE)
            for row in stored["rows"]:
                report.add(**row, samples=samples.get(row["name"]))
            report.differences = [
                PairedDifference(**item | {"intervals": _pairs(item["intervals"])})
                for item in stored.get("differences", [])
            ]
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"Cannot read the report {path} ({error!r}): move it away to start a new one.") from error
        return report

    def add(
        self,
        name: str,
        metrics: Mapping[str, float],
        kind: Kind = "stage",
        intervals: Mapping[str, Sequence[float]] | None = None,
        samples: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add a row, or replace the one of that name in place: a resumed run may measure a stage again."""
        if bad := {key: value for key, value in metrics.items() if not math.isfinite(value)}:
            raise ValueError(f"Row {name!r} has metrics that are not finite: {bad}.")
        values = {key: float(value) for key, value in metrics.items()}
        row = ReportRow(name, kind, values, _pairs(intervals or {}), dict(samples or {}))
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
        rows = [["task", "metric", *(_in_cell(row.name) for row in self.columns())]]
        for name in self.metrics() if names is None else names:
            task, metric = metric_words(name)
            figures = [(row.metrics.get(name), row.intervals.get(name)) for row in self.columns()]
            rows.append([_in_cell(task), metric, *(_cell(name, value, interval) for value, interval in figures)])
        return _markdown(rows)

    def differences_table(self) -> str:
        """Differences of the main metrics, in percent points; ``*`` marks those whose interval leaves out 0."""
        rows = [["task", "metric", *(_in_cell(f"{item.second} - {item.first}") for item in self.differences)]]
        for name in [name for name in self.main_metrics() if any(name in item.metrics for item in self.differences)]:
            found = [(item.metrics.get(name), item.intervals.get(name)) for item in self.differences]
            rows.append([*metric_words(name), *(_cell(name, value, interval, "+") for value, interval in found)])
        return _markdown(rows)

    def save(self) -> None:
        """Write ``metrics.json`` and ``metrics.md``, each whole or not at all.

        Values per query go to ``samples.safetensors`` under ``ROW\\0METRIC``.
        """
        stored: dict[str, Any] = {"format": FORMAT, "sizes": self.sizes, "shares": self.shares}
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


def metric_words(name: str) -> tuple[str, str]:
    """A flat metric name in words, as (task, metric).

    >>> metric_words("concepts_short/t2i_r5"), metric_words("headword_definition/ndcg10")
    (('concepts short', 'text to image R@5'), ('headword definition', 'nDCG@10'))
    """
    task, _, metric = name.rpartition("/")
    direction, figure = _direction(metric)
    figure, more = figure.removeprefix("corrected_"), ", corrected" if figure.startswith("corrected_") else ""
    word = next((word for short, word in _WORDS.items() if figure.removeprefix(short).isdecimal()), None)
    figure = _NAMES.get(figure, figure.replace("_", " ")) if word is None else word + figure.lstrip(_LETTERS)
    return task.replace("_", " "), f"{DIRECTIONS.get(direction, direction)} {figure}{more}".strip()


def _direction(metric: str) -> tuple[str, str]:
    direction, _, figure = metric.partition("_")
    return (direction, figure) if direction in DIRECTIONS else ("", metric)


def _cell(name: str, value: float | None, interval: Interval | None, sign: str = "") -> str:
    """A figure with its interval, as a table has it; of a difference (``sign`` "+") marked if 0 is not in there."""
    if value is None:
        return "-"
    shares = is_share(name)

    def shown(number: float) -> str:
        return f"{100 * number:{sign}.1f}" if shares else f"{number:{sign}.4g}"

    if interval is None:
        return shown(value)
    sure = "*" if sign and (interval[0] > 0 or interval[1] < 0) else ""
    return f"{shown(value)}{sure} [{shown(interval[0])}, {shown(interval[1])}]"


def _in_cell(words: str) -> str:
    r"""A name from the data as a cell of a Markdown table: one line, no bars, no markup of HTML.

    >>> _in_cell("shop[<b>\nred|blue]")
    'shop[\\<b> red/blue]'
    """
    return " ".join(words.split()).replace("|", "/").replace("<", "\\<")


def _markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the head; two columns of words, then figures."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (width + 1) for width in widths[:2]] + ["-" * (width + 1) + ":" for width in widths[2:]]
    lines = [_aligned(row, widths) for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _aligned(cells: list[str], widths: list[int]) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    figures = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return f"| {' | '.join(words + figures)} |"


def _pairs(intervals: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    return {key: (float(low), float(high)) for key, (low, high) in intervals.items()}


def _read_samples(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Row -> metric -> values per query."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file():
        for key, values in load_file(path).items():
            row, _, metric = key.partition("\0")
            found.setdefault(row, {})[metric] = values
    return found
