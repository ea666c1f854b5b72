"""The two pictures of a run, as PNG bytes: ``metrics_picture`` and ``contact_sheet``."""

import hashlib
import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer_ext.evaluation.metrics import relevant_ranks
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import ImageEncoder, RetrievalTask, TextEncoder, encode_items
from trainer_ext.files import write_whole
from trainer_ext.report.data import Row
from trainer_ext.report.drawing import PAPER, REFERENCE_STYLES, draw_panel, drawing_rules, load_matplotlib
from trainer_ext.report.folder import rows_of
from trainer_ext.report.panels import labels_of, panels_of, references_of
from trainer_ext.report.thumbnails import opened, small
from trainer_ext.report.words import DIRECTIONS, plain

PANELS_ACROSS = 4

# Contact sheet, in pixels.
TEXT_WIDTH, TILE, GAP, FRAME, HEADER = 300, 96, 14, 4, 74
RIGHT, PLAIN, INK, PALE = "#1a9850", "#d9d9d9", "#222222", "#6b6b6b"
STEP = TILE + 2 * FRAME + GAP


# --- metrics ---------------------------------------------------------------------------------------------------------


def save_metrics_picture(record: Report) -> None:
    """Write ``metrics.png`` beside ``metrics.json``."""
    write_whole(record.folder / "metrics.png", metrics_picture(rows_of(record)))


def metrics_picture(rows: Sequence[Row]) -> bytes:
    """A PNG of all panels (``panels_of``) with one legend below them: a color a metric, dashes a reference.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels = panels_of(rows)
    labels, references = labels_of(panels), references_of(panels)
    styles = {name: REFERENCE_STYLES[place % len(REFERENCE_STYLES)] for place, name in enumerate(references)}
    across = min(PANELS_ACROSS, len(panels)) or 1
    down = math.ceil(len(panels) / across) or 1
    legend_lines = math.ceil((len(labels) + len(references)) / (3 * across)) or 1
    buffer = io.BytesIO()
    with drawing_rules() as plot:
        size = (4.2 * across, 3.3 * down + 0.3 * legend_lines + 0.4)
        figure = plot.figure.Figure(figsize=size, layout="constrained", dpi=110, facecolor="white")
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(down, across, place)
            draw_panel(axes, panel, labels, styles, PAPER)
            axes.set_title(textwrap.fill(panel.heading, 44), fontsize="medium", color=PAPER.ink, loc="left")
        lines = load_matplotlib().lines.Line2D
        handles = [
            lines([], [], color=PAPER.color(n), marker=PAPER.marker(n), label=label) for n, label in enumerate(labels)
        ]
        handles += [
            lines([], [], color=PAPER.ink, linestyle=styles[name], label=plain(name, 40)) for name in references
        ]
        if handles:
            columns = min(len(handles), 3 * across)
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        figure.supylabel("percent", fontsize="medium", color=PAPER.pale)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# --- contact sheet ---------------------------------------------------------------------------------------------------


def save_contact_sheet(
    folder: Path, encode_text: TextEncoder, encode_image: ImageEncoder, task: RetrievalTask, model: str = ""
) -> None:
    """Write ``contact_sheet.png``, see ``contact_sheet``."""
    write_whole(Path(folder) / "contact_sheet.png", contact_sheet(encode_text, encode_image, task, model=model))


def contact_sheet(
    encode_text: TextEncoder,
    encode_image: ImageEncoder,
    task: RetrievalTask,
    queries: int = 8,
    top: int = 8,
    model: str = "",
) -> bytes:
    """A PNG with one row per query of a text -> image task: its text, and the ``top`` images by cosine.

    Right images are framed. Where none is among them, the right one stands at the end of the row, behind a gap. Equal
    pictures take one place. Queries are spread evenly over the task, so equal tasks give equal sheets.
    """
    chosen = np.unique(np.linspace(0, len(task.queries) - 1, queries).round().astype(int))
    texts = [task.queries[place] for place in chosen]
    embeddings = encode_items(encode_text, encode_image, [*texts, *task.candidates], progress=False)
    images = embeddings.of(task.candidates, f"{task.label}, candidates")
    scores = embeddings.of(texts, f"{task.label}, queries") @ images.T
    top = min(top, len(task.candidates))
    beyond = TEXT_WIDTH + 2 * GAP + top * STEP + GAP
    sheet = Image.new("RGB", (beyond + STEP, HEADER + len(texts) * (STEP + GAP)), "white")
    _title(sheet, task, model, top, beyond)
    for row, place in enumerate(chosen):
        right = set(task.relevant[place])
        rank = 1 + int(relevant_ranks(scores[row : row + 1], np.array([task.relevant[place]]))[0, 0])
        y = HEADER + row * (STEP + GAP)
        tiles = _distinct(task, np.argsort(-scores[row], kind="stable"), top, right)
        found = any(is_right for _, is_right in tiles)
        _caption(sheet, y, str(texts[row]), f"right picture: place {rank} of {scores.shape[1]}", found)
        for column, (candidate, is_right) in enumerate(tiles):
            x = TEXT_WIDTH + GAP + column * STEP
            _tile(sheet, x, y, task.candidates[candidate], scores[row, candidate], is_right)
        if not found:
            best = max(right, key=lambda candidate: scores[row, candidate])
            _tile(sheet, beyond, y, task.candidates[best], scores[row, best], True)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _distinct(task: RetrievalTask, order: np.ndarray, top: int, right: set[int]) -> list[tuple[int, bool]]:
    """The first ``top`` different pictures, each with whether it is a right one; a copy of a right one is right."""
    tiles: dict[object, tuple[int, bool]] = {}
    for candidate in map(int, order):
        key = _content(task.candidates[candidate])
        if key in tiles:
            tiles[key] = (tiles[key][0], tiles[key][1] or candidate in right)
        elif len(tiles) == top:
            break
        else:
            tiles[key] = (candidate, candidate in right)
    return list(tiles.values())


def _content(item: object) -> object:
    """What equal pictures have in common: a lazy picture's key, or an image's size and pixels."""
    if not isinstance(item, Image.Image):
        return getattr(item, "key", item)
    return item.mode, item.size, hashlib.sha256(item.tobytes()).digest()


def _title(sheet: Image.Image, task: RetrievalTask, model: str, top: int, beyond: int) -> None:
    draw = ImageDraw.Draw(sheet)
    direction = DIRECTIONS.get(task.prefix.rstrip("_"), "")
    words = ", ".join(part for part in (task.name.replace("_", " "), direction, plain(model, 80)) if part)
    draw.text((GAP, GAP), words, fill=INK, font=_font(18))
    note = f"the first {top} of {len(task.candidates):,} pictures by cosine; right ones have a green frame"
    draw.text((GAP, GAP + 28), note, fill=PALE, font=_font(12))
    draw.multiline_text((beyond, GAP + 18), "the right one,\nfurther behind", fill=PALE, font=_font(11), spacing=2)


def _caption(sheet: Image.Image, y: int, text: str, note: str, found: bool) -> None:
    draw = ImageDraw.Draw(sheet)
    lines = textwrap.wrap(plain(text), width=34, max_lines=4, placeholder=" …")
    draw.multiline_text((GAP, y), "\n".join(lines), fill=INK, font=_font(15), spacing=4)
    draw.text((GAP, y + TILE - 4), note, fill=RIGHT if found else PALE, font=_font(12))


def _tile(sheet: Image.Image, x: int, y: int, item: object, score: float, right: bool) -> None:
    draw = ImageDraw.Draw(sheet)
    side = TILE + 2 * FRAME
    draw.rectangle((x, y, x + side - 1, y + side - 1), outline=RIGHT if right else PLAIN, width=FRAME if right else 1)
    picture = small(opened(item), TILE)
    sheet.paste(picture, (x + FRAME + (TILE - picture.width) // 2, y + FRAME + (TILE - picture.height) // 2))
    draw.text((x + FRAME, y + side + 1), f"{score:.2f}", fill=RIGHT if right else PALE, font=_font(11))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships; unlike Pillow's own it has accented letters, as in São Tomé."""
    path = Path(load_matplotlib().get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)
