"""The page: one file that asks nothing of a network, shows every part, and takes no text for markup."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.trainer_ext.report.run_folders import run_folder
from tests.trainer_ext.report.samples import page
from trainer_ext.report import ReportData, report_of_run, write_report
from trainer_ext.report.charts import panel_groups
from trainer_ext.report.data import Difference, GalleryEntry, Row, RunFacts, Shown, TaskDetails
from trainer_ext.report.page import page_of
from trainer_ext.report.panels import panels_of

# Each is one name, caption, path and reason of a page, so each is long enough for several attacks.
HOSTILE = [
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)> ' onmouseover='alert(1)",
    "</style><svg/onload=alert(1)>{{ 7 * 7 }}{% raw %}]]></text><!-- &lt; &#x3c;b>",
    "$\\frac{1}{0}$ \x00\x1b[31m\u202eevil\ud800 javascript:alert(1)// url(https://example.org/x) 青い猫 🐸",
    '#0a0b00 id="x" ' + 5000 * "x",
]


class Reader(HTMLParser):
    """Every element and attribute of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def check_harmless(text: str) -> Reader:
    reader = Reader(text)
    assert reader.tags.isdisjoint(
        {"script", "iframe", "object", "embed", "link", "base", "form", "image", "foreignobject"}
    )
    for name, value in reader.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), value
        elif name == "src":
            assert value.startswith("data:image/jpeg;base64,"), value
        assert name not in ("srcset", "action", "formaction", "poster", "data", "background"), name
        for address in re.findall(r"url\(([^)]*)\)", value if name == "style" or name == "clip-path" else ""):
            assert address.startswith("#"), address
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    assert len(styles) == 1
    assert not re.search(r"url\(|@import|expression", styles[0])
    return reader


@pytest.fixture(scope="module")
def plain() -> Reader:
    return check_harmless(page_of(page("a cat", name="run")))


def test_every_part_is_on_the_page_and_nothing_is_asked_of_a_network(tmp_path):
    text = write_report(tmp_path, page()).read_text(encoding="utf-8")
    reader = check_harmless(text)
    words = ("Figures", "By stage and model", "By width", "By precision", "By length of text", "By part", "Training")
    words += ("Cosines", "Best and worst queries", "Data", "The run", "Differences of the figures")
    assert [word for word in words if f">{word}</h2>" not in text] == []
    for shown in (
        "9 queries a cat",
        "right in place 1,234 of 5,000",
        "60.0",
        "50.0 to 70.0",
        "rows left out",
        "12.5 s",
    ):
        assert shown in reader.text, shown
    assert len(reader.ids) == len(set(reader.ids)), "ids are unique, those of the drawings too"
    targets = {value[1:] for name, value in reader.attributes if name == "href"}
    targets |= {found for _, value in reader.attributes for found in re.findall(r"url\(#([^)]+)\)", value)}
    assert targets <= set(reader.ids)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("words", HOSTILE)
def test_no_text_of_the_data_becomes_markup(plain, words):
    reader = check_harmless(page_of(page(words, name=words)))
    assert reader.tags == plain.tags
    assert {name for name, _ in reader.attributes} == {name for name, _ in plain.attributes}
    assert "7 * 7" in reader.text or "7 * 7" not in words


@settings(max_examples=40, deadline=None)
@example("\u2028</p>\x85")
@given(st.text(max_size=60))
def test_any_text_gives_a_page(words):
    parts = page(words, name=words)
    check_harmless(page_of(ReportData(words, notes=[words], sizes=parts.sizes, differences=parts.differences)))


@settings(max_examples=10, deadline=None)
@example("@0")
@example("[0]")
@given(st.text(max_size=60))
def test_any_text_is_text_in_a_drawing(words):
    task = re.sub(r"[@[\]]", "", words)  # "@64" is a width, "[de]" a part: their panels show the newest row alone
    panels = panels_of([Row(words, {f"{task}/r5": 0.5}), Row("b", {f"{task}/r5": 0.6})])
    [group] = panel_groups(panels)
    reader = Reader(str(group.plots[0].svg))
    assert reader.tags <= {"svg", "defs", "g", "path", "text", "use", "clippath", "rect"}
    assert "b" in reader.text


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "data:text/html;base64,AA==", "data:image/svg+xml;base64,AA", "x"]
)
def test_a_picture_is_a_data_uri_of_pixels_or_nothing(address):
    entry = GalleryEntry(Shown("a"), 1, [Shown(None, address)])
    with pytest.raises(ValueError, match="give a data URI of a JPEG, PNG or WebP"):
        page_of(ReportData("x", details=[TaskDetails("t", best=[entry])]))


def test_an_empty_report_is_a_page():
    check_harmless(page_of(ReportData("nothing yet")))


def test_equal_data_give_equal_bytes(tmp_path):
    data = ReportData("x", rows=page().rows[:2])
    assert write_report(tmp_path / "a", data).read_bytes() == write_report(tmp_path / "b", data).read_bytes()


def test_a_run_folder_gives_its_page(tmp_path):
    path = write_report(tmp_path / "out", report_of_run(run_folder(tmp_path / "run")))
    reader = check_harmless(path.read_text(encoding="utf-8"))
    assert path.name == "report.html"
    assert "2 stages, 30 steps · 25.0 s of training" in reader.text


def test_the_newest_stage_is_on_the_cards_with_its_change(plain):
    assert "60.0 %" in plain.text
    assert "+40.0 since before training" in plain.text


def test_the_best_of_a_line_is_bold_also_where_less_is_better():
    rows = [
        Row("a", {"t/r5": 0.2, "t/median_rank": 9.0}, "model"),
        Row("b", {"t/r5": 0.4, "t/median_rank": 20.0}, "model"),
    ]
    text = page_of(ReportData("x", rows=rows))
    assert re.findall(r'class="best">([\d.]+)', text) == ["40.0", "9"]


@pytest.mark.parametrize("runs", [0, 2])
def test_differences_of_widths_and_parts_are_folded(runs: int) -> None:
    """A few figures are seen first; those of two runs stand at the top, those of models below their figures."""
    names = ["shop/t2i_r5", "shop@64/t2i_r5", "shop@64@int8/t2i_r5", "shop[de]/t2i_r5"]
    rows = [Row(name, dict.fromkeys(names, 0.5), "model") for name in "ab"]
    differences = [Difference(name, "a", "b", 0.1, (0.05, 0.2)) for name in names]
    text = page_of(ReportData("two", rows, differences=differences, runs=[RunFacts(name) for name in "ab"][:runs]))
    start = text.index('<h2 id="verdicts">')
    assert (start < text.index('<h2 id="figures">')) == (runs == 2)
    table, _, folded = text[start:].partition("<details")
    assert table.count("verdict better") == 1
    assert folded.partition("</details>")[0].count("verdict better") == 3
    assert "R@5, 64 dimensions, int8" in folded
