"""Kept pictures are the same to the bit, within their limit, and whole, whoever writes and is killed."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer_ext.source_files import picture_source, png, write_pictures
from tests.trainer_ext.tiny_run import (
    RunFactory,
    assert_same_weights,
    make_processor,
    trained,
    write_data,
    write_recipe,
)
from trainer_ext.data import picture_cache
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.images import open_image
from trainer_ext.data.picture_cache import FOLDERS, PictureCache, stored_bytes
from trainer_ext.data.pictures import PictureReader
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import load_recipe, recipe_fingerprint

SIZE = 8
ROOM = 10**9


def pixels(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def name(number: int, folder: str = "ab") -> str:
    return f"{folder}{number:030x}"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(cache: Path, seconds: float) -> None:
    """As if all kept pictures had last been used so long ago."""
    for path in files(cache):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


# --- the folder --------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "new" / "folder", ROOM)
    for number in range(5):
        cache.put(name(number), pixels(number))
        cache.put(name(number), pixels(number, 4))
    again = PictureCache(tmp_path / "new" / "folder", ROOM)
    for number in range(5):
        for size in (SIZE, 4):
            assert (again.get(name(number), size) == pixels(number, size)).all()
    assert again.get(name(5), SIZE) is None
    assert again.get(name(0), 5) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer", "folder"])
def test_damaged_files_are_absent_and_written_again(tmp_path: Path, damage: str) -> None:
    cache = PictureCache(tmp_path, ROOM)
    cache.put(name(0), pixels(0))
    [path] = files(tmp_path)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        assert cache.get(name(0), SIZE) is None
        return
    changed = {
        "cut": content[:-1],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "longer": content + b"0",
    }
    path.write_bytes(changed[damage])
    assert cache.get(name(0), SIZE) is None
    cache.put(name(0), pixels(0))
    assert (cache.get(name(0), SIZE) == pixels(0)).all()


def test_the_limit_holds_and_what_this_run_uses_stays(tmp_path: Path) -> None:
    room = 3 * stored_bytes(SIZE)
    cache = PictureCache(tmp_path, FOLDERS * room)
    for number in range(9):
        cache.put(name(number), pixels(number))
    assert [cache.get(name(number), SIZE) is not None for number in range(9)] == [True] * 3 + [False] * 6
    cache.put(name(0, "cd"), pixels(0))  # another folder has room of its own
    assert sum(path.stat().st_size for path in files(tmp_path)) == room + stored_bytes(SIZE)


def test_a_later_run_removes_what_it_does_not_use_oldest_first(tmp_path: Path) -> None:
    total = FOLDERS * 3 * stored_bytes(SIZE)
    first = PictureCache(tmp_path, total)
    for number in range(3):
        first.put(name(number), pixels(number))
        age(tmp_path, 100)  # so the last one written is no older than the others
    os.utime(tmp_path / "ab" / f"{name(1)}-{SIZE}.rgb", (1, 1))
    later = PictureCache(tmp_path, total)
    assert later.get(name(0), SIZE) is not None
    later.put(name(7), pixels(7))
    kept = [number for number in range(9) if later.get(name(number), SIZE) is not None]
    assert kept == [0, 2, 7]  # asking for 2 has used it
    later.put(name(8), pixels(8))
    assert later.get(name(8), SIZE) is None


def test_a_smaller_limit_shrinks_the_folder(tmp_path: Path) -> None:
    PictureCache(tmp_path, ROOM)
    wide = PictureCache(tmp_path, ROOM)
    for number in range(20):
        wide.put(name(number), pixels(number))
    age(tmp_path, 100)
    PictureCache(tmp_path, FOLDERS * 2 * stored_bytes(SIZE)).put(name(30), pixels(30))
    assert len(files(tmp_path)) == 2


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, FOLDERS * stored_bytes(SIZE))
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "notes.txt").write_text("mine")
    for number in range(3):
        age(tmp_path, 10**6)
        PictureCache(tmp_path, FOLDERS * stored_bytes(SIZE)).put(name(number), pixels(number))
    assert (tmp_path / "ab" / "notes.txt").read_text() == "mine"
    assert cache.get(name(2), SIZE) is not None


def test_what_killed_processes_left_is_removed_in_time(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, ROOM)
    cache.put(name(0), pixels(0))
    old, new = tmp_path / "ab" / f".{name(1)}-8.rgb.0.partial", tmp_path / "ab" / f".{name(2)}-8.rgb.0.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    cache.put(name(3), pixels(3))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PictureCache(tmp_path, ROOM)

    def full(path: Path, content: bytes, flush: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(picture_cache, "write_whole", full)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.put(name(number), pixels(number))
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("image_cache: ")
    assert line.endswith("no space left on device; no more pictures are kept, and training goes on")


WRITER = """
import sys
from pathlib import Path
import numpy as np
from trainer_ext.data.picture_cache import PictureCache
cache = PictureCache(Path(sys.argv[1]), 10**9)
print("begun", flush=True)
while True:
    for number in range(40):
        cache.put(f"ab{number:030x}", np.full((64, 64, 3), number, np.uint8))
"""


def test_writers_at_once_that_are_killed_leave_whole_pictures(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
    reader, seen = PictureCache(tmp_path, ROOM), 0
    until = time.monotonic() + 60
    while seen < 200 and time.monotonic() < until:
        for number in range(40):
            found = reader.get(name(number), 64)
            assert found is None or (found == number).all()
            seen += found is not None
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert seen >= 200
    for path in files(tmp_path):
        if not path.name.endswith(".partial"):
            assert reader.get(path.name.partition("-")[0], 64) is not None


# --- training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder)
    return write_recipe(folder)


def test_weights_are_those_of_a_run_without_it(make_trainer: RunFactory, tmp_path: Path) -> None:
    """Two stages of one size and one of another; the second run reads what the first has kept, in two workers."""
    cache = [f"image_cache={{folder: {tmp_path / 'kept'}, max_gigabytes: 1}}"]
    plain = trained(make_trainer(tmp_path / "plain"))
    first = trained(make_trainer(tmp_path / "first", *cache))
    held = {path: path.read_bytes() for path in files(tmp_path / "kept")}
    again = trained(make_trainer(tmp_path / "again", *cache, "dataloader_num_workers=2"))
    assert_same_weights(plain.model, first.model)
    assert_same_weights(plain.model, again.model)
    assert {path.stem.partition("-")[2] for path in held} == {"16", "24"}
    assert {path: path.read_bytes() for path in files(tmp_path / "kept")} == held


def test_kept_pictures_are_not_decoded(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = picture_source(write_pictures(tmp_path / "pictures.parquet", 6), "parquet")
    settings = load_recipe(recipe, [f"image_cache={{folder: {tmp_path / 'kept'}, max_gigabytes: 1}}"])
    processor, tables = make_processor(), load_sources([source])
    keys = [Key(0, 0, "image_text", "pictures", 0, index) for index in range(6)]
    collate = JointCollator(processor, settings.stages)
    plain = collate(JointDataset([source], tables, 7).__getitems__(keys))["image_text"]
    for _ in range(2):
        dataset = JointDataset([source], tables, 7, pictures=PictureReader(settings, processor))
        found = collate(dataset.__getitems__(keys))["image_text"]
        assert all(torch.equal(found[key], plain[key]) for key in plain)
        monkeypatch.setattr("trainer_ext.data.pictures.picture_of", None)  # to call it would raise


def test_transparent_pictures_and_backgrounds_have_pictures_of_their_own(recipe: Path, tmp_path: Path) -> None:
    settings = load_recipe(recipe, [f"image_cache={{folder: {tmp_path / 'kept'}, max_gigabytes: 1}}"])
    drawn = np.dstack([pixels(1, 30), np.arange(900, dtype=np.uint8).reshape(30, 30)])
    file = tmp_path / "clear.png"
    Image.fromarray(drawn).save(file)
    stored = {"bytes": None, "path": str(file)}
    for background in (None, "white", [9, 9, 9]):
        for processor_background in (None, "white"):
            processor = make_processor()
            processor.image_processor.background = processor_background
            expected = processor.image_processor.fitted([open_image(stored, background)[0]])
            for _ in range(2):
                picture, label = PictureReader(settings, processor).opener(0)(stored, background)
                assert (processor.image_processor.fitted([picture]) == expected).all()
                assert label == open_image(stored)[1]
    assert len(files(tmp_path / "kept")) == 6


@pytest.mark.parametrize("change", ["resize_mode", "interpolation", "fill_color", "image_decoding"])
def test_all_that_decides_pixels_is_in_the_name(recipe: Path, tmp_path: Path, change: str) -> None:
    processor, stored = make_processor(), {"bytes": png(3, (50, 30)), "path": None}
    cache = f"image_cache={{folder: {tmp_path / 'kept'}, max_gigabytes: 1}}"
    PictureReader(load_recipe(recipe, [cache]), processor).opener(0)(stored, None)
    more = ["image_decoding=fast"] if change == "image_decoding" else []
    changes = {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 7}
    if change in changes:
        setattr(processor.image_processor, change, changes[change])
    PictureReader(load_recipe(recipe, [cache, *more]), processor).opener(0)(stored, None)
    assert len(files(tmp_path / "kept")) == 2


def test_stages_that_crop_are_not_kept(recipe: Path, tmp_path: Path) -> None:
    changes = [
        f"image_cache={{folder: {tmp_path / 'kept'}, max_gigabytes: 1}}",
        "stages.1.random_resized_crop=[0.5, 1.0]",
    ]
    reader, stored = PictureReader(load_recipe(recipe, changes), make_processor()), {"bytes": png(3), "path": None}
    assert [reader.opener(stage)(stored, None)[0].size for stage in (0, 1)] == [(16, 16), (24, 20)]
    assert len(files(tmp_path / "kept")) == 1


# --- the key -----------------------------------------------------------------------------------------------------


def test_the_folder_is_beside_the_recipe_and_decides_no_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = load_recipe(recipe)
    recipe.write_text(recipe.read_text() + "\nimage_cache: {folder: kept, max_gigabytes: 0.5}\n")
    kept = load_recipe(recipe)
    assert kept.image_cache is not None
    assert kept.image_cache.folder == str(recipe.parent / "kept")
    assert recipe_fingerprint(plain) == recipe_fingerprint(kept)
    moved = load_recipe(recipe, ["image_cache.folder=elsewhere"]).image_cache
    assert moved is not None
    assert moved.folder == str(tmp_path / "elsewhere")


CROPS = [f"stages.{number}.random_resized_crop=[0.9, 1.0]" for number in range(3)]
TEXTS = [f"stages.{number}.image_text=null" for number in range(3)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["image_cache={folder: kept}"], r"image_cache\.max_gigabytes"),
        (["image_cache={folder: kept, max_gigabytes: 0}"], r"image_cache\.max_gigabytes"),
        (["image_cache={folder: '', max_gigabytes: 1}"], r"image_cache\.folder"),
        (["image_cache={folder: /dev/null, max_gigabytes: 1}"], r"image_cache\.folder: .*/dev/null is a file"),
        (
            ["image_cache={folder: kept, max_gigabytes: 1}", *CROPS],
            r"image_cache: keeps whole pictures, but every stage crops",
        ),
        (
            ["image_cache={folder: kept, max_gigabytes: 1}", *TEXTS],
            r"image_cache: keeps pictures, but no stage has any",
        ),
        (
            ["image_cache={folder: kept, max_gigabytes: 1}", "teacher={model: x, kind: scores}"],
            r"image_cache: keeps pictures as the model sees them, and the teacher",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(recipe: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_recipe(recipe, overrides)


def test_a_limit_too_small_for_the_pictures_is_refused(recipe: Path, tmp_path: Path) -> None:
    changes = [f"image_cache={{folder: {tmp_path}, max_gigabytes: 0.3}}", "stages.1.image_size=224"]
    with pytest.raises(
        ValueError, match=r"max_gigabytes is 0\.3, too little for pictures of 224 pixels; give at least 0\.4"
    ):
        PictureReader(load_recipe(recipe, changes), make_processor())
