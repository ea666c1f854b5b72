"""The search page: its index here; the page itself in a real browser where Gradio, Playwright and Chromium are.

make test-app
"""

import ast
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from sentence_transformers import SentenceTransformer

import hub_upload

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "app"
TEXTS = ["a cat on the beach", "two red dogs", "a bus"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def app() -> ModuleType:
    """The second file of the Space, which needs no Gradio."""
    spec = spec_from_file_location("search_index", SPACE / "search_index.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(20)]


@pytest.fixture(scope="module")
def files(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for place, picture in enumerate(pictures):
        picture.save(folder / f"{place:02}.png")
    return folder


@pytest.fixture(scope="module")
def empty(app: ModuleType, folder: Path):
    return app.Index(SentenceTransformer(str(folder), trust_remote_code=True))


@pytest.fixture(scope="module")
def index(app: ModuleType, empty, files: Path):
    shares = []
    count, named = app.files_of(files)
    index, refused = empty.with_images(named, count, lambda share, desc: shares.append((share, desc)))
    assert (count, refused) == (20, [])
    assert shares == [(0.0, "indexing 20 files"), (0.8, "indexing 20 files")]
    assert not empty.items["images"]
    return index.with_texts(TEXTS)


def test_every_item_finds_itself_first(index, pictures: list[Image.Image]) -> None:
    for place, picture in enumerate(pictures):
        score, kind, item = index.search(index.query("", picture, 0.5), ["images"], index.dim, False, 5)[0]
        assert (kind, item.name) == ("images", f"{place:02}.png")
        assert item.picture().size == picture.size
        assert score == pytest.approx(1, abs=1e-5)
    assert [index.search(index.query(text, None, 0.5), ["texts"], 16, False, 3)[0][2].name for text in TEXTS] == TEXTS


def test_both_queries_are_a_weighted_sum(index, pictures: list[Image.Image]) -> None:
    text, image = index.query("a bus", None, 0.5), index.query(" ", pictures[3], 0.5)
    np.testing.assert_allclose(index.query("a bus", pictures[3], 0.25), 0.75 * text + 0.25 * image, atol=1e-6)
    with pytest.raises(ValueError, match="type a text"):
        index.query("  ", None, 0.5)


def test_fewer_dimensions_are_normalised_again(index) -> None:
    query = index.query("a bus", None, 0.5)
    vectors = index.vectors["images"][:, :24]
    expected = vectors @ query[:24] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query[:24])
    found = {id(item): score for score, _, item in index.search(query, ["images"], 24, False, 50)}
    np.testing.assert_allclose([found[id(item)] for item in index.items["images"]], expected, atol=1e-6)


def test_correction_lets_each_kind_compete_on_its_own_scale(index) -> None:
    query = index.query("a bus", None, 0.5)
    raw, corrected = (index.search(query, ["images", "texts"], index.dim, correct, 23) for correct in (False, True))
    assert len(raw) == len(corrected) == 23
    for kind in ("images", "texts"):
        scores = [score for score, of, _ in corrected if of == kind]
        assert np.mean(scores) == pytest.approx(0, abs=1e-5)
        assert np.std(scores) == pytest.approx(1, abs=1e-3)
        assert [id(item) for _, of, item in raw if of == kind] == [id(item) for _, of, item in corrected if of == kind]


def test_what_is_no_picture_is_named(app: ModuleType, empty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "good.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "program.eps")  # Pillow would start Ghostscript
    Image.new("RGB", (50, 41)).save(tmp_path / "large.png")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    (tmp_path / ".hidden").touch()
    monkeypatch.setattr(app, "MAX_PIXELS", 2000)
    count, named = app.files_of(tmp_path)
    index, refused = empty.with_images(named, count)
    assert [item.name for item in index.items["images"]] == ["good.png"]
    assert refused == [
        "left out broken.jpg: UnidentifiedImageError",
        "left out large.png: 50 x 41 pixels are too many",
        "left out program.eps: UnidentifiedImageError",
    ]
    with pytest.raises(ValueError, match="there is no such folder or parquet file"):
        app.files_of(tmp_path / "nowhere")


def test_a_batch_of_large_pictures_is_small(app: ModuleType, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BATCH_PIXELS", 3 * 40 * 40)
    assert [len(names) for names, _ in app.batches(app.files_of(files)[1], [])] == [3] * 6 + [2]


def test_a_photo_is_turned_upright_and_kept_small(app: ModuleType, empty, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (1200, 900)).save(tmp_path / "photo.jpg", exif=exif)
    index, _ = empty.with_images(app.files_of(tmp_path)[1], 1)
    [item] = index.items["images"]
    assert item.picture().size == (192, 256)
    assert len(item.thumbnail) < 2000


@pytest.mark.slow
def test_forty_large_photos_fit(folder: Path, tmp_path: Path) -> None:
    """12 Mpx each: 36 MB decoded, 1.4 GB together. What indexing them adds to the process is a batch or two."""
    random = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(random).resize((4000, 3000)).save(tmp_path / "0.jpg")
    for place in range(1, 40):
        shutil.copy(tmp_path / "0.jpg", tmp_path / f"{place}.jpg")
    program = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from search_index import Index, files_of
from sentence_transformers import SentenceTransformer
index = Index(SentenceTransformer(sys.argv[2], trust_remote_code=True)).with_texts(["warm"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count, named = files_of(pathlib.Path(sys.argv[3]))
index, refused = index.with_images(named, count)
print(len(index.items["images"]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program, str(SPACE), str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    indexed, megabytes = done.stdout.split()
    assert int(indexed) == 40
    assert float(megabytes) < 400


def test_rows_of_a_parquet_file_are_named_by_their_captions(app: ModuleType, empty, files: Path, tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"image": {"bytes": (files / f"{n:02}.png").read_bytes()}, "caption": [f"no. {n}", "x"]} for n in range(3)]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    count, named = app.files_of(tmp_path / "t.parquet")
    index, refused = empty.with_images(named, count)
    assert [item.name for item in index.items["images"]] == ["no. 0", "no. 1", "no. 2"]
    assert (count, refused) == (3, [])


def test_the_folder_is_a_space() -> None:
    """Front matter as the Hub reads it, and every package that the two programs import, in the bounds of our own."""
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["sdk"], SPACE / front["app_file"]) == ("gradio", SPACE / "app.py")
    assert f"gradio=={front['sdk_version']}\n" in (ROOT / "constraints-app.txt").read_text()
    assert len(front["short_description"]) <= 60
    needed = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    assert set(needed) <= set(ours)
    imported = {
        name.partition(".")[0]
        for path in SPACE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in ([alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else [])
        + ([node.module] if isinstance(node, ast.ImportFrom) else [])
    }
    packages = {line.partition(">")[0].replace("-", "_").replace("pillow", "PIL") for line in needed}
    named = {*packages, "gradio", "search_index", "trainer_ext"}  # the last only where it is installed
    assert imported - sys.stdlib_module_names <= named


def test_the_page_is_short() -> None:
    assert len((SPACE / "app.py").read_text().splitlines()) <= 150
    assert len((SPACE / "search_index.py").read_text().splitlines()) <= 160


@contextlib.contextmanager
def served(folder: Path, tmp_path: Path, *arguments: object, space: Path = SPACE, **variables: str) -> Iterator[str]:
    """The page in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(space / "app.py"), "--port", str(port), *map(str, arguments)]
    environment = os.environ | {"MODEL": str(folder), "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log.txt").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=environment | variables, stdout=log, stderr=log) as server,
    ):
        try:
            for _ in range(240):
                assert server.poll() is None, (tmp_path / "log.txt").read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    """Chromium, if it, Gradio and Playwright are there."""
    pytest.importorskip("gradio", reason="`make test-app` has it in an environment of its own")
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as engine:
        yield engine.chromium.launch(executable_path=CHROMIUM, args=flags)


def screenshot(page, name: str, tmp_path: Path) -> None:
    page.screenshot(path=Path(os.environ.get("JINA_CLIP_SCREENSHOTS", tmp_path)) / name)


@pytest.mark.slow
def test_the_page_in_a_browser(browser, folder: Path, files: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    """Type, search, add pictures, choose dimensions; nothing but the page's own server is asked for anything."""
    from playwright.sync_api import expect

    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    more = tmp_path / "more"
    more.mkdir()
    for name in ("more.png", "too_many.png"):
        pictures[7].save(more / name)
    (more / "a_note.txt").write_text("not a picture")
    options = ["--images", files, "--texts", tmp_path / "texts.txt", "--max_uploads", 2]
    with served(folder, tmp_path, *options) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.get_by_text("20 pictures, 3 texts")).to_be_visible()
        expect(page.locator(".grid-wrap img")).to_have_count(20)
        page.get_by_label("Text", exact=True).fill("a cat on the beach")
        page.get_by_label("texts", exact=True).check()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator(".grid-wrap img")).not_to_have_count(20, timeout=60_000)
        expect(page.get_by_role("gridcell", name="a cat on the beach")).to_be_visible()
        page.locator("input[webkitdirectory]").set_input_files(str(more))
        expect(page.get_by_text("1 pictures added. 21 pictures, 3 texts")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("left out a_note.txt: UnidentifiedImageError")).to_be_visible()
        expect(page.get_by_text("left out 1 files: a visitor may add 2 pictures")).to_be_visible()
        page.get_by_label("Text", exact=True).fill("")
        page.locator("input[type=file]:not([webkitdirectory])").first.set_input_files(str(more / "more.png"))
        expect(page.get_by_role("img", name="more.png").or_(page.locator(".image-frame img"))).to_be_visible()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.get_by_text("1.000 07.png")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("1.000 more.png")).to_be_visible()
        screenshot(page, "page.png", tmp_path)
        # Another visitor has the shared index alone.
        other = browser.new_page()
        other.goto(address)
        expect(other.get_by_text("20 pictures, 3 texts")).to_be_visible()
        other.get_by_role("button", name="Search", exact=True).click()
        expect(other.get_by_text("type a text, choose a picture, or both")).to_be_visible(timeout=60_000)
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere, elsewhere
    assert len(asked) > 10


@pytest.mark.slow
def test_a_space_begins_with_its_pictures_or_says_what_to_do(
    browser, folder: Path, files: Path, tmp_path: Path
) -> None:
    """The folder alone, copied; the second time without pictures, and without data that anybody prepared."""
    from playwright.sync_api import expect

    space = tmp_path / "space"
    shutil.copytree(SPACE, space, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(files, space / "pictures")
    nothing = {"JINA_CLIP_CACHE": str(tmp_path / "nothing")}
    for count in (20, 0):
        with served(folder, tmp_path, space=space, **nothing) as address:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(address)
            words = page.get_by_text(f"{count} pictures, 0 texts" if count else "There is nothing to search yet.")
            expect(words).to_be_visible()
            expect(page.locator(".grid-wrap img")).to_have_count(count)
            page.get_by_label("Text", exact=True).fill("a bus")
            page.get_by_role("button", name="Search", exact=True).click()
            expect(page.locator(".grid-wrap img")).to_have_count(min(count, 12), timeout=60_000)
            screenshot(page, f"space_{count}.png", tmp_path)
        shutil.rmtree(space / "pictures", ignore_errors=True)
