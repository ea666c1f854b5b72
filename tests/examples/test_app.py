"""The search page: its index here; the page itself in a real browser where Gradio, Playwright and Chromium are.

make test-app
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

import hub_upload

SCRIPT = Path(__file__).parents[2] / "examples" / "app.py"
TEXTS = ["a cat on the beach", "two red dogs", "a bus"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = spec_from_file_location("app_example", SCRIPT)
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
def index(app: ModuleType, folder: Path, pictures: list[Image.Image]):
    index = app.Index(SentenceTransformer(str(folder), trust_remote_code=True))
    shares = []
    index.add("images", pictures, lambda share, text: shares.append((share, text)))
    index.add("texts", TEXTS)
    assert shares == [(0.0, "indexing 20 images"), (0.8, "indexing 20 images")]
    return index


def test_every_item_finds_itself_first(index, pictures: list[Image.Image]) -> None:
    for place, picture in enumerate(pictures):
        score, kind, item = index.search(index.query("", picture, 0.5), ["images"], index.dim, False, 5)[0]
        assert (kind, item) == ("images", pictures[place])
        assert score == pytest.approx(1, abs=1e-5)
    assert [index.search(index.query(text, None, 0.5), ["texts"], 16, False, 3)[0][2] for text in TEXTS] == TEXTS


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


def test_what_is_no_picture_is_named(app: ModuleType, tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    images, refused = app.read_images(app.files_of(tmp_path))
    assert len(images) == len(refused) == 1
    assert "broken.jpg" in refused[0]


@contextlib.contextmanager
def served(folder: Path, tmp_path: Path, *arguments: object) -> Iterator[str]:
    """The page in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(folder), "--port", str(port), *map(str, arguments)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log.txt").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log) as server,
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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(folder: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    """Type, search, add pictures, choose dimensions; nothing but the page's own server is asked for anything."""
    pytest.importorskip("gradio", reason="`make test-app` has it in an environment of its own")
    playwright = pytest.importorskip("playwright.sync_api")
    (tmp_path / "pictures").mkdir()
    for place, picture in enumerate(pictures[:6]):
        picture.save(tmp_path / "pictures" / f"{place}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    more = tmp_path / "more"
    more.mkdir()
    pictures[7].save(more / "more.png")
    (more / "notes.txt").write_text("not a picture")
    options = ["--images", tmp_path / "pictures", "--texts", tmp_path / "texts.txt"]
    with served(folder, tmp_path, *options) as address, playwright.sync_playwright() as engine:
        flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_label("Text", exact=True).fill("a cat on the beach")
        page.get_by_label("texts", exact=True).check()
        page.get_by_role("button", name="Search", exact=True).click()
        playwright.expect(page.locator(".grid-wrap img")).to_have_count(6, timeout=60_000)
        playwright.expect(page.get_by_role("gridcell", name="a cat on the beach")).to_be_visible()
        page.locator("input[webkitdirectory]").set_input_files(str(more))
        playwright.expect(page.get_by_text("1 pictures added, 7 in all")).to_be_visible(timeout=60_000)
        playwright.expect(page.get_by_text("left out notes.txt: UnidentifiedImageError")).to_be_visible()
        page.get_by_role("button", name="Search", exact=True).click()
        playwright.expect(page.locator(".grid-wrap img")).to_have_count(7, timeout=60_000)
        page.screenshot(path=os.environ.get("JINA_CLIP_SCREENSHOT", str(tmp_path / "page.png")))
        page.get_by_label("Text", exact=True).fill("")
        page.get_by_role("button", name="Search", exact=True).click()
        playwright.expect(page.get_by_text("type a text, choose a picture, or both")).to_be_visible(timeout=60_000)
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere, elsewhere
    assert len(asked) > 10
