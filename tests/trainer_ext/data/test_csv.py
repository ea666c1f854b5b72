"""Cells of CSV files are the texts that stand there, ids too; scores are numbers. Streaming or not."""

import gzip
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_ext.source_files import pair_source, picture_source, png
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.csv_reader import read_header
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.schema import Source

COLUMNS = {"query": "q", "positive": "a"}
LONG = 10_005  # pandas reads 10,000 rows at a time


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scored(path: Path | str, **changes: Any) -> Source:
    columns = {**COLUMNS, "score": "s"}
    return Source(name="sts", task="scored-pair", location=str(path), format="csv", columns=columns, **changes)


def read(source: Source, count: int, broken: BrokenRows | None = None) -> list[dict[str, Any]]:
    """The first rows, as a step gets them, in the file's order."""
    rows = load_sources([source], broken=broken)
    side = "image_text" if source.task == "image-text" else "text"
    keys = [Key(0, 0, side, source.name, 0, index) for index in range(count)]
    found = JointDataset([source], rows, seed=1, broken=broken).__getitems__(keys)
    return sorted(found, key=lambda row: row["key"].index)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("late", [["00005", "007"], ["1.50", "2"], ["TRUE", "false"], ["1", "2.5"], ["7", "seven"]])
def test_texts_are_what_stands_in_the_file(tmp_path: Path, late: list[str], streaming: bool) -> None:
    """Whatever stands in the rows before."""
    texts = ["word", *late, "null", "NA", "nan", "1e5", "-"]
    path = write_csv(tmp_path / "rows.csv", ["q,a,other", *(f"q{n},{text}," for n, text in enumerate(texts))])
    found = read(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), len(texts))
    assert {row["query"]: row["positive"] for row in found} == {f"q{n}": text for n, text in enumerate(texts)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("early", "late"), [("5", "5.5"), ("00005", "text"), ("text", "1.50")])
def test_texts_do_not_depend_on_the_block_they_are_read_in(
    tmp_path: Path, early: str, late: str, streaming: bool
) -> None:
    cells = [early] * (LONG - 5) + [late] * 5
    path = write_csv(tmp_path / "rows.csv", ["q,a", *(f"{n:05d},{cell}" for n, cell in enumerate(cells))])
    found = read(
        pair_source(
            path, "csv", columns=COLUMNS, streaming=streaming, **({"shuffle_buffer": LONG} if streaming else {})
        ),
        LONG,
    )
    assert sorted((row["query"], row["positive"]) for row in found) == [(f"{n:05d}", c) for n, c in enumerate(cells)]


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_are_texts(tmp_path: Path, streaming: bool) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    path = write_csv(tmp_path / "rows.csv", ["image,text,id", "0.png,a,007", "1.png,b,7", "2.png,c,x"])
    columns = {"image": "image", "caption": "text", "id": "id"}
    found = read(picture_source(path, "csv", columns=columns, streaming=streaming), 3)
    assert {row["caption"]: row["id"] for row in found} == {"a": "007", "b": "7", "c": "x"}
    write_csv(path, ["image,text,id", "0.png,a,007", "1.png,b,", "2.png,c,x"])
    with pytest.raises(DataError, match=r"rows\.csv, row 1, column 'id': no id"):
        read(picture_source(path, "csv", columns=columns, streaming=streaming), 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_scores_are_numbers(tmp_path: Path, streaming: bool) -> None:
    cells = ["1", "2.50", " 3", "-4e-1", "0"]
    path = write_csv(tmp_path / "rows.csv", ["q,a,s", *(f"q{n},a,{cell}" for n, cell in enumerate(cells))])
    found = read(scored(path, streaming=streaming), len(cells))
    assert {row["query"]: row["score"] for row in found} == {"q0": 1, "q1": 2.5, "q2": 3, "q3": -0.4, "q4": 0}
    assert all(type(row["score"]) is float for row in found)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("", "no finite number. Fill it or remove the row."),
        ("high", "'high' is no finite number. Correct it or remove the row."),
        ("inf", "'inf' is no finite number. Correct it or remove the row."),
    ],
)
def test_score_that_is_no_number_is_named_and_may_be_left_out(
    tmp_path: Path, cell: str, words: str, streaming: bool
) -> None:
    path = write_csv(tmp_path / "rows.csv", ["q,a,s", *(f"q{n},a,{cell if n == 6 else n / 4}" for n in range(9))])
    with pytest.raises(DataError) as caught:
        read(scored(path, streaming=streaming), 8)
    where = "(Rows count from 0; this one begins on line 8.)"
    assert str(caught.value) == f"Source 'sts', {path}, row 6, column 's': {words} {where}"
    broken = BrokenRows(None)
    found = read(scored(path, streaming=streaming, max_broken_rows=1), 8, broken)
    assert {row["query"]: row["score"] for row in found} == {f"q{n}": n / 4 for n in range(9) if n != 6}
    assert broken.counts() == {"sts": 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_files_may_differ_in_columns_that_are_not_mapped(tmp_path: Path, streaming: bool) -> None:
    write_csv(tmp_path / "rows-0.csv", ["\ufeffq,x,a", "q0,1,a0", '"q, 1",2,"a\n1"'])
    write_csv(tmp_path / "rows-1.csv", ["a,q", "a2,q2"])
    source = pair_source(tmp_path / "rows-*.csv", "csv", columns=COLUMNS, streaming=streaming)
    assert {row["query"]: row["positive"] for row in read(source, 3)} == {"q0": "a0", "q, 1": "a\n1", "q2": "a2"}
    other = write_csv(tmp_path / "rows-2.csv", ["q,answer", "a,b"])
    with pytest.raises(DataError, match=r"rows-2\.csv has no column 'a' for positive, but .*Its columns are q, answer"):
        read(source, 3)
    other.write_text("\n\n")
    with pytest.raises(DataError, match=r"rows-2\.csv has no column 'q' for query"):
        read(source, 3)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", 'q,a\n"1\n2",b\n\n ,c\n', r"row 1, column 'q': empty text.* begins on line 5\.\)"),
        ("x.jsonl", '\n{"q": "1", "a": "b"}\n\n{"q": "", "a": "c"}\n', r"row 1, .* begins on line 4\.\)"),
        ("x.json", '[{"q": "1", "a": "b"},\n{"q": "", "a": "c"}]', r"row 1, .* \(Rows count from 0\.\)"),
    ],
)
def test_messages_say_what_rows_count_from_and_the_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    format = "csv" if name.endswith("csv") else "json"
    with pytest.raises(DataError, match=words):
        load_sources([pair_source(tmp_path / name, format)])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q,a\none,1\n".encode("utf-16-le"), "UTF-16LE"),
        ("q,a\none,1\n".encode("utf-16-be"), "UTF-16BE"),
        ("q,a\none,1\n".encode("utf-32"), "it is UTF-32"),
    ],
    ids=["utf-16-le", "utf-16-be", "utf-32"],
)
def test_what_is_no_text_is_refused_by_its_kind(tmp_path: Path, content: bytes, words: str, streaming: bool) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"'pairs': .*rows\.csv cannot be read as csv: .*{words}"):
        read(pair_source(tmp_path / "rows.csv", "csv", columns=COLUMNS, streaming=streaming), 1)


@pytest.mark.parametrize("content", [gzip.compress(b"q,a\none,1\n"), b"PK\x03\x04" + bytes(99)], ids=["gzip", "zip"])
def test_a_packed_header_is_refused(tmp_path: Path, content: bytes) -> None:
    """Of local files ``formats`` refuses more kinds; a file of the Hub is only looked at here."""
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ValueError, match="packed, or an Excel workbook"):
        read_header(str(tmp_path / "rows.csv"), ",")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, streaming: bool) -> None:
    """Unless nobody asks for it."""
    path = write_csv(tmp_path / "rows.csv", ["q,a,a", "one,1,x"])
    with pytest.raises(DataError, match=r"rows\.csv has 2 columns 'a', so it is unclear which one is meant"):
        read(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), 1)
    path = write_csv(tmp_path / "other.csv", ["q,a,b,b", "one,1,x,y"])
    [row] = read(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), 1)
    assert (row["query"], row["positive"]) == ("one", "1")


def test_a_table_of_many_columns_is_read_soon(tmp_path: Path) -> None:
    """Each column's type was looked up in a schema made anew: 1,500 columns took ten minutes."""
    more = ",x" * 1500
    path = write_csv(tmp_path / "rows.csv", ["q,a" + "".join(f",c{n}" for n in range(1500)), f"one,1{more}"])
    began = time.process_time()  # not the clock's, which other processes share
    [row] = read(pair_source(path, "csv", columns=COLUMNS), 1)
    assert row["query"] == "one"
    assert time.process_time() - began < 60


@pytest.mark.parametrize("location", ["n" * 300 + ".csv", "a\0b.csv", "/".join(["n" * 200] * 40)])
def test_a_location_that_is_no_path_is_a_line(location: str) -> None:
    with pytest.raises(DataError, match="no file at") as caught:
        read(pair_source(f"/tmp/{location}", "csv", columns=COLUMNS), 1)
    assert "[Errno" not in str(caught.value)
