"""Random resized crops of training pictures, as open_clip trains with, by Pillow alone."""

import math

import numpy as np
from PIL import Image

# Width to height of a crop, before it is made square; torchvision's and open_clip's range.
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def random_resized_crop(
    picture: Image.Image, size: int, scale: tuple[float, float], generator: np.random.Generator
) -> Image.Image:
    """Cut out a random part of a picture and make it ``size`` x ``size``, without keeping its proportions.

    The algorithm of torchvision's ``RandomResizedCrop``: an area drawn evenly from ``scale``, a ratio of the sides
    drawn evenly on a logarithmic scale from 3/4 to 4/3, a place; the largest possible part of the middle if ten draws
    do not fit. Bicubic.

    >>> random_resized_crop(Image.new("RGB", (50, 40)), 16, (0.9, 1.0), np.random.default_rng(0)).size
    (16, 16)
    """
    box = crop_box(*picture.size, scale, generator)
    if picture.mode not in ("RGB", "RGBA", "L"):  # a palette's numbers cannot be mixed
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    return picture.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def crop_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of a picture."""
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(*map(math.log, _RATIO)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
