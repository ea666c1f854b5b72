"""Transparent pictures of sources: the source's colour, else the model's; counted and said before the first step."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPProcessor
from tests.trainer_ext.tiny_run import make_tokenizer
from trainer_ext.data import transparency
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.data.transparency import transparency_notes
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

CLEAR = Image.new("RGBA", (20, 20))
CLEAR.paste((0, 0, 0, 255), (8, 8, 12, 12))
PICTURES = [CLEAR, CLEAR.convert("LA"), Image.new("RGBA", (9, 9), (5, 5, 5, 255)), Image.new("RGB", (9, 9), (7, 7, 7))]


def source_of(folder: Path, pictures: list[Image.Image], **keys: Any) -> Source:
    place = folder / "pictures.parquet"
    datasets.Dataset.from_dict({"image": pictures, "caption": ["a"] * len(pictures)}).to_parquet(place)
    columns = {"image": "image", "caption": "caption"}
    return Source(name="icons", task="image-text", location=str(place), format="parquet", columns=columns, **keys)


def corners(source: Source, processor: JinaCLIPProcessor, crop: list[float] | None = None) -> list[list[int]]:
    """The first pixel of each picture in a training batch, by the picture's grey level in its middle."""
    stage = Stage(
        name="one", steps=1, learning_rate=1e-3, max_length=6, random_resized_crop=crop,
        image_text={"sources": ["icons"], "batch_size": 4},
    )  # fmt: skip
    rows = JointDataset([source], load_sources([source]), seed=0)
    keys = [Key(step=0, stage=0, side="image_text", source="icons", epoch=0, index=index) for index in range(4)]
    pixels = JointCollator(processor, [stage])(rows.__getitems__(keys))["image_text"]["pixel_values"]
    return sorted(pixels[:, :, 0, 0].tolist())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("crop", [None, [0.9, 1.0]])
@pytest.mark.parametrize(
    ("of_model", "of_source", "shown"),
    [(None, None, 0), ("white", None, 255), (None, "white", 255), ("white", [1, 1, 1], 1), ([3, 3, 3], None, 3)],
)
def test_training_sees_the_colour(
    tmp_path: Path, streaming: bool, crop: list[float] | None, of_model: Any, of_source: Any, shown: int
) -> None:
    source = source_of(tmp_path, PICTURES, streaming=streaming, background=of_source)
    processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=16, background=of_model), make_tokenizer())
    assert corners(source, processor, crop) == sorted([[shown] * 3] * 2 + [[5] * 3, [7] * 3])


@pytest.mark.parametrize("streaming", [False, True])
def test_it_is_said_with_counts(tmp_path: Path, streaming: bool) -> None:
    source = source_of(tmp_path, PICTURES, streaming=streaming)

    def notes(source: Source, background: Any) -> list[str]:
        return list(transparency_notes([source], load_sources([source]), background))

    assert notes(source, "white") == ["source 'icons': 2 of 4 pictures have transparency; they are laid on white"]
    assert notes(source, None) == [
        "source 'icons': 2 of 4 pictures have transparency; their colour below the transparency shows, as published; "
        "set `background: white` to see them on white"
    ]
    own = source.model_copy(update={"background": [1, 2, 3]})
    assert notes(own, "white") == ["source 'icons': 2 of 4 pictures have transparency; they are laid on [1, 2, 3]"]


def test_nothing_is_said_of_opaque_pictures(tmp_path: Path) -> None:
    source = source_of(tmp_path, PICTURES[2:])
    assert not list(transparency_notes([source], load_sources([source]), "white"))


@pytest.mark.parametrize("streaming", [False, True])
def test_of_many_pictures_some_are_looked_at(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transparency, "MOST_PICTURES", 5)
    source = source_of(tmp_path, [CLEAR] * 12, streaming=streaming)
    [note] = transparency_notes([source], load_sources([source]), "white")
    assert note.startswith("source 'icons': 5 of the 5 pictures looked at have transparency")


def test_files_and_broken_pictures(tmp_path: Path) -> None:
    CLEAR.save(tmp_path / "clear.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "clear.png").read_bytes()[:50])
    names = ["clear.png", "photo.jpg", "cut.png"]
    (tmp_path / "list.csv").write_text("image,caption\n" + "".join(f"{name},a\n" for name in names))
    columns = {"image": "image", "caption": "caption"}
    keys = {"task": "image-text", "location": str(tmp_path / "list.csv"), "format": "csv", "columns": columns}
    for streaming in (False, True):
        source = Source(name="files", streaming=streaming, **keys)
        [note] = transparency_notes([source], load_sources([source]), None)
        assert note.startswith("source 'files': 1 of 3 pictures has transparency")


@pytest.mark.parametrize("value", ["black", [1, 2], [1, 2, 256], [1, 2, 3.0], [True, 0, 0], 5, {"r": 1}])
def test_other_colours_are_refused(value: Any) -> None:
    columns = {"image": "image", "caption": "caption"}
    keys = {"name": "a", "task": "image-text", "location": "x", "format": "parquet", "columns": columns}
    with pytest.raises(ValueError, match=r"background\n  must be 'white' or \[red, green, blue\], whole numbers"):
        Source(background=value, **keys)
