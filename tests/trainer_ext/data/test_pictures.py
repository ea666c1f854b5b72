"""Fast decoding: large JPEGs at a smaller size, never too small, and nearly the same; all else as in exact decoding."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.trainer_ext.source_files import PICTURE_COLUMNS, png
from tests.trainer_ext.tiny_run import make_processor, write_data, write_recipe
from trainer_ext.data import images
from trainer_ext.data.augmentation import crop_box
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.images import open_image, picture_of
from trainer_ext.data.pictures import PictureReader, least_side
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import Recipe, load_recipe, recipe_differences, recipe_fingerprint
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 95, "subsampling": 0} | options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# --- pixels ------------------------------------------------------------------------------------------------------


def test_an_eighth_is_the_mean_of_each_block() -> None:
    """Of 8 x 8 pixels the first wave alone is left, and that is their mean."""
    shades = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    large = jpeg(Image.fromarray(shades.repeat(8, axis=0).repeat(8, axis=1)), quality=100)
    found = np.asarray(picture_of(large, least_side=20))
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - shades).max() <= 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_the_shorter_side_keeps_what_is_needed(width: int, height: int, least: int) -> None:
    content = jpeg(noise(width, height))
    exact, fast = picture_of(content), picture_of(content, least_side=least)
    assert exact.size == (width, height)
    assert min(fast.size) >= min(least, width, height)
    factor = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) // least >= s)
    assert fast.size == (-(-width // factor), -(-height // factor))
    if factor == 1:
        assert fast.tobytes() == exact.tobytes()


@pytest.mark.parametrize("least", [64, 100, 224])
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs_are_nearly_the_same_at_the_models_size(name: str, least: int) -> None:
    content = jpeg(Image.fromarray(load_sample_image(name)).resize((1280, 854), Image.Resampling.BICUBIC))
    processor = make_processor().image_processor
    exact, fast = (
        processor.fitted([picture_of(content, least_side=side)], size=least)[0].astype(float) for side in (None, least)
    )
    assert 0 < np.abs(exact - fast).mean() < 4  # of 255


def test_other_files_and_small_pictures_are_as_they_are() -> None:
    still = [png(9, (400, 300)), jpeg(noise(40, 30))]
    for content in still:
        assert picture_of(content, least_side=24).tobytes() == picture_of(content).tobytes()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_any_jpeg_becomes_rgb(mode: str) -> None:
    content = jpeg(noise(320, 160).convert(mode))
    exact, fast = picture_of(content), picture_of(content, least_side=40)
    assert (exact.size, fast.size, fast.mode) == ((320, 160), (80, 40), "RGB")
    small = np.asarray(exact.resize((80, 40), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - np.asarray(fast)).mean() < 3


def test_turned_photographs_are_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(noise(320, 160), exif=exif)
    exact, fast = picture_of(content), picture_of(content, least_side=40)
    assert (exact.size, fast.size) == ((160, 320), (40, 80))
    assert np.abs(np.asarray(exact.resize((40, 80), Image.Resampling.BOX)).astype(int) - np.asarray(fast)).mean() < 3


def test_labels_are_of_the_content() -> None:
    stored = {"bytes": jpeg(noise(320, 160)), "path": None}
    assert open_image(stored)[1] == open_image(stored, least_side=16)[1]


@pytest.mark.parametrize(
    "content", [jpeg(noise(320, 160))[:-4000], b"\xff\xd8\xff not a picture", jpeg(noise(6000, 8))]
)
def test_what_exact_decoding_refuses_is_refused_in_the_same_words(content: bytes) -> None:
    words = []
    for least in (None, 4):
        with pytest.raises((OSError, ValueError)) as caught:
            picture_of(content, least_side=least)
        words.append(str(caught.value).split(" at 0x")[0])
    assert words[0] == words[1]


def test_pictures_above_pillows_own_limit_are_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(noise(320, 160))
    monkeypatch.setattr(images, "MOST_DRAFTED", 320 * 160 - 1)
    assert picture_of(content, least_side=40).size == (320, 160)
    monkeypatch.setattr(images, "MOST_DRAFTED", 320 * 160)
    assert picture_of(content, least_side=40).size == (80, 40)


# --- what a stage needs ------------------------------------------------------------------------------------------


def stage(**keys: Any) -> Stage:
    return Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, **keys)


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 200), st.floats(0.1, 1.0), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**32))
def test_a_crop_is_made_smaller_alone(size: int, low: float, wide: int, high: int, seed: int) -> None:
    """Of the smallest picture that decoding may leave, and of any larger one."""
    least = least_side(stage(random_resized_crop=[low, 1.0]), [size])
    left, top, right, bottom = crop_box(least + wide, least + high, (low, 1.0), np.random.default_rng(seed))
    assert min(right - left, bottom - top) >= size - 1  # a side is rounded


def test_stages_and_teachers_have_sizes_of_their_own() -> None:
    assert least_side(stage(), [64]) == 64
    assert least_side(stage(image_size=96), [64]) == 96
    assert least_side(stage(image_size=96), [64, 128]) == 128


@pytest.mark.parametrize("streaming", [False, True])
def test_training_opens_pictures_as_each_stage_needs_them(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    contents = [jpeg(noise(320, 160, seed)) for seed in range(6)]
    table = {"image": [{"bytes": one, "path": None} for one in contents], "text": [f"n {n}" for n in range(6)]}
    Dataset.from_dict(table).to_parquet(tmp_path / "photos.parquet")
    keys = {"task": "image-text", "format": "parquet", "columns": PICTURE_COLUMNS, "streaming": streaming}
    source = Source(name="pictures", location=str(tmp_path / "photos.parquet"), **keys)
    recipe = load_recipe(write_recipe(folder), ["image_decoding=fast"])  # pictures of 16, 24 and 16 pixels
    rows, processor = load_sources([source], seed=7), make_processor()
    reader = PictureReader(recipe, processor)
    fast, exact = (JointDataset([source], rows, 7, pictures=one) for one in (reader, None))
    collate = JointCollator(processor, recipe.stages)
    for number, size in enumerate([(40, 20), (80, 40), (40, 20)]):
        wanted = [Key(0, number, "image_text", "pictures", 0, index) for index in range(6)]
        there, here = fast.__getitems__(wanted), exact.__getitems__(wanted)
        assert [row["image"].size for row in there] == [size] * 6
        assert [row["image"].size for row in here] == [(320, 160)] * 6
        assert [row["image_label"] for row in there] == [row["image_label"] for row in here]
        pixels = [collate(found)["image_text"]["pixel_values"].numpy().astype(int) for found in (there, here)]
        assert 0 < np.abs(pixels[0] - pixels[1]).mean() < 4


# --- the key -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return write_recipe(tmp_path)


def test_exact_is_the_default_and_of_the_same_runs(recipe: Path) -> None:
    plain, exact, fast = (
        load_recipe(recipe, [f"image_decoding={word}"] if word else []) for word in ("", "exact", "fast")
    )
    assert plain == exact
    assert recipe_fingerprint(plain) == recipe_fingerprint(exact) != recipe_fingerprint(fast)
    assert recipe_differences(plain, fast) == ["image_decoding: absent -> 'fast'"]
    older = plain.model_dump()
    del older["image_decoding"]
    assert Recipe.model_validate(older) == plain


def test_wrong_words_and_runs_without_pictures_are_refused(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"image_decoding: .*'exact' or 'fast'"):
        load_recipe(recipe, ["image_decoding=quick"])
    alone = [f"stages.{number}.image_text=null" for number in range(3)]
    with pytest.raises(ValueError, match=r"image_decoding: is 'fast', but no stage has pictures\. Take it out"):
        load_recipe(recipe, ["image_decoding=fast", *alone])
