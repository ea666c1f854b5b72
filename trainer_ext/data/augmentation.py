"""Random changes of training pictures and texts, each a function of (seed, source, epoch, row).

In this order; every step has random numbers of its own, so that switching one on or off leaves the others as they are:

1. ``random_resized_crop`` of the picture as it is stored, else the processor's own way to the model's size;
2. horizontal flip; 3. colour jitter: brightness, contrast, saturation, hue; 4. greyscale; 5. Gaussian blur: at the
   model's size, before the mean and deviation are taken off;
6. deletion of words, then 7. swaps of words: of a text without its prompt, before tokens are made of it.

Pictures are changed by Pillow alone. Steps 1 and 3 are torchvision's; 2 to 5 are SimCLR's (arXiv 2002.05709, appendix
A), with its blur in proportion to the picture; 6 and 7 are random deletion and random swap of EDA (arXiv 1901.11196).
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from trainer_ext.data.plan import Key
from trainer_ext.recipe.stages import Augmentation, ColorJitter

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
    return picture.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def crop_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of a picture."""
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


# From a purpose to its random numbers.
Draws = Callable[[str], np.random.Generator]
# SimCLR's standard deviations of the blur, in pixels of a picture of this side.
_SIGMA, _SIGMA_SIDE = (0.1, 2.0), 224


def row_generator(seed: int, key: Key, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose for one row in one epoch: the same in every process, worker and resumed run."""
    label = f"{seed}/{key.source}/{key.epoch}/{key.index}/{purpose}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(label, digest_size=8).digest()))


def augmented_picture(pixels: np.ndarray, draws: Draws, spec: Augmentation) -> np.ndarray:
    """Steps 2 to 5 of the module's text, of (height, width, 3) uint8 pixels.

    >>> pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> from functools import partial
    >>> draws = partial(row_generator, 42, Key(0, 0, "image_text", "photos", epoch=0, index=7))
    >>> augmented_picture(pixels, draws, Augmentation(horizontal_flip=1.0))[0].tolist()
    [[3, 4, 5], [0, 1, 2]]
    """
    picture = Image.fromarray(pixels)
    if _happens(spec.horizontal_flip, draws, "horizontal_flip"):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.color_jitter is not None and _happens(spec.color_jitter.probability, draws, "color_jitter"):
        picture = color_jittered(picture, spec.color_jitter, draws("color_jitter/factors"))
    if _happens(spec.grayscale, draws, "grayscale"):
        picture = picture.convert("L").convert("RGB")
    if _happens(spec.gaussian_blur, draws, "gaussian_blur"):
        sigma = draws("gaussian_blur/sigma").uniform(*_SIGMA) * picture.width / _SIGMA_SIDE
        picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(picture)


def color_jittered(picture: Image.Image, jitter: ColorJitter, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation times factors from 1 - strength to 1 + strength, not below 0; then hue.

    Hue moves by up to its strength of the whole circle of colours, in either direction.
    """
    for strength, enhance in (
        (jitter.brightness, ImageEnhance.Brightness),
        (jitter.contrast, ImageEnhance.Contrast),
        (jitter.saturation, ImageEnhance.Color),
    ):
        factor = generator.uniform(max(0.0, 1 - strength), 1 + strength)
        if strength:
            picture = enhance(picture).enhance(factor)
    if jitter.hue:
        turned = round(generator.uniform(-jitter.hue, jitter.hue) * 256)
        hue, saturation, value = picture.convert("HSV").split()
        hue = Image.fromarray(np.asarray(hue) + np.uint8(turned % 256))
        picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return picture


def augmented_text(text: str, draws: Draws, spec: Augmentation) -> str:
    """Steps 6 and 7 of the module's text; words are what stands between white space, and one is always left.

    A text that loses and swaps nothing comes back as it is, else its words with one space between them.

    >>> from functools import partial
    >>> draws = partial(row_generator, 42, Key(0, 0, "text", "pairs", epoch=0, index=7))
    >>> augmented_text("a red  fox", draws, Augmentation(word_deletion=0.0))
    'a red  fox'
    """
    words = text.split()
    changed = words
    if spec.word_deletion and len(words) > 1:
        changed = without_some(words, spec.word_deletion, draws("word_deletion"))
    if spec.word_swap and len(changed) > 1:
        changed = swapped(changed, spec.word_swap, draws("word_swap"))
    return text if changed == words else " ".join(changed)


def without_some(words: list[str], share: float, generator: np.random.Generator) -> list[str]:
    """Each word is left out with probability ``share``; if none would be left, one stays, drawn evenly.

    >>> without_some(["a", "red", "fox"], 1 - 1e-9, np.random.default_rng(0))
    ['a']
    """
    kept = [word for word, number in zip(words, generator.random(len(words)), strict=True) if number >= share]
    return kept or [words[generator.integers(len(words))]]


def swapped(words: list[str], share: float, generator: np.random.Generator) -> list[str]:
    """Two different places, drawn evenly, change their words ``share * len(words)`` times, on average if no whole one.

    >>> swapped(["red", "fox"], 0.5, np.random.default_rng(0))
    ['fox', 'red']
    """
    words, count = list(words), len(words)
    for _ in range(math.floor(share * count + generator.random())):
        left = int(generator.integers(count))
        right = (left + 1 + int(generator.integers(count - 1))) % count
        words[left], words[right] = words[right], words[left]
    return words


def with_repeats(text: str, share: float, generator: np.random.Generator) -> str:
    """Some words of a text stand twice, one after the other: the second view of a text without a pair.

    Their number is drawn evenly from 0 to max(2, share * words), no word is chosen twice: ESimCSE's word repetition
    (arXiv 2109.04380, section 3.1), of words instead of pieces of words. A text that repeats none comes back as it is.

    >>> with_repeats("a red  fox", 0.32, np.random.default_rng(0))
    'a red red fox fox'
    """
    words = text.split()
    most = min(len(words), max(2, int(share * len(words))))
    chosen = generator.choice(len(words), size=int(generator.integers(most + 1)), replace=False)
    for place in sorted(chosen.tolist(), reverse=True):
        words.insert(place, words[place])
    return " ".join(words) if len(chosen) else text


def _happens(probability: float, draws: Draws, purpose: str) -> bool:
    return probability > 0 and bool(draws(purpose).random() < probability)
