"""A share of a source that training never sees: ``holdout: 0.1`` in a recipe, where no file of its own is at hand.

In steps:

1. give each row a key for its id, its picture's content and each of its texts (case, spacing and signs aside);
2. rows with a key in common form a group, so that a copy of a training picture or text is never held out;
3. take whole groups, in the order of a hash of what they hold, until the share is reached.

The hash depends on content alone: the same rows are held out whatever the seed, the order of the file or the machine.
Hard negatives are no key: one that is another row's positive would tie most rows of a source together.
"""

import hashlib
import os
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.sources import ROW_NUMBER, Rows, load_sources, undecoded
from trainer_ext.data.streams import SourceStream
from trainer_ext.negatives import text_key
from trainer_ext.recipe.schema import Source

TEXT_KEYS = ("caption", "query", "positive", "text")
_PAIR = ("query", "positive", "text")  # those of a row without pictures, which has two of them or the last
_ROWS_AT_ONCE = 1000
# Of a picture: pieces that are compared beside its length, and the bytes of each.
PIECES = 16
_PIECE = 4096


def load_with_holdout(
    sources: Sequence[Source], seed: int = 0, broken: BrokenRows | None = None
) -> tuple[dict[str, Rows], dict[str, Dataset]]:
    """What ``load_sources`` gives, without the held-out rows; and those, of the sources that hold some out."""
    rows, held = load_sources(sources, seed, broken), {}
    for source in sources:
        table = rows[source.name]
        if source.holdout is not None and not isinstance(table, SourceStream):
            rows[source.name], held[source.name] = hold_out(source.name, table, source.holdout)
    return rows, held


def hold_out(name: str, rows: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows of a table with our column names; both keep the numbers of their rows.

    Raises:
        DataError: no group is small enough, or none would be left to train on.

    >>> table = Dataset.from_dict({"query": [f"question {i}" for i in range(40)], "positive": ["yes", "no"] * 20})
    >>> hold_out("quiz", table, 0.25)
    Traceback (most recent call last):
    trainer_ext.data.formats.DataError: Source 'quiz': holdout 0.25 asks for 10 of 40 rows, but the smallest group ...
    >>> table = table.remove_columns("positive").add_column("positive", [f"answer {i // 2}" for i in range(40)])
    >>> train, held = hold_out("quiz", table, 0.25)
    >>> len(train), len(held), set(train["positive"]) & set(held["positive"])
    (30, 10, set())
    """
    wanted = max(1, round(len(rows) * share))
    groups, orders = _groups(rows)
    sizes = np.bincount(groups)
    taken = np.zeros(len(sizes), dtype=bool)
    count = 0
    for group in np.argsort(orders, kind="stable"):
        if count + sizes[group] <= wanted:
            taken[group] = True
            count += int(sizes[group])
    if count == 0 or count == len(rows):
        raise DataError(
            f"Source {name!r}: holdout {share} asks for {wanted} of {len(rows)} rows, but the smallest group of rows "
            f"with the same id, picture or text has {sizes.min()}. Give a larger share, or a source of its own to "
            "evaluate on."
        )
    is_held = taken[groups]
    if ROW_NUMBER not in rows.column_names:
        rows = rows.add_column(ROW_NUMBER, np.arange(len(rows)))
    return rows.select(np.flatnonzero(~is_held)), rows.select(np.flatnonzero(is_held))


def _groups(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The group of each row (rows,), and for each group a hash of its content (groups,)."""
    owners: list[int] = []
    keys: list[int] = []
    for row, content in enumerate(_keys(rows)):
        owners += [row] * len(content)
        keys += content
    distinct, places = np.unique(np.array(keys, dtype=np.uint64), return_inverse=True)
    size = len(rows) + len(distinct)
    links = coo_matrix((np.ones(len(places), dtype=bool), (owners, len(rows) + places)), shape=(size, size))
    labels = connected_components(links, directed=False)[1]
    groups = np.unique(labels[: len(rows)], return_inverse=True)[1]
    # The smallest key stands for the group; hashed again, or large groups would come first.
    smallest = np.full(groups.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, groups[np.array(owners)], distinct[places])
    return groups, np.array([_hash(b"group", key.tobytes()) for key in smallest], dtype=np.uint64)


def row_marks(rows: Dataset, sizes: Container[int] | None = None) -> Iterator[int | None]:
    """What tells each row from others, as a hash: its picture or, for texts, its query and positive in either order.

    With ``sizes`` pictures of another number of bytes are not read: None stands for them.

    >>> table = Dataset.from_dict({"query": ["A cat.", "a dog"], "positive": ["a pet", "a cat"]})
    >>> other = Dataset.from_dict({"query": ["a pet"], "positive": ["a cat"]})
    >>> [mark in set(row_marks(other)) for mark in row_marks(table)]
    [True, False]
    """
    columns = [name for name in ("image", *_PAIR) if name in rows.column_names]
    for table in undecoded(rows.select_columns(columns)).with_format("arrow").iter(_ROWS_AT_ONCE):
        yield from table_marks(table, sizes)


def table_marks(table: pa.Table, sizes: Container[int] | None = None) -> Iterator[int | None]:
    """The marks of rows in memory, whose pictures are as they are stored."""
    if "image" in table.column_names:
        for stored, size in _stored_pictures(table):
            wanted = sizes is None or size in sizes
            yield _hash(b"image", picture_content(stored.as_py())) if wanted else None
        return
    for row in table.select([name for name in _PAIR if name in table.column_names]).to_pylist():
        texts = sorted(content for _, content in _contents(row))
        yield _hash(b"pair", len(texts[0]).to_bytes(8) + b"".join(texts))


def picture_sizes(rows: Dataset) -> set[int]:
    """The bytes of every picture; no picture is read."""
    tables = undecoded(rows.select_columns(["image"])).with_format("arrow").iter(_ROWS_AT_ONCE)
    return {size for table in tables for _, size in _stored_pictures(table)}


def _stored_pictures(table: pa.Table) -> Iterator[tuple[pa.StructScalar, int]]:
    """Pictures as they are stored, which are not copied here, and their bytes."""
    for chunk in table.column("image").chunks:
        lengths, paths = pc.binary_length(chunk.field("bytes")).to_pylist(), chunk.field("path")
        for row, length in enumerate(lengths):
            yield chunk[row], os.path.getsize(paths[row].as_py()) if length is None else length


def _keys(rows: Dataset) -> Iterator[list[int]]:
    """The keys of each row."""
    columns = [name for name in ("id", "image", *TEXT_KEYS) if name in rows.column_names]
    for table in undecoded(rows.select_columns(columns)).with_format("arrow").iter(_ROWS_AT_ONCE):
        for row in table.to_pylist():
            yield [_hash(kind.encode(), content) for kind, content in _contents(row)]


def _contents(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    if row.get("id") is not None:
        yield "id", str(row["id"]).encode()
    if "image" in row:
        yield "image", picture_content(row["image"])
    for name in TEXT_KEYS:
        texts = row.get(name, [])
        for text in [texts] if isinstance(texts, str) else texts:
            # One kind for all columns: a caption or answer that is another row's question is seen in training, too.
            yield "text", (text_key(text) or text.strip()).encode()


def picture_content(stored: dict[str, Any]) -> bytes:
    """What tells a stored picture from others: its length and up to ``PIECES`` pieces of it, the last included.

    Copies have the same content; pictures that differ in between only would count as copies, which does no harm here.
    """
    content = stored["bytes"]
    if content is None:
        with open(stored["path"], "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return size.to_bytes(8) + b"".join(_piece_of_file(file, start) for start in _starts(size))
    return len(content).to_bytes(8) + b"".join(content[start : start + _PIECE] for start in _starts(len(content)))


def _starts(size: int) -> list[int]:
    return np.unique(np.linspace(0, max(0, size - _PIECE), PIECES).astype(np.int64)).tolist()


def _piece_of_file(file: Any, start: int) -> bytes:
    file.seek(start)
    return file.read(_PIECE)


def _hash(kind: bytes, content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=kind).digest())
