"""Single rows that cannot be read: named by file, row and column, and left out within the budget; streaming or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_ext.source_files import pair_source, picture_source, png, write_tar
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.schema import Source

ROWS = 9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(source: Source, count: int, broken: BrokenRows | None = None) -> list[dict[str, Any]]:
    rows = load_sources([source], broken=broken)
    side = "image_text" if source.task == "image-text" else "text"
    keys = [Key(0, 0, side, source.name, 0, index) for index in range(count)]
    return JointDataset([source], rows, seed=1, broken=broken).__getitems__(keys)


def write_lines(path: Path, bad: bytes, first: int = 0, place: int = 6) -> Path:
    lines = [json.dumps({"q": f"q{n}", "a": "a", "n": n}).encode() for n in range(first, first + ROWS)]
    lines[place] = bad
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


BAD_LINES = {
    "number": (b'{"q": "q6", "a": 5}', "a", "a number (5) where a text belongs. Correct the row or remove it."),
    "list": (b'{"q": "q6", "a": ["x"]}', "a", 'a list (["x"]) where a text belongs. Correct the row or remove it.'),
    "cut": (
        b'{"q": "q6", "a": ',
        "q",
        "the line is not JSON: Expecting value at character 16. Correct it or remove it.",
    ),
    "latin": (b'{"q": "caf\xe9", "a": "a"}', "q", "the line is not UTF-8: 'utf-8' codec can't decode byte 0xe9"),
    "no object": (b"7", "q", "the line holds a number (7), not an object. Correct it or remove it."),
    "missing": (b'{"q": "q6"}', "a", "empty text. Fill it or remove the row."),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BAD_LINES)
def test_json_line_that_cannot_be_read(tmp_path: Path, case: str, streaming: bool) -> None:
    line, column, words = BAD_LINES[case]
    write_lines(tmp_path / "rows-1.jsonl", b'{"a": "a", "q": "q6"}')
    path = write_lines(tmp_path / "rows-2.jsonl", line, first=ROWS)
    source = pair_source(tmp_path / "rows-*.jsonl", "json", streaming=streaming, **buffer(streaming))
    with pytest.raises(DataError) as caught:
        read(source, 2 * ROWS - 1)
    assert str(caught.value).startswith(f"Source 'pairs', {path}, row 6, column {column!r}: {words}")
    broken = BrokenRows(None)
    found = read(source.model_copy(update={"max_broken_rows": 1}), 2 * ROWS - 1, broken)
    assert sorted(row["query"] for row in found) == sorted(f"q{n}" for n in range(2 * ROWS) if n != 15)
    assert broken.counts() == {"pairs": 1}


def buffer(streaming: bool) -> dict[str, int]:
    return {"shuffle_buffer": 4} if streaming else {}


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_line_behind_the_first_block(tmp_path: Path, streaming: bool) -> None:
    """``datasets`` reads 10 MB at a time; what it has read and what is read in its place go together."""
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [{"pad": "x" * 700_000, "image": f"{n}.png", "more": {"text": f"shade {n}"}, "id": n} for n in range(20)]
    lines = [json.dumps(row) for row in rows]
    lines[15] = '{"image": "15.png", "more": {"text": 15}, "id": "x"}'
    lines[17] = '{"image": "17.png", "more": {"text": ["shade 17"]}, "id": "17"}'
    lines[18] = '{"image": "18.png", "more": 5, "id": 18}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    columns = {"image": "image", "caption": "more.text", "id": "id"}
    source = picture_source(
        tmp_path / "rows.jsonl", "json", columns=columns, streaming=streaming, max_broken_rows=2, **buffer(streaming)
    )
    broken = BrokenRows(tmp_path / "broken.jsonl")
    found = read(source, 18, broken)
    assert {(row["caption"], str(row["id"])) for row in found} == {
        (f"shade {n}", str(n)) for n in range(20) if n not in (15, 18)
    }
    assert len(found) == 18
    broken.write()
    listed = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert sorted((line["row"], line["column"]) for line in listed) == [(15, "more.text"), (18, "more.text")]


@pytest.mark.parametrize("streaming", [False, True])
def test_json_list_with_a_bad_item(tmp_path: Path, streaming: bool) -> None:
    rows = [{"q": f"q{n}", "a": 5 if n == 6 else "a"} for n in range(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    source = pair_source(tmp_path / "rows.json", "json", streaming=streaming)
    with pytest.raises(DataError, match=r"rows\.json, row 6, column 'a': a number \(5\) where a text belongs"):
        read(source, ROWS - 1)
    assert len(read(source.model_copy(update={"max_broken_rows": 1}), ROWS - 1)) == ROWS - 1


@pytest.mark.parametrize("streaming", [False, True])
def test_json_files_with_other_columns(tmp_path: Path, streaming: bool) -> None:
    write_lines(tmp_path / "rows-1.jsonl", b'{"q": "q6", "a": "a"}')
    (tmp_path / "rows-2.jsonl").write_text('{"a": "a", "q": "new", "other": [1]}\n')
    source = pair_source(tmp_path / "rows-*.jsonl", "json", streaming=streaming)
    assert sorted(row["query"] for row in read(source, ROWS + 1)) == ["new", *(f"q{n}" for n in range(ROWS))]
    (tmp_path / "rows-2.jsonl").write_text('{"q": "new", "answer": "a"}\n')
    with pytest.raises(DataError, match=r"rows-2\.jsonl, row 0, column 'a': empty text"):
        read(source, ROWS)
    assert len(read(source.model_copy(update={"max_broken_rows": 1}), ROWS)) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", [1, 7])
@pytest.mark.parametrize("kind", ["json", "txt"])
def test_member_of_a_tar_that_cannot_be_read(tmp_path: Path, kind: str, place: int, streaming: bool) -> None:
    good = [json.dumps({"text": f"shade {n}"}).encode() if kind == "json" else b"shade %d" % n for n in range(ROWS)]
    good[place] = b'{"text": ' if kind == "json" else b"caf\xe9"
    write_tar(tmp_path / "rows.tar", [(f"{n}", {"png": png(n), kind: good[n]}) for n in range(ROWS)])
    columns = {"image": "png", "caption": "json.text" if kind == "json" else "txt"}
    source = picture_source(
        tmp_path / "rows.tar", "webdataset", columns=columns, streaming=streaming, **buffer(streaming)
    )
    with pytest.raises(DataError) as caught:
        read(source, ROWS - 1)
    place_in_file = f"{tmp_path / 'rows.tar'}, row {place}, column {columns['caption']!r}"
    assert f"{place_in_file}: the member cannot be read: " in str(caught.value)
    found = read(source.model_copy(update={"max_broken_rows": 1}), ROWS - 1)
    assert sorted(row["caption"] for row in found) == [f"shade {n}" for n in range(ROWS) if n != place]


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_that_is_not_utf8_names_the_cell(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"q,a\n" + b"".join(b"q%d,%s\n" % (n, b"caf\xe9" if n == 6 else b"a") for n in range(ROWS)))
    with pytest.raises(DataError) as caught:
        read(pair_source(path, "csv", streaming=streaming), ROWS)
    assert f"{path}, row 6, column 'a': b'caf\\xe9' is not UTF-8. Convert the file: iconv" in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("dates", [["2020-01-02", "1999-12-31T10:00:00Z"], ["2020-01-02 10:00:00"] * 2])
def test_texts_that_are_dates_stay_texts(tmp_path: Path, dates: list[str], streaming: bool) -> None:
    """pyarrow's reader of JSON makes times of them, if all of a block are dates."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": date, "a": f"answer {date}"}) + "\n" for date in dates * ROWS))
    found = read(pair_source(path, "json", streaming=streaming, **buffer(streaming)), 2 * ROWS)
    assert sorted(row["query"] for row in found) == sorted(dates * ROWS)
