"""What mining leaves: a parquet table, its summary beside it, and the entry of a source list that reads it.

A text source gives one row for each query and right answer::

    query, positive, negatives, positive_score, negative_scores [, margins] [, id]

An image-text source gives one row for each picture, with all its captions::

    image, caption, negatives, caption_scores, negative_scores [, margins] [, id]

``margins`` are there where a model has scored (``Mined.has_margins``).
"""

import importlib.metadata
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from datasets import Features, Image, List, Value

from trainer_ext.data.sources import undecoded
from trainer_ext.files import partial_path, write_json
from trainer_ext.mining.mine import Mined, MinedRow
from trainer_ext.mining.pairs import PictureRows
from trainer_ext.recipe.strict_yaml import write_yaml

_TEXT, _TEXTS, _SCORE, _SCORES = Value("string"), List(Value("string")), Value("float64"), List(Value("float64"))
_TRIPLETS = {
    "query": _TEXT, "positive": _TEXT, "negatives": _TEXTS, "positive_score": _SCORE, "negative_scores": _SCORES
}  # fmt: skip
_PICTURES = {
    "image": Image(), "caption": _TEXTS, "negatives": _TEXTS, "caption_scores": _SCORES, "negative_scores": _SCORES
}  # fmt: skip
_ROWS_AT_ONCE = 1000


def summary_path(table: Path) -> Path:
    """Where the summary of a table is: ``triplets.parquet`` has ``triplets.summary.json``."""
    return table.with_suffix(".summary.json")


def write_table(mined: Mined, path: Path) -> int:
    """Write the table, whole or not at all, and the summary; returns the number of rows."""
    with_id = any(mined.pairs.query_ids)
    pictures = mined.pairs.pictures
    columns = _TRIPLETS if pictures is None else _PICTURES
    columns |= ({"margins": _SCORES} if mined.has_margins else {}) | ({"id": _TEXT} if with_id else {})
    schema = Features(columns).arrow_schema
    rows = _triplets(mined) if pictures is None else _picture_rows(mined, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = partial_path(path), 0
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while block := list(islice(rows, _ROWS_AT_ONCE)):
                count += len(block)
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    libraries = ("sentence-transformers", "torch", "bm25s", "datasets")
    versions = {name: _version(name) for name in libraries}
    write_json(summary_path(path), {"format": 1, "rows_written": count, **mined.summary, "versions": versions})
    return count


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triplets(mined: Mined) -> Iterator[dict[str, Any]]:
    pairs = mined.pairs
    for row in mined.rows:
        for number, score in zip(pairs.rights[row.query], row.right_scores, strict=True):
            shared = sorted(pairs.query_ids[row.query] & pairs.candidate_ids[number])
            yield {
                "query": pairs.queries[row.query],
                "positive": pairs.candidates[number],
                "positive_score": score,
                **_negatives(mined, row),
                "margins": row.margins(score),
                "id": shared[0] if shared else None,
            }


def _picture_rows(mined: Mined, pictures: PictureRows) -> Iterator[dict[str, Any]]:
    pairs, stored = mined.pairs, undecoded(pictures.dataset)
    for row in mined.rows:
        yield {
            "image": stored[pairs.first_rows[row.query]]["image"],
            "caption": [pairs.candidates[number] for number in pairs.rights[row.query]],
            "caption_scores": row.right_scores,
            **_negatives(mined, row),
            "margins": row.margins(row.right_scores[0]),
            "id": min(pairs.query_ids[row.query], default=None),
        }


def _negatives(mined: Mined, row: MinedRow) -> dict[str, Any]:
    return {
        "negatives": [mined.pairs.candidates[number] for number in row.negatives],
        "negative_scores": row.scores,
    }


def source_entry(mined: Mined, name: str, path: Path) -> str:
    """The item of a source list that reads the table, as YAML; its location is absolute."""
    pictures = mined.pairs.pictures is not None
    columns = ["image", "caption", "negatives"] if pictures else ["query", "positive", "negatives"]
    columns += ["margins"] if mined.has_margins else []
    columns += ["id"] if any(mined.pairs.query_ids) else []
    entry: dict[str, Any] = {
        "name": f"{name}-mined",
        "task": "image-text" if pictures else "triplet",
        "format": "parquet",
        "location": str(path.absolute()),
        "columns": {column: column for column in columns},
    }
    if mined.pairs.prompts:
        entry["prompts"] = dict(mined.pairs.prompts)
    return write_yaml([entry], default_flow_style=None, width=1000)


def teacher_hint(mined: Mined) -> str:
    """The key of a recipe that reads the margins; their scale keeps those of a cross-encoder below 1."""
    side = "text" if mined.pairs.pictures is None else "image_text"
    found = mined.summary["margins"]
    largest = max(abs(found["least"]), abs(found["most"]))
    scale = f", scale: {largest:.2g}" if largest > 1 else ""
    return f"{{kind: margins, sides: [{side}]{scale}}}"


def words_of(mined: Mined, written: int) -> list[str]:
    """The summary for people, a line each."""
    summary = mined.summary
    lines = [
        f"{summary['queries']:,} queries of {summary['rows_read']:,} rows, {summary['candidates']:,} candidates:"
        f" {summary['queries_with_negatives']:,} queries have {summary['settings']['negatives']} negatives,"
        f" {written:,} rows written"
    ]
    lines += [f"left out: {count:,} queries, mostly for: {why}" for why, count in summary["queries_left_out"].items()]
    lines += [f"candidates not taken: {n:,}: {why}" for why, n in summary["candidates_removed"].items()]
    if mined.rows:
        right, negative = (summary["scores"][name] for name in ("right", "negative"))
        lines.append(f"score, mean: {right['mean']:.4f} of right answers, {negative['mean']:.4f} of negatives")
    return lines
