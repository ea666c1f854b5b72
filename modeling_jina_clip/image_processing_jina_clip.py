"""Image preprocessing of Jina CLIP in PIL and numpy, bit for bit that of the published checkpoints.

RGB, shortest side to ``size`` (bicubic), centre crop, scale to [0, 1], normalise. Needs no torchvision.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_inputs import MAX_PIXELS, error_at, open_image, to_rgb
from .image_urls import URL_THREADS
from .input_lists import list_of_images

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MAX_THREADS = 8  # each may hold a decoded image of MAX_PIXELS


class JinaCLIPImageProcessor(BaseImageProcessor):
    """Turn images into ``pixel_values`` (batch, 3, size, size) float32.

    Argument names are those of the published ``preprocessor_config.json``. ``resize_mode`` is ``"shortest"`` (crop the
    middle), ``"longest"`` (pad with ``fill_color``) or ``"squash"``.

    Example::

        >>> processor = JinaCLIPImageProcessor(size=32)
        >>> processor([Image.new("RGB", (40, 60))], return_tensors="np")["pixel_values"].shape
        (1, 3, 32, 32)
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        mean: list[float] | tuple[float, ...] | None = None,
        std: list[float] | tuple[float, ...] | None = None,
        resize_mode: str = "shortest",
        interpolation: str = "bicubic",
        fill_color: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = _side(size)
        self.mean = list(CLIP_MEAN if mean is None else mean)
        self.std = list(CLIP_STD if std is None else std)
        self.resize_mode = resize_mode
        self.interpolation = interpolation
        self.fill_color = fill_color
        if resize_mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize_mode={resize_mode!r} is unknown; use 'shortest', 'longest' or 'squash'")
        if interpolation.upper() not in Image.Resampling.__members__:
            raise ValueError(f"interpolation={interpolation!r} is unknown; use 'bicubic', 'bilinear', ...")

    def preprocess(
        self,
        images: Any,
        size: int | dict[str, int] | None = None,
        return_tensors: str | None = None,
        allow_urls: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocess one image or several: PIL, numpy, tensor, path, bytes, opened file or data URI.

        Images are decoded and resized by several threads: as many as torch uses, which is one in a worker of a data
        loader, and at most ``MAX_THREADS``.

        Args:
            images: one image, a list or other collection of them, or an array or tensor with four axes.
            size: overrides the side for this call (a training stage may use another one).
            return_tensors: ``"pt"``, ``"np"`` or None for numpy.
            allow_urls: whether strings that are http(s) URLs are fetched. An argument only: no file of a model can
                set it.

        Raises:
            ValueError: naming the position of an image that cannot be used.
            TypeError: naming the position of what is no image at all, or an unknown argument.
            OSError: naming the position of a file that is not there or a URL that cannot be fetched.
        """
        if kwargs:
            raise TypeError(f"unknown arguments {sorted(kwargs)}; known are size, return_tensors and allow_urls")
        pixels = self.fitted(images, size, allow_urls)
        # Channels first only at the end: the arithmetic is the same, the memory walk is not.
        values = (pixels.astype(np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def fitted(self, images: Any, size: int | dict[str, int] | None = None, allow_urls: bool = False) -> np.ndarray:
        """The images of ``preprocess`` before scaling and normalising: (batch, size, size, 3) uint8, a quarter of it.

        Training keeps its batches so, and normalises them on the device, a part at a time.

        Example::

            >>> JinaCLIPImageProcessor(size=32).fitted([Image.new("RGB", (40, 60))]).dtype
            dtype('uint8')
        """
        side = self.size if size is None else _side(size)
        images = list_of_images(images)[1]
        # One object given twice is read once: two threads must not read one lazily opened file at the same time.
        rows: dict[int, list[int]] = {}
        for position, image in enumerate(images):
            rows.setdefault(id(image), []).append(position)

        def read(positions: list[int]) -> np.ndarray:
            try:
                return self._fit(Image.fromarray(to_rgb(open_image(images[positions[0]], allow_urls))), side)
            except (ValueError, TypeError, OSError) as error:
                raise error_at(positions[0], error) from error

        pixels = np.empty((len(images), side, side, 3), dtype=np.uint8)
        threads = URL_THREADS if allow_urls else min(torch.get_num_threads(), MAX_THREADS)
        for positions, values in zip(rows.values(), _in_threads(read, list(rows.values()), threads), strict=True):
            pixels[positions] = values
        return pixels

    def _fit(self, image: Image.Image, side: int) -> np.ndarray:
        """One image to (side, side, 3) uint8."""
        resample = Image.Resampling[self.interpolation.upper()]
        width, height = image.size
        if self.resize_mode == "squash":
            target = (side, side)
        else:
            fixed = min(width, height) if self.resize_mode == "shortest" else max(width, height)
            target = tuple(side if edge == fixed else max(1, int(side * edge / fixed)) for edge in (width, height))
        if target[0] * target[1] > MAX_PIXELS:
            raise ValueError(
                f"{width} x {height} pixels would become {target[0]} x {target[1]} with resize_mode="
                f"{self.resize_mode!r}; crop the image."
            )
        if image.size != target:
            image = image.resize(target, resample)
        if image.size == (side, side):
            return np.asarray(image)
        left, top = (round((edge - side) / 2.0) for edge in image.size)
        canvas = Image.new("RGB", (side, side), (self.fill_color,) * 3)
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Iterator[Any]:
    """``map`` with several threads: results in order, the first error in order is raised and the rest dropped."""
    threads = min(threads, len(items))
    if threads < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(max_workers=threads) as pool:
        yield from pool.map(function, items)


def _side(size: int | dict[str, int]) -> int:
    """The output side from an int or the size dictionaries that transformers writes."""
    if isinstance(size, dict) or hasattr(size, "keys"):
        values = {value for value in dict(size).values() if value is not None}
        if len(values) != 1:
            raise ValueError(f"size={dict(size)!r} is not one square side; pass an int such as 224")
        size = values.pop()
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a positive int, e.g. 224")
    return size
