"""A stream is one endless sequence, whoever reads it and wherever the reading begins."""

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tests.trainer_ext.source_files import (
    pair_source,
    picture_source,
    png,
    write_pairs,
    write_pictures,
    write_tar,
)
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_source, load_sources
from trainer_ext.data.streams import SourceStream, StreamRow

COUNTS = [7, 12, 5]
ROWS = sum(COUNTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def stream_of(folder: Path, suffix: str = "jsonl", seed: int = 1, **changes: Any) -> SourceStream:
    if not (folder / "data").exists():
        write_pairs(folder / "data", suffix, COUNTS)
    format = {"jsonl": "json", "tar": "webdataset"}.get(suffix, suffix)
    if suffix == "tar":
        changes["columns"] = {"query": "json.q", "positive": "json.a"}
    options = {name: changes.pop(name) for name in ("broken", "bookmarks") if name in changes}
    source = pair_source(folder / "data", format, streaming=True, **{"shuffle_buffer": 5, **changes})
    return SourceStream(source, seed, **options)


def queries(rows: list[StreamRow]) -> list[str]:
    return [row.row["query"] for row in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "tar"])
def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(tmp_path: Path, suffix: str) -> None:
    rows = stream_of(tmp_path, suffix).read(range(3 * ROWS))
    orders = [queries(rows[begin : begin + ROWS]) for begin in (0, ROWS, 2 * ROWS)]
    in_files = [f"question {n}" for n in range(ROWS)]
    assert [sorted(order) for order in orders] == [sorted(in_files)] * 3
    assert len({tuple(order) for order in [*orders, in_files]}) == 4
    assert [row.epoch for row in rows] == [0] * ROWS + [1] * ROWS + [2] * ROWS
    identities = {row.row["query"]: row.identity for row in rows}
    assert all(identities[row.row["query"]] == row.identity for row in rows)
    assert len(set(identities.values())) == ROWS
    assert rows[0].row.keys() == {"query", "positive"}
    assert rows[0].row["positive"] == rows[0].row["query"].replace("question", "answer")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "tar"])
def test_every_worker_reads_the_whole_stream(tmp_path: Path, suffix: str) -> None:
    """Workers take turns with the steps, so the rows of all of them are those that one process reads alone."""
    stream = stream_of(tmp_path, suffix)
    rows = JointDataset([stream.source], {"pairs": stream}, seed=1)
    steps = [[Key(step, 0, "text", "pairs", 0, 4 * step + n) for n in range(4)] for step in range(2 * ROWS // 4)]
    alone = [rows.__getitems__(step) for step in steps]
    assert {row["query"] for step in alone for row in step} == {f"question {n}" for n in range(ROWS)}
    assert list(DataLoader(rows, batch_sampler=steps, collate_fn=list, num_workers=2)) == alone


def test_seed_and_name_decide(tmp_path: Path) -> None:
    first, again = stream_of(tmp_path), stream_of(tmp_path)
    others = [stream_of(tmp_path, seed=2), stream_of(tmp_path, name="other"), stream_of(tmp_path, shuffle_buffer=6)]
    expected = first.read(range(ROWS))
    assert again.read(range(ROWS)) == expected
    assert all(queries(other.read(range(ROWS))) != queries(expected) for other in others)


def test_windows_cross_files(tmp_path: Path) -> None:
    """A window as large as everything mixes the files."""
    order = queries(stream_of(tmp_path, shuffle_buffer=100).read(range(ROWS)))
    numbers = [int(query.split()[1]) for query in order]
    files = [(number >= 7) + (number >= 19) for number in numbers]
    assert sum(one != other for one, other in pairwise(files)) > 4


@pytest.mark.parametrize("start", [4, 5, 24, 60])
@pytest.mark.parametrize("bookmarks", [False, True])
def test_reading_may_begin_anywhere(tmp_path: Path, start: int, bookmarks: bool) -> None:
    """As after a resume, with and without the notes of the run before; and backwards."""
    notes = tmp_path / "notes" if bookmarks else None
    whole = stream_of(tmp_path, bookmarks=notes)
    expected = whole.read(range(80))
    assert stream_of(tmp_path, bookmarks=notes).read(range(start, 80)) == expected[start:]
    assert whole.read([start]) == expected[start : start + 1]
    assert pickle.loads(pickle.dumps(whole)).read([start]) == expected[start : start + 1]  # noqa: S301  # our own


def test_bookmarks_save_reading(tmp_path: Path) -> None:
    """The notes lead into the right file: the others may be gone."""
    expected = stream_of(tmp_path, bookmarks=tmp_path / "notes").read(range(ROWS))
    marks = [json.loads(line) for line in (tmp_path / "notes" / "pairs.jsonl").read_text().splitlines()]
    assert [mark[0] for mark in marks] == [5, 10, 15, 20]  # 0 needs no note
    reader = stream_of(tmp_path, bookmarks=tmp_path / "notes")
    order = [int(file.split("-")[-1][0]) for file in reader._opened.files]
    first = order[int(expected[0].identity) // 2**40]  # the file that the epoch began with
    (tmp_path / "data" / f"train-{first}.jsonl").write_text("no rows any more\n")
    assert reader.read(range(20, ROWS)) == expected[20:]
    with pytest.raises(DataError, match="row 0, column 'q': the line is not JSON"):
        stream_of(tmp_path).read(range(20, ROWS))


def test_cut_note_is_no_note(tmp_path: Path) -> None:
    expected = stream_of(tmp_path, bookmarks=tmp_path / "notes").read(range(ROWS))
    notes = tmp_path / "notes" / "pairs.jsonl"
    notes.write_text(notes.read_text() + "[24, 1, ")
    assert stream_of(tmp_path, bookmarks=tmp_path / "notes").read([ROWS - 1]) == expected[-1:]


def test_rows_equal_those_of_the_source_that_does_not_stream(tmp_path: Path) -> None:
    streamed = stream_of(tmp_path).read(range(ROWS))
    source = pair_source(tmp_path / "data", "json")
    stored = load_sources([source])["pairs"]
    assert sorted(queries(streamed)) == sorted(stored["query"])
    assert isinstance(load_sources([source.model_copy(update={"streaming": True})])["pairs"], SourceStream)


# --- pictures ----------------------------------------------------------------------------------------------------


def picture_streams(folder: Path) -> dict[str, SourceStream]:
    """Six pictures, from each kind of file."""
    (folder / "pictures").mkdir()
    for n in range(6):
        (folder / "pictures" / f"{n}.png").write_bytes(png(n))
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"shade {n}"}) for n in range(6)]
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    write_pictures(folder / "pictures.parquet", 6)
    samples = [(str(n), {"png": png(n), "txt": f"shade {n}".encode()}) for n in range(6)]
    write_tar(folder / "pictures.tar", samples)
    sources = {
        "parquet": picture_source(folder / "pictures.parquet", streaming=True),
        "imagefolder": picture_source(folder / "pictures", "imagefolder", streaming=True),
        "webdataset": picture_source(
            folder / "pictures.tar", "webdataset", columns={"image": "png", "caption": "txt"}, streaming=True
        ),
    }
    return {name: SourceStream(source, 1) for name, source in sources.items()}


def test_pictures_are_decoded_from_every_kind_of_file(tmp_path: Path) -> None:
    for name, stream in picture_streams(tmp_path).items():
        rows = [row.row for row in stream.read(range(6))]
        shades = {row["caption"]: row["image"].getpixel((0, 0))[0] for row in rows}
        assert shades == {f"shade {n}": n for n in range(6)}, name


def test_webdataset_without_streaming(tmp_path: Path) -> None:
    streamed = picture_streams(tmp_path)["webdataset"]
    table = load_source(streamed.source.model_copy(update={"streaming": False}))
    assert table["caption"][:] == [f"shade {n}" for n in range(6)]
    assert [image.getpixel((0, 0))[0] for image in table["image"]] == list(range(6))


# --- what cannot be used -----------------------------------------------------------------------------------------


def test_columns_and_types_are_checked_before_the_first_step(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "jsonl", COUNTS)
    with pytest.raises(DataError, match=r"has no column 'question' for query. .*Its columns are q, a"):
        stream_of(tmp_path, columns={"query": "question", "positive": "a"})
    (tmp_path / "data" / "train-0.jsonl").write_text('{"q": 1, "a": "x"}\n')
    with pytest.raises(DataError, match=r"but query must be a text"):
        stream_of(tmp_path)
    with pytest.raises(DataError, match="no file at"):
        SourceStream(pair_source(tmp_path / "gone.csv", "csv", streaming=True), 1)


def spoil(folder: Path, file: int, row: int) -> Path:
    path = folder / "data" / f"train-{file}.jsonl"
    lines = path.read_text().splitlines()
    lines[row] = json.dumps({"q": "", "a": "x"})
    path.write_text("\n".join(lines) + "\n")
    return path


def test_row_that_cannot_be_used_is_named_and_ends_the_run(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "jsonl", COUNTS)
    path = spoil(tmp_path, file=1, row=9)
    with pytest.raises(DataError) as caught:
        stream_of(tmp_path).read(range(ROWS))
    words = "empty text. Fill it or remove the row. (Rows count from 0; this one begins on line 10.)"
    assert str(caught.value) == f"Source 'pairs', {path}, row 9, column 'q': {words}"


def test_rows_within_the_budget_are_left_out_and_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "jsonl", COUNTS)
    path = spoil(tmp_path, file=1, row=9)
    broken = BrokenRows(tmp_path / "broken.jsonl")
    stream = stream_of(tmp_path, max_broken_rows=1, broken=broken)
    rows = stream.read(range(2 * (ROWS - 1)))
    assert sorted(queries(rows[: ROWS - 1])) == sorted(f"question {n}" for n in range(ROWS) if n != 16)
    assert rows[ROWS - 2].epoch == 0
    assert rows[ROWS - 1].epoch == 1
    [line] = (tmp_path / "broken.jsonl").read_text().splitlines()  # met in both epochs, listed once
    assert json.loads(line) == {
        "source": "pairs", "file": str(path), "row": 9, "column": "q",
        "reason": "empty text. Fill it or remove the row.",
    }  # fmt: skip
    spoil(tmp_path, file=2, row=0)
    with pytest.raises(DataError, match=r"train-2\.jsonl, row 0.* 2 rows of the source .* max_broken_rows is 1"):
        stream_of(tmp_path, max_broken_rows=1, broken=broken).read(range(ROWS))


def test_broken_picture_is_replaced_by_the_same_row_everywhere(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "pictures.parquet", 6, broken=[4])
    with pytest.raises(DataError, match=r"pictures\.parquet, row 4, column 'image': the image .* cannot be decoded"):
        SourceStream(picture_source(path, streaming=True), 1).read(range(6))
    source = picture_source(path, streaming=True, max_broken_rows=1)
    captions = [row.row["caption"] for row in SourceStream(source, 1).read(range(6))]
    assert len(set(captions)) == 5
    assert "shade 4" not in captions
    [position] = [n for n in range(6) if captions.count(captions[n]) == 2 and captions.index(captions[n]) < n] or [0]
    assert SourceStream(source, 1).read([position])[0].row["caption"] == captions[position]


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_that_was_cut_is_named(tmp_path: Path, streaming: bool) -> None:
    [path] = write_pairs(tmp_path / "data", "tar", [30])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 700])
    columns = {"query": "json.q", "positive": "json.a"}
    source = pair_source(path, "webdataset", columns=columns, streaming=streaming, max_broken_rows=2)
    with pytest.raises(DataError, match=r"train-0\.tar cannot be read as webdataset: .* cut short or damaged"):
        load_sources([source])["pairs"].read(range(30))


def test_no_row_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "", "a": "x"}\n' * 3)
    with pytest.raises(DataError, match="holds no row that can be used"):
        SourceStream(pair_source(path, "json", streaming=True, max_broken_rows=9), 1).read([0])
