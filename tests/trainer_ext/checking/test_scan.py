"""Each planted fault of a source is found, in its file, row and column; clean rows give nothing; streaming alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer_ext.checking.planted import (
    encoded,
    pair_rows,
    picture,
    picture_rows,
    places,
    said,
    scanned,
    sentence,
    source,
    write_rows,
)
from tests.trainer_ext.source_files import BROKEN
from trainer_ext.checking.duplicates import duplicate_findings
from trainer_ext.checking.findings import Finding, FindingLog
from trainer_ext.checking.pictures import picture_findings
from trainer_ext.checking.scan import AllBroken, open_source, scan
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

STAGE = Stage(name="only", steps=1, learning_rate=1e-3, max_length=32)
PICTURES, PAIRS, TRIPLETS = ("image", "caption"), ("query", "positive"), ("query", "positive", "negatives")
ROWS = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def findings(source: Source, **options: Any) -> list[Finding]:
    """All that is said of a source by itself."""
    found, log = scanned(source)
    log.add(duplicate_findings(found, **options))
    if len(found.pictures):
        log.add(picture_findings("rows", "image", found.pictures, [STAGE], 32, True, found.place))
    return said(log)


def with_row(rows: list[dict[str, Any]], place: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} if number == place else row for number, row in enumerate(rows)]


def contrasted_rows(count: int) -> list[dict[str, Any]]:
    return [{**row, "negatives": [sentence(900 + n), sentence(700 + n)]} for n, row in enumerate(picture_rows(count))]


def triplet_rows(count: int) -> list[dict[str, Any]]:
    return [{**row, "negatives": [sentence(900 + n), sentence(1100 + n)]} for n, row in enumerate(pair_rows(count))]


# Name -> columns, rows with one fault, and what is found: kind, row and column.
Case = tuple[tuple[str, ...], Callable[[], list[dict[str, Any]]], list[tuple[str, int | None, str | None]]]
CASES: dict[str, Case] = {
    "clean pictures": (PICTURES, lambda: picture_rows(ROWS), []),
    "clean pairs": (PAIRS, lambda: pair_rows(ROWS), []),
    "clean triplets": (TRIPLETS, lambda: triplet_rows(ROWS), []),
    "empty caption": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 3, caption=" "),
        [("broken-row", 3, "caption"), ("broken-rows", None, None)],
    ),
    "damaged picture": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 5, image=BROKEN),
        [("broken-row", 5, "image"), ("broken-rows", None, None)],
    ),
    "short caption": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 2, caption="x"), [("short-caption", 2, "caption")],
    ),
    "file's name": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 2, caption="IMG_7.jpg"), [("machine-text", 2, "caption")],
    ),
    "row twice": (PICTURES, lambda: [*picture_rows(ROWS), picture_rows(1)[0]], [("equal-row", ROWS, None)]),
    "picture twice": (
        PICTURES, lambda: [*picture_rows(ROWS), {**picture_rows(1)[0], "caption": sentence(77)}],
        [("equal-picture", ROWS, "image")],
    ),
    "picture nearly twice": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 7, image=encoded(picture(1).resize((96, 80)), "JPEG")),
        [("near-picture", 7, "image")],
    ),
    "caption twice": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 4, caption=sentence(1).upper()), [("equal-text", 4, "caption")],
    ),
    "shared caption": (
        PICTURES,
        lambda: [{**row, "caption": "a nice thing"} if n < 6 else row for n, row in enumerate(picture_rows(ROWS))],
        [*[("equal-text", n, "caption") for n in range(1, 6)], ("shared-caption", 0, "caption")],
    ),
    "transparent": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 6, image=encoded(see_through())), [("transparent", 6, "image")],
    ),
    "one colour": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 6, image=encoded(Image.new("RGB", (40, 40), "red"))),
        [("blank", 6, "image")],
    ),
    "small": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 1, image=encoded(picture(1, (14, 12)))),
        [("small-picture", 1, "image")],
    ),
    "long": (
        PICTURES, lambda: with_row(picture_rows(ROWS), 1, image=encoded(picture(1, (120, 40)))),
        [("cropped", 1, "image")],
    ),
    "a part of a text": (PAIRS, lambda: with_row(with_row(pair_rows(ROWS), 2, query=LONG), 9, query=LONG[:60]), []),
    "text nearly twice": (
        PAIRS, lambda: with_row(with_row(pair_rows(ROWS), 2, query=LONG), 9, query=LONG + "."),
        [("near-text", 9, "query")],
    ),
    "query is positive": (
        PAIRS, lambda: with_row(pair_rows(ROWS), 3, query="one thing", positive="One  thing"),
        [("positive-is-query", 3, "positive")],
    ),
    "negative is positive": (
        TRIPLETS, lambda: with_row(triplet_rows(ROWS), 3, negatives=[sentence(1), pair_rows(4)[3]["positive"].upper()]),
        [("negative-is-positive", 3, "negatives")],
    ),
    "negative is another row's positive": (
        TRIPLETS,
        lambda: [*with_row(triplet_rows(ROWS), 3, negatives=[sentence(1), "another answer"]),
                 {**triplet_rows(4)[3], "positive": "another answer"}],
        [("equal-text", ROWS, "query"), ("negative-is-positive", 3, "negatives")],
    ),
    "negative caption is right": (
        (*PICTURES, "negatives"),
        lambda: with_row(contrasted_rows(ROWS), 3, negatives=[sentence(1), sentence(3).upper()]),
        [("negative-is-positive", 3, "negatives")],
    ),
    "negative is query": (
        TRIPLETS, lambda: with_row(triplet_rows(ROWS), 3, negatives=[sentence(1), pair_rows(4)[3]["query"]]),
        [("negative-is-query", 3, "negatives")],
    ),
    "markup in an answer": (
        PAIRS, lambda: with_row(pair_rows(ROWS), 3, positive="<p>yes</p> it is"), [("machine-text", 3, "positive")],
    ),
    "equal scores": (
        (*PAIRS, "score"), lambda: [{**row, "score": 1.0} for row in pair_rows(ROWS)],
        [("equal-scores", None, "score")],
    ),
}  # fmt: skip
LONG = "the old lighthouse keeper climbs the winding stairs every evening and lights the lamp above the harbour"


def see_through() -> Image.Image:
    drawn = picture(6).convert("RGBA")
    drawn.putpixel((3, 3), (9, 9, 9, 0))
    return drawn


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found_in_its_place(name: str, streaming: bool, tmp_path: Path) -> None:
    columns, rows, expected = CASES[name]
    path = write_rows(tmp_path / "rows.parquet", rows())
    found = findings(source(path, columns, streaming=streaming, max_broken_rows=1))
    where = [(kind, None if row is None else "rows.parquet", row, column) for kind, row, column in expected]
    assert places(found) == sorted(where)
    assert all(one.words.endswith(".") for one in found)


def test_a_broken_line_of_json_is_counted_with_all_others(tmp_path: Path) -> None:
    """All are listed, however few are allowed; beyond that they are errors."""
    path = write_rows(tmp_path / "rows.jsonl", pair_rows(ROWS))
    lines = path.read_text().splitlines()
    lines[2], lines[7], lines[9] = lines[2][:20], '{"query": 7, "positive": "x"}', '{"query": "", "positive": "x"}'
    path.write_text("\n".join(lines) + "\n")
    for streaming in (False, True):
        found = findings(source(path, PAIRS, streaming=streaming, max_broken_rows=2))
        assert {one.level for one in found} == {"error"}
        rows = [(one.row, one.column) for one in found if one.kind == "broken-row"]
        assert [row for row, _ in rows] == [2, 7, 9]
        assert rows[1:] == [(7, "query"), (9, "query")]
        [total] = [one for one in found if one.kind == "broken-rows"]
        assert "3 rows of the source cannot be used, but its max_broken_rows is 2." in total.words


def test_rows_are_placed_in_their_file_behind_broken_ones(tmp_path: Path) -> None:
    """Numbers are those of the file, not of the rows that are left."""
    first = write_rows(tmp_path / "data" / "train-0.parquet", with_row(pair_rows(4), 1, query=""))
    again = {**pair_rows(4)[2], "positive": pair_rows(4)[2]["positive"]}
    rows = [*with_row(pair_rows(9)[4:], 0, positive=""), again]
    write_rows(tmp_path / "data" / "train-1.parquet", rows)
    for streaming in (False, True):
        found = findings(source(first.parent, PAIRS, streaming=streaming, max_broken_rows=9))
        assert places(found) == [
            ("broken-row", "train-0.parquet", 1, "query"), ("broken-row", "train-1.parquet", 0, "positive"),
            ("broken-rows", None, None, None), ("equal-row", "train-1.parquet", 5, None),
        ]  # fmt: skip
        [equal] = [one for one in found if one.kind == "equal-row"]
        assert "train-0.parquet, row 2" in equal.words


def test_modes_and_which_way_up_are_counted(tmp_path: Path) -> None:
    """A phone's picture lies on its side with a note in it; it is turned upright before its size is told."""
    rows, exif = picture_rows(6), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    rows[1]["image"] = encoded(picture(1, (60, 40)), "JPEG", exif=exif)
    rows[2]["image"] = encoded(picture(2).convert("L"))
    rows[3]["image"] = encoded(see_through())
    found, _ = scanned(source(write_rows(tmp_path / "rows.parquet", rows), PICTURES))
    record = found.pictures.as_record()
    assert (record["turned"], record["transparent"], record["modes"]) == (1, 1, {"RGB": 4, "L": 1, "RGBA": 1})
    assert found.pictures.sizes[1].tolist() == [40, 60]
    assert record["shortest_side"] == {"smallest": 40, "median": 40, "largest": 40}


def test_captions_of_one_thing_are_no_twins(tmp_path: Path) -> None:
    """Rows of one id, and several captions of one picture, are never each other's negatives."""
    rows = [{**row, "thing": n % 6} for n, row in enumerate(picture_rows(ROWS))]
    rows[6] |= {"image": encoded(picture(0).resize((96, 80))), "caption": rows[0]["caption"]}
    path = write_rows(tmp_path / "rows.parquet", rows)
    own = source(path, PICTURES).model_copy(update={"columns": {"image": "image", "caption": "caption", "id": "thing"}})
    assert findings(own) == []
    assert places(findings(source(path, PICTURES))) == [
        ("equal-text", "rows.parquet", 6, "caption"), ("near-picture", "rows.parquet", 6, "image"),
    ]  # fmt: skip


def test_true_negatives_are_errors_where_they_count(tmp_path: Path) -> None:
    columns, rows, _ = CASES["negative is positive"]
    path = write_rows(tmp_path / "rows.parquet", rows())
    assert [one.level for one in findings(source(path, columns))] == ["warning"]
    assert [one.level for one in findings(source(path, columns), keeps_false_negatives=True)] == ["error"]


def test_some_of_the_pictures_are_enough_where_asked(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", picture_rows(ROWS))
    for streaming, expected in ((False, [0, 3, 6, 9]), (True, [0, 1, 2, 3])):
        one, broken = source(path, PICTURES, streaming=streaming), AllBroken(None)
        found = scan(one, open_source(one, 0, broken), broken, None, [], FindingLog(None), most_pictures=4)
        assert found.pictures.rows.tolist() == expected
        assert found.rows == ROWS


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(copies=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=5), streaming=st.booleans())
def test_every_planted_copy_is_found_and_nothing_else(
    copies: list[tuple[int, int]], streaming: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows copied to drawn places: each is named once, with the first row that says the same."""
    rows = pair_rows(30)
    for place, copied in copies:
        rows.insert(place, pair_rows(30)[copied])
    path = write_rows(tmp_path_factory.mktemp("copies") / "rows.jsonl", rows)
    expected = [(n, rows.index(row)) for n, row in enumerate(rows) if rows.index(row) < n]
    found = findings(source(path, PAIRS, streaming=streaming))
    assert [(one.kind, one.row) for one in found] == [("equal-row", row) for row, _ in expected]
    assert all(f"rows.jsonl, row {first}." in one.words for one, (_, first) in zip(found, expected, strict=True))
