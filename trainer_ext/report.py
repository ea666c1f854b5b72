"""The report of a run: one table of metrics by stage, kept as JSON, Markdown and a picture.

``metrics.json`` is the record and everything else is drawn from it; a resumed run loads it and goes on. Files are
written whole or not at all and hold no dates, so that equal runs write equal files.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trainer_ext.evaluation import ImageEncoder, RetrievalTask, Task, TextEncoder
from trainer_ext.report_pictures import Curve, contact_sheet, metrics_picture

FORMAT = 1
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
NOTES = """Percentages; higher is better; equal scores count against the model; "-" marks what was not measured.
*chance* is the exact expectation of a random order. R@k between images and texts: is a right answer among the first k?
R@k between texts: the share of the right answers that are among the first k. Accuracy: the positive scores strictly
higher than every one of its hard negatives."""

Kind = Literal["reference", "stage"]


@dataclass(frozen=True)
class Row:
    """One measured thing: a ``stage`` of the run (before training counts as one) or a ``reference`` such as chance."""

    name: str
    kind: Kind
    metrics: dict[str, float]


class Report:
    """Rows of metrics of one run, kept in ``folder``; ``tasks`` add their sizes to the notes, ``shares`` what each
    source gave.

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
        self.rows: list[Row] = []
        self.sizes = {task.label: task.size for task in tasks}
        self.shares: dict[str, dict[str, dict[str, float]]] = {}

    @classmethod
    def load(cls, folder: str | os.PathLike, tasks: Sequence[Task] = ()) -> "Report":
        """The report kept in ``folder``, or an empty one where none was saved yet.

        Raises:
            ValueError: ``metrics.json`` is there but is not a report of this version.
        """
        report = cls(folder, tasks)
        path = report.folder / "metrics.json"
        if not path.exists():
            return report
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT:
                raise ValueError(f"its format is {stored['format']!r}, not {FORMAT}")
            report.sizes = stored["sizes"] | report.sizes
            report.shares = stored.get("shares", {})
            for row in stored["rows"]:
                report.add(**row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Cannot read the report {path} ({error!r}): move it away to start a new one.") from error
        return report

    def add(self, name: str, metrics: Mapping[str, float], kind: Kind = "stage") -> None:
        """Add a row, or replace the row of that name in its place: a resumed run may measure a stage again."""
        if bad := {key: value for key, value in metrics.items() if not math.isfinite(value)}:
            raise ValueError(f"Row {name!r} has metrics that are not finite: {bad}.")
        row = Row(name, kind, {key: float(value) for key, value in metrics.items()})
        names = [other.name for other in self.rows]
        if name in names:
            self.rows[names.index(name)] = row
        else:
            self.rows.append(row)

    def columns(self) -> list[Row]:
        """References first, then stages in the order they were measured."""
        return sorted(self.rows, key=lambda row: row.kind != "reference")

    def metrics(self) -> list[str]:
        """Every metric name, in the order of the row that measures most."""
        fullest_first = sorted((list(row.metrics) for row in self.rows), key=len, reverse=True)
        return list(dict.fromkeys(name for names in fullest_first for name in names))

    def table(self) -> str:
        """Metrics down, references and stages across, in percent: Markdown that also reads well in a terminal."""
        rows = [["task", "metric", *(row.name.replace("|", "/") for row in self.columns())]]
        for name in self.metrics():
            task, metric = metric_words(name)
            figures = [row.metrics.get(name) for row in self.columns()]
            rows.append([task, metric, *("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)])
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        rule = [":" + "-" * (width + 1) for width in widths[:2]] + ["-" * (width + 1) + ":" for width in widths[2:]]
        lines = [_aligned(row, widths) for row in rows]
        return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])

    def save(self) -> None:
        """Write ``metrics.json``, ``metrics.md`` and ``metrics.png``, each whole or not at all."""
        stored = {"format": FORMAT, "sizes": self.sizes, "shares": self.shares}
        stored["rows"] = [asdict(row) for row in self.rows]
        sizes = "".join(f"- {name.replace('_', ' ')}: {size}\n" for name, size in self.sizes.items())
        shares = "".join(
            f"- rows of {side} from {name}: {item['rows']:,} ({item['share']:.1%})\n"
            for side, sources in self.shares.items()
            for name, item in sources.items()
        )
        write_whole(self.folder / "metrics.json", (json.dumps(stored, indent=1) + "\n").encode())
        write_whole(self.folder / "metrics.md", f"{self.table()}\n\n{NOTES}\n\n{sizes}{shares}".encode())
        write_whole(self.folder / "metrics.png", metrics_picture(self._curves()))

    def save_contact_sheet(
        self, encode_text: TextEncoder, encode_image: ImageEncoder, task: RetrievalTask, queries: int = 8, top: int = 8
    ) -> None:
        """Write ``contact_sheet.png``: some text queries of a text -> image task with the images the model puts first.

        The queries are spread evenly over the task, the same ones every time; right images are framed.
        """
        write_whole(self.folder / "contact_sheet.png", contact_sheet(encode_text, encode_image, task, queries, top))

    def _curves(self) -> dict[str, list[Curve]]:
        """Task -> its metrics over the rows, in percent, for the picture."""
        curves: dict[str, list[Curve]] = {}
        for name in self.metrics():
            task, metric = metric_words(name)
            curve = Curve(metric)
            for row in self.rows:
                if name in row.metrics:
                    (curve.stages if row.kind == "stage" else curve.references)[row.name] = 100 * row.metrics[name]
            curves.setdefault(task, []).append(curve)
        return curves


def metric_words(name: str) -> tuple[str, str]:
    """A flat metric name in words, as (task, metric).

    >>> metric_words("concepts_short/t2i_r5"), metric_words("headword_definition/ndcg10")
    (('concepts short', 'text to image R@5'), ('headword definition', 'nDCG@10'))
    """
    task, _, metric = name.rpartition("/")
    direction, _, figure = metric.rpartition("_")
    for short, word in (("ndcg", "nDCG@"), ("r", "R@")):
        if figure.removeprefix(short).isdecimal():
            figure = word + figure.removeprefix(short)
    return task.replace("_", " "), f"{DIRECTIONS.get(direction, direction)} {figure}".strip()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run killed half-way, sees the old content or the new and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _aligned(cells: list[str], widths: list[int]) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    figures = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return f"| {' | '.join(words + figures)} |"
