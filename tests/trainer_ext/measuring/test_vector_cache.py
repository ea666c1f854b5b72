"""Kept vectors: what was encoded once is not encoded again, whatever else is asked for; damaged files are named."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer_ext.evaluation.items import Picture, encode_items, key_of
from trainer_ext.measuring import vector_cache
from trainer_ext.measuring.models import Encoders
from trainer_ext.measuring.texts import Instructed
from trainer_ext.measuring.vector_cache import VectorCache


class Counting:
    """A model that counts what it encodes; ``seed`` makes it another one."""

    def __init__(self, seed: int = 0) -> None:
        self.seen: list[str] = []
        self.seed = seed
        self.encoders = Encoders("m", self.text, self.image, 4, None, None, f"print-{seed}")

    def text(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += [f"{getattr(text, 'instruction', '')}{text}" for text in texts]
        return np.array([[len(text), ord(text[0]), self.seed, 1.0] for text in texts])

    def image(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += [str(image.getpixel((0, 0))) for image in images]
        return np.array([[float(image.getpixel((0, 0))), 2.0, self.seed, 1.0] for image in images])


def shade(level: int) -> Picture:
    return Picture(f"key{level}", lambda: Image.new("L", (2, 2), level))


ITEMS = ["aa", "b", shade(3), "cccc", shade(7), Instructed("b", "query")]


def test_the_second_time_nothing_is_encoded_and_the_vectors_are_equal(tmp_path: Path) -> None:
    model = Counting()
    plain = encode_items(model.text, model.image, ITEMS, progress=False)
    model.seen.clear()
    for encoded in (6, 0):
        cache = VectorCache(tmp_path, model.encoders)
        found = cache.embeddings([*ITEMS, *ITEMS], progress=False)
        assert (cache.encoded, cache.read, len(model.seen)) == (encoded, 6 - encoded, 6)
        for item in ITEMS:
            assert np.array_equal(found.rows[found.places[key_of(item)]], plain.rows[plain.places[key_of(item)]])


def test_only_what_is_new_is_encoded(tmp_path: Path) -> None:
    model = Counting()
    VectorCache(tmp_path, model.encoders).embeddings(["aa", shade(3)], progress=False)
    model.seen.clear()
    cache = VectorCache(tmp_path, model.encoders)
    cache.embeddings(ITEMS, progress=False)
    assert sorted(model.seen) == ["7", "b", "cccc", "queryb"]
    cache.embeddings(ITEMS, progress=False)
    assert cache.encoded == 0, "a cache sees what it has written itself"


def test_models_do_not_share_vectors(tmp_path: Path) -> None:
    for seed in (0, 1):
        found = VectorCache(tmp_path, Counting(seed).encoders).embeddings(["aa"], progress=False)
        assert found.rows[0].tolist() == [2, 97, seed, 1]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "KEEP_EVERY", 2)
    model = Counting()
    broken = Picture("broken", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        VectorCache(tmp_path, model.encoders).embeddings([*ITEMS, broken], progress=False)
    model.seen.clear()
    cache = VectorCache(tmp_path, model.encoders)
    cache.embeddings(ITEMS, progress=False)
    assert (cache.encoded, model.seen) == (0, [])


def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path) -> None:
    model = Counting()
    VectorCache(tmp_path, model.encoders).embeddings(["aa"], progress=False)
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read .* Delete it; its vectors"):
        VectorCache(tmp_path, model.encoders).embeddings(["aa"], progress=False)
