"""Rows that cannot be used: within the budget they are left out, listed and replaced the same way everywhere."""

import json
import struct
import zlib
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from torch.utils.data import DataLoader

from tests.trainer_ext.source_files import pair_source, picture_source, png, write_pictures
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.broken_rows import BrokenRow, BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import JointBatchPlan, Key
from trainer_ext.data.sources import load_source, load_sources
from trainer_ext.recipe.schema import Side, Source
from trainer_ext.recipe.stages import Stage


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def listed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(folder: Path) -> list[Path]:
    """Two files; row 1 of the first has no query, row 2 of the second neither query nor answer."""
    rows = [[("a", "b"), ("", "d")], [("e", "f"), ("g", "h"), (None, " ")]]
    paths = [folder / "rows-0.jsonl", folder / "rows-1.jsonl"]
    for path, content in zip(paths, rows, strict=True):
        path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in content))
    return paths


def test_rows_without_texts_are_left_out_and_listed_once_training_begins(tmp_path: Path) -> None:
    first, second = write_rows(tmp_path)
    source = pair_source(tmp_path / "rows-*.jsonl", "json", max_broken_rows=2)
    broken = BrokenRows(None)
    table = load_sources([source], broken=broken)["pairs"]
    assert table["query"][:] == ["a", "e", "g"]
    rows = JointDataset([source], {"pairs": table}, seed=1)
    assert rows[Key(0, 0, "text", "pairs", 0, 2)].keys() == {"query", "positive", "key"}
    assert broken.counts() == {"pairs": 2}
    broken.keep_in(tmp_path / "run" / "broken.jsonl")
    assert not (tmp_path / "run").exists()
    broken.write()
    broken.write()
    reason = "empty text. Fill it or remove the row."
    assert listed(tmp_path / "run" / "broken.jsonl") == [
        {"source": "pairs", "file": str(first), "row": 1, "column": "q", "reason": reason},
        {"source": "pairs", "file": str(second), "row": 2, "column": "q", "reason": reason},
    ]


def test_one_row_more_than_the_budget(tmp_path: Path) -> None:
    first, _ = write_rows(tmp_path)
    source = pair_source(tmp_path / "rows-*.jsonl", "json", max_broken_rows=1)
    with pytest.raises(DataError) as caught:
        load_source(source)
    assert str(caught.value) == (
        f"Source 'pairs', {first}, row 1, column 'q': empty text. Fill it or remove the row. 1 more rows have this"
        " fault. 2 rows of the source cannot be used, but its max_broken_rows is 1."
        " (Rows count from 0; this one begins on line 2.)"
    )


def test_nothing_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "", "a": "b"}\n' * 3)
    with pytest.raises(DataError, match=r"none of the rows of .* can be used: empty text"):
        load_source(pair_source(path, "json", max_broken_rows=3))


# --- pictures that cannot be decoded -----------------------------------------------------------------------------


def pictures(folder: Path, budget: int = 2) -> tuple[Source, JointBatchPlan]:
    path = folder / "pictures.parquet"
    if not path.exists():
        write_pictures(path, 12, broken=[3, 7])
    source = picture_source(path, max_broken_rows=budget)
    stage = Stage(
        name="only", steps=9, learning_rate=1e-3, max_length=8,
        image_text=Side(sources=["pictures"], batch_size=4),
    )  # fmt: skip
    return source, JointBatchPlan([stage], [source], {"pictures": 12}, seed=1)


def drawn(folder: Path, workers: int) -> list[list[tuple[str, int]]]:
    source, plan = pictures(folder)
    broken = BrokenRows(folder / f"broken-{workers}.jsonl")
    rows = JointDataset([source], {"pictures": load_source(source)}, 1, broken)
    batches = DataLoader(rows, batch_sampler=plan, collate_fn=list, num_workers=workers)
    return [[(row["caption"], row["key"].index) for row in batch] for batch in batches]


def test_replacements_are_the_same_with_workers_and_alone(tmp_path: Path) -> None:
    alone, together = drawn(tmp_path, 0), drawn(tmp_path, 2)
    assert alone == together
    _, plan = pictures(tmp_path)
    planned = [[key.index for key in plan.keys(batch)] for batch in range(9)]
    met = [index for batch in planned for index in batch if index in (3, 7)]
    assert len(met) == 6  # three epochs
    for batch, indices in zip(alone, planned, strict=True):
        for (caption, index), wanted in zip(batch, indices, strict=True):
            assert caption == f"shade {index}"
            assert (index == wanted) == (wanted not in (3, 7))
            assert index not in (3, 7)
    for workers in (0, 2):
        assert sorted(row["row"] for row in listed(tmp_path / f"broken-{workers}.jsonl")) == [3, 7]


def test_resumed_list_goes_on(tmp_path: Path) -> None:
    """A row that the run before has listed does not count twice; another one does."""
    source, plan = pictures(tmp_path, budget=1)
    table = load_source(source)
    keys = {index: plan.keys(0)[0]._replace(index=index) for index in (3, 7)}
    for _ in range(2):
        JointDataset([source], {"pictures": table}, 1, BrokenRows(tmp_path / "broken.jsonl"))[keys[3]]
    rows = JointDataset([source], {"pictures": table}, 1, BrokenRows(tmp_path / "broken.jsonl"))
    with pytest.raises(DataError, match=r"row 7, column 'image'.* 2 rows of the source cannot be used, but its max_b"):
        rows[keys[7]]
    assert [row["row"] for row in listed(tmp_path / "broken.jsonl")] == [3, 7]  # the one that ended the run, too


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("streaming", [False, True])
def test_picture_that_is_too_large_to_decode_counts_like_a_broken_one(tmp_path: Path, streaming: bool) -> None:
    stored = [{"bytes": bomb() if n == 3 else png(n), "path": None} for n in range(6)]
    table = Dataset.from_dict({"image": stored, "text": [f"shade {n}" for n in range(6)]})
    table.cast_column("image", Image()).to_parquet(tmp_path / "rows.parquet")
    keys = [Key(0, 0, "image_text", "pictures", 0, index) for index in range(6)]
    for budget in (0, 1):
        source = picture_source(tmp_path / "rows.parquet", streaming=streaming, max_broken_rows=budget)
        rows = JointDataset([source], load_sources([source]), seed=1)
        if budget:
            assert "shade 3" not in {row["caption"] for row in rows.__getitems__(keys)}
        else:
            with pytest.raises(DataError, match=r"row 3, column 'image': the image .* 3600000000 pixels, above"):
                rows.__getitems__(keys)


@pytest.mark.parametrize("torn", [b'{"source": "pictures", "file": "x", "ro', b'{"source": "\xc3', b"[1]"])
def test_torn_line_is_no_row_and_spoils_no_other(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "broken.jsonl"
    source = pair_source("x", "csv", max_broken_rows=2)
    BrokenRows(path).add(source, BrokenRow("pairs", "x.csv", 1, "q", "empty"))
    with path.open("ab") as file:
        file.write(torn)
    again = BrokenRows(path)
    assert again.counts() == {"pairs": 1}
    again.add(source, BrokenRow("pairs", "x.csv", 5, "q", "empty"))
    with pytest.raises(DataError, match="3 rows"):
        BrokenRows(path).add(source, BrokenRow("pairs", "x.csv", 7, "q", "empty"))


def _add_many(path: Path, first: int) -> None:
    source = pair_source("x", "csv", max_broken_rows=1000)
    broken = BrokenRows(path)
    for row in range(first, first + 60):
        broken.add(source, BrokenRow("pairs", "x.csv", row, "q", "empty" * 20))


def test_processes_share_one_list(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    processes = [get_context("fork").Process(target=_add_many, args=(path, first)) for first in (0, 60)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(row["row"] for row in listed(path)) == list(range(120))
    source = pair_source("x", "csv", max_broken_rows=120)
    with pytest.raises(DataError, match="121 rows"):
        BrokenRows(path).add(source, BrokenRow("pairs", "x.csv", 200, "q", "empty"))
