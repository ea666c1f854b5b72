"""Transparent pictures: on the colour that the processor names, at every door; without one, as published."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor, open_image, save_published
from modeling_jina_clip import to_rgb as rgb_of

SIZE = (24, 20)


def stored(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def logo() -> Image.Image:
    """A black disc on nothing, where the colour below is black, too."""
    picture = Image.new("RGBA", SIZE)
    picture.paste((0, 0, 0, 255), (6, 5, 18, 15))
    return picture


def transparent_forms() -> dict[str, Any]:
    """The same black rectangle on nothing in every form that a file or an array gives it."""
    rgba = logo()
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(0, (6, 5, 18, 15))
    grey = Image.new("L", SIZE, 7)
    grey.paste(0, (6, 5, 18, 15))
    wide = Image.fromarray(np.where(np.asarray(grey) == 7, 1800, 0).astype(np.uint16))
    array = np.asarray(rgba)
    with_alpha = Image.new("PA", SIZE, (1, 0))  # not rgba.convert("PA"): before version 12 Pillow loses the alpha there
    with_alpha.putpalette([0, 0, 0, 255, 0, 0])
    with_alpha.paste((0, 255), (6, 5, 18, 15))
    return {
        "RGBA": rgba,
        "LA": rgba.convert("LA"),
        "PA": with_alpha,
        "La": rgba.convert("LA").convert("La"),
        "RGBa": rgba.convert("RGBa"),
        "png": stored(rgba, "PNG"),
        "webp": stored(rgba, "WEBP", lossless=True, exact=True),
        "tiff": stored(rgba, "TIFF"),
        "palette, one entry": stored(palette, "PNG", transparency=1),
        "palette, alpha of each": stored(palette, "PNG", transparency=b"\xff\x00"),
        "gif": stored(palette, "GIF", transparency=1),
        "grey, one value": stored(grey, "PNG", transparency=7),
        "16-bit grey, one value": stored(wide, "PNG", transparency=1800),
        "RGB, one value": stored(grey.convert("RGB"), "PNG", transparency=(7, 7, 7)),
        "array": array,
        "array, channels first": np.moveaxis(array, -1, 0),
        "float array": array / 255,
        "tensor": torch.tensor(array),
    }


@pytest.mark.parametrize("name", transparent_forms())
def test_every_form_lies_on_the_colour(name: str) -> None:
    picture = transparent_forms()[name]
    for background, colour in (("white", 255), ([9, 9, 9], 9), ((9, 9, 9), 9)):
        found = rgb_of(open_image(picture), background)
        expected = np.full((SIZE[1], SIZE[0], 3), colour, np.uint8)
        expected[5:15, 6:18] = 0
        np.testing.assert_array_equal(found, expected)


def test_without_a_colour_the_one_below_shows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    for picture in (pixels, Image.fromarray(pixels), stored(Image.fromarray(pixels), "PNG")):
        np.testing.assert_array_equal(rgb_of(open_image(picture)), pixels[..., :3])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), background=st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_half_transparent_is_half_way(seed: int, background: list[int]) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    share = pixels[..., 3:] / 255
    expected = pixels[..., :3] * share + np.array(background) * (1 - share)
    found = rgb_of(Image.fromarray(pixels), background)
    assert np.abs(found - expected).max() <= 1
    opaque = pixels.copy()
    opaque[..., 3] = 255
    np.testing.assert_array_equal(rgb_of(Image.fromarray(opaque), background), pixels[..., :3])


@settings(max_examples=60, deadline=None)
@given(
    value=st.one_of(
        st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(-3, 300), max_size=4)
    )
)
def test_any_other_background_is_one_line(value: Any) -> None:
    right = value == "white" or (isinstance(value, list) and len(value) == 3 and all(0 <= v <= 255 for v in value))
    if right:
        assert JinaCLIPImageProcessor(background=value).background == value
        return
    with pytest.raises(ValueError, match=r"background=.* must be 'white'") as caught:
        JinaCLIPImageProcessor(background=value)
    assert "\n" not in str(caught.value)


def test_the_configuration_keeps_it(golden: Path, tmp_path: Path) -> None:
    assert JinaCLIPImageProcessor.from_pretrained(golden / "tiny_model").background is None
    JinaCLIPImageProcessor(background=[1, 2, 3]).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["background"] == [1, 2, 3]
    assert JinaCLIPImageProcessor.from_pretrained(tmp_path).background == [1, 2, 3]
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"background": "pink"}))
    with pytest.raises(ValueError, match="background='pink' must be 'white'"):
        JinaCLIPImageProcessor.from_pretrained(tmp_path)


def test_all_doors_of_the_model_see_white(golden: Path, tmp_path: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    shown, hidden = model.encode_image([rgb_of(logo(), "white"), logo()])
    assert shown @ hidden < 0.999  # as published, the logo is a black tile
    model.processor = JinaCLIPProcessor(
        JinaCLIPImageProcessor(size=model.config.vision_config.image_size, background="white"),
        model.processor.tokenizer,
    )
    for picture in (logo(), stored(logo(), "PNG"), np.asarray(logo()), torch.tensor(np.asarray(logo()))):
        np.testing.assert_allclose(model.encode_image([picture])[0], shown, atol=1e-6)
    pixels = model.processor(images=[logo()], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**pixels).image_embeds[0].numpy(), shown, atol=1e-6)
    # Another runtime reads the published layout: it keeps the key, and ours the vectors.
    again = JinaCLIPModel.from_pretrained(save_published(model, tmp_path / "published")).eval()
    np.testing.assert_allclose(again.encode_image([logo()])[0], shown, atol=1e-6)
