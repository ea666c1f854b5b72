"""What is encoded, and the vectors that come of it.

An item is a text, a PIL image, or a ``Picture``: an image that is decoded only while it is encoded, so that a task over
a million files holds none of them. ``encode_items`` encodes every distinct item once and gives ``Embeddings``.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from trainer_ext.evaluation.metrics import TIE_TOLERANCE
from trainer_ext.evaluation.precisions import codes

# Items handed to an encoder in one call: large enough to be efficient, small enough for a moving progress bar.
ENCODE_BLOCK = 256
# Pictures decoded at once: 32 of 12 megapixels are 1.2 GB.
DECODE_BLOCK = 32
# Vectors checked at once: 4,096 of 768 numbers are 12 MB.
CHECK_BLOCK = 4096


@dataclass(frozen=True)
class Picture:
    """An image by ``key``, a hash of its content: equal keys are one picture. ``load`` decodes it, every time anew.

    >>> Picture("a1", lambda: Image.new("RGB", (2, 2))) == Picture("a1", lambda: Image.new("L", (9, 9)))
    True
    """

    key: str
    load: Callable[[], Image.Image] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Record(Picture):
    """A picture with a text, as one entry of an index: its vector is weight * picture + (1 - weight) * text.

    >>> picture = Picture("a1", lambda: Image.new("RGB", (2, 2)))
    >>> record_of(picture, "red shoes", 0.5) == record_of(picture, "red shoes", 0.5), record_of(picture, "x", 0.5).text
    (True, 'x')
    """

    picture: Picture = field(compare=False, repr=False)
    text: str = field(compare=False)
    weight: float = field(compare=False)


def record_of(picture: Picture, text: str, weight: float) -> Record:
    """The record of a picture and a text; it is looked at as its picture is."""
    content = repr((picture.key, str(text), getattr(text, "instruction", None), weight))
    key = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return Record(key, picture.load, picture, text, weight)


Item = str | Image.Image | Picture
T = TypeVar("T")
TextEncoder = Callable[[list[str]], np.ndarray]
ImageEncoder = Callable[[list[Image.Image]], np.ndarray]


def key_of(item: Item) -> Hashable:
    """What makes two items the same: a text's characters, a ``Picture``'s key, a PIL image's identity."""
    return id(item) if isinstance(item, Image.Image) else item


def content_of(item: Item) -> bytes:
    """What an item is, as bytes to hash: a text as the data have it, without its prompt; a picture by its key.

    >>> content_of("a cat"), content_of(Picture("a1", lambda: Image.new("RGB", (2, 2))))
    (b'text a cat', b'picture a1')
    """
    if isinstance(item, str):
        return b"text " + str(getattr(item, "bare", item)).encode("utf-8", "surrogatepass")
    if isinstance(item, Record):
        return f"record {item.weight} ".encode() + content_of(item.picture) + b" " + content_of(item.text)
    if isinstance(item, Picture):
        return b"picture " + item.key.encode()
    return f"image {item.mode} {item.size} ".encode() + item.tobytes()


def opened(item: Item) -> Image.Image:
    """The image of a picture, decoded if it has to be.

    Raises:
        TypeError: the item is a text.
    """
    if isinstance(item, str):
        raise TypeError(f"{item[:60]!r} is a text, not a picture.")
    return item.load() if isinstance(item, Picture) else item


def is_text(item: Item) -> bool:
    """Texts and pictures are the two kinds of items."""
    return isinstance(item, str)


class Rows:
    """Vectors of some items, read in blocks, so that no second copy of a million candidates is made.

    ``block(start, stop)`` gives (stop - start, dim) float32; with ``norms`` they are divided by them.
    """

    def __init__(self, stored: np.ndarray, index: np.ndarray | None = None, norms: np.ndarray | None = None) -> None:
        self.stored, self.index, self.norms = stored, index, norms

    def __len__(self) -> int:
        return len(self.stored if self.index is None else self.index)

    def block(self, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
        """Rows ``start`` to ``stop``, the last not included; a copy is made in ``into`` if that is given."""
        own = slice(start, min(stop, len(self)))
        if self.index is None:
            return self._read(own, own, into)
        places = self.index[own]
        first, count = int(places[0]) if len(places) else 0, len(places)
        in_order = count > 0 and places[-1] - first == count - 1 and bool((np.diff(places) == 1).all())
        return self._read(slice(first, first + count) if in_order else places, own, into)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows at these places, in this order."""
        return self._read(places if self.index is None else self.index[places], places)

    def whole(self) -> np.ndarray:
        """All rows: a copy, unless they are plain float32 rows as stored."""
        return self.block(0, len(self))

    def _read(self, places: slice | np.ndarray, own: slice | np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        rows = self.stored[places].astype(np.float32, copy=False)
        if self.norms is None:
            return rows
        return np.divide(rows, self.norms[own, None], out=None if into is None else into[: len(rows)])


class Embeddings:
    """Vectors of distinct items: ``rows[places[key_of(item)]]``. Unit length is made where they are read.

    ``coded``: they are codes of few bits, which may all be equal although the vectors are not. Those are ranked, with
    ties against the model, and not refused: one sign a component tells little of a model that has just begun to learn.

    >>> two = Embeddings({"a": 0, "b": 1}, np.array([[3.0, 4.0], [0.0, 2.0]]))
    >>> two.of(["b", "a"], "example").tolist()
    [[0.0, 1.0], [0.6..., 0.8...]]
    """

    def __init__(self, places: Mapping[Hashable, int], rows: np.ndarray, coded: bool = False) -> None:
        self.places, self.rows, self.coded = places, rows, coded

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.rows.shape[1]

    def truncated(self, dim: int) -> "Embeddings":
        """The first ``dim`` components of each, as Matryoshka embeddings are used; ``of`` normalises them again."""
        if not 0 < dim <= self.dim:
            raise ValueError(
                f"truncate_dims holds {dim}, but the embeddings have {self.dim} dimensions; use 1 to {self.dim}"
            )
        return Embeddings(self.places, self.rows[:, :dim])

    def quantized(self, precision: str, items: Sequence[Item]) -> "Embeddings":
        """These items in fewer bits, see ``precisions.codes``; int8 takes its ranges from these items alone."""
        keys = list(dict.fromkeys(map(key_of, items)))
        rows = self._rows(keys, f"of precision {precision}", items)
        return Embeddings({key: place for place, key in enumerate(keys)}, codes(rows, precision), coded=True)

    def of(self, items: Sequence[Item], where: str) -> np.ndarray:
        """(items, dim) unit vectors; refuses rows that are not finite or zero, and distinct items all alike."""
        return self.rows_of(items, where).whole()

    def rows_of(self, items: Sequence[Item], where: str) -> Rows:
        """The same as ``of``, to be read in blocks: the checks are made, the copy is not."""
        return self._rows([key_of(item) for item in items], where, items)

    def _rows(self, keys: list[Hashable], where: str, items: Sequence[Item]) -> Rows:
        index = np.fromiter((self.places[key] for key in keys), dtype=np.int64, count=len(keys))
        read = Rows(self.rows, index)
        norms, infinite = np.empty(len(index), np.float32), np.empty(len(index), bool)
        for start in range(0, len(index), CHECK_BLOCK):
            part = slice(start, start + CHECK_BLOCK)
            rows = read.block(start, start + CHECK_BLOCK)
            infinite[part] = ~np.isfinite(rows).all(axis=1)
            with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite are refused below
                norms[part] = np.linalg.norm(rows, axis=1)
        if infinite.any():
            raise ValueError(
                f"Task {where}: {infinite.sum()} of {len(index)} embeddings are not finite (first: "
                f"{_show(items, infinite)}). Look for empty inputs, a learning rate that is too high, or "
                "half-precision overflow."
            )
        zero = norms < 1e-12
        if zero.any():
            raise ValueError(
                f"Task {where}: {zero.sum()} of {len(index)} embeddings have norm zero (first: {_show(items, zero)}). "
                "They have no direction to compare; look for inputs that are masked out whole."
            )
        unit = Rows(self.rows, index, norms)
        if not self.coded and len(set(keys)) > 1 and _all_alike(unit):
            raise ValueError(
                f"Task {where}: all {len(index)} of {len(index)} embeddings are the same vector. The encoder has "
                "collapsed or ignores its input; a ranking of them would mean nothing."
            )
        return unit


def encode_items(
    encode_text: TextEncoder, encode_image: ImageEncoder, items: Iterable[Item], progress: bool = True
) -> Embeddings:
    """Encode every distinct item once: texts sorted by length, longest first, so that a batch has little padding."""
    distinct, records = parted(items)
    texts = sorted((item for item in distinct.values() if isinstance(item, str)), key=len, reverse=True)
    images = [item for item in distinct.values() if isinstance(item, Image.Image)]
    pictures = [item for item in distinct.values() if isinstance(item, Picture)]
    places: dict[Hashable, int] = {}
    rows = np.empty((0, 0), np.float32)
    widths: set[int] = set()
    with tqdm(total=len(distinct), desc="evaluating", unit="item", leave=False, disable=not progress) as bar:
        for block, vectors in _encoded(encode_text, encode_image, texts, images, pictures):
            widths.add(vectors.shape[1])
            if len(widths) > 1:
                raise ValueError(
                    f"Texts and images must share one space, but the encoders return widths {sorted(widths)}."
                )
            filled = len(places)
            if not filled:
                rows = np.empty((len(distinct), vectors.shape[1]), np.float32)
            rows[filled : filled + len(block)] = vectors
            places.update((key_of(item), filled + place) for place, item in enumerate(block))
            bar.update(len(block))
    return with_records(Embeddings(places, rows), records)


def parted(items: Iterable[Item]) -> tuple[dict[Hashable, Item], list[Record]]:
    """The distinct items that are encoded, by their keys, and the distinct records, whose parts are among them."""
    distinct: dict[Hashable, Item] = {}
    records: dict[Record, None] = {}
    for item in items:
        if isinstance(item, Record):
            records[item] = None
        for part in (item.picture, item.text) if isinstance(item, Record) else (item,):
            distinct[key_of(part)] = part
    return distinct, list(records)


def with_records(embeddings: Embeddings, records: Sequence[Record]) -> Embeddings:
    """The vectors with those of records: of their parts, each of unit length, by the records' weights."""
    if not records:
        return embeddings
    weights = np.array([record.weight for record in records], np.float32)[:, None]
    fused = weights * embeddings.of([record.picture for record in records], "records, pictures")
    fused += (1 - weights) * embeddings.of([record.text for record in records], "records, texts")
    count = len(embeddings.rows)
    places = dict(embeddings.places)
    places |= {record: count + place for place, record in enumerate(records)}
    return Embeddings(places, np.concatenate([embeddings.rows, fused]))


def _encoded(
    encode_text: TextEncoder,
    encode_image: ImageEncoder,
    texts: list[str],
    images: list[Image.Image],
    pictures: list[Picture],
) -> Iterator[tuple[Sequence[Item], np.ndarray]]:
    for part in _blocks(texts, ENCODE_BLOCK):
        yield part, _checked("encode_text", encode_text(part), len(part))
    for shown in _blocks(images, ENCODE_BLOCK):
        yield shown, _checked("encode_image", encode_image(shown), len(shown))
    for stored in _blocks(pictures, DECODE_BLOCK):
        yield stored, _checked("encode_image", encode_image([picture.load() for picture in stored]), len(stored))


def _checked(name: str, returned: np.ndarray, count: int) -> np.ndarray:
    rows = np.asarray(returned)
    if rows.ndim != 2 or len(rows) != count:
        raise ValueError(f"{name} returned shape {rows.shape} for {count} items; expected (n, dim).")
    return rows


def _all_alike(rows: Rows) -> bool:
    first = rows.block(0, 1)
    blocks = range(0, len(rows), CHECK_BLOCK)
    return all(np.abs(rows.block(start, start + CHECK_BLOCK) - first).max() < TIE_TOLERANCE for start in blocks)


def _blocks(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _show(items: Sequence[Item], bad: np.ndarray) -> str:
    item = items[int(np.argmax(bad))]
    if isinstance(item, str):
        return repr(item[:60])
    return f"picture {item.key[:12]}" if isinstance(item, Picture) else "an image"


def refuse_empty(name: str, side: str, items: Sequence[Item]) -> None:
    """Refuse a side of a task that has no items, or blank texts."""
    empty = sum(isinstance(item, str) and not item.strip() for item in items)
    if empty or not items:
        raise ValueError(f"Task {name!r}: {empty} of {len(items)} {side} are empty; give at least one, none blank.")
