"""Files that are packed without an ending that says so: each door refuses them, or each reads them."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer_ext.data.test_csv import COLUMNS, read
from tests.trainer_ext.source_files import pair_source, picture_source, png, write_tar
from trainer_ext.data.formats import DataError

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streaming"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def archive(kind: str, content: bytes) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("rows", content)
    else:
        with tarfile.open(fileobj=file, mode="w") as packed:
            member = tarfile.TarInfo("rows")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


PACKERS = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda content: archive("zip", content),
    "tar": lambda content: archive("tar", content),
    # Only begun: what writes them is not installed.
    "zstd": lambda content: b"\x28\xb5\x2f\xfd" + content,
    "lz4": lambda content: b"\x04\x22\x4d\x18" + content,
    "7z": lambda content: b"\x37\x7a\xbc\xaf\x27\x1c" + content,
    "rar": lambda content: b"Rar!\x1a\x07\x00" + content,
}


@BOTH
@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "arrow"])
def test_a_packed_file_with_the_name_of_another_is_refused(
    tmp_path: Path, ending: str, kind: str, streaming: bool
) -> None:
    """Stored, ``datasets`` unpacked it by its content, whatever its size; streaming, its bytes were broken rows."""
    path, rows = tmp_path / f"rows.{ending}", pa.Table.from_pylist([{"q": "one", "a": "1"}])
    if ending == "parquet":
        pq.write_table(rows, path)
    elif ending == "arrow":
        with pa.ipc.new_stream(str(path), rows.schema) as file:
            file.write_table(rows)
    else:
        path.write_text("q,a\none,1\n" if ending == "csv" else '{"q": "one", "a": "1"}\n')
    source = pair_source(path, "json" if ending == "jsonl" else ending, streaming=streaming, columns=COLUMNS)
    assert [(row["query"], row["positive"]) for row in read(source, 1)] == [("one", "1")]
    path.write_bytes(PACKERS[kind](path.read_bytes()))
    with pytest.raises(DataError, match=rf"'pairs': .*rows\.{ending} is packed \({kind}\), .* Unpack it") as refused:
        read(source, 1)
    assert "\n" not in str(refused.value)


@BOTH
def test_captions_of_an_image_folder_may_not_be_packed(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    lines = json.dumps({"file_name": "0.png", "text": "shade"})
    (tmp_path / "metadata.jsonl").write_bytes(gzip.compress(lines.encode()))
    columns = {"image": "image", "caption": "text"}
    with pytest.raises(DataError, match=r"metadata\.jsonl is packed \(gzip\)"):
        read(picture_source(tmp_path, "imagefolder", columns=columns, streaming=streaming), 1)


@BOTH
@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz"])
def test_a_packed_tar_is_read(tmp_path: Path, kind: str, streaming: bool) -> None:
    path = tmp_path / "rows.tar"
    write_tar(path, [(f"{n}", {"png": png(n), "txt": b"shade"}) for n in range(3)])
    path.write_bytes(PACKERS[kind](path.read_bytes()))
    columns = {"image": "png", "caption": "txt"}
    found = read(picture_source(path, "webdataset", columns=columns, streaming=streaming), 3)
    assert [row["caption"] for row in found] == ["shade"] * 3
