"""One vector for a picture and its text: the formula, records with one of the two, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_jina_clip import JinaCLIPModel, encode_record, fuse_vectors

TEXTS = ["red shoes", "a lamp", "two chairs"]


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0, 1])
def test_it_is_the_formula(model: JinaCLIPModel, pictures: list[Image.Image], weight: float) -> None:
    texts, images = model.encode_text(TEXTS), model.encode_image(pictures)
    expected = unit(weight * images + (1 - weight) * texts)
    found = encode_record(model, TEXTS, pictures, weight)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-7)
    np.testing.assert_allclose(fuse_vectors(texts, images, weight), expected, atol=2e-7)
    np.testing.assert_allclose(fuse_vectors(torch.tensor(3 * texts), images, weight), expected, atol=2e-7)
    np.testing.assert_allclose(encode_record(model, iter(TEXTS), pictures, weight, batch_size=1), expected, atol=1e-6)


def test_a_single_record_is_one_row(model: JinaCLIPModel, pictures: list[Image.Image], tmp_path: Path) -> None:
    whole = encode_record(model, TEXTS, pictures)
    np.testing.assert_allclose(encode_record(model, TEXTS[0], pictures[0]), whole[0], atol=1e-6)
    pictures[0].save(tmp_path / "1.png")
    np.testing.assert_allclose(encode_record(model, TEXTS[0], tmp_path / "1.png"), whole[0], atol=1e-6)
    np.testing.assert_array_equal(fuse_vectors(whole[0], whole[1]), fuse_vectors(whole[:1], whole[1:2])[0])
    assert encode_record(model, [], []).shape == (0, model.config.projection_dim)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_record_without_one_of_the_two_has_the_other(
    model: JinaCLIPModel, pictures: list[Image.Image], weight: float
) -> None:
    found = encode_record(model, [TEXTS[0], None, TEXTS[2]], [pictures[0], pictures[1], None], weight)
    np.testing.assert_allclose(found[0], encode_record(model, TEXTS[0], pictures[0], weight), atol=1e-6)
    np.testing.assert_allclose(found[1], model.encode_image(pictures[1]), atol=1e-6)
    np.testing.assert_allclose(found[2], model.encode_text(TEXTS[2]), atol=1e-6)


def test_the_finished_vector_is_cut(model: JinaCLIPModel, pictures: list[Image.Image]) -> None:
    whole = encode_record(model, TEXTS, pictures, 0.4)
    np.testing.assert_allclose(
        encode_record(model, TEXTS, pictures, 0.4, truncate_dim=8), unit(whole[:, :8]), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"truncate_dim"):
        encode_record(model, TEXTS, pictures, truncate_dim=10**6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_fused_vectors_are_unit_and_between(rows: int, width: int, weight: float, seed: int) -> None:
    texts, images = np.random.default_rng(seed).uniform(0.1, 1, (2, rows, width)).astype(np.float32)
    found = fuse_vectors(texts, images, weight)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cosines = [(found * unit(vectors)).sum(axis=1) for vectors in (texts, images)]
    between = (unit(texts) * unit(images)).sum(axis=1)
    assert all((cosine >= between - 1e-6).all() for cosine in cosines)
    np.testing.assert_allclose(fuse_vectors(texts, images, 0.0), unit(texts), atol=1e-6)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"weight": 1.5}, r"weight is 1\.5 and must be a number from 0 \(texts alone\) to 1"),
    ({"weight": "half"}, r"weight is 'half' and must be"),
    ({"weight": float("nan")}, r"weight is nan and must be"),
    ({"texts": TEXTS[:2]}, r"2 texts and 3 images; give one of each for a record, None for none"),
    ({"texts": [None, "x", "y"], "images": [None, None, None]}, r"record 0 has neither a text nor an image"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_what_is_no_record_is_named(
    model: JinaCLIPModel, pictures: list[Image.Image], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_record(model, **{"texts": TEXTS, "images": pictures, **changes})


def test_other_models_and_vectors_are_named(model: JinaCLIPModel) -> None:
    with pytest.raises(
        TypeError, match=r"model is a Linear .* give the vectors of texts and of images to fuse_vectors"
    ):
        encode_record(torch.nn.Linear(2, 2), TEXTS, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(2,\) and image_vectors \(1, 2\); give both as \(n, dim\)"):
        fuse_vectors([1.0, 0.0], [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"record 1: its vector has length zero"):
        fuse_vectors([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]])
