"""Pairs of pictures: groups of one id, who is drawn, two views of one picture, and rows that cannot be read."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer_ext.source_files import BROKEN
from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.picture_pairs import PictureGroups, pair_notes
from trainer_ext.data.plan import JointBatchPlan, Key
from trainer_ext.data.sources import load_source, planned_rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.data.transparency import transparency_notes
from trainer_ext.recipe.schema import ImagesSide, Side, Source
from trainer_ext.recipe.stages import Augmentation, ColorJitter, Stage

IDS = ["cup", "fox", "cup", "owl", "fox", "cup", "bee", "bee"]  # the owl is alone


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def shaded(number: int) -> bytes:
    """A picture that a crop or a flip changes: a ramp from a shade on."""
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[..., 0] = 10 * number
    pixels[..., 1] = np.arange(24) * 10
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def source_of(folder: Path, ids: list[Any] | None = IDS, broken: tuple[int, ...] = (), **more: Any) -> Source:
    rows: list[dict[str, Any]] = [
        {"file": {"bytes": BROKEN if n in broken else shaded(n), "path": None}} for n in range(len(ids or IDS))
    ]
    features = {"file": ImageFeature()}
    columns = {"image": "file"}
    if ids is not None:
        rows = [row | {"thing": id} for row, id in zip(rows, ids, strict=True)]
        features["thing"] = Value("string" if isinstance(ids[0], str) else "int64")
        columns["id"] = "thing"
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "p.parquet")
    place = {"location": str(folder / "p.parquet"), "format": "parquet"}
    return Source(name="things", task="image-pair", columns=columns, **place, **more)


def key(index: int, epoch: int = 0) -> Key:
    return Key(step=0, stage=0, side="images", source="things", epoch=epoch, index=index)


def shade(picture: Image.Image) -> int:
    return picture.convert("RGB").getpixel((0, 0))[0] // 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_groups_are_the_rows_of_each_id_that_several_have(ids: list[int]) -> None:
    groups, counts = PictureGroups(Dataset.from_dict({"id": ids})), Counter(ids)
    found = [groups.rows(number).tolist() for number in range(len(groups))]
    expected = [[row for row, id in enumerate(ids) if id == one] for one in dict.fromkeys(ids) if counts[one] > 1]
    assert found == expected
    assert groups.alone == sum(count == 1 for count in counts.values())


def test_two_different_rows_are_drawn_every_pair_as_often() -> None:
    groups = PictureGroups(Dataset.from_dict({"id": ["x", "a", "a", "x", "a"]}))
    drawn = Counter(tuple(groups.drawn(7, key(1, epoch))) for epoch in range(6000))
    assert set(drawn) == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4) if a != b}
    assert min(drawn.values()) > 850  # 1000 each, deviation 29
    assert {tuple(groups.drawn(seed, key(0))) for seed in range(20)} == {(0, 3), (3, 0)}
    assert groups.drawn(7, key(1, 3)) == PictureGroups(Dataset.from_dict({"id": list("xaaxa")})).drawn(7, key(1, 3))


@pytest.mark.parametrize("ids", [IDS, [5, 2, 5, 9, 2, 5, 1, 1]], ids=["texts", "numbers"])
def test_a_key_brings_two_pictures_of_its_id(tmp_path: Path, ids: list[Any]) -> None:
    source = source_of(tmp_path, ids)
    tables = {"things": load_source(source)}
    assert planned_rows([source], tables) == {"things": 3}
    assert list(pair_notes([source], tables)) == [
        ("things", "1 of 8 pictures has an id that no other one has, and is left out; 3 ids make pairs.")
    ]
    rows = JointDataset([source], tables, 1)
    members = [{0, 2, 5}, {1, 4}, {6, 7}]
    seen = [set[int]() for _ in members]
    for epoch in range(20):
        for group, row in enumerate(rows.__getitems__([key(group, epoch) for group in range(3)])):
            pair = {shade(row["image"]), shade(row["partner"])}
            assert len(pair) == 2
            assert pair <= members[group]
            assert row["id"] == ids[min(members[group])]
            assert row["key"] == key(group, epoch)
            seen[group] |= pair
    assert seen == members
    again = JointDataset([source], tables, 1)[key(0, 3)]
    assert (again["image"], again["partner"]) == (rows[key(0, 3)]["image"], rows[key(0, 3)]["partner"])


def test_the_plan_takes_groups(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    counts = planned_rows([source], {"things": load_source(source)})

    def plan(batch_size: int) -> JointBatchPlan:
        side = ImagesSide(sources=["things"], batch_size=batch_size)
        stage = Stage(name="one", steps=6, learning_rate=1.0, max_length=8, images=side)
        return JointBatchPlan([stage], [source], counts, seed=1)

    keys = [one for step in range(6) for one in plan(2).keys(step)]
    assert Counter(one.index for one in keys) == {0: 4, 1: 4, 2: 4}
    assert {one.side for one in keys} == {"images"}
    with pytest.raises(ValueError, match=r"'things' has only 3 ids, and a batch takes distinct ids of one source"):
        plan(4)


def test_the_new_side_leaves_the_steps_of_the_others_as_they_were() -> None:
    """The plan's random numbers count sides by their place: ``images`` has the last one."""
    columns = {"query": "q", "positive": "a"}
    texts = [Source(name=n, task="text-pair", location="x", format="csv", columns=columns) for n in ("a", "b")]
    things = Source(name="things", task="image-pair", location="x", format="csv", columns={"image": "i", "id": "j"})
    stage = Stage(name="one", steps=30, learning_rate=1.0, max_length=8, text=Side(sources=["a", "b"], batch_size=2))
    both = stage.model_copy(update={"images": ImagesSide(sources=["things"], batch_size=2)})
    counts = {"a": 20, "b": 30, "things": 5}
    plans = [JointBatchPlan([one], [*texts, things], counts, seed=3) for one in (stage, both)]
    for step in range(30):
        assert plans[0].keys(step) == [one for one in plans[1].keys(step) if one.side == "text"]


def test_ids_without_a_pair_are_refused_with_the_cure(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"Source 'things': each of its 3 pictures has an id of its own.*leave it out"):
        planned_rows([source], {"things": load_source(source)})


def test_a_broken_picture_brings_another_pair_within_the_budget(tmp_path: Path) -> None:
    """Row 1 belongs to the fox, whose other picture has no partner then."""
    source = source_of(tmp_path, broken=(1,), max_broken_rows=1)
    broken = BrokenRows(tmp_path / "broken.jsonl")
    rows = JointDataset([source], {"things": load_source(source)}, 1, broken)
    for epoch in range(8):
        found = rows.__getitems__([key(0, epoch), key(1, epoch), key(2, epoch)])
        for group, row in enumerate(found):
            pair = {shade(row["image"]), shade(row["partner"])}
            assert len(pair) == 2
            assert pair <= ({0, 2, 5}, {6, 7})[row["key"].index == 2]
            assert row["key"].index == group or group == 1
        alone = rows[key(1, epoch)]
        assert alone["key"] == found[1]["key"]
        assert (alone["image"], alone["partner"]) == (found[1]["image"], found[1]["partner"])
    assert broken.counts() == {"things": 1}
    strict = JointDataset([source.model_copy(update={"max_broken_rows": 0})], {"things": load_source(source)}, 1)
    with pytest.raises(DataError, match=r"row 1, column 'file'.*cannot be decoded"):
        strict[key(1)]


def stage_of(**changes: Any) -> Stage:
    return Stage(name="one", steps=1, learning_rate=1.0, max_length=8, **changes)


CHANGED = {
    "random_resized_crop": [0.3, 0.8],
    "augmentation": Augmentation(horizontal_flip=0.5, color_jitter=ColorJitter(probability=1.0)),
}


@pytest.mark.parametrize("by_id", [True, False])
def test_both_pictures_are_changed_by_random_numbers_of_their_own(tmp_path: Path, by_id: bool) -> None:
    source = source_of(tmp_path, IDS if by_id else None)
    tables = {"things": load_source(source)}
    rows = JointDataset([source], tables, 1).__getitems__([key(index) for index in range(3)])
    collate = JointCollator(make_processor(), [stage_of(**CHANGED)], seed=5)
    batch = collate(rows)
    assert batch["sources"] == {"images": "things"}
    side = batch["images"]
    pictures, partners = side["picture"]["pixel_values"], side["partner"]["pixel_values"]
    assert pictures.shape == partners.shape == (3, 3, 16, 16)
    assert pictures.dtype == torch.uint8
    assert not any(torch.equal(*pair) for pair in zip(pictures, partners, strict=True))
    assert len(set(side["row_ids"].tolist())) == 3
    # The first of the two is what an image-text side makes of the same row.
    captioned = [row | {"caption": "one red bar", "key": row["key"]._replace(side="image_text")} for row in rows]
    assert torch.equal(collate(captioned)["image_text"]["pixel_values"], pictures)
    # A row by itself gives what it gives in the batch; another epoch gives other views.
    again = collate(rows[1:2])["images"]
    assert torch.equal(again["partner"]["pixel_values"][0], partners[1])
    later = [row | {"key": row["key"]._replace(epoch=1)} for row in rows]
    assert not torch.equal(collate(later)["images"]["partner"]["pixel_values"], partners)


def test_pictures_of_one_id_need_no_change(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    rows = JointDataset([source], {"things": load_source(source)}, 1).__getitems__([key(0), key(1)])
    side = JointCollator(make_processor(), [stage_of(image_size=24)])(rows)["images"]
    for name, column in (("picture", "image"), ("partner", "partner")):
        fitted = make_processor().image_processor.fitted([row[column] for row in rows], size=24)
        assert torch.equal(side[name]["pixel_values"], torch.from_numpy(fitted.transpose(0, 3, 1, 2).copy()))
    assert len(set(side["row_ids"].tolist())) == 2


def test_equal_pictures_are_one_thing_where_there_are_no_ids(tmp_path: Path) -> None:
    source = source_of(tmp_path, None)
    table = load_source(source)
    rows = JointDataset([source], {"things": table.select([0, 1, 0])}, 1).__getitems__([key(n) for n in range(3)])
    ids = JointCollator(make_processor(), [stage_of(**CHANGED)])(rows)["images"]["row_ids"].tolist()
    assert ids[0] == ids[2] != ids[1]


def test_two_views_of_a_stream(tmp_path: Path) -> None:
    source = source_of(tmp_path, None, streaming=True, shuffle_buffer=4)
    stream = SourceStream(source, 1)
    assert planned_rows([source], {"things": stream}) == {"things": None}
    rows = JointDataset([source], {"things": stream}, 1).__getitems__([key(n) for n in range(8)])
    assert {shade(row["image"]) for row in rows} == set(range(8))
    side = JointCollator(make_processor(), [stage_of(**CHANGED)])(rows)["images"]
    assert not any(map(torch.equal, side["picture"]["pixel_values"], side["partner"]["pixel_values"]))


def test_transparent_pictures_are_counted(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (10, 0, 0, 100)).save(file, "PNG")
    rows = [{"file": {"bytes": file.getvalue(), "path": None}}]
    Dataset.from_list(rows, features=Features({"file": ImageFeature()})).to_parquet(tmp_path / "p.parquet")
    place = {"location": str(tmp_path / "p.parquet"), "format": "parquet"}
    source = Source(name="things", task="image-pair", columns={"image": "file"}, background="white", **place)
    [note] = transparency_notes([source], {"things": load_source(source)}, None)
    assert note.startswith("source 'things': 1 of 1 pictures has transparency; they are laid on white")
