"""What is trained on and measured on is found, equal and nearly equal, both sides."""

from pathlib import Path

import pytest

from tests.trainer_ext.checking.planted import (
    encoded,
    pair_rows,
    picture,
    picture_rows,
    places,
    scanned,
    source,
    write_rows,
)
from trainer_ext.checking.overlap import overlap_findings
from trainer_ext.checking.scan import SourceScan

LONG = "the old lighthouse keeper climbs the winding stairs every evening and lights the lamp above the harbour"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def pictures(folder: Path, name: str, rows: list[dict]) -> SourceScan:
    return scanned(source(write_rows(folder / f"{name}.parquet", rows), ("image", "caption"), name))[0]


def pairs(folder: Path, name: str, rows: list[dict], streaming: bool = False) -> SourceScan:
    path = write_rows(folder / f"{name}.jsonl", rows)
    return scanned(source(path, ("query", "positive"), name, streaming=streaming))[0]


def test_sources_without_a_common_row_have_no_finding(tmp_path: Path) -> None:
    train, test = pairs(tmp_path, "train", pair_rows(20)), pairs(tmp_path, "test", pair_rows(40)[20:])
    assert list(overlap_findings(train, test)) == []


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_and_pairs_of_an_evaluation_source(tmp_path: Path, streaming: bool) -> None:
    rows, other = pair_rows(20), pair_rows(40)[20:]
    other[3] = rows[4]  # both sides
    other[5] = {"query": rows[6]["query"].upper(), "positive": "quite another answer"}  # one side
    rows[8]["positive"], other[9]["query"] = LONG, f"{LONG}!"  # nearly, on another side
    train = pairs(tmp_path, "train", rows, streaming)
    found = list(overlap_findings(train, pairs(tmp_path, "test", other)))
    assert places(found) == [
        ("near-overlap-text", "train.jsonl", 8, "positive"),
        ("overlap", None, None, None),
        ("overlap-pair", "train.jsonl", 4, None),
        ("overlap-text", "train.jsonl", 6, "query"),
    ]
    assert {one.level for one in found} == {"warning"}
    assert found[0].words == (
        "3 of 20 (15.0%) of the rows hold what source 'test' measures: "
        "on both sides 1, its texts 1, its texts nearly 1."
    )
    assert "test.jsonl, row 5" in found[2].words
    assert "test.jsonl, row 9" in found[3].words


def test_pictures_of_an_evaluation_source(tmp_path: Path) -> None:
    """The same pixels in another file are equal; a smaller JPEG is nearly so."""
    rows, other = picture_rows(10), picture_rows(20)[10:]
    other[0] = rows[1]
    other[1]["image"] = encoded(picture(2), "BMP")
    other[2]["image"] = encoded(picture(3).resize((96, 80)), "JPEG")
    found = list(overlap_findings(pictures(tmp_path, "train", rows), pictures(tmp_path, "test", other)))
    assert places(found[1:]) == [
        ("near-overlap-picture", "train.parquet", 3, "image"),
        ("overlap-pair", "train.parquet", 1, None),
        ("overlap-picture", "train.parquet", 2, "image"),
    ]
