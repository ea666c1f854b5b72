"""Writes the same small data in every kind of file that a source may be read from."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from PIL import Image as Pictures

from trainer_ext.recipe.schema import Source

PAIR_COLUMNS = {"query": "q", "positive": "a"}
PICTURE_COLUMNS = {"image": "image", "caption": "text"}
BROKEN = b"\x89PNG no picture"


def png(shade: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A picture of one shade."""
    file = io.BytesIO()
    Pictures.new("RGB", size, (shade, 255 - shade, 90)).save(file, "PNG")
    return file.getvalue()


def pairs(first: int, count: int) -> list[dict[str, Any]]:
    return [{"q": f"question {n}", "a": f"answer {n}"} for n in range(first, first + count)]


def write_pairs(folder: Path, suffix: str, counts: Sequence[int]) -> list[Path]:
    """Files of numbered pairs, so many in each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, count in enumerate(counts):
        path = folder / f"train-{index}.{suffix}"
        rows = pairs(sum(counts[:index]), count)
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == "parquet":
            Dataset.from_list(rows).to_parquet(path)
        elif suffix == "csv":
            Dataset.from_list(rows).to_csv(path, index=False)
        elif suffix == "tar":
            write_tar(path, [(f"{n:04d}", {"json": json.dumps(row).encode()}) for n, row in enumerate(rows)])
        paths.append(path)
    return paths


def write_tar(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    """A webdataset file: per sample its key, and the content of each of its files."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_pictures(path: Path, count: int, broken: Sequence[int] = ()) -> Path:
    """A parquet file of pictures of one shade each, some of which are no pictures."""
    stored = [{"bytes": BROKEN if n in broken else png(n), "path": None} for n in range(count)]
    table = Dataset.from_dict({"image": stored, "text": [f"shade {n}" for n in range(count)]})
    table.cast_column("image", Image()).to_parquet(path)
    return path


def pair_source(location: Path | str, format: str, **changes: Any) -> Source:
    settings = {"name": "pairs", "columns": PAIR_COLUMNS} | changes
    return Source(task="text-pair", location=str(location), format=format, **settings)


def picture_source(location: Path | str, format: str = "parquet", **changes: Any) -> Source:
    settings = {"name": "pictures", "columns": PICTURE_COLUMNS} | changes
    return Source(task="image-text", location=str(location), format=format, **settings)
