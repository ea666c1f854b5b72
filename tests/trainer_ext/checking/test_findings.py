"""Findings are counted by kind, the first kept, all written; a page of them holds no live word of the data."""

import json
import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np

from trainer_ext.checking.batches_shown import ShownBatch, ShownRow, ShownText, thumbnail
from trainer_ext.checking.findings import Finding, FindingLog, Group
from trainer_ext.checking.fit import Fit
from trainer_ext.checking.page import check_page, verdict
from trainer_ext.checking.plan_shares import SourceShare

HOSTILE = "</style><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&\n\ud83d"


KNOWN = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "b", "ul", "li", "table", "tr"}
KNOWN |= {"th", "td", "span", "img"}


class Elements(HTMLParser):
    """Collects elements and attributes as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def log_of(words: str, count: int = 3) -> tuple[FindingLog, list[dict]]:
    file = StringIO()
    log = FindingLog(file, shown=2)
    log.add(Finding("warning", "blank", words, words, words, n, words) for n in range(count))
    log.add([Finding("error", "plan", "", words)])
    return log, [json.dumps(json.loads(line)) for line in file.getvalue().splitlines()]


def test_all_are_written_and_the_first_are_kept() -> None:
    log, lines = log_of("a", count=5)
    assert log.counts == {Group("warning", "a", "blank"): 5, Group("error", "", "plan"): 1}
    assert [json.loads(line)["row"] for line in lines] == [0, 1, 2, 3, 4, None]
    assert log.describe() == [
        "error: a",
        "warning: a, a, row 0, column 'a': a",
        "warning: a, a, row 1, column 'a': a",
        "warning: a: 3 more of the kind blank",
    ]
    assert verdict(log) == "1 error, 5 warnings."


def test_a_line_stays_one_line() -> None:
    log, _ = log_of("two\nlines\tof \x1b[31mwords")
    assert all(line.isprintable() for line in log.describe())


def test_hostile_rows_stay_text_in_the_page() -> None:
    log, _ = log_of(HOSTILE)
    column = {"texts": 1, "different": 1}
    record = {"rows": 1, "broken": 0, "texts": {HOSTILE: column}}
    share = SourceShare(HOSTILE, "text", {HOSTILE: 3}, 3, 1.0, None)
    uri = thumbnail(np.zeros((300, 200, 3), np.uint8))
    row = ShownRow([ShownText(HOSTILE, HOSTILE, 3, True)], uri)
    batch = ShownBatch(HOSTILE, "image_text", HOSTILE, 9, 16, [row])
    fit = Fit({HOSTILE: 1.0}, 2.0, "cpu", 1.0, 2.0, 3.0)
    page = check_page(HOSTILE, log, {HOSTILE: record}, [share], fit, [batch])
    seen = Elements()
    seen.feed(page)
    assert seen.names <= KNOWN
    assert seen.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "alt", "src"}
    assert seen.sources == [uri]
    assert not re.search(r"https?:|url\(|@import", page)
    assert "alert(1)" in page  # it is there to be read
    page.encode("utf-8", "replace")
