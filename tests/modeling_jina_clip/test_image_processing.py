"""Every way to hand over an image, and every broken one."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jina_clip import JinaCLIPImageProcessor, image_processing_jina_clip
from modeling_jina_clip.image_processing_jina_clip import open_image, to_rgb


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_one_picture_in_every_form(picture: Image.Image, tmp_path: Path) -> None:
    processor = JinaCLIPImageProcessor(size=32)
    array = np.asarray(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(png(picture))
    forms = [
        picture,
        array,
        array.transpose(2, 0, 1),
        torch.tensor(array),
        torch.tensor(array).permute(2, 0, 1).float() / 255,
        png(picture),
        path,
        str(path),
        "data:image/png;base64," + base64.b64encode(png(picture)).decode(),
    ]
    pixels = processor(forms, return_tensors="np")["pixel_values"]
    assert pixels.shape == (len(forms), 3, 32, 32)
    assert pixels.std() > 0.1
    for form, row in zip(forms, pixels, strict=True):
        np.testing.assert_array_equal(row, pixels[0], err_msg=type(form).__name__)
    batch = np.stack([array, array])
    assert processor(batch)["pixel_values"].shape == (2, 3, 32, 32)
    assert processor([])["pixel_values"].shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", 100), ("RGBA", 100), ("P", None), ("1", None), ("CMYK", None), ("LA", 100), ("I;16", 100)],
)
def test_modes_become_rgb(mode: str, expected: int | None) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 100 * 256 + 17, dtype=np.uint16))
    else:
        image = Image.new("RGB", (6, 4), (100, 100, 100)).convert(mode)
    pixels = to_rgb(image)
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    if expected is not None:
        assert (pixels == expected).all()


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert tuple(to_rgb(open_image(tmp_path / "two.gif"))[0, 0]) == (255, 0, 0)


def test_a_photograph_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter
    image.save(tmp_path / "sideways.jpg", exif=exif)
    assert open_image(tmp_path / "sideways.jpg").size == (4, 8)


@pytest.mark.parametrize(
    ("resize_mode", "corner"), [("shortest", (255, 255, 255)), ("longest", (7, 7, 7)), ("squash", (255, 255, 255))]
)
def test_resize_modes(resize_mode: str, corner: tuple[int, int, int]) -> None:
    processor = JinaCLIPImageProcessor(size=16, resize_mode=resize_mode, fill_color=7, mean=[0] * 3, std=[1] * 3)
    pixels = processor([Image.new("RGB", (32, 8), "white")])["pixel_values"][0]
    np.testing.assert_allclose(pixels[:, 0, 0] * 255, corner, atol=1e-4)
    np.testing.assert_allclose(pixels[:, 8, 8] * 255, (255, 255, 255), atol=1e-4)


def test_interpolation_and_size_are_read(picture: Image.Image) -> None:
    bicubic, nearest = (
        JinaCLIPImageProcessor(size=16, interpolation=name)([picture])["pixel_values"]
        for name in ("bicubic", "nearest")
    )
    assert np.abs(bicubic - nearest).max() > 0.1
    assert JinaCLIPImageProcessor(size={"height": 16, "width": 16}).size == 16
    assert JinaCLIPImageProcessor(size=16)([picture], size=24)["pixel_values"].shape[-1] == 24


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("https://example.com/cat.png", ValueError, "is a URL, and URLs are not fetched"),
        ("file:///etc/hostname", ValueError, "is a URL"),
        ("no/such/file.png", FileNotFoundError, "no image file at 'no/such/file.png'"),
        (b"not an image", ValueError, "12 bytes is not an image"),
        ("data:image/png,abc", ValueError, "must look like data:image/png;base64"),
        ("data:image/png;base64,????", ValueError, "broken base64"),
        (np.zeros((2, 2, 7), dtype=np.uint8), ValueError, r"shape \(2, 2, 7\) is not an image"),
        (np.full((2, 2, 3), 3.0), ValueError, r"float image must lie in \[0, 1\]"),
        (np.zeros((2, 2, 3), dtype=np.int64), ValueError, "must be uint8 or float"),
        (Image.new("I", (2, 2), 70000), ValueError, "has no fixed white"),
        ({"image": 3}, TypeError, "cannot read an image from dict"),
    ],
)
def test_what_is_no_image_is_refused_with_its_position(source, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="image 1: .*" + message):
        JinaCLIPImageProcessor(size=16)([Image.new("RGB", (4, 4)), source])


def test_truncated_and_oversized_files(picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(png(picture)[:1000])
    with pytest.raises(ValueError, match=r"half.png' cannot be decoded"):
        open_image(path)
    monkeypatch.setattr(image_processing_jina_clip, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="has 60 x 40 = 2400 pixels, above 100; shrink it"):
        open_image(png(picture))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=0 must be a positive int"),
        ({"size": {"height": 3, "width": 4}}, "is not one square side"),
        ({"resize_mode": "middle"}, "resize_mode='middle' is unknown"),
        ({"interpolation": "cubicle"}, "interpolation='cubicle' is unknown"),
    ],
)
def test_bad_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JinaCLIPImageProcessor(**values)


def test_unknown_call_arguments_are_refused(picture: Image.Image) -> None:
    with pytest.raises(TypeError, match=r"unknown arguments \['do_resize'\]"):
        JinaCLIPImageProcessor(size=16)([picture], do_resize=False)
