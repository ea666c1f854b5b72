"""From whatever a caller holds to an RGB image: the one place where an image input is opened.

Nothing is guessed: a ``str`` is a path or a ``data:image/`` URI, never a URL to fetch. Files are opened with limits, so
that a decompression bomb or a truncated file ends in a clear error.
"""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# About 13,400 x 13,400 px. Decoding this much takes 540 MB; PIL itself only warns below twice its own, smaller limit.
MAX_PIXELS = 180_000_000


def open_image(source: Any) -> Any:
    """Open ``source``: a path, ``data:image/`` URI or bytes become a PIL image; PIL, numpy and tensors pass through.

    Files are turned upright by their EXIF orientation. Raises ``ValueError`` naming the source when it is a URL, too
    large, truncated or no image, and ``FileNotFoundError`` when there is no such file.

    Example::

        >>> open_image(Image.new("L", (2, 3))).size
        (2, 3)
    """
    if isinstance(source, Image.Image):
        _check_pixels(source, "PIL image")
        return source
    if isinstance(source, (bytes, bytearray)):
        return _decode(io.BytesIO(source), f"{len(source)} bytes")
    if isinstance(source, str) and source.startswith("data:image/"):
        return _decode(io.BytesIO(_data_uri_bytes(source)), f"{source[:40]!r}...")
    if isinstance(source, str) and source.split("://")[0].lower() in ("http", "https", "ftp", "file"):
        raise ValueError(f"{source!r} is a URL, and URLs are not fetched; download it and pass the bytes or the path.")
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no image file at {str(path)!r}")
        return _decode(path, repr(str(path)))
    return source


def to_rgb(image: Any) -> np.ndarray:
    """One image as uint8 RGB, (height, width, 3). Alpha is dropped and the first frame of an animation taken.

    Accepts PIL images of any mode and arrays or tensors (grey, RGB or RGBA; channels first or last; uint8, or float in
    [0, 1]). Raises ``ValueError`` for any other shape or range, ``TypeError`` for another type.

    Example::

        >>> to_rgb(np.zeros((3, 4, 5), dtype=np.uint8)).shape
        (4, 5, 3)
    """
    if isinstance(image, Image.Image):
        return np.asarray(_pil_to_rgb(image))
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"cannot read an image from {type(image).__name__}; pass PIL, numpy, tensor, path or bytes")
    return _array_to_rgb(image)


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels, above {MAX_PIXELS}; shrink it.")
    if not image.width or not image.height:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; it is empty.")


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            _check_pixels(image, name)
            return ImageOps.exif_transpose(image)  # a decoded copy in any case
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image in a known format.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}.") from error


def _data_uri_bytes(uri: str) -> bytes:
    header, separator, payload = uri.partition(",")
    if not separator or not header.endswith(";base64"):
        raise ValueError(f"data URI {uri[:40]!r}... must look like data:image/png;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"data URI {uri[:40]!r}... holds broken base64: {error}.") from error


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey at 255 instead of scaling it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        if low < 0 or high > (255 if image.mode == "I" else 1):
            raise ValueError(f"PIL mode {image.mode!r} with values {low}..{high} has no fixed white; make it RGB.")
        values = np.asarray(image) * (1 if image.mode == "I" else 255)
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"an array of shape {shape} is no image; expected (h, w), (h, w, 1|3|4) or (1|3|4, h, w)")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"a float image must lie in [0, 1], got {array.min()}..{array.max()}; rescale it")
        array = (array * 255).round()
    elif array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 or float in [0, 1], got {array.dtype}")
    array = array[..., :3].astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
