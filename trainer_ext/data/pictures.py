"""How training opens its pictures: ``image_decoding`` of a recipe.

``exact`` decodes every pixel. ``fast`` decodes a JPEG at a half, a quarter or an eighth of its size where its shorter
side keeps the pixels that the stage needs: the decoder leaves out the finest waves of each block, and so computes fewer
pixels, which are then also resized faster. What is measured (evaluation, validation) is always exact.
"""

import math
from functools import partial
from typing import Any

from trainer_ext.data.images import Opener, open_image
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.stages import Stage

# Least ratio of a crop's sides, before it is made square (``augmentation.crop_box``).
_NARROWEST = 3 / 4


class PictureReader:
    """Gives each stage's opener of pictures.

    Args:
        recipe: its stages, and how pictures are decoded.
        processors: of the model, and of a teacher if there is one; each has an ``image_processor``.
    """

    def __init__(self, recipe: Recipe, *processors: Any) -> None:
        self._fast = recipe.image_decoding == "fast"
        sizes = [processor.image_processor.size for processor in processors if processor is not None]
        self._least = [least_side(stage, sizes) for stage in recipe.stages]

    def opener(self, stage: int) -> Opener:
        """What opens the pictures of the stage with this number."""
        return partial(open_image, least_side=self._least[stage]) if self._fast else open_image


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
