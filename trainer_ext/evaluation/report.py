"""The report of a run: metrics by stage as JSON, a Markdown table and a picture, and a contact sheet.

``metrics.json`` is the record, from which all other files are drawn; a resumed run loads it and goes on. Files are
written whole or not at all and hold no dates, so equal runs write equal files.

The record comes first, then its two pictures: ``metrics_picture`` and ``contact_sheet``, both as PNG bytes.
"""

import io
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trainer_ext.evaluation.metrics import relevant_ranks
from trainer_ext.evaluation.tasks import ImageEncoder, RetrievalTask, Task, TextEncoder, encode_items
from trainer_ext.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
NOTES = """Percentages; higher is better; equal scores count against the model; "-" marks what was not measured.
*chance* is the exact expectation of a random order. R@k between images and texts: is a right answer among the first k?
R@k between texts: the share of the right answers that are among the first k. Accuracy: the positive scores strictly
higher than every one of its hard negatives."""

Kind = Literal["reference", "stage"]


@dataclass(frozen=True)
class ReportRow:
    """Metrics of a ``stage`` of the run (before training counts as one) or of a ``reference`` such as chance."""

    name: str
    kind: Kind
    metrics: dict[str, float]


@dataclass
class Curve:
    """One metric of a panel, in percent: by stage name in order, and by the name of a reference such as chance."""

    metric: str
    stages: dict[str, float] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)


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
        """Add a row, or replace the one of that name in place: a resumed run may measure a stage again."""
        if bad := {key: value for key, value in metrics.items() if not math.isfinite(value)}:
            raise ValueError(f"Row {name!r} has metrics that are not finite: {bad}.")
        row = ReportRow(name, kind, {key: float(value) for key, value in metrics.items()})
        names = [other.name for other in self.rows]
        if name in names:
            self.rows[names.index(name)] = row
        else:
            self.rows.append(row)

    def columns(self) -> list[ReportRow]:
        """References first, then stages in the order of measurement."""
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
        """Write ``contact_sheet.png``, see ``contact_sheet``."""
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


def _aligned(cells: list[str], widths: list[int]) -> str:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    figures = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return f"| {' | '.join(words + figures)} |"


# --- pictures ----------------------------------------------------------------------------------------------------

REFERENCE_STYLES = (":", "--", "-.")
PANELS_ACROSS = 4

# Contact sheet, in pixels.
TEXT_WIDTH, TILE, GAP, FRAME = 300, 96, 14, 4
RIGHT, PLAIN, INK, PALE = "#1a9850", "#d9d9d9", "#222222", "#6b6b6b"


def metrics_picture(panels: dict[str, list[Curve]]) -> bytes:
    """A PNG with one panel per task: its metrics over the stages, and flat lines for the references.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plot = _matplotlib()
    curves = [curve for group in panels.values() for curve in group]
    stages = list(dict.fromkeys(name for curve in curves for name in curve.stages))
    references = list(dict.fromkeys(name for curve in curves for name in curve.references))
    styles = {name: REFERENCE_STYLES[place % len(REFERENCE_STYLES)] for place, name in enumerate(references)}
    across = min(PANELS_ACROSS, len(panels)) or 1
    down = math.ceil(len(panels) / across) or 1
    figure = plot.figure.Figure(figsize=(4.2 * across, 3.4 * down + 0.6), layout="constrained", dpi=110)
    for place, (task, group) in enumerate(panels.items()):
        _panel(figure.add_subplot(down, across, place + 1), task, group, stages, styles)
    handles = [plot.lines.Line2D([], [], color="black", marker="o", label="this run")]
    handles += [plot.lines.Line2D([], [], color="black", linestyle=style, label=name) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.supylabel("percent", fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: "Axes", task: str, curves: list[Curve], stages: list[str], styles: dict[str, str]) -> None:
    for place, curve in enumerate(curves):
        points = [stages.index(name) for name in curve.stages]
        axes.plot(points, list(curve.stages.values()), marker="o", color=f"C{place}", label=curve.metric)
        for name, value in curve.references.items():
            axes.axhline(value, color=f"C{place}", linestyle=styles[name], linewidth=1.2, alpha=0.7)
    axes.set_title(task, fontsize="medium")
    axes.set_xticks(range(len(stages)), [textwrap.fill(name, 10) for name in stages], fontsize="small")
    axes.set_xlim(-0.3, max(len(stages), 1) - 0.7)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", framealpha=0.7, loc="best")


def contact_sheet(
    encode_text: TextEncoder, encode_image: ImageEncoder, task: RetrievalTask, queries: int, top: int
) -> bytes:
    """A PNG with one row per query of a text -> image task: its text, the ``top`` images by cosine and the rank of the
    right one. Right images are framed.

    Queries are spread evenly over the task, so equal tasks give equal sheets.
    """
    chosen = np.unique(np.linspace(0, len(task.queries) - 1, queries).round().astype(int))
    texts = [task.queries[place] for place in chosen]
    embeddings = encode_items(encode_text, encode_image, [*texts, *task.candidates], progress=False)
    images = embeddings.of(task.candidates, f"{task.label}, candidates")
    scores = embeddings.of(texts, f"{task.label}, queries") @ images.T
    top = min(top, len(task.candidates))
    step = TILE + 2 * FRAME + GAP
    width, height = TEXT_WIDTH + GAP + top * step, GAP + len(texts) * (step + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    for row, place in enumerate(chosen):
        order = np.argsort(-scores[row], kind="stable")
        right = set(task.relevant[place])
        first = 1 + relevant_ranks(scores[row : row + 1], np.array([task.relevant[place]]))[0, 0]
        y = GAP + row * (step + GAP)
        _caption(sheet, y, texts[row], f"right image: place {first} of {len(order)}", found=first <= top)
        for column, candidate in enumerate(order[:top]):
            x = TEXT_WIDTH + GAP + column * step
            _tile(sheet, x, y, task.candidates[candidate], scores[row, candidate], candidate in right)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _caption(sheet: Image.Image, y: int, text: str, note: str, found: bool) -> None:
    draw = ImageDraw.Draw(sheet)
    lines = textwrap.wrap(text, width=34, max_lines=4, placeholder=" ...")
    draw.multiline_text((GAP, y), "\n".join(lines), fill=INK, font=_font(15), spacing=4)
    draw.text((GAP, y + TILE - 6), note, fill=RIGHT if found else PALE, font=_font(12))


def _tile(sheet: Image.Image, x: int, y: int, image: Image.Image, score: float, right: bool) -> None:
    draw = ImageDraw.Draw(sheet)
    side = TILE + 2 * FRAME
    draw.rectangle((x, y, x + side - 1, y + side - 1), outline=RIGHT if right else PLAIN, width=FRAME if right else 1)
    small = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.BICUBIC)
    sheet.paste(small, (x + FRAME + (TILE - small.width) // 2, y + FRAME + (TILE - small.height) // 2))
    draw.text((x + FRAME, y + side + 1), f"{score:.2f}", fill=RIGHT if right else PALE, font=_font(11))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships; unlike Pillow's own it has accented letters, as in São Tomé."""
    return ImageFont.truetype(str(Path(_matplotlib().get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("The report's pictures need matplotlib: pip install '.[train]'.") from error
    return matplotlib
