"""Sources to rows: a ``Source`` of the recipe becomes a ``datasets.Dataset`` with our column names.

1. The files of the source: a file, a glob pattern, a folder with files named after the split, or an embedded table.
2. ``datasets`` reads them into its cache (memory-mapped, so a source may be larger than memory).
3. The mapped columns, and no others, under our names: image, caption, id | query, positive,
   negatives or score.
4. Checks, before any training step: column types, empty texts, missing images, uneven negatives.

Images stay undecoded until a step asks for them. Nothing is downloaded.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Image, List, Value
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from trainer_ext.data_checks import first_fault
from trainer_ext.recipe import Source
from trainer_ext.resources import nearest

# Builders are used directly: ``datasets.load_dataset`` reports each use over the network, local files or not.
# Without keep_default_na a CSV text such as "null" or "NA" would be read as missing.
_BUILDERS: dict[str, tuple[type[datasets.DatasetBuilder], dict[str, Any]]] = {
    ".parquet": (Parquet, {}),
    ".arrow": (Arrow, {}),
    ".json": (Json, {}),
    ".jsonl": (Json, {}),
    ".csv": (Csv, {"keep_default_na": False}),
}
_SUFFIXES = {
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "json": (".jsonl", ".json"),
    "csv": (".csv",),
    "embedded": (".parquet",),
}
_TEXT = (Value("string"), Value("large_string"))
_TEXTS = tuple(List(text) for text in _TEXT)
_ID = (*_TEXT, Value("int64"), Value("int32"))
_NUMBER = tuple(Value(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"))
_IMAGE_STORAGE = ("binary", "large_binary")


class DataError(ValueError):
    """Training data that cannot be used. The message names source, file, row and column, and the cure."""


def load_sources(sources: Sequence[Source]) -> dict[str, Dataset]:
    """``load_source`` for each, by name."""
    return {source.name: load_source(source) for source in sources}


def load_source(source: Source) -> Dataset:
    """Read and check one source.

    Returns:
        A dataset with the columns of the source's task: ``image`` (decoded when read), ``caption`` (a text or a list of
        texts), ``id`` where given | ``query``, ``positive`` | and ``negatives`` (the same number in every row) or
        ``score`` (a number).

    Raises:
        DataError: no such file, no such column, a wrong type, or a row that cannot be used.
    """
    files = source_files(source)
    builder = _prepared(source, files)
    if not _row_count(builder):
        raise DataError(f"Source {source.name!r}: {_listed(files)} holds no rows. Fill it or take the source out.")
    dataset = _our_columns(source, builder.as_dataset(split="train"))
    if "image" in dataset.column_names:
        dataset = _as_images(source, dataset, files)
    fault = first_fault(dataset.data, dataset.column_names)
    if fault is not None:
        where = f"{locate_row(source, fault.row)}, column {source.columns[fault.column]!r}"
        more = f" {fault.count - 1:,} more rows have this fault." if fault.count > 1 else ""
        raise DataError(f"Source {source.name!r}, {where}: {fault.message}{more}")
    return dataset


def read_rows(source: Source, dataset: Dataset, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The rows at ``indices`` of a loaded source, images decoded.

    Raises:
        DataError: an image that cannot be decoded, with its row and file.
    """
    try:
        columns = dataset[list(indices)]
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken_image(source, dataset, indices) from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _broken_image(source: Source, dataset: Dataset, indices: Sequence[int]) -> Exception:
    for index in indices:
        try:
            dataset[index]
        except (OSError, ValueError, SyntaxError) as error:
            stored = dataset.cast_column("image", Image(decode=False))[index]["image"]["path"] or "stored in the row"
            return DataError(
                f"Source {source.name!r}, {locate_row(source, index)}, column {source.columns['image']!r}: the image"
                f" ({stored}) cannot be decoded: {error}. Replace the image or remove the row."
            )
    return DataError(
        f"Source {source.name!r}: rows {list(indices)[:8]} could not be read together, but each one could."
    )


# --- files -------------------------------------------------------------------------------------------------------


def source_files(source: Source) -> list[Path]:
    """The files a source is read from, sorted by name.

    A folder stands for its files ``SPLIT.*``, ``SPLIT-*.*`` and ``SPLIT/*.*`` of the source's format; an image folder
    for its ``metadata.jsonl`` or ``metadata.csv``, inside ``SPLIT/`` if there is such a folder.
    """
    location = _embedded_table(source) if source.format == "embedded" else Path(source.location)
    if source.format == "imagefolder":
        return [_metadata_file(source, location)]
    suffixes = _SUFFIXES[source.format]
    if location.is_file():
        found = [location]
    elif location.is_dir():
        patterns = [f"{source.split}{{}}", f"{source.split}-*{{}}", f"{source.split}/*{{}}"]
        found = [path for pattern in patterns for suffix in suffixes for path in location.glob(pattern.format(suffix))]
        if not found:
            inside = ", ".join(sorted(path.name for path in location.iterdir())[:10]) or "nothing"
            raise DataError(
                f"Source {source.name!r}: folder {location} has no {source.format} file for split {source.split!r}"
                f" ({source.split}{suffixes[0]}, {source.split}-*{suffixes[0]} or {source.split}/*{suffixes[0]}). It"
                f" holds: {inside}. Set split, or let location name the files."
            )
    else:
        found = [Path(path) for path in glob.glob(str(location), recursive=True)]
        if not found:
            raise DataError(
                f"Source {source.name!r}: no file at {location}. Check location; relative ones are taken from the"
                " folder of the file that lists the source."
            )
    for path in found:
        if path.suffix.lower() not in suffixes:
            raise DataError(
                f"Source {source.name!r}: {path} does not end in {' or '.join(suffixes)}, as format {source.format}"
                " needs. Set format to what the file is."
            )
        if path.stat().st_size == 0:
            raise DataError(f"Source {source.name!r}: {path} is an empty file. Fill it or remove it.")
    return sorted(found)


def _metadata_file(source: Source, location: Path) -> Path:
    folders = [location / source.split, location]
    for folder in folders:
        for name in ("metadata.jsonl", "metadata.csv"):
            if (folder / name).is_file():
                return folder / name
    raise DataError(
        f"Source {source.name!r}: no metadata.jsonl or metadata.csv in {location}. Add one with a row per image: its"
        " file_name, relative to the folder, and its caption."
    )


def _embedded_table(source: Source) -> Path:
    collection, _, table = source.location.partition("/")
    if collection != "openmoji" or not table:
        raise DataError(
            f"Source {source.name!r}: {source.location!r} is no embedded table. Use openmoji/TABLE, for example"
            " openmoji/short_captions."
        )
    from trainer_ext.embedded import prepare  # late: the packages that carry the data are an extra

    folder = prepare()
    if not (folder / table).is_dir():
        tables = sorted(path.name for path in folder.iterdir() if path.is_dir())
        close = nearest(table, tables)
        hint = f" Did you mean {close!r}?" if close else ""
        raise DataError(f"Source {source.name!r}: no embedded table {table!r}.{hint} Tables: {', '.join(tables)}.")
    return folder / table


def locate_row(source: Source, row: int) -> str:
    """``FILE, row N`` for a row of a loaded source, N counted from 0 in that file. Reads files: for messages only."""
    files = source_files(source)
    for path in files[:-1]:
        rows = _row_count(_prepared(source, [path]))
        if row < rows:
            return f"{path}, row {row}"
        row -= rows
    return f"{files[-1]}, row {row}"


def _prepared(source: Source, files: Sequence[Path]) -> datasets.DatasetBuilder:
    """The builder of the files' format, with all rows in the cache of ``datasets``."""
    builder_class, options = _BUILDERS[files[0].suffix.lower()]
    # Names are patterns to ``datasets``; escaped, a bracket in a file name is only a bracket.
    builder = builder_class(data_files={"train": [glob.escape(str(path.absolute())) for path in files]}, **options)
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, ValueError) as error:
        detail = " ".join(str(error.__cause__ or error).split())
        raise DataError(
            f"Source {source.name!r}: {_listed(files)} cannot be read as {source.format}: {detail}"
        ) from error
    return builder


def _row_count(builder: datasets.DatasetBuilder) -> int:
    return builder.info.splits["train"].num_examples


def _listed(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more file(s)"


# --- columns -----------------------------------------------------------------------------------------------------


def _our_columns(source: Source, dataset: Dataset) -> Dataset:
    """Select and rename the mapped columns, and check their types."""
    columns = dict(source.columns)
    if source.format == "imagefolder" and columns["image"] not in dataset.column_names:
        columns["image"] = "file_name"  # the column's name on disk, and the one that ``datasets`` gives it, both serve
    for ours, theirs in columns.items():
        if theirs not in dataset.column_names:
            close = nearest(theirs, dataset.column_names)
            hint = f" Did you mean {close!r}?" if close else ""
            raise DataError(
                f"Source {source.name!r}: {_listed(source_files(source))} has no column {theirs!r} for {ours}.{hint}"
                f" Its columns are {', '.join(dataset.column_names)}."
            )
    dataset = dataset.select_columns(list(columns.values()))
    dataset = dataset.rename_columns({theirs: ours for ours, theirs in columns.items()})
    wanted = {
        "caption": (_TEXT + _TEXTS, "a text or a list of texts"),
        "negatives": (_TEXTS, "a list of texts"),
        "id": (_ID, "a text or a whole number"),
        "score": (_NUMBER, "a number"),
    }
    for ours in columns.keys() - {"image"}:
        allowed, words = wanted.get(ours, (_TEXT, "a text"))
        if dataset.features[ours] not in allowed:
            raise DataError(
                f"Source {source.name!r}, {_listed(source_files(source))}: column {columns[ours]!r} holds"
                f" {dataset.features[ours]}, but {ours} must be {words}. Convert the column or map another one."
            )
    return dataset


def _as_images(source: Source, dataset: Dataset, files: Sequence[Path]) -> Dataset:
    """Give the image column the Image feature: decoded when read, from bytes in the row or from a file."""
    feature = dataset.features["image"]
    if isinstance(feature, Image):
        return dataset
    if feature in _TEXT:
        folders = {path.parent for path in files}
        dataset = dataset.map(
            _absolute_paths,
            batched=True,
            input_columns=["image"],
            fn_kwargs={"folder": str(folders.pop().absolute()) if len(folders) == 1 else None, "source": source.name},
            desc=f"{source.name}: image paths",
        )
        _check_files(source, dataset)
    elif not (getattr(feature, "dtype", None) in _IMAGE_STORAGE or (isinstance(feature, dict) and "bytes" in feature)):
        raise DataError(
            f"Source {source.name!r}, {_listed(files)}: column {source.columns['image']!r} holds {feature}, but image"
            " must be encoded bytes (PNG, JPEG, ...), a path, or the Image type of datasets."
        )
    return dataset.cast_column("image", Image())


def _absolute_paths(paths: list[str | None], folder: str | None, source: str) -> dict[str, list[str | None]]:
    if folder is None and any(path and not os.path.isabs(path) for path in paths):
        raise DataError(
            f"Source {source!r}: relative image paths need one folder to start from, but the source's files lie in"
            " several. Use absolute paths, or one source per folder."
        )
    return {"image": [os.path.join(folder or "", path) if path else path for path in paths]}


def _check_files(source: Source, dataset: Dataset) -> None:
    """Every image file exists. Lists each folder once: much cheaper than a question per file."""
    listings: dict[str, set[str]] = {}
    for row, path in enumerate(dataset["image"]):
        folder, name = os.path.split(path or "")
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if path and name not in listings[folder]:
            raise DataError(
                f"Source {source.name!r}, {locate_row(source, row)}, column {source.columns['image']!r}: no image file"
                f" {path}. Correct the path or remove the row."
            )
