"""The tables on disk: one parquet file per table and split, written and read through ``datasets``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from datasets import Dataset, Features, Image, List, Value

from .errors import EmbeddedDataError

_TEXT = Value("string")
_CAPTIONED = Features({"image": Image(), "caption": List(_TEXT), "id": _TEXT, "concept": _TEXT})
_PAIRS = Features({"query": _TEXT, "positive": _TEXT, "headword": _TEXT})
_TRIPLETS = Features({"query": _TEXT, "positive": _TEXT, "negatives": List(_TEXT), "headword": _TEXT})

FEATURES: dict[str, Features] = {
    "short_captions": _CAPTIONED,
    "long_captions": _CAPTIONED,
    "headword_definition": _PAIRS,
    "definition_example": _PAIRS,
    "definition_definition": _PAIRS,
    "triplets": _TRIPLETS,
}


def write_table(folder: Path, table: str, split: str, rows: Iterable[dict[str, Any]]) -> int:
    """Write ``rows`` to ``folder/table/split.parquet`` and return their number."""
    dataset = Dataset.from_list(list(rows), features=FEATURES[table])
    (folder / table).mkdir(exist_ok=True)
    dataset.to_parquet(folder / table / f"{split}.parquet")
    return len(dataset)


def load_table(folder: Path | str, table: str, split: str) -> Dataset:
    """One split of one table of a prepared ``folder``; images come as PIL pictures.

    The file is memory mapped, not converted, so nothing is written anywhere.

    Raises:
        EmbeddedDataError: no such table or split, naming those there are, or an unreadable file.
    """
    path = Path(folder) / table / f"{split}.parquet"
    if not path.is_file():
        there = sorted(f"{found.parent.name}/{found.stem}" for found in Path(folder).glob("*/*.parquet"))
        raise EmbeddedDataError(f"No table {table}/{split} in {folder}. There are: {', '.join(there) or 'none'}")
    try:
        return Dataset(parquet.read_table(path, memory_map=True))
    except (OSError, ValueError) as error:
        raise EmbeddedDataError(
            f"Cannot read {path}: {error}. Delete the folder {folder} and prepare it again"
        ) from error
