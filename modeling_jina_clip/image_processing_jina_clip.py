"""Image preprocessing of Jina CLIP in PIL and numpy, bit for bit that of the published checkpoints.

RGB, shortest side to ``size`` (bicubic), centre crop, scale to [0, 1], normalise. Needs no torchvision.

This file opens all image inputs. A ``str`` is a path, a ``data:image/`` URI, or with ``allow_urls=True`` an http(s)
URL; nothing else is guessed. Limits apply to what is opened, so that a decompression bomb or a truncated file ends in a
clear error.

``list_of_images`` tells a single image from a collection. A collection is any iterable: lists, tuples, generators,
``dict.values()``, columns of ``datasets`` and pandas, arrays of strings or objects. Files, bytes and arrays of pixels
are iterable, too, but are single images.

Order of this file: opening, RGB, collections and errors, the processor.
"""

import base64
import binascii
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_urls import URL_THREADS, fetch_url, is_url, shown

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
Background = Literal["white"] | list[int] | tuple[int, int, int] | None
MAX_THREADS = 8  # each may hold a decoded image of MAX_PIXELS

# Where Pillow itself refuses a file (twice its Image.MAX_IMAGE_PIXELS): about 13,300 x 13,300 px, 540 MB decoded.
MAX_PIXELS = 178_956_970
# Formats made of pixels (HEIF with pillow-heif). Pillow reads more, some by starting a program: Ghostscript for EPS.
FORMATS = frozenset(("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICNS", "ICO", "JPEG", "JPEG2000",
                     "MPO", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"))  # fmt: skip


class _PillowSwitches:
    """Inside, Pillow's global switches have known values, so that no other library decides how a file is read.

    ``LOAD_TRUNCATED_IMAGES``, which some libraries set at import, would make half a picture of a cut file in silence,
    and a filter that makes errors of warnings would refuse files with odd metadata. The last of several threads to
    leave puts back what was found.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._found: tuple[bool, int | None] = (False, None)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._found = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._found


_PILLOW = _PillowSwitches()


def open_image(source: Any, allow_urls: bool = False) -> Any:
    """Open a path, URL, ``data:image/`` URI, bytes or file as a PIL image; PIL images, arrays and tensors pass through.

    A file object is read from its beginning if it can be rewound, and not closed. Files, and PIL images that
    ``Image.open`` has just returned, are turned upright by their EXIF orientation. Of an animation the first frame is
    read, or the one to which a PIL image was set.

    Args:
        source: the image.
        allow_urls: whether a string that is an http(s) URL may be fetched (see ``image_urls`` for the limits).

    Raises:
        ValueError: the source is a URL without ``allow_urls``, too large, truncated or not an image.
        FileNotFoundError: the file does not exist.
        TimeoutError: a URL takes too long.
        ConnectionError: the server of a URL cannot be reached or stops early.

    Example::

        >>> open_image(Image.new("L", (2, 3))).size
        (2, 3)
    """
    if isinstance(source, ImageFile.ImageFile):
        # Reading the file moves its position: several threads may hold the same picture, but only one may read it.
        with _PILLOW, vars(source).setdefault("_jina_clip_lock", threading.Lock()):
            return _upright(source, "PIL image")
    if isinstance(source, Image.Image):
        _check_pixels(source, "PIL image")
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(source)), f"{memoryview(source).nbytes} bytes")
    if hasattr(source, "read") and not isinstance(source, os.PathLike):
        return _decode(io.BytesIO(_file_bytes(source)), _file_name(source))
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode(io.BytesIO(_data_uri_bytes(source)), shown(source))
    if is_url(source):
        if not allow_urls:
            raise ValueError(
                f"{shown(source)} is a URL, and URLs are not fetched unless you pass allow_urls=True; or download it "
                "and pass the bytes or the path."
            )
        return _decode(io.BytesIO(fetch_url(source)), shown(source))
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        return _decode(path, repr(str(path)))
    return source


def to_rgb(image: Any, background: Background = None) -> np.ndarray:
    """One image as uint8 RGB, (height, width, 3). Of an animation the first frame is taken.

    Accepts PIL images of any mode and arrays or tensors (grey, RGB or RGBA; channels first or last; uint8, or float in
    [0, 1]). Raises ``ValueError`` for any other shape or range, ``TypeError`` for another type.

    Args:
        background: the colour, "white" or (red, green, blue), that shows through a transparent image. None drops its
            alpha, as the published code does: what shows is whatever colour is stored below the transparency.

    Example::

        >>> to_rgb(np.zeros((4, 5, 4), dtype=np.uint8), background="white")[0, 0].tolist()  # a transparent image
        [255, 255, 255]
    """
    colour = background_colour(background)
    if isinstance(image, Image.Image):
        return np.asarray(_pil_to_rgb(image, colour))
    if hasattr(image, "detach"):  # a tensor; numpy has no bfloat16
        image = (image.detach().float() if image.is_floating_point() else image.detach()).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"cannot read an image from {type(image).__name__}; pass PIL, numpy, tensor, path, bytes or a file"
        )
    return np.asarray(_pil_to_rgb(Image.fromarray(_array_to_uint8(image)), colour))


def background_colour(value: Background) -> tuple[int, int, int] | None:
    """(red, green, blue) of "white" or of three whole numbers from 0 to 255; raises ``ValueError`` for all else."""
    if value is None or value == "white":
        return None if value is None else (255, 255, 255)
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    raise ValueError(f"background={value!r} must be 'white', [red, green, blue] of whole numbers 0 to 255, or null")


def _existing(source: str | os.PathLike) -> Path:
    try:
        path = Path(source).expanduser()
        found = path.is_file()
    except (OSError, RuntimeError) as error:  # too long for a path, or the home of a user who does not exist
        raise FileNotFoundError(f"{shown(str(source))} is not a path: {str(error)[:60]}") from error
    if not found:
        raise FileNotFoundError(f"no image file at {shown(str(path))}")
    return path


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name} has {image.width} x {image.height} = {image.width * image.height} pixels, above {MAX_PIXELS}; "
            "shrink it."
        )
    if not image.width or not image.height:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; it is empty.")


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    with _PILLOW:
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            raise ValueError(f"{name} is not an image in a known format.") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name} has too many pixels: {error} Shrink it.") from error
        except Exception as error:  # Pillow's readers let errors of many kinds through
            raise ValueError(f"{name} cannot be decoded: {error}.") from error
        with image:
            return _upright(image, name)


def _upright(image: ImageFile.ImageFile, name: str) -> Image.Image:
    """A decoded copy of an opened file, turned by its EXIF orientation."""
    if image.format not in FORMATS:
        raise ValueError(
            f"{name} is a file of format {image.format}, which is not read; pass image.convert('RGB') if you trust it."
        )
    _check_pixels(image, name)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # a file may hold a larger picture than it says, as icons do
    try:
        return ImageOps.exif_transpose(image)  # always a copy
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded: {error}.") from error


def _data_uri_bytes(uri: str) -> bytes:
    header, separator, payload = uri.partition(",")
    header = header.lower()  # types and encodings are case-insensitive
    if not header.startswith("data:image/"):
        raise ValueError(
            f"data URI {uri[:40]!r}... does not say that it holds an image; write data:image/png;base64,... or pass "
            "the decoded bytes."
        )
    if not separator or not header.endswith(";base64"):
        raise ValueError(f"data URI {uri[:40]!r}... must look like data:image/png;base64,...")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)  # may be split into lines
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"data URI {uri[:40]!r}... holds broken base64: {error}.") from error


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return shown(name) if isinstance(name, str) else f"a {type(file).__name__}"


def _file_bytes(file: Any) -> bytes | bytearray:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # a file just written is at its end
        data = file.read()
    except ValueError as error:  # closed, or not valid text
        raise ValueError(f"{_file_name(file)} cannot be read: {error}; open it again with open(path, 'rb').") from error
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"{_file_name(file)} is a file of text; open it with open(path, 'rb').")
    return data


def _pil_to_rgb(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey at 255 instead of scaling it
        values, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.mode in ("I", "F"):
        low, high = cast(tuple[float, float], image.getextrema())  # one band, so one pair
        if not np.isfinite(np.asarray(image)).all() or low < 0 or high > (255 if image.mode == "I" else 1):
            raise ValueError(f"PIL mode {image.mode!r} with values {low}..{high} has no fixed white; scale to 8 bit.")
        values = np.asarray(image) * (1 if image.mode == "I" else 255)
        image = Image.fromarray(values.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        if background is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_uint8(array: np.ndarray) -> np.ndarray:
    """Grey (height, width), or (height, width, 3 or 4)."""
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"an array of shape {shape} is not an image; expected (h, w), (h, w, 1|3|4) or (1|3|4, h, w)")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            found = f"{array.min()}..{array.max()}"
            raise ValueError(f"a float image must lie in [0, 1], got {found}; divide by its white value")
        array = (array * 255).round()
    elif array.dtype != np.uint8:
        kind = array.dtype
        raise ValueError(f"an image array must be uint8 or float in [0, 1], got {kind}; divide by its white value")
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return array[..., 0] if array.shape[-1] == 1 else array


def list_of_images(images: Any) -> tuple[bool, list[Any]]:
    """Whether ``images`` is a single image, and the images as a list. Arrays and tensors with four axes are batches.

    Items are not checked here; ``open_image`` and ``to_rgb`` raise for what is not an image.

    Example::

        >>> pixels = np.zeros((2, 8, 8, 3), dtype=np.uint8)
        >>> [len(list_of_images(images)[1]) for images in (pixels, pixels[0], "cat.png", {"a": "cat.png"}.values())]
        [2, 1, 1, 1]
    """
    if isinstance(images, np.ndarray) and not images.ndim:
        images = images.item()
    pixels = torch.is_tensor(images) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OUT")
    if pixels:
        several = images.ndim == 4 or (images.ndim == 1 and not len(images))
        return (False, list(images)) if several else (True, [images])
    refuse_tables(images, "images")
    whole = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)
    if isinstance(images, whole) or hasattr(images, "read") or not isinstance(images, Iterable):
        return True, [images]
    return False, list(images)


def error_at(position: int, error: BaseException | None) -> Exception:
    """``error`` with the position of its image in the message and as ``image_position``.

    The type is the nearest one that takes a single text: some errors of Pillow and Python need more arguments.
    """
    kinds = (FileNotFoundError, TimeoutError, ConnectionError, OSError, TypeError)
    named: Any = next((kind for kind in kinds if isinstance(error, kind)), ValueError)(f"image {position}: {error}")
    named.image_position = position
    return named


def refuse_tables(inputs: Any, kind: str) -> None:
    """Raise for a pandas table: iterating it gives column names, which would be taken for texts or paths."""
    if getattr(inputs, "ndim", 1) == 2 and hasattr(inputs, "columns"):
        raise TypeError(f"got a table with columns {list(inputs.columns)[:6]}; pass the column that holds the {kind}")


def brief(item: Any) -> str:
    """Type and beginning of an input, for error messages."""
    return f"{type(item).__name__}: {str(item)[:60]!r}"


class JinaCLIPImageProcessor(BaseImageProcessor):
    """Turn images into ``pixel_values`` (batch, 3, size, size) float32.

    Argument names are those of the published ``preprocessor_config.json``. ``resize_mode`` is ``"shortest"`` (crop the
    centre), ``"longest"`` (pad with ``fill_color``) or ``"squash"``. ``background``: see ``to_rgb``.

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
        background: Background = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = _side(size)
        self.mean = list(CLIP_MEAN if mean is None else mean)
        self.std = list(CLIP_STD if std is None else std)
        self.resize_mode = resize_mode
        self.interpolation = interpolation
        self.fill_color = fill_color
        background_colour(background)  # checked
        self.background = background
        for name, values, least in (("mean", self.mean, -np.inf), ("std", self.std, 0.0)):
            if len(values) != 3 or not all(least < value < np.inf for value in values):
                above = " above 0" if name == "std" else ""
                raise ValueError(f"{name}={values!r} must be three finite numbers{above}: for red, green, blue")
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

        Images are decoded and resized in as many threads as torch uses (one in a data loader's worker), at most
        ``MAX_THREADS``.

        Args:
            images: one image, a list or other collection of them, or an array or tensor with four axes.
            size: overrides the side for this call, e.g. for a training stage.
            return_tensors: ``"pt"``, ``"np"`` or None for numpy.
            allow_urls: whether strings that are http(s) URLs are fetched. Only an argument: no file of a model can
                set it.

        Raises:
            ValueError: an image cannot be used; names its position.
            TypeError: an item is not an image (names its position), or an argument is unknown.
            OSError: a file is missing or a URL cannot be fetched; names its position.
        """
        if kwargs:
            raise TypeError(f"unknown arguments {sorted(kwargs)}; known are size, return_tensors and allow_urls")
        pixels = self.fitted(images, size, allow_urls)
        # Channels first only at the end: same arithmetic, better memory access.
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = (pixels.astype(np.float32) / 255 - mean) / std
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def fitted(self, images: Any, size: int | dict[str, int] | None = None, allow_urls: bool = False) -> np.ndarray:
        """The images of ``preprocess`` before scaling and normalising: (batch, size, size, 3) uint8.

        A quarter as large: training keeps batches in this form and normalises them on the device, in parts.
        """
        side = self.size if size is None else _side(size)
        images = list_of_images(images)[1]
        # Read an object that occurs twice only once: two threads must not read one lazily opened file.
        rows: dict[int, list[int]] = {}
        for position, image in enumerate(images):
            rows.setdefault(id(image), []).append(position)

        def read(positions: list[int]) -> np.ndarray:
            try:
                image = open_image(images[positions[0]], allow_urls)
                plain = getattr(image, "mode", "") == "RGB" and not image.has_transparency_data  # saves two copies
                return self._fit(image if plain else Image.fromarray(to_rgb(image, self.background)), side)
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
            edges = [side if edge == fixed else max(1, int(side * edge / fixed)) for edge in (width, height)]
            target = (edges[0], edges[1])
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
    """``map`` with several threads: results in order; the first error in order is raised, others are dropped."""
    threads = min(threads, len(items))
    if threads < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(max_workers=threads) as pool:
        yield from pool.map(function, items)


def _side(size: Any) -> int:
    """The output side from an int or a size dictionary of transformers."""
    if isinstance(size, dict) or hasattr(size, "keys"):
        values = {value for value in dict(size).values() if value is not None}
        if len(values) != 1:
            raise ValueError(f"size={dict(size)!r} is not one square side; pass an int such as 224")
        size = values.pop()
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a positive int, e.g. 224")
    return size
