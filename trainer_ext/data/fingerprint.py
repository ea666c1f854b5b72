"""What the data of a source are, as one hash: a resumed run would take other steps from rewritten files.

Of loaded rows every text, number and path counts, and of every picture in the table the length and the last bytes,
where compressed pixels and checksums lie; of picture files the same (of ``FILES`` of them, evenly spaced, where there
are more). Reading all of the pictures would take as long as an epoch. A streaming source has not been read, so its
files count by name, size, and ``BLOCKS`` pieces spread over them. A data set of the Hub is fixed by its commit.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

from trainer_ext.data.streams import SourceStream

FILES = 10_000
_ROWS_AT_ONCE = 10_000
# Of a streaming source's file: pieces that are read, and the bytes of each.
BLOCKS = 64
_BLOCK = 2**16
# Of a picture: bytes at its end.
_END = 64


def fingerprint(rows: Dataset | SourceStream) -> str:
    """Hex digest of a source's data; equal on every machine and in every process that reads the same data."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(rows, SourceStream):
        for part in _of_files(rows):
            digest.update(part)
        return digest.hexdigest()
    plain = rows.cast_column("image", Image(decode=False)) if "image" in rows.column_names else rows
    for table in plain.with_format("arrow").iter(_ROWS_AT_ONCE):
        for name in table.column_names:
            digest.update(name.encode())
            for part in _of_values(table.column(name).combine_chunks(), of_image=name == "image"):
                digest.update(part)
    return digest.hexdigest()


def _of_files(stream: SourceStream) -> Iterable[bytes]:
    source = stream.source
    if source.format == "hub":
        return [f"{source.location}@{source.revision}/{source.config}/{source.split}".encode()]
    return (part for file in stream.files for part in _of_file(Path(file)))


def _of_file(path: Path) -> Iterable[bytes]:
    size = path.stat().st_size
    yield f"{path.name}/{size}".encode()
    with path.open("rb") as file:
        for start in np.unique(np.linspace(0, max(0, size - _BLOCK), BLOCKS).astype(np.int64)).tolist():
            file.seek(start)
            yield file.read(_BLOCK)


def _of_values(values: Any, of_image: bool) -> Iterable[bytes]:
    """The content of an array, however its values are laid out in memory."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if of_image:
        content = values.field("bytes")
        yield _numbers(pc.binary_length(content))
        yield b"".join(end or b"" for end in pc.binary_slice(content, -_END).to_pylist())
        paths = values.field("path").filter(pc.is_null(values.field("bytes"))).to_pylist()
        yield from (os.path.basename(path).encode() + _end(path) for path in _evenly(paths) if path)
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield _numbers(pc.list_value_length(values))
        yield from _of_values(pc.list_flatten(values), of_image)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        yield _numbers(pc.binary_length(values))
        yield "".join(text or "" for text in values.to_pylist()).encode()
    else:
        yield repr(values.to_pylist()).encode()


def _numbers(values: pa.Array) -> bytes:
    return pc.fill_null(values, -1).to_numpy(zero_copy_only=False).astype("<i8").tobytes()


def _evenly(paths: list[str | None]) -> list[str | None]:
    if len(paths) <= FILES:
        return paths
    return [paths[place] for place in np.linspace(0, len(paths) - 1, FILES).astype(int)]


def _end(path: str) -> bytes:
    """Size and last bytes of a file; nothing of one that is not there, which is a broken row."""
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END))
        return f"/{size}/".encode() + file.read()
