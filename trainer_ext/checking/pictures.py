"""Pictures of a source: sizes, modes, which way up, transparency, and hashes by which alike ones are found.

A picture is decoded once, by the model's own opener, and forgotten: kept are some 90 bytes of facts. Two pictures are
nearly equal if their perceptual hashes (``imagehash.phash``, 64 bits of the coarse shapes in grey) differ in at most
``NEAR_BITS`` bits and their colours, in 4 x 4 squares, nowhere by more than ``NEAR_COLOUR`` of 255.

Bands for ``alike``: of two hashes that differ in 4 bits at most, cut into 7 pieces, 3 pieces or more are equal. Each of
the 35 choices of 3 pieces is a band, so none of these pairs is missed, and 27 bits of a band keep others apart.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from trainer_ext.checking.alike import Grown
from trainer_ext.checking.findings import Finding, share
from trainer_ext.checking.texts import Place
from trainer_ext.data.images import inspect_image
from trainer_ext.recipe.stages import Stage

NEAR_BITS, NEAR_COLOUR = 4, 16
_SQUARES = 4
# Sides beyond this ratio lose more than half of the picture in a centre crop.
LONG_SIDES = 2.0
# Smaller than this part of the model's side, a picture is mostly invented by enlarging it.
SMALL = 0.5
# Share of a source's pictures from which this is a warning.
MUCH = 0.1

_EDGES = np.linspace(0, 64, NEAR_BITS + 4).astype(int)
_PIECES = [sum(1 << bit for bit in range(begin, end)) for begin, end in pairwise(_EDGES)]
MASKS = np.array([sum(pieces) for pieces in combinations(_PIECES, 3)], dtype=np.uint64)


class PictureFacts(NamedTuple):
    """What is kept of a picture: ``label`` and ``pixels`` are hashes of its file and of its RGB values."""

    width: int
    height: int
    mode: str
    turned: bool
    transparent: bool
    blank: bool
    label: int
    pixels: int
    shape: int
    colours: np.ndarray  # (48,) uint8


def picture_facts(stored: Mapping[str, Any]) -> PictureFacts:
    """Decode a stored picture and look at it. Raises what ``inspect_image`` raises."""
    seen = inspect_image(stored)
    label = int(seen.label.rpartition("/")[2][:16], 16)
    return facts_of(seen.picture, label, seen.mode, seen.turned, seen.transparent)


def facts_of(
    picture: Image.Image, label: int = 0, mode: str = "RGB", turned: bool = False, transparent: bool = False
) -> PictureFacts:
    """The facts of a decoded picture, of whose transparency the colour below counts, as published."""
    picture = picture.convert("RGB")
    content = np.asarray(picture)
    pixels = hashlib.blake2b(f"{picture.size}".encode() + content.tobytes(), digest_size=8).digest()
    return PictureFacts(
        *picture.size,
        mode=mode,
        turned=turned,
        transparent=transparent,
        blank=bool((content == content[0, 0]).all()),
        label=label,
        pixels=int.from_bytes(pixels, "little"),
        shape=_shape_hash(picture),
        colours=np.asarray(picture.resize((_SQUARES, _SQUARES), Image.Resampling.BOX)).reshape(-1),
    )


def _shape_hash(picture: Image.Image) -> int:
    try:
        from imagehash import phash
    except ImportError as error:
        raise ImportError("check compares pictures with the package imagehash: pip install '.[check]'.") from error
    # Made smaller by squares first: a hash of the coarse shapes, in a tenth of the time of a large picture.
    factor = max(1, min(picture.size) // 128)
    bits = phash(picture.reduce(factor) if factor > 1 else picture).hash.reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes())


class Pictures:
    """The facts of all pictures of a source, as arrays over pictures, with their rows' numbers."""

    def __init__(self) -> None:
        self.modes: Counter[str] = Counter()
        self.turned = 0
        self.firsts: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._rows, self._sizes, self._hashes, self._colours = Grown(), Grown(), Grown(), Grown()

    def add(self, facts: Sequence[PictureFacts], rows: Sequence[int]) -> None:
        """Take note of pictures, each with its row's number."""
        if not facts:
            return
        for one, row in zip(facts, rows, strict=True):
            self.modes[one.mode] += 1
            self.turned += one.turned
            for name in ("transparent", "blank"):
                if getattr(one, name):
                    self.counts[name] += 1
                    self.firsts.setdefault(name, row)
        self._rows.add(np.array(rows, np.int64))
        self._sizes.add(np.array([[one.width, one.height] for one in facts], np.int32))
        self._hashes.add(np.array([[one.label, one.pixels, one.shape] for one in facts], np.uint64))
        self._colours.add(np.stack([one.colours for one in facts]))

    def __len__(self) -> int:
        return len(self._rows.values)

    @property
    def rows(self) -> np.ndarray:
        """(pictures,) numbers of rows."""
        return self._rows.values

    @property
    def sizes(self) -> np.ndarray:
        """(pictures, 2) width and height."""
        return self._sizes.values.reshape(-1, 2)

    @property
    def labels(self) -> np.ndarray:
        """(pictures,) hashes of their files."""
        return self._hash(0)

    @property
    def pixels(self) -> np.ndarray:
        """(pictures,) hashes of their pixels."""
        return self._hash(1)

    @property
    def shapes(self) -> np.ndarray:
        """(pictures,) perceptual hashes."""
        return self._hash(2)

    def _hash(self, which: int) -> np.ndarray:
        return self._hashes.values.reshape(-1, 3).astype(np.uint64)[:, which]

    @property
    def colours(self) -> np.ndarray:
        """(pictures, 48) colours of the squares."""
        return self._colours.values.reshape(-1, 3 * _SQUARES**2)

    def bands(self) -> Iterator[np.ndarray]:
        """Parts of the perceptual hashes, each (pictures,), one at a time."""
        return (self.shapes & mask for mask in MASKS)

    def as_record(self) -> dict[str, Any]:
        """The figures of the report."""
        if not len(self):
            return {"pictures": 0}
        shortest = self.sizes.min(axis=1)
        return {
            "pictures": len(self),
            "different": len(np.unique(self.labels)),
            "shortest_side": {
                "smallest": int(shortest.min()),
                "median": int(np.median(shortest)),
                "largest": int(shortest.max()),
            },
            "modes": dict(self.modes.most_common()),
            "turned": self.turned,
            "transparent": self.counts["transparent"],
            "blank": self.counts["blank"],
        }


def nearly_equal(ours: Pictures, left: np.ndarray, theirs: Pictures, right: np.ndarray) -> np.ndarray:
    """Which pairs of pictures, by their places in two sources, are nearly equal."""
    close = np.bitwise_count(ours.shapes[left] ^ theirs.shapes[right]) <= NEAR_BITS
    apart = np.abs(ours.colours[left[close]].astype(np.int16) - theirs.colours[right[close]]).max(axis=1, initial=0)
    close[close] = apart <= NEAR_COLOUR
    return close


def picture_findings(
    source: str, column: str, pictures: Pictures, stages: Sequence[Stage], size: int, crops: bool, place: Place
) -> Iterator[Finding]:
    """What the pictures' sizes and modes mean for the stages that read them.

    Args:
        size: the side that the model has where a stage says nothing.
        crops: whether the model's processor cuts the middle out of a picture, as it does unless told otherwise.
        place: file and row of a row's number.
    """
    total = len(pictures)

    def found(kind: str, rows: np.ndarray | Sequence[int], count: int, words: str, level: Any) -> Finding:
        return Finding(
            level, kind, source, f"{share(count, total)} of the pictures {words}", *place(int(rows[0])), column
        )

    def much(count: int) -> str:
        return "warning" if count >= MUCH * total else "note"

    if count := pictures.counts["transparent"]:
        words = (
            "are transparent in places, and transparency is dropped: what lies under it, often black, is trained on. "
            "Put them on white before; the first is here."
        )
        yield found("transparent", [pictures.firsts["transparent"]], count, words, "warning")
    if count := pictures.counts["blank"]:
        words = "have one colour and show nothing. Remove their rows; the first is here."
        yield found("blank", [pictures.firsts["blank"]], count, words, "warning")
    shortest, longest = pictures.sizes.min(axis=1, initial=2**31 - 1), pictures.sizes.max(axis=1, initial=0)
    sides = {stage.image_size or size: stage.name for stage in reversed(stages)}
    for side, stage in sorted(sides.items()):
        small = np.flatnonzero(shortest < SMALL * side)
        if len(small):
            words = (
                f"have a side below {int(SMALL * side)} pixels, half of the {side} that the model sees in stage "
                f"{stage!r}: they come out blurred. Use larger ones, or a smaller image_size; the first is here."
            )
            yield found("small-picture", pictures.rows[small], len(small), words, much(len(small)))
    lost = np.flatnonzero(longest > LONG_SIDES * shortest)
    if len(lost) and crops and any(stage.random_resized_crop is None for stage in stages):
        words = (
            "are more than twice as long as wide, so that the crop shows less than half of them. Cut them to what "
            "their captions say; the first is here."
        )
        yield found("cropped", pictures.rows[lost], len(lost), words, much(len(lost)))
