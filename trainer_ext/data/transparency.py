"""Says before the first step how many pictures of a source are transparent, and what will show through them.

A transparent picture has a colour below its transparency that nobody has seen, often black. The published models are
trained on that colour. New ones see such pictures on white, and ``background`` of a source or an image processor
decides otherwise.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image

from trainer_ext.data.images import IMAGE_ERRORS, open_image, quiet_pillow
from trainer_ext.data.sources import Rows, undecoded
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe.schema import Background, Source

# Pictures of one source that are looked at, evenly spaced, and the pixels that are decoded for it: some seconds.
MOST_PICTURES, MOST_PIXELS = 2_000, 400_000_000


def transparency_notes(sources: Sequence[Source], rows: Mapping[str, Rows], background: Background) -> Iterator[str]:
    """One line for each source of pictures that has transparent ones.

    Args:
        sources: of the recipe, and ``rows`` as they were loaded, by name.
        background: of the model's image processor.

    >>> from datasets import Dataset
    >>> columns = {"query": "q", "positive": "a"}
    >>> source = Source(name="pairs", task="text-pair", location="x", format="csv", columns=columns)
    >>> list(transparency_notes([source], {"pairs": Dataset.from_dict({"query": ["hi"]})}, None))
    []
    """
    for source in sources:
        if "image" not in source.columns:
            continue
        total, looked, found = _count(rows[source.name])
        if not found:
            continue
        of = f"of {looked:,} pictures" if looked == total else f"of the {looked:,} pictures looked at"
        colour = source.background if source.background is not None else background
        fate = (
            "their colour below the transparency shows, as published; set `background: white` to see them on white"
            if colour is None
            else f"they are laid on {colour if colour == 'white' else list(colour)}"
        )
        yield f"source {source.name!r}: {found:,} {of} {'has' if found == 1 else 'have'} transparency; {fate}"


def _count(rows: Rows) -> tuple[int | None, int, int]:
    """Pictures of a source, if they are counted; those looked at; and those of them that are transparent."""
    stored, total = _of_stream(rows) if isinstance(rows, SourceStream) else _of_table(rows)
    looked = found = pixels = 0
    for image in stored:
        looked += 1
        if not _has_alpha(image):
            continue
        try:
            picture, _ = open_image(image.as_py())
        except IMAGE_ERRORS:  # a broken row: it is reported when a step meets it
            continue
        pixels += picture.width * picture.height
        found += bool(picture.mode == "RGBA" and np.asarray(picture)[..., 3].min() < 255)
        if pixels > MOST_PIXELS:
            break
    return total, looked, found


def _has_alpha(image: pa.StructScalar) -> bool:
    """Whether the head of the file tells of transparency: most pictures have none and need not be decoded."""
    if not image.is_valid:
        return False
    path = image["path"].as_py()
    if not image["bytes"].is_valid and not (path and os.path.isfile(path)):
        return False
    stored = io.BytesIO(image["bytes"].as_py()) if image["bytes"].is_valid else path
    try:
        with quiet_pillow(), Image.open(stored) as file:
            return file.has_transparency_data
    except Exception:  # Pillow's readers let errors of many kinds through; a broken row is reported by the step
        return False


def _of_table(table: Dataset) -> tuple[Iterator[pa.StructScalar], int]:
    places = np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST_PICTURES)).astype(int))
    plain = undecoded(table).with_format("arrow")
    return (plain[[int(place)]]["image"][0] for place in places), len(table)


def _of_stream(stream: SourceStream) -> tuple[Iterator[pa.StructScalar], int | None]:
    """The first pictures, since nothing else has been read; and their number, if that is all."""
    image = stream.first_rows(MOST_PICTURES)["image"]
    return iter(image), len(image) if len(image) < MOST_PICTURES and len(stream.files) == 1 else None
