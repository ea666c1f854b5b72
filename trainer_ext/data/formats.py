"""The files of a source, and the builder of ``datasets`` that reads them.

Nothing is downloaded, except for a source that names a data set of the Hub.
"""

import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.json.json import Json, JsonConfig
from datasets.utils.extract import Extractor

from trainer_ext.data.csv_reader import CsvRows, read_header, separator_of
from trainer_ext.data.readers import FAULT, HubJson, JsonRows, Tars, json_features, plain_json
from trainer_ext.recipe.problems import nearest
from trainer_ext.recipe.schema import Source

# The name under which ``datasets`` reads files of each ending; tars and CSV files have readers of our own.
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
SUFFIXES = {
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "json": (".jsonl", ".json"),
    "csv": (".csv", ".tsv"),
    "webdataset": (".tar",),
    "embedded": (".parquet",),
}
# What ``datasets`` raises for files that are not what their format says.
READ_ERRORS = (ValueError, OSError, DatasetGenerationError, tarfile.ReadError, pa.ArrowException)
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class DataError(ValueError):
    """Training data that cannot be used. The message names source, file, row and column, and the cure."""


def source_files(source: Source) -> list[Path]:
    """The files a source is read from, sorted by name.

    A folder stands for its files ``SPLIT.*``, ``SPLIT-*.*`` and ``SPLIT/*.*`` of the source's format; an image folder
    for its ``metadata.jsonl``, ``.csv`` or ``.parquet``, inside ``SPLIT/`` if there is such a folder.
    """
    location = _embedded_table(source) if source.format == "embedded" else Path(source.location)
    if source.format == "imagefolder":
        return [_metadata_file(source, location)]
    suffixes = SUFFIXES[source.format]
    if os.path.isfile(location):  # and no error for what cannot be a path
        found = [location]
    elif os.path.isdir(location):
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
        for name in _METADATA:
            if os.path.isfile(folder / name):
                return folder / name
    raise DataError(
        f"Source {source.name!r}: no {', '.join(_METADATA[:-1])} or {_METADATA[-1]} in {location}. Add one"
        " with a row per image: its file_name, relative to the folder, and its caption."
    )


def _embedded_table(source: Source) -> Path:
    collection, _, table = source.location.partition("/")
    if collection != "openmoji" or not table:
        raise DataError(
            f"Source {source.name!r}: {source.location!r} is no embedded table. Use openmoji/TABLE, for example"
            " openmoji/short_captions."
        )
    from trainer_ext.demo_data import prepare

    folder = prepare()
    if not (folder / table).is_dir():
        tables = sorted(path.name for path in folder.iterdir() if path.is_dir())
        close = nearest(table, tables)
        hint = f" Did you mean {close!r}?" if close else ""
        raise DataError(f"Source {source.name!r}: no embedded table {table!r}.{hint} Tables: {', '.join(tables)}.")
    return folder / table


class Unreadable(DataError):
    """Files that are not what their format says."""


class Opened:
    """A source's builder and what its messages call the data: ``files`` in the order of its shards."""

    def __init__(self, source: Source) -> None:
        self.source = source
        if source.format == "hub":
            self.builder, self.split = _hub_builder(source), source.split
            self.files = [str(file) for file in (self.builder.config.data_files or {}).get(source.split, [])]
            self.folder = None
        else:
            paths = source_files(source)
            self.builder, self.split = _local_builder(source, paths), "train"
            self.files = [str(path) for path in paths]
            if isinstance(self.builder, Json) and not all(plain_json(str(path)) for path in paths):
                self.by_lines()
            folders = {path.parent for path in paths}
            own = str(folders.pop().absolute()) if len(folders) == 1 else None
            self.folder = own if source.image_folder is None else os.path.abspath(source.image_folder)

    @property
    def name(self) -> str:
        """What the data are called in messages about the whole source."""
        if self.source.format == "hub":
            return f"{self.source.location} at {self.source.revision}"
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more file(s)"

    def by_lines(self) -> bool:
        """Read JSON files value by value from now on: the rows that cannot be read are told. False for others."""
        if self.source.format == "hub" or not isinstance(self.builder, Json):
            return False
        columns = dict(self.source.columns)
        if self.source.format == "imagefolder":  # the name that ``datasets`` gives the column will do, too
            columns = {ours: "file_name" if theirs == "image" else theirs for ours, theirs in columns.items()}
        files = [glob.escape(os.path.abspath(file)) for file in self.files]
        self.builder = JsonRows(data_files={"train": files}, features=json_features(columns))
        return True

    def rows(self) -> datasets.Dataset:
        """All rows, in the cache of ``datasets``.

        Raises:
            DataError: files that are not what their format says, no such split, or no rows.
        """
        prepare(self)
        splits = self.builder.info.splits
        self._check_split(list(splits))
        if not splits[self.split].num_examples:
            raise DataError(f"Source {self.source.name!r}: {self.name} holds no rows. Fill it or take the source out.")
        dataset = self.builder.as_dataset(split=self.split)
        if isinstance(self.builder, Json):  # which takes any bytes for texts
            try:
                dataset.data.validate(full=True)
            except pa.ArrowInvalid as error:
                raise unreadable(self, error) from error
        return dataset

    def stream(self) -> datasets.IterableDataset:
        """The rows as they are read from the files, one shard after the other."""
        if self.source.format == "hub":
            if isinstance(self.builder, FolderBasedBuilder):  # its rows name their pictures by addresses
                raise DataError(
                    f"Source {self.source.name!r}: {self.name} is a folder of picture files, which does not stream from"
                    " the Hub. Take streaming out, or use a data set that holds its images in parquet or tar files."
                )
            self._check_split(list(self.builder.config.data_files or self.builder.info.splits or {}))
        try:
            return self.builder.as_streaming_dataset(split=self.split)
        except (*READ_ERRORS, NotImplementedError) as error:
            raise unreadable(self, error) from error

    def _check_split(self, splits: Sequence[str]) -> None:
        if self.split not in splits:
            raise DataError(
                f"Source {self.source.name!r}: {self.name} has no split {self.split!r}. Its splits are"
                f" {', '.join(map(str, splits))}."
            )


def prepare(opened: Opened) -> None:
    """Read all files into the cache of ``datasets``."""
    try:
        opened.builder.download_and_prepare()
    except READ_ERRORS as error:
        raise unreadable(opened, error) from error


def unreadable(opened: Opened, error: Exception, file: str | None = None) -> Unreadable:
    """What to raise for files that are not what their format says.

    Args:
        file: the one that was being read; None where that is unknown.
    """
    cause = error.__cause__ or error
    detail = " ".join(str(cause).split())
    if isinstance(cause, tarfile.ReadError):
        detail += ". The file is cut short or damaged: copy or download it again."
    source = opened.source
    return Unreadable(f"Source {source.name!r}: {file or opened.name} cannot be read as {source.format}: {detail}")


def _local_builder(source: Source, files: Sequence[Path]) -> datasets.DatasetBuilder:
    # Names are patterns to ``datasets``; escaped, a bracket in a file name is only a bracket.
    data_files = {"train": [glob.escape(str(path.absolute())) for path in files]}
    suffix = files[0].suffix.lower()
    if suffix == ".tar":  # may be packed: it is read member by member
        choices = tuple(name for name in source.columns.values() if ";" in name)
        return Tars(data_files=data_files, choices=choices)
    _refuse_packed(source, files)
    if suffix in SUFFIXES["csv"]:
        return CsvRows(data_files=data_files, **_csv_options(source, [str(path) for path in files], source.separator))
    name, options = _BUILDERS[suffix], {}
    if name == "json":
        # Later versions would put values of several types into JSON of their own, texts in quotes, or take rows for
        # conversations of an agent. Such a file is read by ``JsonRows`` instead.
        options = {"on_mixed_types": None, "parse_agent_traces": False}
        options = {name: value for name, value in options.items() if name in JsonConfig.__dataclass_fields__}
    with _not_counted():
        return datasets.load_dataset_builder(name, data_files=data_files, **options)


def _refuse_packed(source: Source, files: Sequence[Path]) -> None:
    """Raise for what ``datasets`` would unpack, to gigabytes perhaps, unless it streams: then it reads the bytes."""
    for path in files:
        if kind := Extractor.infer_extractor_format(path):
            raise DataError(
                f"Source {source.name!r}: {path} is packed ({kind}), whatever its name says. Unpack it; of an Excel"
                " workbook, save the sheet as CSV in UTF-8."
            )


@contextmanager
def _not_counted() -> Iterator[None]:
    """Local files are nobody else's business: ``datasets`` would count each use of a format on the Hub."""
    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _hub_builder(source: Source) -> datasets.DatasetBuilder:
    def loaded(**options: Any) -> datasets.DatasetBuilder:
        return datasets.load_dataset_builder(source.location, source.config, revision=source.revision, **options)

    try:
        builder = loaded()
        if isinstance(builder, Csv):
            # The first file of each split has to do: a header costs a request, and there may be thousands of files.
            data_files = builder.config.data_files
            files = [str(files[0]) for files in data_files.values()]
            if not all(file.endswith(SUFFIXES["csv"]) for file in files):
                raise DataError(  # pandas would read it, and shift every column of a file whose first row is too long
                    f"Source {source.name!r}: {files[0]} is a compressed CSV file, which is not read. Use a data set of"
                    " parquet files, or download and unpack it."
                )
            return CsvRows(data_files=data_files, **_csv_options(source, files, source.separator))
        if isinstance(builder, Json):
            builder.__class__ = HubJson
        return builder
    except (DatasetNotFoundError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        detail = " ".join(str(error).split())
        raise DataError(
            f"Source {source.name!r}: {source.location} at {source.revision} cannot be read from the Hub: {detail}"
        ) from error


def _csv_options(source: Source, files: Sequence[str], separator: str | None) -> dict[str, Any]:
    """The separator and the columns of CSV files, each a text. Scores become numbers later (``faults.as_numbers``).

    Raises:
        DataError: a file without one of the mapped columns that the first file has.
    """
    try:
        if separator is None:
            separator = separator_of(files[0], list(source.columns.values()), Path(files[0]).suffix.lower())
        # Unnamed columns are left out.
        headers = [[name for name in read_header(file, separator) if name] for file in files]
    except (ValueError, OSError) as error:
        raise DataError(f"Source {source.name!r}: {files[0]} cannot be read as csv: {error}") from error
    for file, names in zip(files, headers, strict=True):
        if twice := [name for name in source.columns.values() if names.count(name) > 1]:
            raise DataError(
                f"Source {source.name!r}: {file} has {names.count(twice[0])} columns {twice[0]!r}, so it is unclear"
                " which one is meant. Rename them."
            )
    first, *others = headers
    for file, names in zip(files[1:], others, strict=True):
        for ours, theirs in source.columns.items():
            if theirs in first and theirs not in names:
                raise DataError(
                    f"Source {source.name!r}: {file} has no column {theirs!r} for {ours}, but {files[0]} has. Its"
                    f" columns are {', '.join(names)}. Rename the column, or make the file a source of its own."
                )
    names = [name for name in dict.fromkeys(first) if all(name in other for other in others)]
    text = datasets.Value("string")
    return {"sep": separator, "features": datasets.Features(dict.fromkeys([*names, FAULT], text))}
