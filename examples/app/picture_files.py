"""From files to pictures: which files there are, what they are called, and how one becomes pixels and a thumbnail.

Files are opened by the model's own code (``open_image``), so a picture is the same here as where it is encoded:
upright, 16-bit grey scaled, formats that would start a program refused.
"""

import csv
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

MAX_PIXELS = 50_000_000  # of one picture; 150 MB once decoded
BATCH, BATCH_PIXELS = 16, 32_000_000  # a batch of pictures ends with either
THUMBNAIL = 256
CAPTIONS = "metadata.csv"  # beside the pictures, as an image folder of `datasets` has it
CAPTION_COLUMNS, FILE_COLUMNS = ("text", "caption", "texts", "captions"), ("file_name", "file")

File = Path | io.BytesIO


class Found(NamedTuple):
    """A file, its name, and its caption if it has one."""

    name: str
    file: File
    caption: str = ""


class Picture(NamedTuple):
    """A decoded picture with the hash of its file, by which copies are known."""

    name: str
    caption: str
    digest: str
    image: Image.Image


class Opener:
    """Opens pictures as ``model`` (a SentenceTransformer) does itself.

    Raises:
        ValueError: the model does not bring the code of this package.
    """

    def __init__(self, model: Any) -> None:
        processor = getattr(getattr(model[0], "processor", None), "image_processor", None)
        code = sys.modules.get(type(processor).__module__)
        if not hasattr(code, "open_image") or not hasattr(code, "to_rgb"):
            raise ValueError("the model has no code that opens pictures; take a folder of `hub_upload.py build`")
        self._open: Callable[[Any], Image.Image] = code.open_image
        self._to_rgb: Callable[[Any], Any] = code.to_rgb

    def read(self, file: File, limit: int = MAX_PIXELS) -> Image.Image:
        """A picture as it is encoded, transparency kept; an error of any kind if it is none or too large."""
        with Image.open(file) as image:
            if image.width * image.height > limit:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels are more than {limit:,}")
            opened = self._open(image)
        self._to_rgb(opened)  # refuses what has no fixed white
        return opened

    def on_white(self, image: Image.Image) -> Image.Image:
        """The picture in RGB as it is shown: what is transparent is white."""
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            clear = image.convert("RGBA")
            ground = Image.new("RGBA", clear.size, "white")
            return Image.alpha_composite(ground, clear).convert("RGB")
        return Image.fromarray(self._to_rgb(image))

    def thumbnail(self, image: Image.Image) -> bytes:
        """The picture on white and small, as a WebP file."""
        small = image
        if image.mode in ("L", "RGB", "RGBA"):  # before the colours: less to convert
            small = image.copy()
            small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
        shown = self.on_white(small)
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        shown.save(file, "WEBP", quality=85)
        return file.getvalue()


def why(error: Exception) -> str:
    """An error as a reason in one line, without places in memory."""
    words = " ".join(str(error).split()).removeprefix("image 0: ") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError) or "not an image in a known format" in words:
        return "not a picture"
    return words.removesuffix(".")[:200]


def digest_of(file: File) -> str:
    """The hash of a file's content."""
    if isinstance(file, Path):
        if not file.is_file():  # a pipe or a device could be waited for without end
            raise ValueError("not a regular file")
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    return hashlib.sha256(file.getbuffer()).hexdigest()


def batches(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """At most ``BATCH`` pictures at a time, fewer where they are large: no more are held at full size."""
    held: list[Picture] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == BATCH or sum(one.image.width * one.image.height for one in held) >= BATCH_PIXELS:
            yield held
            held = []
    if held:
        yield held


def files_of(place: Path) -> tuple[int, Iterable[Found]]:
    """How many files there are in a folder (hidden ones apart) or a parquet file's column ``image``, and them.

    Raises:
        ValueError: there is neither, or the parquet file has no pictures.
    """
    if place.suffix == ".parquet" and place.is_file():
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(place)
        if "image" not in table.schema_arrow.names:
            raise ValueError(f"{place}: has no column 'image'; it has {', '.join(table.schema_arrow.names)}")
        return table.metadata.num_rows, _rows_of(table)
    if not place.is_dir():
        raise ValueError(f"{place}: there is no such folder or parquet file")
    paths = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    captions = captions_of([path for path in paths if path.name == CAPTIONS])
    paths = [path for path in paths if path.name != CAPTIONS]
    return len(paths), (Found(name_in(place, path), path, captions.get(path, "")) for path in paths)


def name_in(place: Path, path: Path) -> str:
    """A file's name within the folder; bytes that are no text become question marks."""
    return str(path.relative_to(place)).encode(errors="replace").decode()


def captions_of(tables: Iterable[Path]) -> dict[Path, str]:
    """The first caption of each picture that a ``metadata.csv`` names, by the picture's path."""
    found: dict[Path, str] = {}
    for table in tables:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.DictReader(lines)
            names = reader.fieldnames or []
            file = next((name for name in FILE_COLUMNS if name in names), None)
            text = next((name for name in CAPTION_COLUMNS if name in names), None)
            try:
                for row in reader if file and text else ():
                    if row[file] and (row[text] or "").strip():
                        found.setdefault(table.parent / row[file], row[text].strip())
            except csv.Error as error:
                raise ValueError(f"{table}, line {reader.line_num}: {error}") from error
    return found


def _rows_of(table: Any) -> Iterator[Found]:
    """Pictures of a parquet file, named by its column ``caption`` if it has one."""
    columns = [name for name in ("image", "caption") if name in table.schema_arrow.names]
    number = 0
    for group in table.iter_batches(batch_size=64, columns=columns):
        for row in group.to_pylist():
            caption = row.get("caption") or ""
            caption = caption if isinstance(caption, str) else next(iter(caption), "")
            content = (row["image"] or {}).get("bytes") or b""
            yield Found(f"row {number}", io.BytesIO(content), caption)
            number += 1
