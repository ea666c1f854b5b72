"""Small copies of pictures, as data URIs for a page and as pixels for a sheet: upright, RGB, transparency on white."""

import base64
import io

from PIL import Image, ImageOps

from modeling_jina_clip import to_rgb

# Pixels of the longer side: sharp where a page shows 96 to 120 of them, and some 3 KB of JPEG.
SIDE = 144
QUALITY = 80


def opened(item: object) -> Image.Image:
    """The image of an item of a task: an image, or a lazy picture with a ``load`` that decodes it.

    Raises:
        TypeError: it is neither.
    """
    image = item.load() if hasattr(item, "load") and not isinstance(item, Image.Image) else item
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(item).__name__} is not a picture")
    return image


def on_white(image: Image.Image) -> Image.Image:
    """The picture as people see it: upright, RGB, what is transparent white.

    >>> on_white(Image.new("RGBA", (1, 1), (9, 9, 9, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return Image.fromarray(to_rgb(image))


def small(image: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side has ``side`` pixels; small pictures are enlarged, so that all cells look alike.

    A line of a picture keeps one pixel of its shorter side.
    """
    seen = on_white(image)
    scale = side / max(seen.size)
    size = tuple(max(1, round(edge * scale)) for edge in seen.size)
    return seen.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=2.0)


def data_uri(image: Image.Image, side: int = SIDE) -> str:
    """A small JPEG as a data URI; it carries nothing of the file but pixels.

    >>> data_uri(Image.new("RGB", (640, 480)))[:23]
    'data:image/jpeg;base64,'
    """
    buffer = io.BytesIO()
    small(image, side).save(buffer, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
