"""Random crops: torchvision's ranges, the same crop for the same row, another one in every epoch and for every seed.

The other changes of pictures and texts are in ``test_augmented_pictures`` and ``test_augmented_texts``.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.augmentation import crop_box, random_resized_crop
from trainer_ext.data.batches import JointCollator
from trainer_ext.data.plan import Key
from trainer_ext.recipe.stages import Stage


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (256, 256)])
def test_boxes_keep_to_the_ranges(size: tuple[int, int]) -> None:
    width, height = size
    boxes = np.array([crop_box(*size, (0.3, 0.6), np.random.default_rng(seed)) for seed in range(400)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 <= top.min()
    assert right.max() <= width
    assert bottom.max() <= height
    areas = (right - left) * (bottom - top) / (width * height)
    ratios = (right - left) / (bottom - top)
    assert 0.29 < areas.min() < 0.33
    assert 0.57 < areas.max() < 0.61
    assert 0.74 < ratios.min() < 0.80
    assert 1.25 < ratios.max() < 1.35
    assert len(np.unique(boxes, axis=0)) > 390
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("size", "box"), [((400, 20), (186, 0, 213, 20)), ((20, 400), (0, 186, 20, 213))])
def test_picture_that_is_too_long_gives_its_middle(size: tuple[int, int], box: tuple[int, ...]) -> None:
    assert crop_box(*size, (0.9, 1.0), np.random.default_rng(0)) == box


def test_nothing_outside_the_box_is_seen() -> None:
    picture = noise()
    box = crop_box(40, 30, (0.5, 0.6), np.random.default_rng(3))
    alone = Image.new("RGB", (40, 30), "white")
    alone.paste(picture.crop(box), box)
    found = [random_resized_crop(item, 16, (0.5, 0.6), np.random.default_rng(3)) for item in (picture, alone)]
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].size == (16, 16)


def test_palettes_are_mixed_as_colours() -> None:
    picture = Image.new("RGB", (40, 30), (200, 10, 10)).quantize(2)
    found = random_resized_crop(picture, 16, (0.9, 1.0), np.random.default_rng(0))
    assert found.convert("RGB").getpixel((8, 8)) == picture.convert("RGB").getpixel((8, 8))


def pixels(scale: list[float] | None, seed: int = 1, epoch: int = 0, index: int = 0) -> torch.Tensor:
    stage = Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, random_resized_crop=scale)
    key = Key(step=5, stage=0, side="image_text", source="s", epoch=epoch, index=index)
    row = {"image": noise(), "image_label": "one", "caption": "red", "key": key}
    return JointCollator(make_processor(), [stage], seed)([row])["image_text"]["pixel_values"]


def test_crop_is_drawn_from_seed_epoch_and_row() -> None:
    first = pixels([0.3, 0.6])
    assert first.shape == (1, 3, 16, 16)
    assert torch.equal(first, pixels([0.3, 0.6]))
    others = [pixels([0.3, 0.6], seed=2), pixels([0.3, 0.6], epoch=1), pixels([0.3, 0.6], index=1), pixels(None)]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("scale", [[0.0, 1.0], [0.9, 0.8], [0.5, 1.5], [0.9]])
def test_scale_that_is_no_range(scale: list[float]) -> None:
    with pytest.raises(ValueError, match="random_resized_crop"):
        Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, random_resized_crop=scale)
