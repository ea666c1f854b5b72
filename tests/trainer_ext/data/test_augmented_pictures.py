"""Flip, colour jitter, greyscale and blur: each by its definition, drawn from seed, source, epoch and row alone."""

import colorsys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.augmentation import augmented_picture, color_jittered, row_generator
from trainer_ext.data.batches import JointCollator
from trainer_ext.data.plan import Key
from trainer_ext.recipe.picture_checks import augmentation_problems
from trainer_ext.recipe.stages import Augmentation, ColorJitter, Stage

ALL = Augmentation(horizontal_flip=0.5, color_jitter=ColorJitter(), grayscale=0.3, gaussian_blur=0.5)
STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def noise(side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def key(index: int = 0, epoch: int = 0) -> Key:
    return Key(step=5, stage=0, side="image_text", source="s", epoch=epoch, index=index)


def draws(index: int = 0, seed: int = 1) -> Callable[[str], np.random.Generator]:
    return partial(row_generator, seed, key(index))


def stage(augmentation: Augmentation | None, **keys: Any) -> Stage:
    return Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, augmentation=augmentation, **keys)


def batch(augmentation: Augmentation | None, keys: list[Key], seed: int = 1, **stage_keys: Any) -> dict[str, Any]:
    rows = [
        {"image": Image.fromarray(noise(seed=one.index)), "image_label": f"{one.index}", "caption": "red", "key": one}
        for one in keys
    ]
    return JointCollator(make_processor(), [stage(augmentation, **stage_keys)], seed)(rows)["image_text"]


def pixels(*arguments: Any, **keys: Any) -> torch.Tensor:
    return batch(*arguments, **keys)["pixel_values"]


def grey(values: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601-2, as Pillow has it, to one level."""
    return values.astype(float) @ (0.299, 0.587, 0.114)


# --- definitions -------------------------------------------------------------------------------------------------


def test_a_flip_is_left_to_right() -> None:
    found = augmented_picture(noise(), draws(), Augmentation(horizontal_flip=1.0))
    assert (found == noise()[:, ::-1]).all()


def test_greyscale_is_the_luma_in_all_colours() -> None:
    found = augmented_picture(noise(), draws(), Augmentation(grayscale=1.0))
    assert np.ptp(found, axis=-1).max() == 0
    assert np.abs(found[..., 0] - grey(noise())).max() <= 1


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("side", [112, 224, 448])
def test_blur_spreads_an_edge_by_a_deviation_in_proportion_to_the_picture(index: int, side: int) -> None:
    sigma = draws(index)("gaussian_blur/sigma").uniform(0.1, 2.0) * side / 224
    edge = np.zeros((side, side, 3), dtype=np.uint8)
    edge[:, side // 2 :] = 255
    found = augmented_picture(edge, draws(index), Augmentation(gaussian_blur=1.0)).astype(float)
    assert (found == found[:1, :, :1]).all()
    spread = np.diff(found[0, :, 0]) / 255
    places = np.arange(len(spread))
    assert spread.min() >= 0
    assert np.sum(spread * (places - np.sum(spread * places)) ** 2) == pytest.approx(sigma**2, rel=0.1, abs=0.02)


def test_blur_is_gaussian() -> None:
    index = next(index for index in range(99) if draws(index)("gaussian_blur/sigma").uniform(0.1, 2.0) > 1.5)
    sigma = draws(index)("gaussian_blur/sigma").uniform(0.1, 2.0)
    found = augmented_picture(noise(224), draws(index), Augmentation(gaussian_blur=1.0)).astype(float)
    expected = gaussian_filter(noise(224).astype(float), (sigma, sigma, 0))
    assert np.abs(found - expected)[8:-8, 8:-8].mean() < 3  # Pillow's is three box blurs
    assert np.abs(noise(224) - expected).mean() > 50


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_are_blended_with_a_factor(name: str, seed: int) -> None:
    jitter = ColorJitter(**STILL | {name: 0.4})
    generator = np.random.default_rng(seed)
    factors = {}
    for each in ("brightness", "contrast", "saturation"):
        strength = getattr(jitter, each)
        factors[each] = generator.uniform(1 - strength, 1 + strength)
    whole = noise().astype(float)
    other = {
        "brightness": np.zeros_like(whole),
        "contrast": np.full_like(whole, np.round(grey(noise()).mean())),
        "saturation": grey(noise())[..., None] * np.ones(3),
    }[name]
    found = np.asarray(color_jittered(Image.fromarray(noise()), jitter, np.random.default_rng(seed)))
    expected = np.clip(other + factors[name] * (whole - other), 0, 255)
    assert np.abs(found - expected).max() <= 2
    assert not (found == noise()).all()


@pytest.mark.parametrize("seed", range(4))
def test_hue_turns_and_leaves_the_value(seed: int) -> None:
    found = color_jittered(Image.fromarray(noise()), ColorJitter(**STILL | {"hue": 0.3}), np.random.default_rng(seed))
    generator = np.random.default_rng(seed)
    turn = [generator.uniform() for _ in range(3)] and generator.uniform(-0.3, 0.3)
    for before, after in zip(noise().reshape(-1, 3) / 255, np.asarray(found).reshape(-1, 3) / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert np.abs(np.array(expected) - after).max() < 0.05
        assert max(after) == pytest.approx(value, abs=0.005)


def test_strengths_above_one_never_give_negative_factors() -> None:
    jitter = ColorJitter(**STILL | {"brightness": 5.0})
    found = [color_jittered(Image.fromarray(noise()), jitter, np.random.default_rng(seed)) for seed in range(30)]
    assert all(np.asarray(one).mean() >= 0 for one in found)


# --- what decides them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [None, [0.5, 0.6]])
@pytest.mark.parametrize("jitter", [None, ColorJitter(probability=0.0)])
def test_probability_nought_is_the_same_to_the_bit(crop: list[float] | None, jitter: ColorJitter | None) -> None:
    keys = [key(index) for index in range(5)]
    plain = batch(None, keys, random_resized_crop=crop)
    still = batch(Augmentation(color_jitter=jitter), keys, random_resized_crop=crop)
    assert plain.keys() == still.keys()
    assert all(torch.equal(plain[name], still[name]) for name in plain)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_row_is_the_same_whatever_is_beside_it(places: list[tuple[int, int]], seed: int) -> None:
    """So on any number of processes, in any worker, and after a resume."""
    keys = [key(index % 50, epoch) for index, epoch in places]
    together = pixels(ALL, keys, seed)
    alone = torch.cat([pixels(ALL, [one._replace(step=9)], seed) for one in keys])
    assert torch.equal(together, alone)


def test_rows_epochs_and_seeds_differ() -> None:
    images = {pixels(ALL, [key(0, epoch)], seed).numpy().tobytes() for epoch in range(8) for seed in range(3)}
    assert len(images) > 18


def test_each_change_has_random_numbers_of_its_own() -> None:
    """Which pictures are flipped does not depend on whether others are switched on, nor crops on flips."""
    keys = [key(index) for index in range(30)]
    flip, both = (Augmentation(horizontal_flip=0.5, grayscale=value) for value in (0.0, 1.0))
    flipped = (pixels(flip, keys) != pixels(None, keys)).flatten(1).any(1)
    grey_alone, with_flips = pixels(Augmentation(grayscale=1.0), keys), pixels(both, keys)
    assert 8 < flipped.sum() < 22
    assert torch.equal(flipped, (with_flips != grey_alone).flatten(1).any(1))
    crops = [pixels(spec, keys, random_resized_crop=[0.3, 0.6]) for spec in (None, Augmentation(horizontal_flip=1.0))]
    assert torch.equal(crops[0].flip(-1), crops[1])


@pytest.mark.parametrize("name", ["horizontal_flip", "grayscale", "gaussian_blur", "color_jitter"])
def test_changes_happen_as_often_as_asked(name: str) -> None:
    spec = Augmentation(**{name: ColorJitter(probability=0.3) if name == "color_jitter" else 0.3})
    content = noise(64)
    changed = sum(not (augmented_picture(content, draws(index), spec) == content).all() for index in range(1000))
    assert abs(changed - 300) < 60  # four deviations


def test_pictures_of_any_mode_and_size_come_through() -> None:
    rows = [
        {
            "image": Image.new(mode, (31, 17), 9 if mode == "L" else None),
            "image_label": mode,
            "caption": "a",
            "key": key(i),
        }
        for i, mode in enumerate(("RGB", "L", "RGBA", "P"))
    ]
    spec = Augmentation(
        horizontal_flip=1.0, color_jitter=ColorJitter(probability=1.0), grayscale=1.0, gaussian_blur=1.0
    )
    found = JointCollator(make_processor(), [stage(spec)], 1)(rows)["image_text"]["pixel_values"]
    assert (found.shape, found.dtype) == ((4, 3, 16, 16), torch.uint8)


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"grayscale": -0.1}, "grayscale"),
        ({"gaussian_blur": float("nan")}, "gaussian_blur"),
        ({"color_jitter": {"hue": 0.6}}, "hue"),
        ({"color_jitter": {"contrast": -1.0}}, "contrast"),
        ({"flip": 0.5}, "flip"),
        ({"word_deletion": 1.0}, "word_deletion"),
        ({"word_swap": "some"}, "word_swap"),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=place):
        Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, augmentation=keys)


def test_what_has_no_effect_is_refused_with_the_cure() -> None:
    pictures = {"sources": ["s"], "batch_size": 4}
    scored = {"text": {"sources": ["t"], "batch_size": 4, "loss": "cosent", "temperature": 0.05}}
    found = [
        [*augmentation_problems("x", stage(Augmentation(**spec), **sides))]
        for spec, sides in [
            ({"grayscale": 0.1}, {"text": pictures}),
            ({"color_jitter": ColorJitter(**STILL)}, {"image_text": pictures}),
            ({"word_swap": 0.1}, scored),
            ({"word_swap": 0.1, "grayscale": 0.1}, {"image_text": pictures, "text": pictures}),
        ]
    ]
    assert found == [
        [("x.grayscale", "changes pictures, and this stage has none. Take it out, or add image_text or images.")],
        [("x.color_jitter", "has no strength above 0, so it changes nothing. Give one, or take it out.")],
        [
            (
                "x.word_swap",
                "changes texts whose scores are of them as they stand. Take it out, or give scored pairs another "
                "stage.",
            )
        ],
        [],
    ]
