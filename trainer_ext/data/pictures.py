"""How training opens its pictures: ``image_decoding`` and ``image_cache`` of a recipe.

``exact`` decodes every pixel. ``fast`` decodes a JPEG at a half, a quarter or an eighth of its size where its shorter
side keeps the pixels that the stage needs: the decoder leaves out the finest waves of each block, and so computes fewer
pixels, which are then also resized faster. What is measured (evaluation, validation) is always exact.

With a cache a picture is fitted to the model's size when it is opened, and the result is kept; to fit it once more
changes nothing. Stages that crop at random need another part of it in every epoch, and open it as without a cache.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, features

from trainer_ext.data.images import Opener, content_of, label_of, open_image, picture_of
from trainer_ext.data.picture_cache import PictureCache, least_gigabytes
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import Background
from trainer_ext.recipe.stages import ImageCacheSpec, Stage

# Least ratio of a crop's sides, before it is made square (``augmentation.crop_box``).
_NARROWEST = 3 / 4


class PictureReader:
    """Gives each stage's opener of pictures.

    Args:
        recipe: its stages, how pictures are decoded, and whether they are kept.
        processors: of the model, and of a teacher if one sees pictures; each has an ``image_processor``.

    Raises:
        ValueError: a cache that is too small for pictures of this size.
    """

    def __init__(self, recipe: Recipe, *processors: Any) -> None:
        self._fitting, *_ = (processor.image_processor for processor in processors if processor is not None)
        self._stages = recipe.stages
        self._least: list[int | None] = [None for _ in recipe.stages]
        if recipe.image_decoding == "fast":
            sizes = [processor.image_processor.size for processor in processors if processor is not None]
            self._least = [least_side(stage, sizes) for stage in recipe.stages]
        self._cache = None if recipe.image_cache is None else self._opened(recipe.image_cache)

    def _opened(self, spec: ImageCacheSpec) -> PictureCache:
        size = max(stage.image_size or self._fitting.size for stage in self._stages)
        if spec.max_gigabytes < least_gigabytes(size):
            raise ValueError(
                f"image_cache.max_gigabytes is {spec.max_gigabytes:g}, too little for pictures of {size} pixels; give "
                f"at least {least_gigabytes(size)}"
            )
        return PictureCache(Path(spec.folder), int(spec.max_gigabytes * 10**9))

    def opener(self, stage: int) -> Opener:
        """What opens the pictures of the stage with this number."""
        if self._cache is not None and self._stages[stage].random_resized_crop is None:
            size = self._stages[stage].image_size or self._fitting.size
            return partial(self._kept, self._cache, size, self._least[stage])
        return partial(open_image, least_side=self._least[stage])

    def _kept(
        self, cache: PictureCache, size: int, least: int | None, stored: Mapping[str, Any], background: Background
    ) -> tuple[Image.Image, str]:
        """A picture as the model will see it, from the cache or for it, and its label."""
        content = content_of(stored)
        label = label_of(content)
        name = self._name([label, background, least])
        pixels = cache.get(name, size)
        if pixels is None:
            pixels = self._fitting.fitted([picture_of(content, background, least)], size=size)[0]
            cache.put(name, pixels)
        return Image.fromarray(pixels), label

    def _name(self, deciding: list[Any]) -> str:
        """A hash of what decides a picture's pixels: itself, the processor, and who decodes and resizes."""
        how = self._fitting
        deciding += [how.resize_mode, how.interpolation, how.fill_color, how.background]
        deciding += [PIL.__version__, *(features.version(codec) for codec in ("jpg", "libjpeg_turbo", "webp", "avif"))]
        return hashlib.blake2b(json.dumps(deciding).encode(), digest_size=16).hexdigest()


def least_side(stage: Stage, sizes: list[int]) -> int:
    """Pixels of a picture's shorter side from which the stage's own size, and a teacher's, is made by shrinking alone.

    A random crop of the share a of a picture of shorter side s has sides of at least s * sqrt(3/4 a).

    >>> from trainer_ext.recipe.stages import Stage
    >>> stage = Stage(name="only", steps=1, learning_rate=1e-3, max_length=8)
    >>> least_side(stage, [224]), least_side(stage.model_copy(update={"random_resized_crop": [0.75, 1.0]}), [224])
    (224, 299)
    """
    own, *others = sizes
    size = max([stage.image_size or own, *others])
    if stage.random_resized_crop is None:
        return size
    return math.ceil(size / math.sqrt(_NARROWEST * stage.random_resized_crop[0]))
