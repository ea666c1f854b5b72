"""Items: pictures decoded only while they are encoded, each distinct one once, and vectors kept once."""

import numpy as np
import pytest
from PIL import Image

from trainer_ext.evaluation import items as module
from trainer_ext.evaluation.items import Picture, encode_items, is_text, key_of, opened
from trainer_ext.evaluation.tasks import evaluate, image_text_tasks, same_item_task


class Shelf:
    """Pictures that count how often they are decoded and how many are alive at once."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def picture(self, level: int, key: str | None = None) -> Picture:
        def load() -> Image.Image:
            self.decoded.append(level)
            return Image.new("L", (2, 2), level)

        return Picture(key or f"hash {level}", load)


def encode_image(images: list[Image.Image]) -> np.ndarray:
    angles = np.array([image.getpixel((0, 0)) for image in images]) / 50.0
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def encode_text(texts: list[str]) -> np.ndarray:
    angles = np.array([int(text.split()[0]) for text in texts]) / 50.0
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_pictures_are_decoded_block_by_block_and_once_each(monkeypatch):
    monkeypatch.setattr(module, "DECODE_BLOCK", 3)
    shelf, sizes = Shelf(), []

    def counted(images):
        sizes.append(len(images))
        return encode_image(images)

    pictures = [shelf.picture(level) for level in range(8)]
    again = [shelf.picture(level) for level in range(8)]  # other objects of the same content
    found = encode_items(encode_text, counted, [*pictures, "3 x", *again], progress=False)
    assert sizes == [3, 3, 2]
    assert shelf.decoded == list(range(8))
    assert found.rows.shape == (9, 2)
    np.testing.assert_array_equal(found.of(pictures, "a"), found.of(again, "b"))


def test_making_tasks_decodes_nothing():
    shelf = Shelf()
    tasks = [
        *image_text_tasks("shop", [shelf.picture(level) for level in range(5)], [[f"{level} a"] for level in range(5)]),
        same_item_task("shop", [shelf.picture(level) for level in range(4)], [["x"], ["x"], ["y"], ["y"]]),
    ]
    assert shelf.decoded == []
    metrics = evaluate(encode_text, encode_image, tasks[:2], progress=False)
    assert metrics["shop/t2i_r1"] == metrics["shop/i2t_r1"] == 1.0


def test_equal_pictures_are_one_image_with_the_captions_of_all_its_rows():
    shelf = Shelf()
    pictures = [shelf.picture(1), shelf.picture(2), shelf.picture(1)]
    to_images, to_texts = image_text_tasks("shop", pictures, [["1 a"], ["2 b"], ["1 c"]])
    assert to_images.candidates == pictures[:2]
    assert to_images.relevant == [[0], [1], [0]]
    assert to_texts.relevant == [[0, 2], [1]]
    images = [Image.new("L", (2, 2))] * 2
    assert len(image_text_tasks("pil", images, [["1 a"], ["1 b"]])[0].candidates) == 2, "a PIL image is told by its row"


def test_a_picture_that_cannot_be_decoded_and_bad_vectors_are_named():
    broken = Picture("abcdef0123456789", lambda: Image.new("L", (2, 2), 7))
    found = encode_items(
        encode_text, lambda images: np.full((len(images), 2), np.nan), [broken, "1 a", "2 b"], progress=False
    )
    with pytest.raises(ValueError, match=r"Task t: 1 of 2 embeddings are not finite \(first: picture abcdef012345\)"):
        found.of(["1 a", broken], "t")


def test_kinds_and_keys():
    picture, image = Picture("k", lambda: Image.new("L", (3, 3))), Image.new("L", (2, 2))
    assert [is_text(item) for item in ("a", picture, image)] == [True, False, False]
    assert opened(picture).size == (3, 3)
    assert opened(image) is image
    assert key_of(image) != key_of(image.copy())
    with pytest.raises(TypeError, match="'a' is a text, not a picture"):
        opened("a")


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_checks_look_at_every_block(monkeypatch, block):
    monkeypatch.setattr(module, "CHECK_BLOCK", block)
    texts = [f"{place} a" for place in range(10)]
    found = encode_items(encode_text, encode_image, texts, progress=False)
    np.testing.assert_allclose(np.linalg.norm(found.of(texts, "t"), axis=1), 1.0, rtol=1e-6)
    found.rows[found.places["7 a"]] = 0.0
    with pytest.raises(ValueError, match=r"1 of 10 embeddings have norm zero \(first: '7 a'\)"):
        found.of(texts, "t")
    found.rows[:] = 2.5
    found.rows[found.places["9 a"], 0] = 2.6
    assert found.of(texts, "t").shape == (10, 2), "the last one differs"
    found.rows[:] = 2.5
    with pytest.raises(ValueError, match="all 10 of 10 embeddings are the same vector"):
        found.of(texts, "t")
    found.rows[:, 0] += np.linspace(0.0, 0.1, 10)
    assert (found.quantized("binary", texts).of(texts, "t") > 0).all(), "codes may be alike where vectors are not"
