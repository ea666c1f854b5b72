"""The search example as a user runs it: a built Hub folder, another directory, an interpreter on its own."""

import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

import hub_upload

SCRIPT = Path(__file__).parents[2] / "examples" / "search_images.py"


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Pictures.Image]:
    folder = tmp_path / "pictures" / "more"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = {f"{n}.png": Pictures.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for n in range(4)}
    for name, picture in made.items():
        picture.save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "line.png").write_bytes(png(Pictures.new("RGB", (1, 200_000))))  # opens, but cannot be made a square
    (folder / "float.tiff").write_bytes(png(Pictures.fromarray(np.full((9, 9), 700, np.float32)), "TIFF"))
    (folder / "copy of 0.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.txt").write_text("not a picture either")
    return made


def png(picture: Pictures.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


def search(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess:
    caches = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | caches,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_searches_a_folder_without_our_packages(model, pictures, tmp_path):
    (tmp_path / "search.png").write_text("mine")
    done = search(tmp_path, model, "--images", tmp_path / "pictures", "--top", 9, "a red heart", "cost: $5 & more")
    assert done.returncode == 0, done.stderr
    assert "modeling_jina_clip, trainer_ext, hub_upload cannot be imported here" in done.stdout
    assert "runs on its own transformers_modules." in done.stdout
    assert re.search(r"left out more/broken.jpg: .*broken.jpg' is not an image in a known format", done.stderr)
    assert "left out more/line.png: 1 x 200000 pixels would become" in done.stderr
    assert "left out more/float.tiff: PIL mode 'F' with values 700.0..700.0 has no fixed white" in done.stderr
    assert "4 images searched, 3 left out" in done.stdout
    blocks = done.stdout.split("\n\n")[1:3]
    for query, block in zip(("a red heart", "cost: $5 & more"), blocks, strict=True):
        first, *lines = block.splitlines()
        scores = [float(line.split()[0]) for line in lines]
        assert first == query
        assert len(lines) == 4  # a copy takes no second place
        assert scores == sorted(scores, reverse=True)
        assert all(line.split()[1].removeprefix("more/") in pictures for line in lines)
    assert (tmp_path / "search.png").read_text() == "mine"  # nothing is drawn unasked


@pytest.mark.slow
def test_searches_a_parquet_file_and_draws_where_told(model, pictures, tmp_path):
    features = Features({"image": Image(), "caption": List(Value("string"))})
    rows = {"image": list(pictures.values()), "caption": [["São Tomé", "other"], ["two"], ["three"], ["four"]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "table.parquet")
    done = search(tmp_path, model, "--images", tmp_path / "table.parquet", "--sheet", tmp_path / "found.png", "heart")
    assert done.returncode == 0, done.stderr
    assert "  São Tomé\n" in done.stdout
    assert "4 images searched" in done.stdout
    assert Pictures.open(tmp_path / "found.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--images", "nowhere", "heart"], "--images nowhere: there is no such folder or parquet file"),
        (["model", "--images", ".", "heart"], "error: --images .: no readable image there"),
        (["model", "--images", ".", "--top", "0", "heart"], "--top 0: must be at least 1"),
        (["model", "--images", "."], "the following arguments are required: query"),
    ],
)
def test_wrong_arguments_end_in_one_line_before_any_model_is_loaded(tmp_path, arguments, message):
    done = search(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "search.png").exists()


def test_the_script_imports_nothing_of_ours():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 180
    assert not [
        line
        for line in text.splitlines()
        if line.lstrip().startswith(("import ", "from "))
        and any(name in line for name in ("modeling_jina_clip", "trainer_ext", "hub_upload"))
    ]


def test_no_more_than_a_batch_is_held_at_full_size():
    """What is read is dropped once it is encoded; a batch ends after 16 images or 32 million pixels."""
    batches = runpy.run_path(str(SCRIPT))["batches"]
    for size, lengths in (((40, 30), [16, 16, 8]), ((2000, 1500), [11, 11, 11, 7])):
        found = list(batches((f"{n}.png", Pictures.new("RGB", size)) for n in range(40)))
        assert [len(held) for _, held in found] == lengths
        assert [name for names, _ in found for name in names] == [f"{n}.png" for n in range(40)]


def test_cells_are_equal_and_transparency_is_white():
    """The sheet's cells are squares, padded and filled with white; a word that is too long ends with dots."""
    script = runpy.run_path(str(SCRIPT))
    logo = Pictures.new("RGBA", (40, 20), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (10, 5, 20, 15))
    cell = script["thumbnail"](logo, lambda image: np.asarray(image.convert("RGB")))
    assert cell.size == (192, 192)
    assert cell.getpixel((0, 96)) == cell.getpixel((96, 0)) == (255, 255, 255)
    assert cell.getpixel((70, 96)) == (0, 0, 0)
