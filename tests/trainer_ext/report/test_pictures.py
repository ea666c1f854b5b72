"""The pictures of a run: panels of the metrics with one legend, and the contact sheet."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import RetrievalTask, image_text_tasks, text_task
from trainer_ext.report.data import Row
from trainer_ext.report.folder import rows_of
from trainer_ext.report.panels import panels_of
from trainer_ext.report.pictures import (
    FRAME,
    GAP,
    HEADER,
    STEP,
    TEXT_WIDTH,
    TILE,
    contact_sheet,
    metrics_picture,
    save_contact_sheet,
    save_metrics_picture,
)

GREEN = [26, 152, 80]
WORDS = {"words/ndcg10": 0.4234, "words/r5": 0.5}
PICTURES = {"concepts_short/t2i_r1": 0.101, "concepts_short/t2i_r5": 0.31}


def filled(folder) -> Report:
    report = Report(folder, [text_task("words", [("a", "b"), ("c", "d")])])
    report.add("BM25", WORDS, kind="reference")
    report.add("before training", {**PICTURES, **WORDS})
    report.add("chance", {**PICTURES, **WORDS}, kind="reference")
    report.add("stage one", {**PICTURES, **WORDS, "hard_negatives/accuracy": 1.0})
    return report


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_picture_has_a_panel_for_each_task(tmp_path):
    report = filled(tmp_path)
    titles = [panel.title for panel in panels_of(rows_of(report))]
    assert titles == ["concepts short, text to image", "words", "hard negatives"]
    save_metrics_picture(report)
    assert os.listdir(tmp_path) == ["metrics.png"]
    pixels = np.asarray(Image.open(tmp_path / "metrics.png").convert("L"))
    assert pixels.shape[1] > 3 * 400
    thirds = np.array_split(pixels, 3, axis=1)
    assert all((third < 200).sum() > 500 for third in thirds), "every panel must be drawn on"


def test_equal_rows_draw_equal_bytes(tmp_path):
    assert metrics_picture(rows_of(filled(tmp_path))) == metrics_picture(rows_of(filled(tmp_path)))


def test_nothing_measured_is_drawn_too():
    assert metrics_picture([]).startswith(b"\x89PNG")


def test_the_drawing_leaves_no_setting_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    metrics_picture([Row("a $x", {"t/r5": 0.5}), Row("b", {"t/r5": 0.6})])
    assert dict(matplotlib.rcParams) == before


def test_missing_matplotlib_is_named_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[train\]'"):
        save_metrics_picture(filled(tmp_path))


# --- contact sheet ---------------------------------------------------------------------------------------------------


def gray_task():
    """Five gray images, the caption of each its brightness; one caption is wrong about its image."""
    levels = [10, 60, 115, 165, 210]
    images = [Image.new("RGB", (8, 8 if level < 200 else 4), (level,) * 3) for level in levels]
    return image_text_tasks("gray", images, [["10"], ["60"], ["São 115"], ["165"], ["15"]])[0]


def encode_level(levels) -> np.ndarray:
    angles = np.array(levels, dtype=np.float32) / 300
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def encode_texts(texts) -> np.ndarray:
    return encode_level([int(text.split()[-1]) for text in texts])


def encode_images(images) -> np.ndarray:
    return encode_level([image.getpixel((0, 0))[0] for image in images])


def gray_sheet(task=None, **sizes) -> np.ndarray:
    png = contact_sheet(encode_texts, encode_images, task or gray_task(), **sizes)
    return np.asarray(Image.open(io.BytesIO(png)))


def tile(row: int, column: int, top: int = 3) -> tuple[int, int]:
    """The corner of a cell; column ``top`` is the one for right pictures further behind."""
    y, x = HEADER + row * (STEP + GAP), TEXT_WIDTH + GAP + column * STEP
    return y, x + (2 * GAP if column == top else 0)


def level(pixels, row: int, column: int) -> int:
    y, x = tile(row, column)
    return int(pixels[y + FRAME + TILE // 2, x + FRAME + TILE // 2, 0])


def framed(pixels, row: int, columns: int = 4) -> list[bool]:
    return [pixels[y + 2, x + 2].tolist() == GREEN for y, x in (tile(row, column) for column in range(columns))]


def test_contact_sheet_shows_the_best_images_in_order_and_frames_the_right_one():
    pixels = gray_sheet(queries=5, top=3)
    assert [[level(pixels, row, column) for column in range(3)] for row in range(5)] == [
        [10, 60, 115],
        [60, 10, 115],
        [115, 165, 60],
        [165, 210, 115],
        [10, 60, 115],  # the text "15" belongs to the brightest image, which is not among the three
    ]
    assert [framed(pixels, row, 3) for row in range(5)] == [[True, False, False]] * 4 + [[False] * 3]


def test_a_right_picture_further_behind_stands_at_the_end_of_its_row():
    pixels = gray_sheet(queries=5, top=3)
    assert [framed(pixels, row)[3] for row in range(5)] == [False] * 4 + [True]
    assert level(pixels, 4, 3) == 210


def test_equal_pictures_take_one_place_and_a_copy_of_a_right_one_is_right():
    images = [Image.new("RGB", (8, 8), (value,) * 3) for value in (10, 10, 60, 115)]
    task = RetrievalTask("copies", ["10", "60"], images, [[1], [2]], (Metric("hit", 1),), prefix="t2i_")
    pixels = gray_sheet(task, queries=2, top=3)
    assert [level(pixels, 0, column) for column in range(3)] == [10, 60, 115]
    assert framed(pixels, 0) == [True, False, False, False]


def test_contact_sheet_has_equal_cells_and_a_title():
    pixels = gray_sheet(queries=5, top=3, model="my model")
    assert pixels.shape[:2] == (HEADER + 5 * (STEP + GAP), TEXT_WIDTH + 3 * GAP + 4 * STEP)
    assert (pixels[:HEADER, : TEXT_WIDTH + 3 * STEP] < 128).any(axis=2).sum() > 300
    assert (gray_sheet(queries=5, top=3)[:HEADER] != pixels[:HEADER]).any(), "the model's name is in the title"


def test_contact_sheet_takes_no_more_than_there_is(tmp_path):
    assert gray_sheet(queries=50, top=50).shape == gray_sheet(queries=5, top=5).shape
    save_contact_sheet(tmp_path, encode_texts, encode_images, gray_task())
    assert os.listdir(tmp_path) == ["contact_sheet.png"]
