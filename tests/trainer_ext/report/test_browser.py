"""The page in a real browser, where Playwright and Chromium are: nothing asked of a network, nothing too wide.

make test-app
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer_ext.report.samples import page
from trainer_ext.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title = 'run'</script>\"><img src=https://example.org/x onerror=document.title='run'>"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as engine:
        yield engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page"), page(HOSTILE, name=HOSTILE))


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")])
def test_the_page_is_seen_whole(browser, path: Path, size: dict[str, int], scheme: str) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=True)
    tab = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto(path.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert tab.title().startswith("<script>"), "a script in a caption is its text, and did not run"
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"], "nothing sticks out"
    pictures = tab.locator("img")
    assert pictures.count() > 3
    tab.locator("#gallery").scroll_into_view_if_needed()
    assert tab.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")
    for chart in tab.locator("figure svg").all():
        box = chart.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.querySelector('figure svg text')).fill,"
        " getComputedStyle(document.querySelector('figure')).backgroundColor]"
    )
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light"), "texts of charts follow the scheme"
    assert abs(brightness[0] - brightness[1]) > 250
    context.close()


def test_the_page_prints(browser, path: Path, tmp_path: Path) -> None:
    tab = browser.new_context(color_scheme="dark").new_page()
    tab.goto(path.as_uri())
    tab.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible()
