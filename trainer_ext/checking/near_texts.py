"""Texts that are nearly equal: MinHash over pieces of five characters (Broder 1997), and its bands.

A text is the set of its pieces; likeness is the share of pieces that two texts have in common (Jaccard). MinHash keeps
``HASHES`` minima of the set; the share of equal minima is likeness, give or take 0.04. Kept is one byte of each, and
every four of them together are a band: two texts of likeness 0.8 have an equal one with a probability of 0.9998.

Written out here in numpy: datasketch's index of as many hashes keeps 3.5 KB for each text (measured by tracemalloc, on
texts of 20 words), and a text has 96 bytes here.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

HASHES, BANDS = 96, 16
# Likeness from which two texts are nearly equal.
NEARLY = 0.85
_PIECE = 5
_PAD = b"\0" * (_PIECE - 1)
_MULTIPLIERS, _SUMMANDS = np.random.default_rng(0x7E57).integers(1, 2**32, (2, HASHES), dtype=np.uint32)
_MULTIPLIERS |= np.uint32(1)


def plain(text: str) -> str:
    """A text without what makes no difference to a reader: case, kinds and numbers of spaces, forms of one letter.

    >>> plain("  A\\u00a0red\\n APPLE ")
    'a red apple'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> int:
    """A 64-bit number that is the same for equal texts."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """``text_key`` of each, (texts,) uint64."""
    return np.fromiter(map(text_key, texts), dtype=np.uint64, count=len(texts))


def sketches(texts: Sequence[str]) -> np.ndarray:
    """One byte of each minimum of ``plain`` texts, (texts, HASHES) uint8.

    >>> one, other, third = sketches(["a red apple on a table", "a red apple on the table", "two blue cats"])
    >>> float((one == other).mean()) > 0.4, float((one == third).mean()) < 0.2
    (True, True)
    """
    if not texts:
        return np.empty((0, HASHES), np.uint8)
    pieces, begins = _pieces(texts)
    minima, hashed = np.empty((HASHES, len(texts)), np.uint32), np.empty_like(pieces)
    for row, factor, summand in zip(minima, _MULTIPLIERS, _SUMMANDS, strict=True):
        np.multiply(pieces, factor, out=hashed)
        np.add(hashed, summand, out=hashed)
        np.minimum.reduceat(hashed, begins, out=row)
    return np.ascontiguousarray(_mixed(minima).astype(np.uint8).T)


def bands(minima: np.ndarray) -> Iterator[np.ndarray]:
    """Of the sketches (texts, HASHES) the bands, each (texts,) uint32, one at a time."""
    return iter(np.ascontiguousarray(minima).view(np.uint32)[:, :BANDS].T)


def likeness(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated likeness (n,) of texts by their minima (n, HASHES): of 256 bytes one is equal by chance."""
    equal = (left == right).mean(axis=1)
    return (equal - 1 / 256) / (1 - 1 / 256)


def _pieces(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint32) of all pieces of all texts, and where each text's begin; pieces of bytes, so of any script."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    sizes = np.array([len(text) for text in encoded])
    joined = np.frombuffer(_PAD.join(encoded) + 2 * _PAD, np.uint8).astype(np.uint64)
    hashed = np.zeros(len(joined) - _PIECE + 1, np.uint64)
    for place in range(_PIECE):
        hashed = hashed * np.uint64(1_099_511_628_211) + joined[place : len(joined) - _PIECE + 1 + place]
    hashed = (_mixed(hashed) >> np.uint64(32)).astype(np.uint32)
    counts = np.maximum(sizes - _PIECE + 1, 1)
    ends = np.cumsum(counts)
    begins = ends - counts
    starts = np.cumsum(sizes + len(_PAD)) - sizes - len(_PAD)
    return hashed[np.repeat(starts - begins, counts) + np.arange(ends[-1])], begins


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on all bits (the finaliser of splitmix64)."""
    mixed = values.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
