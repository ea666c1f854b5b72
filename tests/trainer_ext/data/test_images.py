"""Rows that show the same picture are recognised: by a declared id, else by the picture's content."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from tests.trainer_ext.source_files import picture_source, png, write_tar
from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.images import open_image
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.sources import load_source, load_sources, row_count
from trainer_ext.recipe.schema import Side, Source
from trainer_ext.recipe.stages import Stage

PICTURES, CAPTIONS = 3, 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_captions(folder: Path, kind: str) -> tuple[Path, str, dict[str, str]]:
    """One row a caption, the layout of Flickr30k and COCO as CSV: location, format and columns."""
    numbers = [n // CAPTIONS for n in range(PICTURES * CAPTIONS)]
    if kind == "tar":
        samples = [(f"{n:02d}", {"png": png(p), "txt": f"{p} is caption {n}".encode()}) for n, p in enumerate(numbers)]
        write_tar(folder / "rows.tar", samples)
        return folder / "rows.tar", "webdataset", {"image": "png", "caption": "txt"}
    columns: dict[str, list[Any]] = {"text": [f"{p} is caption {n}" for n, p in enumerate(numbers)]}
    if kind == "parquet":
        columns["file"] = [{"bytes": png(p), "path": None} for p in numbers]
        Dataset.from_dict(columns).to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet", "parquet", {"image": "file", "caption": "text"}
    for p in range(PICTURES):
        (folder / f"{p}.png").write_bytes(png(p))
        (folder / f"copy of {p}.png").write_bytes(png(p))
    names = [f"copy of {p}.png" if kind == "copies" and n % 2 else f"{p}.png" for n, p in enumerate(numbers)]
    name, image = ("metadata.csv", "file_name") if kind == "imagefolder" else ("rows.csv", "file")
    Dataset.from_dict({image: names, **columns}).to_csv(folder / name, index=False)
    if kind == "imagefolder":
        return folder, "imagefolder", {"image": "image", "caption": "text"}
    return folder / name, "csv", {"image": image, "caption": "text"}


def batches(source: Source, workers: int = 0) -> list[dict[str, Any]]:
    rows = load_sources([source])["pictures"]
    side = Side(sources=["pictures"], batch_size=6, sampling_alpha=0)
    stage = Stage(name="only", steps=4, learning_rate=1e-3, max_length=8, image_text=side)
    plan = JointBatchPlan([stage], [source], {"pictures": row_count(rows)}, seed=1)
    collator = JointCollator(make_processor(), [stage])
    dataset = JointDataset([source], {"pictures": rows}, seed=1)
    context = "spawn" if workers else None  # as other machines' processes: nothing is inherited
    return list(
        DataLoader(
            dataset, batch_sampler=plan, collate_fn=collator, num_workers=workers, multiprocessing_context=context
        )
    )


def check_labels(found: list[dict[str, Any]]) -> None:
    """Two rows have one image id exactly if they have one picture, which a pixel tells."""
    duplicates = 0
    for batch in found:
        shades = batch["image_text"]["pixel_values"][:, 0, 0, 0]
        ids = batch["image_text"]["image_ids"]
        assert torch.equal(ids[:, None] == ids, shades[:, None] == shades)
        duplicates += int((ids[:, None] == ids).sum()) - len(ids)
    assert duplicates


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["csv", "copies", "imagefolder", "parquet", "tar"])
def test_captions_of_one_picture_share_its_id(tmp_path: Path, kind: str, streaming: bool) -> None:
    location, format, columns = write_captions(tmp_path, kind)
    check_labels(batches(picture_source(location, format, columns=columns, streaming=streaming)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["csv", "imagefolder"])
def test_id_may_be_the_column_of_the_picture(tmp_path: Path, kind: str, streaming: bool) -> None:
    location, format, columns = write_captions(tmp_path, kind)
    columns["id"] = columns["image"]
    check_labels(batches(picture_source(location, format, columns=columns, streaming=streaming)))


def test_id_may_be_the_column_of_the_caption(tmp_path: Path) -> None:
    location, format, columns = write_captions(tmp_path, "csv")
    table = load_source(picture_source(location, format, columns={"id": "text", **columns}))
    assert table["id"][:] == table["caption"][:]


@pytest.mark.slow
def test_ids_are_equal_in_fresh_processes(tmp_path: Path) -> None:
    location, format, columns = write_captions(tmp_path, "parquet")
    source = picture_source(location, format, columns=columns)
    for here, there in zip(batches(source), batches(source, workers=2), strict=True):
        torch.testing.assert_close(there["image_text"], here["image_text"], rtol=0, atol=0)


def test_labels_know_neither_path_nor_process(tmp_path: Path) -> None:
    """They are compared between machines, which may see a folder under other names."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(7))
    stored = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    stored += [{"bytes": png(7), "path": "c.png"}, {"bytes": png(7), "path": None}]
    expected = "bytes/" + hashlib.blake2b(png(7), digest_size=16).hexdigest()
    assert [open_image(one)[1] for one in stored] == [expected] * 4
    assert open_image({"bytes": png(8), "path": None})[1] != expected


def test_pillows_warnings_about_other_things_than_pixels_are_kept_quiet(recwarn: pytest.WarningsRecorder) -> None:
    """They name no file and tear the bar apart; here a palette whose transparency is given in bytes."""
    picture = Image.new("P", (4, 4))
    picture.putpalette([250, 0, 0] + [0] * 765)
    stored = io.BytesIO()
    picture.save(stored, "PNG", transparency=bytes([128] * 256))
    plain = io.BytesIO(stored.getvalue())
    Image.open(plain).convert("RGB")
    assert [str(item.message) for item in recwarn if "Palette images" in str(item.message)]
    recwarn.clear()
    assert open_image({"bytes": stored.getvalue(), "path": None})[0].getpixel((0, 0)) == (250, 0, 0, 128)
    assert list(recwarn) == []
