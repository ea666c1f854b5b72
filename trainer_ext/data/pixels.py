"""Rows' pictures as a stage sees them: cropped or fitted to its size, then changed by its augmentation."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from trainer_ext.data.augmentation import augmented_picture, random_resized_crop, row_generator
from trainer_ext.data.images import on_background
from trainer_ext.data.plan import Key
from trainer_ext.recipe.stages import Stage


def stage_pixels(
    images: Any, stage: Stage, seed: int, rows: Sequence[Mapping[str, Any]], purpose: str = ""
) -> torch.Tensor:
    """(batch, 3, size, size) uint8, not yet normalised.

    Args:
        images: the image processor, with its ``fitted`` and ``background``.
        rows: each with its decoded ``image`` and its ``key``, which with the seed decides the changes.
        purpose: stands before the names of the changes: a row's second picture has random numbers of its own.
    """
    size = {} if stage.image_size is None else {"size": stage.image_size}
    pixels = images.fitted([_picture(images, stage, seed, row, purpose) for row in rows], **size)
    if (spec := stage.augmentation) is not None and spec.changes_pictures():
        drawn = [partial(_draws, seed, row["key"], purpose) for row in rows]
        pixels = np.stack([augmented_picture(*each, spec) for each in zip(pixels, drawn, strict=True)])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def _picture(images: Any, stage: Stage, seed: int, row: Mapping[str, Any], purpose: str) -> Any:
    if stage.random_resized_crop is None:
        return row["image"]
    # Its colours, before the crop mixes them with those below the transparency.
    picture = on_background(row["image"], getattr(images, "background", None))
    low, high = stage.random_resized_crop
    draws = _draws(seed, row["key"], purpose, "crop")
    return random_resized_crop(picture, stage.image_size or images.size, (low, high), draws)


def _draws(seed: int, key: Key, before: str, purpose: str) -> np.random.Generator:
    return row_generator(seed, key, before + purpose)
