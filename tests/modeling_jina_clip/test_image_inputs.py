"""Pictures as they come from the world: every mode and format, hostile files, and what is no picture at all."""

import base64
import io
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from modeling_jina_clip import JinaCLIPImageProcessor, image_processing_jina_clip
from modeling_jina_clip.image_processing_jina_clip import open_image, to_rgb

SIDEWAYS, UPSIDE_DOWN = 6, 3  # values of the EXIF tag Orientation


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def steps() -> Image.Image:
    """Grey from 0 to 255, 16 x 16."""
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_are_what_pillow_converts(mode: str) -> None:
    """As the published preprocessing: ``convert("RGB")``, alpha dropped and not composited on anything."""
    image = steps().convert("RGB").convert(mode)
    np.testing.assert_array_equal(to_rgb(image), np.asarray(image.convert("RGB")))
    assert to_rgb(image).std() > 50


def test_grey_with_premultiplied_alpha_is_read_as_grey_with_alpha() -> None:
    """Pillow itself converts it to nothing but that."""
    grey = Image.new("LA", (4, 4), (200, 255))
    assert (to_rgb(grey.convert("La")) == to_rgb(grey)).all()
    assert (to_rgb(grey) == 200).all()


def test_alpha_is_dropped_as_in_the_published_preprocessing() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert (to_rgb(open_image(encoded(clear))) == (200, 100, 50)).all()
    assert (to_rgb(np.asarray(clear)) == (200, 100, 50)).all()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_a_palette_with_transparency(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    data = encoded(image, transparency=transparency)
    assert to_rgb(open_image(data))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = to_rgb(open_image(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels[..., 0], values >> 8)
    assert pixels.max() == 255
    assert (pixels == 255).mean() < 0.02  # clipping would make nearly all of it white


def test_sixteen_bits_of_the_other_byte_order() -> None:
    values = np.arange(0, 65536, 256, dtype=">u2").reshape(16, 16)
    image = Image.frombytes("I;16B", (16, 16), values.tobytes())
    np.testing.assert_array_equal(to_rgb(image)[..., 1], values >> 8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    path = tmp_path / "frames"
    frames[0].save(
        path, format=kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )
    assert tuple(to_rgb(open_image(path))[0, 0]) == (255, 0, 0)
    with Image.open(path) as image:
        assert image.n_frames == 3
        image.seek(1)  # a PIL image stays at the frame the caller chose
        assert tuple(to_rgb(open_image(image))[0, 0]) == (0, 0, 255)


@pytest.mark.parametrize(("orientation", "corner"), [(SIDEWAYS, (7, 0)), (UPSIDE_DOWN, (7, 3))])
def test_files_are_turned_upright_however_they_arrive(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel(corner, (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    image.save(path, exif=exif)
    upright = to_rgb(open_image(path))
    assert upright.shape[:2] == ((8, 4) if orientation == SIDEWAYS else (4, 8))
    # Sideways turns by a quarter clockwise: the end of the first row becomes the end of the last column.
    assert tuple(upright[-1, -1] if orientation == SIDEWAYS else upright[0, 0]) == (255, 255, 255)
    np.testing.assert_array_equal(to_rgb(open_image(path.read_bytes())), upright)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(to_rgb(open_image(opened)), upright)
    with Image.open(path) as opened:  # what the caller made of a file is taken as it is
        np.testing.assert_array_equal(to_rgb(open_image(opened.crop((0, 0, 8, 4)))), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
def test_truncated_files_of_every_format_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    whole = to_rgb(open_image(data))
    assert whole.shape == (48, 48, 3)
    for part in (0.1, 0.5, 0.9):
        cut = data[: int(len(data) * part)]
        with pytest.raises(ValueError, match=f"^{len(cut)} bytes (cannot be decoded|is not an image)"):
            open_image(cut)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_at_random_are_never_another_error_than_ours() -> None:
    chance = np.random.default_rng(0)
    noise = Image.fromarray(chance.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    outcomes = {"read": 0, "refused": 0}
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000", "TGA", "PCX"):
        data = bytearray(encoded(noise, kind))
        for _ in range(25):
            broken = bytearray(data)
            for place in chance.integers(0, min(len(data), 400), 4):
                broken[place] = chance.integers(0, 256)
            try:
                to_rgb(open_image(bytes(broken)))
                outcomes["read"] += 1
            except ValueError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces ``width`` x ``height`` pixels."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    buffer = io.BytesIO(PngImagePlugin._MAGIC)
    buffer.seek(0, io.SEEK_END)
    PngImagePlugin.putchunk(buffer, b"IHDR", size + b"\x08\x02\x00\x00\x00")
    PngImagePlugin.putchunk(buffer, b"IDAT", b"")
    PngImagePlugin.putchunk(buffer, b"IEND", b"")
    return buffer.getvalue()


def test_decompression_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"image 0: .*2500000000 pixels, above 178956970; shrink it"):
        JinaCLIPImageProcessor(size=16)([bomb(50_000, 50_000)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # somebody switched Pillow's own limit off
    with pytest.raises(ValueError, match=r"has 50000 x 50000 = 2500000000 pixels, above 178956970; shrink it"):
        open_image(bomb(50_000, 50_000))
    with Image.open(io.BytesIO(bomb(50_000, 50_000))) as opened:
        with pytest.raises(ValueError, match="PIL image has 50000 x 50000 = 2500000000 pixels"):
            open_image(opened)


def test_our_limit_is_pillows() -> None:
    assert 2 * Image.MAX_IMAGE_PIXELS - image_processing_jina_clip.MAX_PIXELS in (0, 1)


@pytest.mark.parametrize("size", [(2, 20_000), (20_000, 2)])
def test_a_sliver_that_would_be_blown_up_is_refused(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortest side 2 to 224 makes 112 times the length, and a picture of gigabytes from one of kilobytes."""
    monkeypatch.setattr(image_processing_jina_clip, "MAX_PIXELS", 10**8)
    sliver = Image.new("RGB", size)
    with pytest.raises(ValueError, match=r"image 0: .* pixels would become .*2240000.* resize_mode='shortest'; crop"):
        JinaCLIPImageProcessor(size=224)([sliver])
    assert JinaCLIPImageProcessor(size=224, resize_mode="squash")([sliver])["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.skipif(shutil.which("sh") is None, reason="puts a shell script in Ghostscript's place")
def test_a_file_that_pillow_would_give_to_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    data = encoded(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(ValueError, match=r"is a file of format EPS, which is not read; pass image\.convert"):
        open_image(data)
    with Image.open(io.BytesIO(data)) as opened:
        with pytest.raises(ValueError, match="PIL image is a file of format EPS"):
            JinaCLIPImageProcessor(size=16)([opened])
    assert not started.exists()


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("", FileNotFoundError, "no image file at '.'"),
        ("a red bus", FileNotFoundError, "no image file at 'a red bus'"),
        ("iVBORw0KGgo" * 1000, FileNotFoundError, r"iVBORw.*\.\.\.' is not a path"),
        ("~nobody-of-this-name/cat.png", FileNotFoundError, "is not a path: Could not determine home"),
        ("/dev/zero", FileNotFoundError, "no image file at '/dev/zero'"),
        (b"", ValueError, "0 bytes is not an image"),
        ("data:image/svg+xml;base64,PHN2Zy8+", ValueError, "is not an image in a known format"),
        (None, TypeError, "cannot read an image from NoneType"),
        (["a.png"], TypeError, "cannot read an image from list"),
        (3, TypeError, "cannot read an image from int"),
        (np.zeros(5, dtype=np.uint8), ValueError, r"shape \(5,\) is not an image"),
        (np.zeros((0, 4, 3), dtype=np.uint8), ValueError, r"shape \(0, 4, 3\) is not an image"),
        (np.zeros((1, 4, 4, 3), dtype=np.uint8), ValueError, r"shape \(1, 4, 4, 3\) is not an image"),
        (np.zeros((5, 5, 2), dtype=np.uint8), ValueError, r"shape \(5, 5, 2\) is not an image"),
        (np.zeros((4, 4), dtype=np.uint16), ValueError, r"uint8 or float in \[0, 1\], got uint16; divide by its white"),
        (np.zeros((4, 4), dtype=bool), ValueError, "got bool"),
        (np.full((4, 4, 3), 255.0), ValueError, r"must lie in \[0, 1\], got 255.0..255.0; divide by its white"),
        (np.full((4, 4, 3), -0.1), ValueError, "got -0.1"),
        (np.full((4, 4, 3), np.nan), ValueError, "got nan"),
        (torch.full((3, 4, 4), 2.0), ValueError, r"got 2\.0"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "got int64"),
        (Image.new("RGB", (0, 5)), ValueError, "has 0 x 5 pixels; it is empty"),
        (Image.new("F", (2, 2), 7.5), ValueError, r"mode 'F' with values 7\.5"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_named_with_its_position(source, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="image 1: .*" + message):
        JinaCLIPImageProcessor(size=16)([Image.new("RGB", (4, 4)), source])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_usable_type(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)[None].expand(3, 2, 2)
    tensor = values if dtype == torch.uint8 else (values / 255).to(dtype)
    np.testing.assert_array_equal(to_rgb(tensor), values.permute(1, 2, 0).numpy())


@pytest.fixture
def two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_files_of_a_batch_are_decoded_at_the_same_time(
    two_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two must be inside at once, or the barrier breaks; the results keep their order."""
    paths = []
    for shade in range(6):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (16, 16), (shade * 40,) * 3).save(paths[-1])
    together = threading.Barrier(2)

    def opened(*arguments):
        together.wait(timeout=30)
        return open_image(*arguments)

    monkeypatch.setattr(image_processing_jina_clip, "open_image", opened)
    pixels = JinaCLIPImageProcessor(size=16).fitted(paths)
    assert pixels[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]


def test_one_file_object_given_many_times_is_read_once(two_threads: None, tmp_path: Path) -> None:
    """A lazily opened file has one position to read at: two threads in it would get each other's bytes."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    expected = JinaCLIPImageProcessor(size=32).fitted([tmp_path / "a.png"])[0]
    with Image.open(tmp_path / "a.png") as lazy:
        pixels = JinaCLIPImageProcessor(size=32).fitted([lazy] * 20)
    assert (pixels == expected).all()


def test_the_first_of_several_broken_images_is_named(two_threads: None) -> None:
    good = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="image 2: 1 bytes is not an image"):
        JinaCLIPImageProcessor(size=16)([good, good, b"a", good, b"bcd"])


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,{}",
        "DATA:IMAGE/PNG;BASE64,{}",
        "data:image/png;charset=utf-8;base64,{}",
        "data:image/png;base64,\n{}\r\n",
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_data_uris_in_any_spelling(uri: str, lines: bool) -> None:
    data = encoded(steps())
    payload = (base64.encodebytes if lines else base64.b64encode)(data).decode()
    assert ("\n" in payload) == lines
    np.testing.assert_array_equal(to_rgb(open_image(uri.format(payload))), to_rgb(steps()))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:application/octet-stream;base64,AAAA", r"does not say that it holds an image; write data:image/png"),
        ("data:;base64,AAAA", r"does not say that it holds an image"),
        ("data:image/png,abc", r"must look like data:image/png;base64"),
        ("data:image/png;base64,@@@@", r"holds broken base64"),
        ("data:image/png;base64,\u00e4", r"holds broken base64"),
    ],
)
def test_data_uris_that_are_none(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_image(uri)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(steps()))
    with path.open(encoding="utf-8") as file, pytest.raises(ValueError, match=r"image.png' cannot be read: .*'rb'"):
        open_image(file)
    with pytest.raises(ValueError, match=r"image.png' cannot be read: .*closed file; open it again"):
        open_image(file)
    with pytest.raises(ValueError, match="a BytesIO is not an image in a known format"):
        open_image(io.BytesIO(b"abc"))
