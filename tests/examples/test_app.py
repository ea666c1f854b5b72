"""The search page: its index here; the page itself in a real browser where Gradio, Playwright and Chromium are.

make test-app
"""

import ast
import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

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


MODULES = ("picture_files", "kept_index", "search_index", "indexing", "results")  # those that need no Gradio


@pytest.fixture(scope="module")
def app() -> Iterator[SimpleNamespace]:
    """The Space's own modules, imported as the Space does: from their folder."""
    sys.path.insert(0, str(SPACE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(SPACE))
        for name in MODULES:
            sys.modules.pop(name, None)


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
def empty(app: SimpleNamespace, folder: Path):
    return app.search_index.Index(SentenceTransformer(str(folder), trust_remote_code=True))


@pytest.fixture(scope="module")
def index(app: SimpleNamespace, empty, files: Path):
    shares = []
    count, named = app.picture_files.files_of(files)
    index, report = app.indexing.add_images(empty, named, count, lambda share, desc: shares.append((share, desc)))
    assert (count, report) == (20, ([], 0))
    assert shares == [(0.0, "indexing 20 files"), (0.8, "indexing 20 files")]
    assert not empty.items["images"]
    return app.indexing.add_texts(index, [*TEXTS, " ", TEXTS[0]])[0]


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


def test_what_is_no_picture_is_named(app, empty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "good.png")
    shutil.copy(tmp_path / "good.png", tmp_path / "twin.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "program.eps")  # Pillow would start Ghostscript
    Image.new("RGB", (50, 41)).save(tmp_path / "large.png")
    Image.fromarray(np.full((4, 4), 700, np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    (tmp_path / ".hidden").touch()
    monkeypatch.setattr(app.picture_files.Opener.read, "__defaults__", (2000,))
    count, named = app.picture_files.files_of(tmp_path)
    index, report = app.indexing.add_images(empty, named, count)
    assert [item.name for item in index.items["images"]] == ["good.png"]
    assert report.copies == 1
    assert [line.partition(". ")[0] for line in report.refused] == [
        "left out broken.jpg: not a picture",
        "left out float.tiff: PIL mode 'F' with values 700.0..700.0 has no fixed white; scale to 8 bit",
        "left out large.png: 50 x 41 pixels are more than 2,000",
        "left out program.eps: PIL image is a file of format EPS, which is not read; pass image.convert('RGB') if you "
        "trust it",
    ]
    assert app.results.told(report)[:2] == ["1 copy of what is there", "left out 4 files:"]
    with pytest.raises(ValueError, match="there is no such folder or parquet file"):
        app.picture_files.files_of(tmp_path / "nowhere")


def test_what_the_model_refuses_does_not_end_its_batch(app, empty, tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "good.png")
    Image.new("RGB", (1, 200_000)).save(tmp_path / "line.png")
    index, report = app.indexing.add_images(empty, app.picture_files.files_of(tmp_path)[1], 2)
    assert [item.name for item in index.items["images"]] == ["good.png"]
    assert report.refused[0].startswith("left out line.png: 1 x 200000 pixels would become")


def test_a_long_text_is_refused_in_words(app, empty) -> None:
    assert empty.characters == 4_096  # 512 tokens at 8 characters
    with pytest.raises(ValueError, match=r"the text has 4,097 characters; at most 4,096 are read: shorten it"):
        empty.query("x" * 4_097, None, 0.5)
    index, report = app.indexing.add_texts(empty, ["a", "x" * 1_000_000, "a"])
    assert [item.name for item in index.items["texts"]] == ["a"]
    assert report == (["left out text 2: 1,000,000 characters; at most 4,096 are read: shorten it"], 1)


def test_similar_pictures_leave_the_picture_out(index) -> None:
    item = index.items["images"][7]
    name, hits = index.similar(item.key, ["images"], index.dim, False, 5)
    assert name == "07.png"
    expected = index.search(index.vectors["images"][7], ["images"], index.dim, False, 6)
    assert hits == [hit for hit in expected if hit[2] != item]
    assert len(hits) == 5
    with pytest.raises(ValueError, match="not here any more"):
        index.similar("0" * 64, ["images"], index.dim, False, 5)


def test_an_index_is_kept_for_the_next_start(app, empty, index, files: Path, tmp_path: Path, monkeypatch) -> None:
    """Nothing is encoded a second time; names are those of today; another model's index is made anew."""
    model = app.kept_index.model_hash(empty.model)
    app.kept_index.KeptIndex(tmp_path, model, empty.dim).write(index.entries())
    kept = app.kept_index.KeptIndex(tmp_path, model, empty.dim)
    assert not kept.problem
    monkeypatch.setattr(empty.model, "encode", None)
    (tmp_path / "pictures").mkdir()
    shutil.copy(files / "03.png", tmp_path / "pictures" / "new name.png")
    again, _ = app.indexing.add_texts(empty, TEXTS, kept.entries)
    again, report = app.indexing.add_images(
        again, app.picture_files.files_of(tmp_path / "pictures")[1], 1, known=kept.entries
    )
    assert report == ([], 0)
    assert [item.name for item in again.items["images"]] == ["new name.png"]
    np.testing.assert_array_equal(again.vectors["images"][0], index.vectors["images"][3])
    assert again.items["images"][0].thumbnail == index.items["images"][3].thumbnail
    np.testing.assert_array_equal(again.vectors["texts"], index.vectors["texts"])
    other = app.kept_index.KeptIndex(tmp_path, "another", empty.dim)
    assert (other.entries, "belongs to another model" in other.problem) == ({}, True)
    (tmp_path / app.kept_index.FILE).write_bytes(b"damaged")
    assert "is made anew" in app.kept_index.KeptIndex(tmp_path, model, empty.dim).problem


def test_the_hash_is_that_of_weights_and_settings(app, empty) -> None:
    import torch

    before = app.kept_index.model_hash(empty.model)
    weight = next(empty.model[0].model.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1
        changed = app.kept_index.model_hash(empty.model)
        weight.view(-1)[0] -= 1
    assert changed != before


def test_captions_come_from_metadata(app, empty, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png"):
        Image.new("RGB", (5, 5), (len(name), 9, ord(name[0]))).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,first\na.png,second\nsub/b.png,\n")
    (tmp_path / "sub" / "metadata.csv").write_text('file_name,text\nb.png,"of, the sub"\n')
    index, report = app.indexing.add_images(empty, app.picture_files.files_of(tmp_path)[1], 3)
    captions = {item.name: item.caption for item in index.items["images"]}
    assert captions == {"a.png": "first", "sub/b.png": "of, the sub", "c.png": ""}
    assert report.refused == []


def test_a_name_that_is_no_text_and_a_table_that_is_no_csv(app, empty, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "names")
    Image.new("RGB", (5, 5)).save(tmp_path / "names" / "a.png")
    os.rename(tmp_path / "names" / "a.png", os.fsencode(tmp_path / "names") + b"/caf\xe9.png")
    index, _ = app.indexing.add_images(empty, app.picture_files.files_of(tmp_path / "names")[1], 1)
    assert [item.name for item in index.items["images"]] == ["caf?.png"]
    (tmp_path / "names" / "metadata.csv").write_text("file_name,text\n" + "x" * 200_000 + ",y\n")
    with pytest.raises(ValueError, match=r"metadata.csv, line [12]: field larger than field limit"):
        app.picture_files.files_of(tmp_path / "names")


def test_pictures_are_shown_on_white_and_16_bits_are_scaled(app, empty, tmp_path: Path) -> None:
    logo = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (30, 30, 70, 70))
    logo.save(tmp_path / "logo.png")
    Image.fromarray(np.full((100, 100), 32768, np.uint16)).save(tmp_path / "grey.png")
    index, _ = app.indexing.add_images(empty, app.picture_files.files_of(tmp_path)[1], 2)
    grey, shown = (item.picture().convert("RGB") for item in index.items["images"])
    assert shown.getpixel((5, 5))[0] > 250
    assert shown.getpixel((50, 50))[0] < 10
    assert 120 < grey.getpixel((50, 50))[0] < 136


def test_what_the_page_shows_is_escaped_and_counted(app, index) -> None:
    evil = '<img src=x onerror="alert(1)"> {{value}} ${value}'
    item = app.search_index.Item(evil, caption=evil, thumbnail=b"x", key="k")
    hits = [(0.9, "texts", app.search_index.Item(evil)), (0.8, "images", item), (0.7, "texts", item)]
    shown = app.results.lists(hits) + app.results.tile(item, "")
    assert not {"<img src=x", "{", "}", "$"} & set(re.findall(r"<img src=x|[{}$]", shown))
    places = [int(place) for place in re.findall(r'class="place">(\d+)<', shown.partition("<ol")[2])]
    assert places == [1, 2]  # each kind is counted from 1
    words = app.results.summary(hits, "x", ["images", "texts"], False)
    assert words.startswith("**1 picture and 2 texts** for x.")
    assert "Correct the modality gap" in words
    assert app.results.summary([], "x", ["images"], False) == "**Nothing** for x."


def test_a_batch_of_large_pictures_is_small(app, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.picture_files, "BATCH_PIXELS", 3 * 40 * 40)
    pictures = [
        app.picture_files.Picture(f"{n}", "", f"{n}", Image.open(path)) for n, path in enumerate(files.iterdir())
    ]
    assert [len(held) for held in app.picture_files.batches(pictures)] == [3] * 6 + [2]


def test_a_photo_is_turned_upright_and_kept_small(app, empty, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (1200, 900)).save(tmp_path / "photo.jpg", exif=exif)
    index, _ = app.indexing.add_images(empty, app.picture_files.files_of(tmp_path)[1], 1)
    [item] = index.items["images"]
    assert item.picture().size == (192, 256)
    assert len(item.thumbnail) < 2000


@pytest.mark.slow
def test_forty_large_photos_fit(folder: Path, tmp_path: Path) -> None:
    """12 Mpx each: 36 MB decoded, 1.4 GB together. What indexing them adds to the process is a batch or two."""
    random = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(random).resize((4000, 3000)).save(tmp_path / "0.jpg")
    for place in range(1, 40):  # other bytes: a copy would take no place
        (tmp_path / f"{place}.jpg").write_bytes((tmp_path / "0.jpg").read_bytes() + bytes([place]))
    program = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from indexing import add_images, add_texts
from picture_files import files_of
from search_index import Index
from sentence_transformers import SentenceTransformer
index, _ = add_texts(Index(SentenceTransformer(sys.argv[2], trust_remote_code=True)), ["warm"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count, named = files_of(pathlib.Path(sys.argv[3]))
index, report = add_images(index, named, count)
print(len(index.items["images"]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program, str(SPACE), str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    indexed, megabytes = done.stdout.split()
    assert int(indexed) == 40
    assert float(megabytes) < 400


def test_rows_of_a_parquet_file_are_named_by_their_captions(app, empty, files: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"image": {"bytes": (files / f"{n:02}.png").read_bytes()}, "caption": [f"no. {n}", "x"]} for n in range(3)]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    count, named = app.picture_files.files_of(tmp_path / "t.parquet")
    index, report = app.indexing.add_images(empty, named, count)
    assert [item.caption for item in index.items["images"]] == ["no. 0", "no. 1", "no. 2"]
    assert (count, report) == (3, ([], 0))


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
    own = {path.stem for path in SPACE.glob("*.py")}
    named = {*packages, *own, "gradio", "safetensors", "trainer_ext"}  # the last only where it is installed
    assert imported - sys.stdlib_module_names <= named


def test_the_page_is_short() -> None:
    assert len((SPACE / "app.py").read_text().splitlines()) <= 150
    assert len((SPACE / "search_index.py").read_text().splitlines()) <= 160
    assert all(len(path.read_text().splitlines()) <= 180 for path in SPACE.glob("*.py"))


def test_make_app_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    """In one line, and before anything is installed."""
    command = ["make", "-f", str(ROOT / "Makefile"), "app", "HUB=outputs/nothing"]
    # Under `make test` a make within would report the folders that it enters.
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode != 0
    assert done.stderr.startswith("error: outputs/nothing is no model: run 'make demo' first")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


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
            for _ in range(800):  # a busy machine takes minutes to import and to encode
                assert server.poll() is None, (tmp_path / "log.txt").read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                time.sleep(0.5)
            else:
                pytest.fail((tmp_path / "log.txt").read_text())
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
        pictures[7].rotate(90).save(more / name)
    (more / "a_note.txt").write_text("not a picture")
    options = ["--images", files, "--texts", tmp_path / "texts.txt", "--max_uploads", 2]
    with served(folder, tmp_path, *options) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.get_by_text("20 pictures, 3 texts")).to_be_visible(timeout=60_000)
        expect(page.locator("#found img")).to_have_count(20)
        page.get_by_label("Text", exact=True).fill("a cat on the beach")
        page.get_by_label("texts", exact=True).check()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator("#found img")).not_to_have_count(20, timeout=60_000)
        expect(page.get_by_role("list", name="Texts").get_by_text("a cat on the beach")).to_be_visible()
        expect(page.locator("#said")).to_contain_text("3 texts for \u201ca cat on the beach\u201d")
        page.locator("input[webkitdirectory]").set_input_files(str(more))
        expect(page.get_by_text("1 picture added. 21 pictures, 3 texts")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("left out a_note.txt: not a picture")).to_be_visible()
        expect(page.get_by_text("left out 1 file: a visitor may add 2 pictures")).to_be_visible()
        page.get_by_label("Text", exact=True).fill("")
        page.locator("input[type=file]:not([webkitdirectory])").first.set_input_files(str(more / "more.png"))
        expect(page.locator(".image-frame img")).to_be_visible()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator("#said")).to_contain_text("for your picture", timeout=60_000)
        best = page.locator("#found figure").first
        expect(best).to_contain_text("1.000")
        expect(best).to_contain_text("more.png")
        screenshot(page, "page.png", tmp_path)
        best.get_by_role("button", name="Find pictures similar to more.png").click()
        expect(page.locator("#said")).to_contain_text("for pictures similar to more.png", timeout=60_000)
        expect(page.locator("#found figure").first).not_to_contain_text("more.png")
        page.get_by_label("Text", exact=True).fill("x" * 10_001)
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.get_by_text("the text has 10,001 characters; at most 10,000 are read")).to_be_visible(
            timeout=60_000
        )
        # On a phone the results stand above the settings.
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(address)
        expect(phone.locator("#found img")).to_have_count(20, timeout=60_000)
        heights = [phone.locator("#found").bounding_box(), phone.get_by_label("texts", exact=True).bounding_box()]
        assert heights[0]["y"] + heights[0]["height"] <= heights[1]["y"]
        screenshot(phone, "phone.png", tmp_path)
        # Another visitor has the shared index alone.
        other = browser.new_page()
        other.goto(address)
        expect(other.get_by_text("20 pictures, 3 texts")).to_be_visible(timeout=60_000)
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
            expect(words).to_be_visible(timeout=60_000)
            expect(page.locator("#found img")).to_have_count(count)
            page.get_by_label("Text", exact=True).fill("a bus")
            page.get_by_role("button", name="Search", exact=True).click()
            expect(page.locator("#found img")).to_have_count(min(count, 12), timeout=60_000)
            screenshot(page, f"space_{count}.png", tmp_path)
        shutil.rmtree(space / "pictures", ignore_errors=True)
