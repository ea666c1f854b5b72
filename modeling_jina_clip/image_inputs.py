"""From whatever a caller holds to an RGB image: the one place where an image input is opened.

Nothing is guessed: a ``str`` is a path, a ``data:image/`` URI, or with ``allow_urls=True`` an http(s) URL. Files are
opened with limits, so that a decompression bomb or a truncated file ends in a clear error.
"""

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .image_urls import fetch_url, is_url

# Where Pillow itself refuses a file (twice its Image.MAX_IMAGE_PIXELS): about 13,300 x 13,300 px, 540 MB decoded.
MAX_PIXELS = 178_956_970
# Pictures made of pixels (HEIF with pillow-heif). Pillow reads more, some by starting a program: Ghostscript for EPS.
FORMATS = frozenset(
    [
        "AVIF",
        "BMP",
        "DIB",
        "GIF",
        "HEIF",
        "ICNS",
        "ICO",
        "JPEG",
        "JPEG2000",
        "MPO",
        "PCX",
        "PNG",
        "PPM",
        "QOI",
        "TGA",
        "TIFF",
        "WEBP",
    ]
)


def open_image(source: Any, allow_urls: bool = False) -> Any:
    """Open ``source``: path, URL, ``data:image/`` URI, bytes, opened file to a PIL image; PIL, numpy, tensors pass.

    A file is read from its beginning, where it has one, and not closed.

    Files are turned upright by their EXIF orientation, and so is a PIL image fresh from ``Image.open``. Of an animation
    the first frame is read, or the one a PIL image was set to.

    Args:
        source: the image.
        allow_urls: whether a string that is an http(s) URL may be fetched (see ``image_urls`` for the limits).

    Raises:
        ValueError: naming the source when it is a URL nobody allowed, too large, truncated or no image.
        FileNotFoundError: when there is no such file.
        TimeoutError: when a URL takes too long.
        ConnectionError: when its server cannot be reached or stops early.

    Example::

        >>> open_image(Image.new("L", (2, 3))).size
        (2, 3)
    """
    if isinstance(source, ImageFile.ImageFile):
        return _upright(source, "PIL image")
    if isinstance(source, Image.Image):
        _check_pixels(source, "PIL image")
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(source)), f"{memoryview(source).nbytes} bytes")
    if hasattr(source, "read") and not isinstance(source, os.PathLike):
        return _decode(io.BytesIO(_file_bytes(source)), _file_name(source))
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode(io.BytesIO(_data_uri_bytes(source)), _shown(source))
    if is_url(source):
        if not allow_urls:
            raise ValueError(
                f"{_shown(source)} is a URL, and URLs are not fetched unless you pass allow_urls=True; or download it "
                "and pass the bytes or the path."
            )
        return _decode(io.BytesIO(fetch_url(source)), _shown(source))
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
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
    if hasattr(image, "detach"):  # a tensor; numpy knows no bfloat16
        image = (image.detach().float() if image.is_floating_point() else image.detach()).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"cannot read an image from {type(image).__name__}; pass PIL, numpy, tensor, path, bytes or a file"
        )
    return _array_to_rgb(image)


def _shown(source: str) -> str:
    return repr(source if len(source) <= 100 else source[:97] + "...")


def _existing(source: str | os.PathLike) -> Path:
    try:
        path = Path(source).expanduser()
        found = path.is_file()
    except (OSError, RuntimeError) as error:  # too long for a path, or the home of a user who does not exist
        raise FileNotFoundError(f"{_shown(str(source))} is no path: {str(error)[:60]}") from error
    if not found:
        raise FileNotFoundError(f"no image file at {_shown(str(path))}")
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
    """A decoded copy of an opened file, turned as its EXIF orientation says."""
    if image.format not in FORMATS:
        raise ValueError(
            f"{name} is a file of format {image.format}, which is not read; pass image.convert('RGB') if you trust it."
        )
    _check_pixels(image, name)
    try:
        return ImageOps.exif_transpose(image)  # copies in any case
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded: {error}.") from error


def _data_uri_bytes(uri: str) -> bytes:
    header, separator, payload = uri.partition(",")
    header = header.lower()  # names of types and encodings know no capitals
    if not header.startswith("data:image/"):
        raise ValueError(
            f"data URI {uri[:40]!r}... does not say that it holds an image; write data:image/png;base64,... or pass "
            "the decoded bytes."
        )
    if not separator or not header.endswith(";base64"):
        raise ValueError(f"data URI {uri[:40]!r}... must look like data:image/png;base64,...")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)  # base64 comes in lines, too
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"data URI {uri[:40]!r}... holds broken base64: {error}.") from error


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return _shown(name) if isinstance(name, str) else f"a {type(file).__name__}"


def _file_bytes(file: Any) -> bytes:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # just written, it stands at its end
        data = file.read()
    except ValueError as error:  # closed, or text that is none
        raise ValueError(f"{_file_name(file)} cannot be read: {error}; open it anew, with open(path, 'rb').") from error
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"{_file_name(file)} is a file of text; open it with open(path, 'rb').")
    return data


def error_at(position: int, error: Exception) -> Exception:
    """``error`` as one that names the position of its image, and has it as ``image_position``.

    Of the nearest kind that is made from one text: some of Pillow's and Python's own need more.
    """
    kinds = (FileNotFoundError, TimeoutError, ConnectionError, OSError, TypeError)
    named = next((kind for kind in kinds if isinstance(error, kind)), ValueError)(f"image {position}: {error}")
    named.image_position = position
    return named


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
            raise ValueError(f"a float image must lie in [0, 1], got {array.min()}..{array.max()}; divide by its white")
        array = (array * 255).round()
    elif array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 or float in [0, 1], got {array.dtype}; divide by its white")
    array = array[..., :3].astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
