"""The data's columns become ours: found by their names, checked for their types, images by path made absolute."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from datasets.packaged_modules.csv.csv import Csv
from datasets.utils.file_utils import is_local_path
from PIL.Image import DecompressionBombError

from trainer_ext.data.faults import Fault
from trainer_ext.data.formats import DataError, Opened
from trainer_ext.data.readers import FAULT
from trainer_ext.recipe.problems import nearest

TEXT = (Value("string"), Value("large_string"))
_TEXTS = tuple(List(text) for text in TEXT)
_ID = (*TEXT, Value("int64"), Value("int32"))
_NUMBER = tuple(Value(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"))
_IMAGE_STORAGE = ("binary", "large_binary")
# What reading an image that is none, or that is too large to be one, can raise.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, DecompressionBombError)


def our_columns(opened: Opened, dataset: Dataset) -> Dataset:
    """Select and rename the mapped columns, and check their types."""
    columns = mapped_columns(opened, dataset.features)
    if any(name not in dataset.column_names for name in columns.values()):
        if isinstance(dataset.features.get(columns.get("image")), dict):  # else its bytes would become a column
            dataset = dataset.cast_column(columns["image"], Image())
        dataset = dataset.flatten()
    own: dict[str, str] = {}
    for ours, theirs in columns.items():
        own.setdefault(theirs, ours)
    shared = columns.keys() - own.values()  # an id whose column is another one's, too
    told = [FAULT] if FAULT in dataset.column_names else []
    found = dataset.select_columns([*own, *told]).rename_columns(own)
    for ours in shared:
        twin = dataset.select_columns([columns[ours]]).rename_column(columns[ours], ours)
        found = concatenate_datasets([found, twin], axis=1)
    check_types(opened, Features({name: feature for name, feature in found.features.items() if name != FAULT}))
    return found


def mapped_columns(opened: Opened, features: Features) -> dict[str, str]:
    """Our names to the data's, of columns that are there.

    Raises:
        DataError: no such column.
    """
    source = opened.source
    names = [name for name in (*features, *_nested_names(features)) if name != FAULT]
    columns = dict(source.columns)
    if source.format == "imagefolder" and columns["image"] not in names:
        # The column's name on disk, and the one that ``datasets`` gives it, both serve.
        columns |= {ours: "file_name" for ours, theirs in source.columns.items() if theirs == columns["image"]}
    for ours, theirs in columns.items():
        if theirs not in names:
            close = nearest(theirs, names)
            hint = f" Did you mean {close!r}?" if close else ""
            raise DataError(
                f"Source {source.name!r}: {opened.name} has no column {theirs!r} for {ours}.{hint} Its columns are"
                f" {', '.join(names)}."
            )
    return columns


def _nested_names(features: Features) -> list[str]:
    """``json.text`` for a column ``json`` that holds a ``text`` in every row, at any depth."""
    return [
        f"{name}.{inner}"
        for name, feature in features.items()
        if isinstance(feature, dict)
        for inner in (*feature, *_nested_names(feature))
    ]


def check_types(opened: Opened, features: Features) -> None:
    """The columns, under our names, hold what they must."""
    # The cells of a CSV file are texts; those that are no numbers are found by their rows.
    number = _NUMBER + TEXT if isinstance(opened.builder, Csv) else _NUMBER
    wanted = {
        "caption": (TEXT + _TEXTS, "a text or a list of texts"),
        "negatives": (_TEXTS, "a list of texts"),
        "id": (_ID, "a text or a whole number"),
        "score": (number, "a number"),
    }
    for ours, feature in features.items():
        if ours == "image":
            allowed, words = _is_image(feature), "encoded bytes (PNG, JPEG, ...), a path, or the Image type of datasets"
        else:
            types, words = wanted.get(ours, (TEXT, "a text"))
            allowed = feature in types
        if not allowed:
            source = opened.source
            raise DataError(
                f"Source {source.name!r}, {opened.name}: column {source.columns[ours]!r} holds {feature}, but {ours}"
                f" must be {words}. Convert the column or map another one."
            )


def _is_image(feature: Any) -> bool:
    nested = isinstance(feature, dict) and "bytes" in feature
    binary = getattr(feature, "dtype", None) in _IMAGE_STORAGE
    return isinstance(feature, Image) or feature in TEXT or nested or binary


def absolute_paths(paths: Sequence[str | None], folder: str | None, source: str) -> list[str | None]:
    """Image paths, taken from the one folder of the source's files."""
    if folder is None and any(path and not os.path.isabs(path) for path in paths):
        raise DataError(
            f"Source {source!r}: relative image paths need one folder to start from, but the source's"
            " files lie in several. Use absolute paths, or one source per folder."
        )
    return [os.path.join(folder or "", path) if path else path for path in paths]


def missing_files(paths: Sequence[str | None]) -> Iterator[Fault]:
    """Rows whose image file does not exist. Lists each folder once: much cheaper than a question per file."""
    listings: dict[str, set[str]] = {}
    for row, path in enumerate(paths):
        folder, name = os.path.split(path or "")
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if path and name not in listings[folder]:
            yield Fault(np.array([row]), "image", f"no image file {path}. Correct the path or remove the row.")


def open_image(stored: Mapping[str, Any]) -> tuple[Any, str]:
    """An image as ``datasets`` stores it: the picture, and a label that is the same for equal pictures everywhere.

    The label is a hash of the encoded bytes, so rows that repeat a picture are recognised whether it lies in the table,
    in one file or in two. Only a file that is not on this machine goes by its address.

    Raises:
        OSError, ValueError, SyntaxError: no such file, or no image.
    """
    path, content = stored["path"], stored["bytes"]
    if content is None and path is not None and is_local_path(path):
        content = Path(path).read_bytes()
    picture = Image().decode_example({"path": path, "bytes": content})
    if content is None:
        return picture, f"path/{path}"
    return picture, f"bytes/{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def undecodable(path: str | None, error: Exception) -> str:
    """Why an image's row is broken, with the cure."""
    words = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # an address in memory is another one in every run
    return f"the image ({path or 'stored in the row'}) cannot be decoded: {words}. Replace the image or remove the row."
