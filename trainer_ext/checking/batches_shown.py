"""One batch of every stage as the model sees it: pictures after cropping, texts as their tokens read."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer_ext.checking.plan_shares import accumulated
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.pictures import PictureReader
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.sources import Rows
from trainer_ext.losses.columns import COLUMNS
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import SideName

# Rows of a batch that are shown, and the longest side of their pictures.
ROWS, THUMBNAIL = 12, 128


@dataclass(frozen=True)
class ShownText:
    """A text as the model reads it, and how many tokens it has; ``full`` if they are as many as the stage allows."""

    name: str
    text: str
    tokens: int
    full: bool


@dataclass(frozen=True)
class ShownRow:
    """One row of a batch: its picture as a data URI, if it has one, and its texts."""

    texts: list[ShownText]
    picture: str | None = None


@dataclass(frozen=True)
class ShownBatch:
    """The first rows of one side of a stage's first micro-batch; ``of`` is how many it has."""

    stage: str
    side: SideName
    source: str
    of: int
    image_size: int | None = None
    rows: list[ShownRow] = field(default_factory=list)


def stage_batches(
    recipe: Recipe, tables: Mapping[str, Rows], processor: Any, plan: JointBatchPlan, rows: int = ROWS
) -> list[ShownBatch]:
    """The first micro-batch of every stage, made as training makes it.

    Raises:
        DataError: a source of which no row can be used.
    """
    pictures = PictureReader(recipe.model_copy(update={"image_cache": None}), processor)
    dataset = JointDataset(recipe.used_sources(), tables, recipe.seed, BrokenRows(None), pictures, recipe.stages)
    collate = JointCollator(processor, recipe.stages, recipe.seed)
    firsts = [0, *accumulate(stage.steps for stage in recipe.stages)]
    shown = []
    for stage, first in zip(recipe.stages, firsts, strict=False):
        keys = plan.keys(first * accumulated(recipe))
        of_side = {name: [key for key in keys if key.side == name] for name, _ in stage.sides()}
        batch = collate(dataset.__getitems__([key for group in of_side.values() for key in group[:rows]]))
        for name, group in of_side.items():
            found = _rows(batch[name], processor.tokenizer, stage.max_length)
            pixels = batch[name].get("pixel_values", batch[name].get("picture", {}).get("pixel_values"))
            size = None if pixels is None else pixels.shape[-1]
            shown.append(ShownBatch(stage.name, name, batch["sources"][name], len(group), size, found))
    return shown


def _rows(side: Mapping[str, Any], tokenizer: Any, limit: int) -> list[ShownRow]:
    if "picture" in side:  # both pictures of a pair, side by side
        both = torch.cat([side[name]["pixel_values"] for name in COLUMNS["images"]], dim=3)
        return [ShownRow([], thumbnail(pixels.numpy().transpose(1, 2, 0), 2 * THUMBNAIL)) for pixels in both]
    if "pixel_values" in side:
        rows = _by_row(_texts("caption", side, tokenizer, limit), len(side["pixel_values"]))
    else:
        columns = {name: _texts(name, side[name], tokenizer, limit) for name in ("query", "positive")}
        rows = [list(texts) for texts in zip(*columns.values(), strict=True)]
    if "negatives" in side:
        negatives = _by_row(_texts("negative", side["negatives"], tokenizer, limit), len(rows))
        rows = [row + others for row, others in zip(rows, negatives, strict=True)]
    if "short_caption" in side:
        short = _texts("short caption", side["short_caption"], tokenizer, limit)
        rows = [[*row, text] for row, text in zip(rows, short, strict=True)]
    if "pixel_values" in side:
        pictures = [thumbnail(pixels.numpy().transpose(1, 2, 0)) for pixels in side["pixel_values"]]
        return [ShownRow(texts, picture) for texts, picture in zip(rows, pictures, strict=True)]
    if "score" in side:
        scores = [ShownText("score", f"{score:g}", 0, False) for score in side["score"].tolist()]
        rows = [[*row, score] for row, score in zip(rows, scores, strict=True)]
    return [ShownRow(row) for row in rows]


def _by_row(texts: list[ShownText], rows: int) -> list[list[ShownText]]:
    each = len(texts) // rows
    return [texts[place : place + each] for place in range(0, len(texts), each)]


def _texts(name: str, column: Mapping[str, Tensor], tokenizer: Any, limit: int) -> list[ShownText]:
    around = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    found = []
    for ids, mask in zip(column["input_ids"].tolist(), column["attention_mask"].tolist(), strict=True):
        real = [token for token, kept in zip(ids, mask, strict=True) if kept]
        text = tokenizer.decode([token for token in real if token not in around])
        found.append(ShownText(name, text, len(real), len(real) >= limit))
    return found


def thumbnail(pixels: np.ndarray, longest: int = THUMBNAIL) -> str:
    """A small PNG of (height, width, 3) uint8 pixels as a data URI."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((longest, longest))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
