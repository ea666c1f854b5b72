"""Files as people have them: each gives the right rows, or one line with the input's name and the cure."""

import gzip
import io
import json
import os
import struct
import tarfile
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer_ext.data.test_csv import COLUMNS, read, write_csv
from tests.trainer_ext.source_files import PAIR_COLUMNS, pair_source, picture_source, png, write_tar
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.fingerprint import fingerprint
from trainer_ext.data.formats import DataError
from trainer_ext.data.images import missing_files
from trainer_ext.data.sources import load_source, load_sources

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streaming"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def texts(source: Any, count: int, broken: BrokenRows | None = None) -> list[tuple[str, str]]:
    return sorted((row["query"], row["positive"]) for row in read(source, count, broken))


# --- CSV ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("place", [0, 1])
def test_a_cell_too_many_is_a_fault_of_its_row(tmp_path: Path, place: int, streaming: bool) -> None:
    """In the first row pandas would take the first column for an index, and shift all others."""
    rows = ["What is green?,grass", "What is blue?,the sea"]
    rows.insert(place, "What is red?,A colour, like blood")
    path = write_csv(tmp_path / "rows.csv", ["q,a", *rows])
    with pytest.raises(DataError, match=rf"rows\.csv, row {place}, column 'q': 3 cells, but the header names 2"):
        texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), 2)
    broken = BrokenRows(None)
    found = texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming, max_broken_rows=1), 2, broken)
    assert found == [("What is blue?", "the sea"), ("What is green?", "grass")]
    assert broken.counts() == {"pairs": 1}


@BOTH
def test_a_comma_at_the_end_of_each_line_is_no_cell(tmp_path: Path, streaming: bool) -> None:
    path = write_csv(tmp_path / "rows.csv", ["q,a", "one,1,", "two,2,,"])
    assert texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), 2) == [("one", "1"), ("two", "2")]


@BOTH
def test_row_names_without_a_header_are_refused(tmp_path: Path, streaming: bool) -> None:
    """R writes them so; which of the cells belongs to which name cannot be known."""
    path = write_csv(tmp_path / "rows.csv", ['"q","a"', '"1","one","1"', '"2","two","2"'])
    with pytest.raises(DataError, match="3 cells, but the header names 2 columns"):
        texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming, max_broken_rows=1), 1)


@BOTH
@pytest.mark.parametrize(("separator", "suffix"), [(";", "csv"), ("\t", "csv"), ("|", "csv"), ("\t", "tsv")])
def test_separators_are_found(tmp_path: Path, separator: str, suffix: str, streaming: bool) -> None:
    path = write_csv(tmp_path / f"rows.{suffix}", [separator.join(row) for row in (("q", "a"), ("1, or 2", "x, y"))])
    assert texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming), 1) == [("1, or 2", "x, y")]


def test_a_separator_may_be_given(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", ["q:a", "one:1"])
    assert texts(pair_source(path, "csv", columns=COLUMNS, separator=":"), 1) == [("one", "1")]


@BOTH
def test_a_quote_that_is_never_closed_ends_the_run(tmp_path: Path, streaming: bool) -> None:
    path = write_csv(tmp_path / "rows.csv", ["q,a", "one,1", '"two,2', "three,3"])
    with pytest.raises(DataError, match=r"rows\.csv.*line 3: a quote is opened and never closed"):
        texts(pair_source(path, "csv", columns=COLUMNS, streaming=streaming, max_broken_rows=3), 1)


@BOTH
def test_utf_16_says_so(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "rows.csv").write_text("q,a\none,1\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"rows\.csv.*UTF-16.*iconv"):
        texts(pair_source(tmp_path / "rows.csv", "csv", columns=COLUMNS, streaming=streaming), 1)


@BOTH
def test_a_cell_in_latin_1_is_a_broken_row(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "rows.csv").write_bytes(b"q,a\none,1\nna\xefve,2\nlong," + b"x" * 200_000 + b"\n")
    source = pair_source(tmp_path / "rows.csv", "csv", columns=COLUMNS, streaming=streaming)
    with pytest.raises(DataError, match=r"row 1, column 'q': b'na\\xefve' is not UTF-8"):
        texts(source, 2)
    found = texts(source.model_copy(update={"max_broken_rows": 1}), 2, BrokenRows(None))
    assert [(query, len(positive)) for query, positive in found] == [("long", 200_000), ("one", 1)]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4), min_size=1, max_size=5), separator=st.sampled_from(",;\t"))
def test_any_csv_gives_its_cells_or_names_a_row(tmp_path: Path, rows: list[list[str]], separator: str) -> None:
    import csv

    path = tmp_path / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["q", "a"], *rows])
    good = [row[:2] for row in rows if len(row) > 1 and not any(row[2:]) and all(cell.strip() for cell in row[:2])]
    source = pair_source(path, "csv", columns=COLUMNS, max_broken_rows=5)
    if good:
        assert texts(source, len(good), BrokenRows(None)) == sorted((query, positive) for query, positive in good)
        return
    with pytest.raises(DataError, match=r"\A[^\n]*any\.csv[^\n]*\Z"):
        texts(source, 1)


# --- JSON and tar ------------------------------------------------------------------------------------------------

GOOD = b'{"q": "one", "a": "1"}\n'


@BOTH
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"null", "the line holds null"),
        (b"[]", "the line holds a list"),
        (b'{"q": ' + b"[" * 50_000 + b"]" * 50_000 + b', "a": "x"}', "nested too deeply"),
        (b'{"q": ' + b"9" * 5000 + b', "a": "y"}', "a number of thousands of digits"),
        (b'{"q": "half \\ud83d", "a": "x"}', r"half a letter \(U\+D83D\) at character 5"),
        (b'{"q": "\xff", "a": "x"}', "not UTF-8"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_json_lines_that_are_no_rows(tmp_path: Path, line: bytes, words: str, first: bool, streaming: bool) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n" + GOOD if first else GOOD + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, row {int(not first)}, column 'q': .*{words}"):
        texts(pair_source(path, "json", streaming=streaming), 2)
    source = pair_source(path, "json", streaming=streaming, max_broken_rows=1)
    assert texts(source, 1, BrokenRows(None)) == [("one", "1")]


@BOTH
def test_a_column_may_have_any_name(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "one", "__fault__": "1"}\n')
    source = pair_source(
        tmp_path / "rows.jsonl", "json", streaming=streaming, columns={"query": "q", "positive": "__fault__"}
    )
    assert texts(source, 1) == [("one", "1")]


@BOTH
def test_members_of_a_tar_are_not_unpacked_nor_loaded(tmp_path: Path, streaming: bool) -> None:
    """Neither a bomb of compressed JSON nor a torch file is looked into; the row does not need them."""
    bomb = gzip.compress(b'{"a": "' + b"x" * 10_000_000 + b'"}')
    samples = [(f"{n}", {"png": png(n), "txt": b"shade", "json.gz": bomb, "pth": b"\x80\x04no"}) for n in range(3)]
    write_tar(tmp_path / "rows.tar", samples)
    columns = {"image": "png", "caption": "txt"}
    found = read(picture_source(tmp_path / "rows.tar", "webdataset", columns=columns, streaming=streaming), 3)
    assert [row["caption"] for row in found] == ["shade"] * 3


@BOTH
def test_samples_may_have_pictures_of_several_kinds(tmp_path: Path, streaming: bool) -> None:
    kinds = ["jpg", "png", "jpeg", "webp", "png"]
    samples = [(f"{n}", {kind: png(n), "txt": f"shade {n}".encode()}) for n, kind in enumerate(kinds)]
    write_tar(tmp_path / "rows.tar", samples)
    columns = {"image": "jpg;png;jpeg;webp", "caption": "txt"}
    source = picture_source(tmp_path / "rows.tar", "webdataset", columns=columns, streaming=streaming)
    assert sorted(map(shade, read(source, 5))) == [0, 1, 2, 3, 4]


@BOTH
@pytest.mark.parametrize("missing", ["png", "txt"])
def test_an_incomplete_sample_is_a_broken_row(tmp_path: Path, missing: str, streaming: bool) -> None:
    samples = [(f"{n}", {"png": png(n), "txt": f"shade {n}".encode()}) for n in range(3)]
    del samples[1][1][missing]
    write_tar(tmp_path / "rows.tar", samples)
    columns = {"image": "png", "caption": "txt"}
    source = picture_source(tmp_path / "rows.tar", "webdataset", columns=columns, streaming=streaming)
    with pytest.raises(DataError, match=rf"rows\.tar, row 1, column '{missing}'"):
        read(source, 3)
    assert sorted(map(shade, read(source.model_copy(update={"max_broken_rows": 1}), 2, BrokenRows(None)))) == [0, 2]


@BOTH
@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_pictures_written_as_text_are_refused_in_a_short_line(tmp_path: Path, head: str, streaming: bool) -> None:
    path = write_csv(tmp_path / "rows.csv", ["image,text", f"{head}{'A' * 100_000},shade"])
    with pytest.raises(DataError, match="row 0, column 'image'") as caught:
        read(picture_source(path, "csv", streaming=streaming), 1)
    assert len(str(caught.value)) < 500


# --- parquet -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.string()], ids=str)
def test_texts_of_every_type(tmp_path: Path, kind: pa.DataType, streaming: bool) -> None:
    table = pa.table({name: pa.array(["one", "two"], pa.string()).cast(kind) for name in PAIR_COLUMNS.values()})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = texts(pair_source(tmp_path / "rows.parquet", "parquet", streaming=streaming), 2)
    assert found == [("one", "one"), ("two", "two")]


@BOTH
@pytest.mark.parametrize(
    "kind", [pa.large_list(pa.string()), pa.list_(pa.string(), 2), pa.large_list(pa.large_string())], ids=str
)
def test_lists_of_every_type(tmp_path: Path, kind: pa.DataType, streaming: bool) -> None:
    table = pa.table(
        {"q": ["one"], "a": ["1"], "n": pa.array([["2", "3"]], kind)},
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = PAIR_COLUMNS | {"negatives": "n"}
    source = pair_source(tmp_path / "rows.parquet", "parquet", columns=columns, streaming=streaming)
    assert read(source.model_copy(update={"task": "triplet"}), 1)[0]["negatives"] == ["2", "3"]


@BOTH
@pytest.mark.parametrize("kind", ["int8", "int16", "uint8", "uint16", "uint32", "uint64"])
def test_ids_of_every_width(tmp_path: Path, kind: str, streaming: bool) -> None:
    table = pa.table({"q": ["one", "two"], "a": ["1", "2"], "n": pa.array([7, 100], pa.type_for_alias(kind))})
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = PAIR_COLUMNS | {"id": "n"}
    found = read(pair_source(tmp_path / "rows.parquet", "parquet", columns=columns, streaming=streaming), 2)
    assert sorted(str(row["id"]) for row in found) == ["100", "7"]


@BOTH
@pytest.mark.parametrize("kind", [pa.uint16(), pa.uint64(), pa.decimal128(5, 2)], ids=str)
def test_scores_of_every_type(tmp_path: Path, kind: pa.DataType, streaming: bool) -> None:
    table = pa.table(
        {"q": ["one", "two"], "a": ["1", "2"], "s": pa.array([Decimal(1), Decimal(3)], pa.decimal128(5, 2)).cast(kind)}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = PAIR_COLUMNS | {"score": "s"}
    source = pair_source(tmp_path / "rows.parquet", "parquet", columns=columns, streaming=streaming)
    found = read(source.model_copy(update={"task": "scored-pair"}), 2)
    assert sorted(row["score"] for row in found) == [1.0, 3.0]


def test_a_score_that_is_no_float_is_one_line(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"q": ["one"], "a": ["1"], "s": pa.array([2**63 + 1], pa.uint64())}), tmp_path / "r.parquet"
    )
    source = pair_source(tmp_path / "r.parquet", "parquet", columns=PAIR_COLUMNS | {"score": "s"})
    with pytest.raises(DataError, match=r"r\.parquet: column 's': Integer value 9223372036854775809 not in range"):
        read(source.model_copy(update={"task": "scored-pair"}), 1)


@BOTH
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_encoded_pictures_of_every_binary_type(tmp_path: Path, kind: pa.DataType, streaming: bool) -> None:
    table = pa.table({"image": pa.array([png(4), png(8)], kind), "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert {shade(row) for row in read(picture_source(tmp_path / "rows.parquet", streaming=streaming), 2)} == {4, 8}


# --- pictures ----------------------------------------------------------------------------------------------------


def picture_table(folder: Path, stored: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"image": pa.array(stored, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    pq.write_table(table.append_column("text", pa.array(["shade"] * len(stored))), folder / "rows.parquet")
    return folder / "rows.parquet"


def shade(row: dict[str, Any]) -> int:
    return row["image"].getpixel((0, 0))[0]


@BOTH
def test_paths_in_image_structs_start_at_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Another folder's picture of the same name must not be trained on."""
    path = picture_table(tmp_path / "data", [{"bytes": None, "path": "0001.png"}, {"bytes": png(9), "path": "x.png"}])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0001.png").write_bytes(png(77))
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = picture_source(path, streaming=streaming)
    with pytest.raises(DataError, match=r"row 0, column 'image': no image file .*data/0001\.png"):
        read(source, 2)
    (tmp_path / "data" / "0001.png").write_bytes(png(5))
    assert sorted(map(shade, read(source.model_copy(update={"name": "again"}), 2))) == [5, 9]


class Watch(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png(1))

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None: ...


@BOTH
@pytest.mark.parametrize("kind", ["struct", "text"])
def test_addresses_in_data_are_never_opened(tmp_path: Path, kind: str, streaming: bool) -> None:
    server = HTTPServer(("127.0.0.1", 0), Watch)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/x.png"
    try:
        for url in (address, "ftp://127.0.0.1/x", "hf://datasets/a/b/x.png", "file:///etc/hosts"):
            if kind == "struct":
                source = picture_source(picture_table(tmp_path, [{"bytes": None, "path": url}]), streaming=streaming)
            else:
                path = write_csv(tmp_path / "rows.csv", ["image,text", f"{url},shade"])
                source = picture_source(path, "csv", streaming=streaming)
            with pytest.raises(DataError, match=r"row 0, column 'image': .* is an address") as caught:
                read(source, 1)
            assert url in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
    assert Watch.asked == []


@BOTH
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, streaming: bool) -> None:
    place = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    path = write_csv(tmp_path / "rows.csv", ["image,text", "x.png,shade"])
    with pytest.raises(DataError, match=r"x\.png is no regular file"):
        read(picture_source(path, "csv", streaming=streaming), 1)


def wrong_resolution() -> bytes:
    """A JPEG with an orientation, and a resolution whose EXIF entry is text where a fraction belongs."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + struct.pack("<I", 0)
    file = io.BytesIO()
    Image.new("RGB", (20, 16)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
ODD = {
    "resolution": wrong_resolution(),
    "eps": EPS,
    "line": encoded(Image.new("RGB", (1, 50_000)), "PNG"),
    "float": encoded(Image.fromarray(np.full((9, 9), 1e6, np.float32)), "TIFF"),
    "int32": encoded(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"),
    "sgi": encoded(Image.new("RGB", (9, 9)), "SGI"),
    "dds": encoded(Image.new("RGB", (9, 9)), "DDS"),
    "cut": png(3, (300, 300))[:200],
    "empty": b"",
}


@BOTH
@pytest.mark.parametrize("name", ODD)
def test_every_picture_that_cannot_be_pixels_is_a_broken_row(
    tmp_path: Path, name: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: started.append(args))
    rows = [{"bytes": png(4), "path": None}, {"bytes": ODD[name], "path": None}, {"bytes": png(8), "path": None}]
    source = picture_source(picture_table(tmp_path, rows), streaming=streaming, max_broken_rows=1)
    broken = BrokenRows(None)
    try:
        found = read(source, 2, broken)
    except DataError as error:
        pytest.fail(str(error))
    assert set(map(shade, found)) <= {4, 8}
    with pytest.raises(DataError, match=r"rows\.parquet, row 1, column 'image'") as caught:
        read(source.model_copy(update={"max_broken_rows": 0, "name": "strict"}), 3)
    assert "\n" not in str(caught.value)
    assert started == []


@BOTH
def test_cut_pictures_are_broken_whatever_other_libraries_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    path = picture_table(tmp_path, [{"bytes": whole[: len(whole) // 2], "path": None}])
    with pytest.raises(DataError, match=r"row 0, column 'image'"):
        read(picture_source(path, streaming=streaming), 1)


@BOTH
def test_16_bit_grey_has_the_shades_of_its_8_bit_twin(tmp_path: Path, streaming: bool) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    rows = [{"bytes": encoded(Image.fromarray(grey), "PNG"), "path": None}, {"bytes": deep, "path": None}]
    found = [
        np.asarray(row["image"]) for row in read(picture_source(picture_table(tmp_path, rows), streaming=streaming), 2)
    ]
    assert (found[0] == found[1]).all()
    assert found[0].shape == (16, 16, 3)


# --- whole sources -----------------------------------------------------------------------------------------------


def test_rows_are_found_in_many_files_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is counted once, however many of its rows are broken."""
    for number in range(20):
        write_csv(tmp_path / f"rows-{number:02d}.csv", ["q,a", *(f"{n},{'' if n % 2 else n}" for n in range(10))])
    counted: list[Any] = []
    from trainer_ext.data import formats

    real = formats.prepare
    monkeypatch.setattr(formats, "prepare", lambda opened: (counted.append(opened.name), real(opened)))
    broken = BrokenRows(None)
    load_source(pair_source(tmp_path / "rows-*.csv", "csv", columns=COLUMNS, max_broken_rows=100), broken)
    assert broken.counts() == {"pairs": 100}
    assert len(counted) <= 1 + 20


@BOTH
def test_rewritten_data_have_another_fingerprint(tmp_path: Path, streaming: bool) -> None:
    def taken(answer: str) -> str:
        path = write_csv(tmp_path / "rows.csv", ["q,a", "one,1", f"two,{answer}"])
        source = pair_source(path, "csv", columns=COLUMNS, streaming=streaming)
        return fingerprint(load_sources([source])["pairs"])

    assert taken("2") == taken("2")
    assert taken("2") != taken("3")


def test_a_large_stream_rewritten_in_its_middle_is_noticed(tmp_path: Path) -> None:
    """Of as many bytes, and far from both ends."""

    def taken(letter: str) -> str:
        rows = [f"{n:06d},{letter if 20_000 < n < 40_000 else 'x'}" for n in range(60_000)]
        source = pair_source(write_csv(tmp_path / "rows.csv", ["q,a", *rows]), "csv", columns=COLUMNS, streaming=True)
        return fingerprint(load_sources([source])["pairs"])

    assert taken("y") != taken("z")


def test_replaced_pictures_have_another_fingerprint(tmp_path: Path) -> None:
    def taken(stored: dict[str, Any]) -> str:
        return fingerprint(load_source(picture_source(picture_table(tmp_path, [stored]))))

    first = taken({"bytes": png(1), "path": None})
    assert taken({"bytes": png(1), "path": None}) == first
    assert taken({"bytes": png(1, (40, 40)), "path": None}) != first
    assert len(png(1)) == len(png(3))
    assert taken({"bytes": png(3), "path": None}) != first
    (tmp_path / "x.png").write_bytes(png(1))
    by_path = taken({"bytes": None, "path": "x.png"})
    (tmp_path / "x.png").write_bytes(png(3))
    assert taken({"bytes": None, "path": "x.png"}) != by_path


def test_the_tar_reader_and_json_agree(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        content = json.dumps({"q": "one", "a": "1"}).encode()
        entry = tarfile.TarInfo("0.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    columns = {"query": "json.q", "positive": "json.a"}
    assert texts(pair_source(tmp_path / "rows.tar", "webdataset", columns=columns), 1) == [("one", "1")]


def test_tables_of_the_hub_name_their_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    own = tmp_path / "hub" / "datasets--me--photos" / "snapshots" / "1" / "x.png"
    own.parent.mkdir(parents=True)
    other = tmp_path / "hub" / "datasets--me--photos-2" / "x.png"
    other.parent.mkdir(parents=True)
    for path in (own, other, tmp_path / "secret.png"):
        path.write_bytes(png(1))
    paths = [str(own), str(other), str(own.parent / "../../../../secret.png"), str(tmp_path / "secret.png"), "x.png"]
    assert [fault.rows.tolist() for fault in missing_files(paths, "me/photos")] == [[1], [2], [3], [4]]
