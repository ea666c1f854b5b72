"""Stored images become pictures: files of this machine, opened by the model's own opener, as RGB.

What a cell of the data may name:

- a path is taken from the folder of the source's files; absolute paths, paths with ``..`` and links are followed, since
  tables often lie beside or away from their pictures. Nothing but a decoded picture is taken from such a file.
- it must be a regular file: opening a pipe or a device could wait forever.
- an address (``http://``, ``hf://``, ``data:``, ...) is never opened, whatever a table says.
- tables of the Hub are somebody else's: there a path is refused, unless it is a downloaded file of that data set.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants
from PIL import Image

from modeling_jina_clip import open_image as open_safely
from modeling_jina_clip import to_rgb
from trainer_ext.data.faults import Fault
from trainer_ext.data.formats import DataError
from trainer_ext.recipe.schema import Background

# What reading an image can raise when it is broken, missing, or too large.
IMAGE_ERRORS = (OSError, ValueError, TypeError)
# Beyond this ratio of its sides a picture is a line: fitted to a square, it would be some gigabytes or all padding.
MAX_RATIO = 500
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_JPEG = b"\xff\xd8\xff"
# Pixels up to which Pillow itself asks nothing; a larger one is decoded whole, within the model's own limit.
MOST_DRAFTED = 89_478_485
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)


def absolute_paths(paths: Sequence[str | None], folder: str | None, source: str) -> list[str | None]:
    """Image paths, taken from the one folder of the source's files; addresses stay as they are, and are refused later.

    Raises:
        DataError: relative paths, and no one folder to take them from.
    """
    relative = [path for path in paths if path and not os.path.isabs(path) and not _ADDRESS.match(path)]
    if folder is None and relative:
        raise DataError(
            f"Source {source!r}: relative image paths need one folder to start from, but the source's files lie in"
            f" several ({relative[0]!r}). Use absolute paths, or one source per folder."
        )
    return [path if not path or _ADDRESS.match(path) else os.path.join(folder or "", path) for path in paths]


def stored_with_absolute_paths(column: pa.Array, folder: str | None, source: str) -> pa.Array:
    """The same images, those without bytes by absolute paths. ``column`` has the fields ``bytes`` and ``path``."""
    by_path = pc.is_null(column.field("bytes")).to_numpy(zero_copy_only=False)
    if not by_path.any():
        return column
    paths = np.array(column.field("path").to_pylist(), dtype=object)
    paths[by_path] = absolute_paths(paths[by_path].tolist(), folder, source)
    fields = [column.field("bytes"), pa.array(paths.tolist(), pa.string())]
    return pa.StructArray.from_arrays(fields, ["bytes", "path"], mask=pc.is_null(column))


def missing_files(paths: Sequence[str | None], of_hub: str | None = None) -> Iterator[Fault]:
    """Rows whose image is not a file of this machine. Lists each folder once: much cheaper than a question per file.

    Args:
        of_hub: the data set of the Hub that the table comes from; it may name its own downloaded files alone.
    """
    listings: dict[str, set[str]] = {}
    for row, path in enumerate(paths):
        if not path:
            continue
        folder, name = os.path.split(path)
        if of_hub and not _is_downloaded(path, of_hub):
            words = f"the path {_shown(path)} without the image's bytes, and a table of the Hub names no file here."
            yield Fault(np.array([row]), "image", f"{words} Use a data set that holds its images.")
            continue
        if path.lower().startswith("data:"):
            words = f"{_shown(path)} is a picture written as text. Store its bytes in a parquet table, or in a file."
            yield Fault(np.array([row]), "image", words)
            continue
        if _ADDRESS.match(path):
            words = f"{_shown(path)} is an address, and training reads files of this machine only. Download the image"
            yield Fault(np.array([row]), "image", f"{words} and give its path.")
            continue
        if folder not in listings:
            listings[folder] = _regular_files(folder)
        if name not in listings[folder]:
            words = f"{path} is no regular file" if os.path.exists(path) else f"no image file {_short(path)}"
            yield Fault(np.array([row]), "image", f"{words}. Correct the path or remove the row.")


def paths_without_bytes(column: pa.ChunkedArray) -> list[str | None]:
    """The path of each image that has no bytes; None for the others."""
    found: list[str | None] = []
    for chunk in column.chunks:
        by_path = pc.and_(pc.is_null(chunk.field("bytes")), pc.is_valid(chunk))
        found += pc.if_else(by_path, chunk.field("path"), None).to_pylist()
    return found


def _is_downloaded(path: str, dataset: str) -> bool:
    """Whether the file lies where the Hub's client keeps this data set, as the pictures of an image folder do."""
    kept = os.path.join(constants.HF_HUB_CACHE, f"datasets--{dataset.replace('/', '--')}", "")
    return os.path.abspath(path).startswith(os.path.abspath(kept) + os.sep)


def _regular_files(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


# (image as stored, background) -> RGB, or RGBA if it is transparent and there is no background; and its label.
Opener = Callable[[Mapping[str, Any], Background], tuple[Image.Image, str]]


class InspectedImage(NamedTuple):
    """A stored image as it is read, and what its file was before it became RGB.

    ``turned``: its EXIF orientation was another than upright. ``transparent``: some of its pixels are see-through.
    """

    picture: Image.Image
    label: str
    mode: str
    turned: bool
    transparent: bool


def open_image(
    stored: Mapping[str, Any], background: Background = None, least_side: int | None = None
) -> tuple[Image.Image, str]:
    """An image as ``datasets`` stores it: the picture in RGB, and a label that is the same for equal pictures.

    A transparent picture is laid on ``background``. Without one it stays RGBA, and whoever uses it decides: the model's
    image processor, in training and in encoding.

    The label is a hash of the encoded bytes, so rows that repeat a picture are recognised whether it lies in the table,
    in one file or in two.

    Args:
        least_side: the pixels that the picture's shorter side must keep. A JPEG may then be decoded at a half, a
            quarter or an eighth of its size, which is faster and gives nearly the same small picture.

    Raises:
        OSError, ValueError: no such file, an address, no image, or one that cannot be made a square.
    """
    content = content_of(stored)
    return picture_of(content, background, least_side), label_of(content)


def picture_of(content: bytes, background: Background = None, least_side: int | None = None) -> Image.Image:
    """The picture of ``open_image``, from an encoded image."""
    with quiet_pillow():
        if least_side is not None and content.startswith(_JPEG):
            try:
                return _as_pixels(open_safely(_drafted(content, least_side)), background)
            except Exception:  # what is wrong with it, and whether anything is, is for the exact way to say
                pass
        return _as_pixels(open_safely(content), background)


def _drafted(content: bytes, least_side: int) -> Image.Image:
    """A JPEG that will be decoded at a smaller size: its decoder leaves out the finest waves of each block."""
    file = Image.open(io.BytesIO(content), formats=["JPEG"])
    if file.width * file.height <= MOST_DRAFTED:
        file.draft(None, (least_side, least_side))
    return file


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings: they name no file, and a picture whose pixels cannot be read is an error, which does.

    They are of what is not pixels (EXIF cut short, the transparency of a palette) and of sizes below our limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inspect_image(stored: Mapping[str, Any]) -> InspectedImage:
    """``open_image``, with what is lost on the way to RGB. Raises the same errors."""
    content = content_of(stored)
    with quiet_pillow():
        opened = open_safely(content)  # first: it refuses the formats that are not to be opened
        with Image.open(io.BytesIO(content)) as file:
            turned = file.getexif().get(_ORIENTATION, 1) not in (0, 1)
        picture = _as_pixels(opened)
    transparent = picture.mode == "RGBA" and bool((np.asarray(picture)[..., 3] < 255).any())
    return InspectedImage(picture, label_of(content), opened.mode, turned, transparent)


def content_of(stored: Mapping[str, Any]) -> bytes:
    """The encoded image, from the row or from its file. Raises as ``open_image``."""
    path, content = stored["path"], stored["bytes"]
    if content is not None:
        return content
    if path is None:
        raise ValueError("neither bytes nor a path")
    if _ADDRESS.match(path):
        raise ValueError(f"{_shown(path)} is an address, and only files of this machine are read")
    if not os.path.isfile(path):
        raise FileNotFoundError("it is no regular file" if os.path.exists(path) else "there is no such file")
    return Path(path).read_bytes()


def _as_pixels(opened: Image.Image, background: Background = None) -> Image.Image:
    """RGB on the background; RGBA of a transparent picture without one."""
    if background is None and opened.has_transparency_data:
        picture = Image.fromarray(np.dstack([to_rgb(opened), alpha_of(opened)]))
    else:
        picture = on_background(opened, background)
    short, long = sorted(picture.size)
    if long > MAX_RATIO * short:
        raise ValueError(f"{picture.width} x {picture.height} pixels are a line, not a picture")
    return picture


def label_of(content: bytes) -> str:
    """The same for equal encoded images, in every process and on every machine."""
    return f"bytes/{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def on_background(picture: Image.Image, background: Background) -> Image.Image:
    """RGB of a picture by the model's own rules: on the colour, or without its transparency."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture  # an array and back would be two copies
    return Image.fromarray(to_rgb(picture, background))


def alpha_of(picture: Image.Image) -> np.ndarray:
    """The opacity (height, width) of a picture that has some: 255 where nothing shows through."""
    if picture.mode.startswith("I;16"):
        return np.where(np.asarray(picture) == picture.info["transparency"], 0, 255).astype(np.uint8)
    whole = picture if picture.mode in ("RGBA", "LA") else picture.convert("LA" if picture.mode == "La" else "RGBA")
    return np.asarray(whole.getchannel("A"))


def undecodable(path: str | None, error: Exception) -> str:
    """Why an image's row is broken, with the cure."""
    words = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # an address in memory is another one in every run
    words = " ".join(words.split()).removesuffix(".")
    return f"the image ({path or 'stored in the row'}) cannot be decoded: {words}. Replace the image or remove the row."


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _short(path: str) -> str:
    """A path as it is, but of a picture written as base64 only the start."""
    return path if len(path) <= 1000 else f"{path[:100]}... ({len(path):,} characters)"
