"""Every format gives the same rows under our column names; what cannot be used stops at load, by file, row, column."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

from trainer_ext.data.batches import JointDataset
from trainer_ext.data.formats import DataError, source_files
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_source, load_sources, read_rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe.schema import Source

PAIRS = {"q": ["null", "two", "three"], "a": ["eins", "NA", "drei"]}
COLUMNS = {
    "image-text": {"image": "image", "caption": "text"},
    "text-pair": {"query": "q", "positive": "a"},
    "triplet": {"query": "q", "positive": "a", "negatives": "n"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test, and no network: a connection would be an error here."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"connects to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def source(location: Path | str, format: str = "json", task: str = "text-pair", **changes: Any) -> Source:
    settings = {"name": "mine", "columns": COLUMNS[task]} | changes
    return Source(task=task, location=str(location), format=format, **settings)


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_parquet(path: Path) -> Path:
    Dataset.from_dict(PAIRS).to_parquet(path)
    return path


def write_csv(path: Path) -> Path:
    Dataset.from_dict(PAIRS).to_csv(path, index=False)
    return path


def write_arrow_stream(path: Path) -> Path:
    table = pa.table(PAIRS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def write_arrow_file(path: Path) -> Path:
    table = pa.table(PAIRS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names):
        Pictures.new("RGB", (4, 3), (level, 0, 0)).save(folder / name)


# --- what loads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "name", "write"),
    [
        ("parquet", "rows.parquet", write_parquet),
        ("arrow", "rows.arrow", write_arrow_stream),
        ("arrow", "rows.arrow", write_arrow_file),
        ("json", "rows.jsonl", lambda path: write_json(path, rows_of(PAIRS))),
        ("csv", "rows [1].csv", write_csv),
    ],
    ids=["parquet", "arrow stream", "arrow file", "json lines", "csv"],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, format: str, name: str, write: Callable[[Path], Path]
) -> None:
    table = load_source(source(write(tmp_path / name), format))
    assert table.column_names == ["query", "positive"]
    assert table.to_dict() == {"query": PAIRS["q"], "positive": PAIRS["a"]}


def test_only_mapped_columns_and_swapped_names(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [{"positive": "p", "query": "q", "other": 1}])
    table = load_source(source(path, columns={"query": "positive", "positive": "query"}))
    assert table.to_dict() == {"query": ["p"], "positive": ["q"]}


def test_folder_glob_and_split(tmp_path: Path) -> None:
    for number, place in enumerate(["train-0.jsonl", "train-1.jsonl", "test.jsonl", "val/a.jsonl", "val/b.jsonl"]):
        write_json(tmp_path / place, [{"q": f"q{number}", "a": "a"}])
    assert load_source(source(tmp_path))["query"][:] == ["q0", "q1"]
    assert load_source(source(tmp_path, split="test"))["query"][:] == ["q2"]
    assert load_source(source(tmp_path, split="val"))["query"][:] == ["q3", "q4"]
    assert load_source(source(tmp_path / "**" / "*.jsonl"))["query"][:] == ["q2", "q0", "q1", "q3", "q4"]


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", [{"q": "old", "a": "a"}])
    assert load_source(source(path))["query"][:] == ["old"]
    write_json(path, [{"q": "new", "a": "a"}])
    assert load_source(source(path))["query"][:] == ["new"]


@pytest.mark.parametrize("split_folder", [False, True])
@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("column", ["image", "file_name"])
def test_image_folder(tmp_path: Path, metadata: str, split_folder: bool, column: str) -> None:
    folder = tmp_path / "train" if split_folder else tmp_path
    pictures(folder / "sub", ["a.png", "b.png"])
    rows = [{"file_name": "sub/b.png", "text": "bee"}, {"file_name": "sub/a.png", "text": "ay"}]
    if metadata.endswith("jsonl"):
        write_json(folder / metadata, rows)
    elif metadata.endswith("csv"):
        Dataset.from_list(rows).to_csv(folder / metadata, index=False)
    else:
        Dataset.from_list(rows).to_parquet(folder / metadata)
    table = load_source(source(tmp_path, "imagefolder", "image-text", columns={"image": column, "caption": "text"}))
    assert table["caption"][:] == ["bee", "ay"]
    assert [image.getpixel((0, 0)) for image in table["image"]] == [(1, 0, 0), (0, 0, 0)]


def image_rows(folder: Path) -> dict[str, tuple[list[Any], Any]]:
    """The same two pictures in each way that a table may hold them, with the column's feature."""
    pictures(folder, ["a.png", "b.png"])
    encoded = [(folder / name).read_bytes() for name in ("a.png", "b.png")]
    paths = [str(folder / name) for name in ("a.png", "b.png")]
    stored = [{"bytes": item, "path": None} for item in encoded]
    return {
        "image type": (paths, Image()),
        "bytes": (encoded, Value("binary")),
        "struct": (stored, {"bytes": Value("binary"), "path": Value("string")}),
        "absolute path": (paths, Value("string")),
        "relative path": (["a.png", "b.png"], Value("string")),
    }


@pytest.mark.parametrize("way", ["image type", "bytes", "struct", "absolute path", "relative path"])
def test_images_are_decoded_from_bytes_and_paths(tmp_path: Path, way: str) -> None:
    values, feature = image_rows(tmp_path)[way]
    features = Features({"image": feature, "text": List(Value("string")), "code": Value("int64")})
    columns = {"image": values, "text": [["x", "y"], ["z"]], "code": [7, 8]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "rows.parquet")
    item = source(tmp_path / "rows.parquet", "parquet", "image-text", columns={**COLUMNS["image-text"], "id": "code"})
    table = load_source(item)
    assert table.features["image"] == Image()
    rows = read_rows(item, table, [1, 0])
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(1, 0, 0), (0, 0, 0)]
    assert [(row["caption"], row["id"]) for row in rows] == [(["z"], 8), (["x", "y"], 7)]


def test_triplets(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl", [{"q": "q", "a": "a", "n": ["x", "y"]}] * 3)
    assert load_source(source(path, task="triplet"))["negatives"][:] == [["x", "y"]] * 3


MARGINS = COLUMNS["triplet"] | {"margins": "m"}
GOOD_TRIPLET = {"q": "q", "a": "a", "n": ["x", "y"]}


@pytest.mark.parametrize("type", [pa.list_(pa.int8()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_margins_of_any_number_type(tmp_path: Path, type: pa.DataType, streaming: bool) -> None:
    table = pa.table({
        "q": ["q"] * 3, "a": ["a"] * 3, "n": [["x", "y"]] * 3, "m": pa.array([[1, 2], [0, -1], [3, 0]]).cast(type)
    })  # fmt: skip
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    item = source(tmp_path / "rows.parquet", "parquet", "triplet", columns=MARGINS, streaming=streaming)
    rows = load_sources([item])["mine"]
    found = [one.row["margins"] for one in rows.read([0, 1, 2])] if streaming else rows["margins"][:]
    assert sorted(found) == [[0.0, -1.0], [1.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize("streaming", [False, True])
def test_margins_of_json_and_of_pictures_with_one_caption(tmp_path: Path, streaming: bool) -> None:
    pictures(tmp_path, ["a.png"])
    path = write_json(tmp_path / "rows.jsonl", [GOOD["image-text"] | {"n": ["x"], "m": [value]} for value in (1, 0.5)])
    columns = COLUMNS["image-text"] | {"negatives": "n", "margins": "m"}
    rows = load_sources([source(path, task="image-text", columns=columns, streaming=streaming)])["mine"]
    found = [one.row["margins"] for one in rows.read([0, 1])] if streaming else rows["margins"][:]
    assert sorted(found) == [[0.5], [1.0]]


def test_large_strings_are_texts(tmp_path: Path) -> None:
    table = pa.table({"q": pa.array(["q"], pa.large_string()), "a": pa.array(["a"], pa.large_string())})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    assert len(load_source(source(tmp_path / "rows.parquet", "parquet"))) == 1


def test_many_by_name(tmp_path: Path) -> None:
    items = [
        source(write_json(tmp_path / f"{name}.json", [{"q": name, "a": "a"}]), name=name) for name in ("one", "two")
    ]
    assert {name: table["query"][0] for name, table in load_sources(items).items()} == {"one": "one", "two": "two"}


# --- what is refused ---------------------------------------------------------------------------------------------


def refusal(item: Source) -> str:
    with pytest.raises(DataError) as caught:
        load_source(item)
    message = str(caught.value)
    assert "Source 'mine'" in message
    assert "\n" not in message
    return message


def test_no_file(tmp_path: Path) -> None:
    assert f"no file at {tmp_path / 'x.json'}" in refusal(source(tmp_path / "x.json"))
    assert "no file at" in refusal(source(tmp_path / "*.json"))


def test_folder_without_the_split(tmp_path: Path) -> None:
    write_json(tmp_path / "test.jsonl", [{"q": "q", "a": "a"}])
    message = refusal(source(tmp_path))
    assert "no json file for split 'train'" in message
    assert "It holds: test.jsonl" in message


def test_other_format_than_said(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl", [{"q": "q", "a": "a"}])
    assert "does not end in .parquet, as format parquet needs" in refusal(source(path, "parquet"))


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [("arrow", "rows.arrow", "no arrow"), ("parquet", "rows.parquet", "no parquet")],
)
def test_broken_file(tmp_path: Path, format: str, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"{tmp_path / name} cannot be read as {format}: " in refusal(source(tmp_path / name, format))


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert f"{tmp_path / 'rows.jsonl'} is an empty file" in refusal(source(tmp_path / "*.jsonl"))
    (tmp_path / "rows.csv").write_text("q,a\n")
    assert "holds no rows" in refusal(source(tmp_path / "rows.csv", "csv"))


def test_no_such_column(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl", [{"question": "q", "a": "a"}])
    message = refusal(source(path, columns={"query": "qestion", "positive": "a"}))
    assert f"{path} has no column 'qestion' for query. Did you mean 'question'?" in message
    assert "Its columns are question, a." in message


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("text-pair", {"q": 3, "a": "a"}, "column 'q' holds Value('int64'), but query must be a text."),
        ("text-pair", {"q": ["q"], "a": "a"}, "but query must be a text."),
        ("triplet", {"q": "q", "a": "a", "n": "x"}, "but negatives must be a list of texts."),
        ("triplet", GOOD_TRIPLET | {"m": ["high"]}, "but margins must be a list of numbers."),
        ("triplet", GOOD_TRIPLET | {"m": 0.5}, "but margins must be a list of numbers."),
        ("image-text", {"image": 3, "text": "t"}, "column 'image' holds Value('int64'), but image must be encoded"),
        ("image-text", {"image": "a.png", "text": [1]}, "but caption must be a text or a list of texts."),
    ],
)
def test_wrong_type(tmp_path: Path, task: str, row: dict[str, Any], words: str) -> None:
    path = write_json(tmp_path / "rows.jsonl", [row])
    message = refusal(source(path, task=task, columns=MARGINS if "m" in row else COLUMNS[task]))
    assert str(path) in message
    assert words in message


GOOD = {
    "text-pair": {"q": "q", "a": "a"},
    "triplet": GOOD_TRIPLET,
    "image-text": {"image": "a.png", "text": ["t"]},
}


@pytest.mark.parametrize(
    ("task", "bad", "column", "words"),
    [
        ("text-pair", {"q": ""}, "q", "empty text"),
        ("text-pair", {"a": " \t\n"}, "a", "empty text"),
        ("text-pair", {"a": None}, "a", "empty text"),
        ("image-text", {"text": []}, "text", "empty text"),
        ("image-text", {"text": None}, "text", "empty text"),
        ("image-text", {"text": ["t", "", "u"]}, "text", "empty text"),
        ("image-text", {"image": None}, "image", "no image"),
        ("image-text", {"image": ""}, "image", "no image"),
        ("image-text", {"image": "gone.png"}, "image", "no image file"),
        ("triplet", {"n": ["x", " "]}, "n", "empty text"),
        ("triplet", {"n": ["x"]}, "n", "1 negatives, but other rows have 2"),
        ("triplet", {"n": ["x", "y", "z"]}, "n", "3 negatives, but other rows have 2"),
    ],
)
def test_bad_row_is_named_by_file_row_and_column(
    tmp_path: Path, task: str, bad: dict[str, Any], column: str, words: str
) -> None:
    pictures(tmp_path, ["a.png"])
    write_json(tmp_path / "rows-1.jsonl", [GOOD[task]] * 4)
    second = write_json(tmp_path / "rows-2.jsonl", [GOOD[task], GOOD[task], GOOD[task] | bad, GOOD[task]])
    message = refusal(source(tmp_path / "rows-*.jsonl", task=task))
    assert f"{second}, row 2, column {column!r}: {words}" in message


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"m": [0.5]}, "1 margins, but 2 negatives. Give one for each."),
        ({"m": [0.5, 0.25, 0.0]}, "3 margins, but 2 negatives. Give one for each."),
        ({"m": None}, "no list of finite numbers"),
        ({"m": []}, "no list of finite numbers"),
        ({"m": [0.5, None]}, "no list of finite numbers"),
        ({"m": [0.5, "high"]}, "where a list of numbers belongs"),
        ({"m": [0.5, True]}, "where a list of numbers belongs"),
        ({"m": 0.5}, "where a list of numbers belongs"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_margins_are_named(tmp_path: Path, bad: dict[str, Any], words: str, streaming: bool) -> None:
    good = GOOD["triplet"] | {"m": [0.5, -1]}
    path = write_json(tmp_path / "rows.jsonl", [good, good, good | bad, good])
    item = source(path, task="triplet", columns=MARGINS, streaming=streaming)
    with pytest.raises(DataError) as caught:
        load_sources([item])["mine"].read([0, 1, 2])
    assert f"{path}, row 2, column 'm'" in str(caught.value)
    assert words in str(caught.value)


def test_margins_that_are_not_finite_and_those_of_several_captions(tmp_path: Path) -> None:
    columns = GOOD["triplet"] | {"m": [0.5, float("nan")]}
    Dataset.from_list([GOOD["triplet"] | {"m": [0.5, 1.0]}, columns]).to_parquet(tmp_path / "rows.parquet")
    item = source(tmp_path / "rows.parquet", "parquet", "triplet", columns=MARGINS)
    assert "row 1, column 'm': no list of finite numbers" in refusal(item)
    pictures(tmp_path, ["a.png"])
    row = {"image": "a.png", "n": ["x"], "m": [0.5]}
    path = write_json(tmp_path / "rows.jsonl", [row | {"text": ["t"]}, row | {"text": ["t", "u"]}])
    columns = COLUMNS["image-text"] | {"negatives": "n", "margins": "m"}
    message = refusal(source(path, task="image-text", columns=columns))
    assert "row 1, column 'm': margins are of one caption, and there are several." in message


def test_how_many_rows_share_the_fault(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl", [{"q": "q", "a": ""}] * 7 + [{"q": "q", "a": "a"}])
    assert "row 0, column 'a': empty text. Fill it or remove the row. 6 more rows" in refusal(source(path))


def test_missing_id(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    good = GOOD["image-text"]
    path = write_json(tmp_path / "rows.jsonl", [good | {"id": "x"}, good | {"id": None}])
    columns = {**COLUMNS["image-text"], "id": "id"}
    assert "row 1, column 'id': no id." in refusal(source(path, task="image-text", columns=columns))


def test_relative_image_paths_need_one_folder(tmp_path: Path) -> None:
    for part in ("one", "two"):
        pictures(tmp_path / part, ["a.png"])
        write_json(tmp_path / part / "rows.jsonl", [GOOD["image-text"]])
    message = refusal(source(tmp_path / "*" / "rows.jsonl", task="image-text"))
    assert "relative image paths need one folder" in message


def test_a_folder_of_pictures_elsewhere_is_named(tmp_path: Path) -> None:
    """Also for files in several folders; what is missing is told by the user's own file."""
    pictures(tmp_path / "pictures", ["a.png"])
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        write_json(tmp_path / part / "rows.jsonl", [GOOD["image-text"]])
    item = source(tmp_path / "*" / "rows.jsonl", task="image-text", image_folder=str(tmp_path / "pictures"))
    assert [row["image"].size for row in read_rows(item, load_source(item), [0, 1])]
    stream = SourceStream(item.model_copy(update={"streaming": True}), seed=1)
    assert [found.row["caption"] for found in stream.read([0, 1])] == [GOOD["image-text"]["text"]] * 2
    (tmp_path / "pictures" / "a.png").unlink()
    assert f"no image file {tmp_path / 'pictures' / 'a.png'}" in refusal(item)


def test_image_folder_without_metadata(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    assert "no metadata.jsonl, metadata.csv or metadata.parquet in" in refusal(
        source(tmp_path, "imagefolder", "image-text")
    )


@pytest.mark.parametrize("stored", ["path", "bytes"])
def test_broken_image_is_named_when_it_is_read(tmp_path: Path, stored: str) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    broken = (tmp_path / "a.png").read_bytes()[:40]
    (tmp_path / "b.png").write_bytes(broken)
    if stored == "path":
        path = write_json(tmp_path / "rows.jsonl", [{"image": f"{n}.png", "text": "t"} for n in "aaba"])
        item = source(path, task="image-text")
    else:
        good = (tmp_path / "a.png").read_bytes()
        path = tmp_path / "rows.parquet"
        Dataset.from_dict({"image": [good, good, broken, good], "text": ["t"] * 4}).to_parquet(path)
        item = source(path, "parquet", "image-text")
    table = load_source(item)
    rows = JointDataset([item], {"mine": table}, seed=1)
    keys = [Key(0, 0, "image_text", "mine", 0, index) for index in range(4)]
    assert len(rows.__getitems__([keys[0], keys[1], keys[3]])) == 3
    with pytest.raises(DataError) as caught:
        rows.__getitems__([keys[3], keys[2], keys[0]])
    message = str(caught.value)
    assert f"Source 'mine', {path}, row 2, column 'image': the image" in message
    assert ("b.png" in message) == (stored == "path")
    assert "cannot be decoded" in message


# --- embedded tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["openmojis/short_captions", "openmoji"])
def test_embedded_collection_by_its_name(location: str) -> None:
    assert "is no embedded table. Use openmoji/TABLE" in refusal(source(location, "embedded"))


def test_embedded_tables_are_read_from_the_prepared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short_captions").mkdir()
    monkeypatch.setattr("trainer_ext.demo_data.prepare", lambda: tmp_path)  # building the real tables takes a minute
    pictures(tmp_path, ["a.png"])
    columns = {"image": [str(tmp_path / "a.png")], "text": [["t"]]}
    features = Features({"image": Image(), "text": List(Value("string"))})
    table = Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "short_captions" / "validation.parquet")
    item = source("openmoji/short_captions", "embedded", "image-text", split="validation")
    assert source_files(item) == [tmp_path / "short_captions" / "validation.parquet"]
    assert load_source(item)["caption"][:] == [["t"]]
    assert "Did you mean 'short_captions'?" in refusal(source("openmoji/short_caption", "embedded"))
