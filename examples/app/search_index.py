"""What the page searches: vectors and thumbnails of pictures, vectors of texts, and how they get in.

No picture is kept as it came. Files are read a batch at a time, encoded, and reduced to thumbnails, so memory grows by
some ten kilobytes a picture, whatever its size.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from sentence_transformers import SentenceTransformer

KINDS = ["images", "texts"]
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]  # pixels only: to read EPS, Pillow starts a program
MAX_PIXELS = 50_000_000  # of one picture; 150 MB once decoded
BATCH, BATCH_PIXELS = 16, 32_000_000  # a batch of pictures ends with either
THUMBNAIL = 256

Show = Callable[[float, str], object]  # is told the share that is done, and of what
File = Path | io.BytesIO


class Item(NamedTuple):
    """A text, or a picture's name and thumbnail."""

    name: str
    thumbnail: bytes = b""

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.thumbnail))


class Index:
    """Vectors of pictures and texts, searched by cosine at any Matryoshka dimension.

    An index never changes; adding gives a new one. So visitors begin with one index and add to their own.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.dim = model, model.get_embedding_dimension()
        self.items: dict[str, list[Item]] = {kind: [] for kind in KINDS}
        self.vectors = {kind: np.empty((0, self.dim), np.float32) for kind in KINDS}

    def with_texts(self, texts: list[str]) -> "Index":
        return self._with("texts", [self.encode(texts)] if texts else [], [Item(text) for text in texts])

    def with_images(
        self, files: Iterable[tuple[str, File]], count: int, show: Show = lambda share, desc: None
    ) -> tuple["Index", list[str]]:
        """Read, encode and reduce ``count`` named files batch by batch; also one line on each file left out."""
        vectors, items, refused = [], [], []
        for names, pictures in batches(files, refused):
            show((len(items) + len(refused)) / count, f"indexing {count} files")
            vectors.append(self.encode(pictures))
            items += [Item(name, thumbnail(picture)) for name, picture in zip(names, pictures, strict=True)]
        return self._with("images", vectors, items), refused

    def encode(self, things: list) -> np.ndarray:
        return self.model.encode(things, normalize_embeddings=True, batch_size=BATCH, show_progress_bar=False)

    def _with(self, kind: str, vectors: list[np.ndarray], items: list[Item]) -> "Index":
        new = Index(self.model)
        new.items = self.items | {kind: self.items[kind] + items}
        new.vectors = self.vectors | {kind: np.concatenate([self.vectors[kind], *vectors])}
        return new

    def query(self, text: str, image: Image.Image | None, image_share: float) -> np.ndarray:
        """One vector of a text, an image, or the weighted sum of both."""
        parts = [part for part in (text.strip(), image) if part]
        if not parts:
            raise ValueError("type a text, choose a picture, or both")
        vectors = self.encode(parts)
        return vectors[0] if len(parts) == 1 else (1 - image_share) * vectors[0] + image_share * vectors[1]

    def search(
        self, query: np.ndarray, kinds: Iterable[str], dim: int, correct: bool, top: int
    ) -> list[tuple[float, str, Item]]:
        """The best items as (score, kind, item), best first.

        Texts lie nearer to texts than pictures do (the modality gap), so a cosine ranks all of one kind before the
        other. ``correct`` counts a score in standard deviations above the mean of its kind instead.
        """
        found = []
        for kind in kinds:
            scores = unit(self.vectors[kind][:, :dim]) @ unit(query[:dim])
            if correct and len(scores):
                scores = (scores - scores.mean()) / (scores.std() + 1e-6)
            best = np.argsort(-scores, kind="stable")[:top]
            found += [(float(scores[place]), kind, self.items[kind][place]) for place in best]
        return sorted(found, key=lambda hit: -hit[0])[:top]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def read_image(file: File) -> Image.Image:
    """An upright RGB picture; an error of any kind if it is none or too large."""
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGB")


def batches(files: Iterable[tuple[str, File]], refused: list[str]) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Names and pictures, at most ``BATCH`` at a time and fewer where they are large; what is no picture is refused."""
    names, pictures, pixels = [], [], 0
    for name, file in files:
        try:
            picture = read_image(file)
        except Exception as error:  # Pillow's readers let errors of many kinds through
            refused.append(f"left out {name}: {error if type(error) is ValueError else type(error).__name__}")
            continue
        names.append(name)
        pictures.append(picture)
        pixels += picture.width * picture.height
        if len(pictures) == BATCH or pixels >= BATCH_PIXELS:
            yield names, pictures
            names, pictures, pixels = [], [], 0
    if pictures:
        yield names, pictures


def thumbnail(picture: Image.Image) -> bytes:
    """The picture, no longer needed, made small."""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85)
    return file.getvalue()


def files_of(place: Path) -> tuple[int, Iterable[tuple[str, File]]]:
    """How many named files there are in a folder (hidden ones apart) or a parquet file's column ``image``, and them."""
    if place.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(place)
        return table.metadata.num_rows, rows_of(table)
    if not place.is_dir():
        raise ValueError(f"{place}: there is no such folder or parquet file")
    paths = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    return len(paths), ((str(path.relative_to(place)), path) for path in paths)


def rows_of(table) -> Iterator[tuple[str, File]]:
    """Pictures of a parquet file, named by its column ``caption`` if it has one."""
    columns = [name for name in ("image", "caption") if name in table.schema_arrow.names]
    for group in table.iter_batches(batch_size=64, columns=columns):
        for row in group.to_pylist():
            caption = row.get("caption") or "picture"
            yield caption if isinstance(caption, str) else caption[0], io.BytesIO(row["image"]["bytes"])
