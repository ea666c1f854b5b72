"""The two pictures of a report, as PNG bytes: metrics by stage, and text queries with the images they find."""

import io
import math
import textwrap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trainer_ext.evaluation import ImageEncoder, RetrievalTask, TextEncoder, encode_items
from trainer_ext.evaluation_metrics import relevant_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE_STYLES = (":", "--", "-.")
PANELS_ACROSS = 4

# Contact sheet, in pixels.
TEXT_WIDTH, TILE, GAP, FRAME = 300, 96, 14, 4
RIGHT, PLAIN, INK, PALE = "#1a9850", "#d9d9d9", "#222222", "#6b6b6b"


@dataclass
class Curve:
    """One metric of a panel, in percent: by stage name in order, and by the name of a reference such as chance."""

    metric: str
    stages: dict[str, float] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)


def metrics_picture(panels: dict[str, list[Curve]]) -> bytes:
    """A PNG with one panel a task: its metrics over the stages, and flat lines for the references.

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
    """A PNG with one row a query: its text, the ``top`` images by cosine, right ones framed, and the right one's place.

    ``task`` ranks images for texts. The queries are spread evenly over the task, so equal tasks give equal sheets.
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
    """The font matplotlib ships: unlike Pillow's own it has accented letters, as in São Tomé."""
    return ImageFont.truetype(str(Path(_matplotlib().get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("The report's pictures need matplotlib: pip install 'modeling-jina-clip[train]'.") from error
    return matplotlib
