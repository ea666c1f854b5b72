"""The data's columns become ours: found by their names, checked for their types."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value, concatenate_datasets
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from trainer_ext.data.faults import LABEL, is_numbers
from trainer_ext.data.formats import DataError, Opened, Unreadable
from trainer_ext.data.readers import FAULT
from trainer_ext.recipe.problems import nearest
from trainer_ext.recipe.schema import Source

# Our name of the column that a source is balanced by.
BALANCE = "balance"
TEXT = (Value("string"), Value("large_string"))
_LONG_TEXT = Value("large_string")
_WORDS = {
    "image": "encoded bytes (PNG, JPEG, ...), a path, or the Image type of datasets",
    "caption": "a text or a list of texts",
    "negatives": "a list of texts",
    "margins": "a list of numbers",
    "id": "a text or a whole number",
    "score": "a number",
    "query": "a text",
    "positive": "a text",
    "text": "a text",
    BALANCE: "a text, a whole number, or a list of them",
}


def with_labels(source: Source, names: Iterable[str]) -> Source:
    """The source with further columns, as the data call them: classes, languages, whatever rows are judged apart by.

    >>> pairs = {"name": "pairs", "task": "text-pair", "location": "x.csv", "format": "csv"}
    >>> with_labels(Source(**pairs, columns={"query": "q", "positive": "a"}), ["language"]).columns
    {'query': 'q', 'positive': 'a', 'label language': 'language'}
    """
    return source.model_copy(update={"columns": source.columns | {f"{LABEL}{name}": name for name in names}})


def with_balance(source: Source) -> Source:
    """The source with the column that it is balanced by, if it is.

    >>> pairs = {"name": "pairs", "task": "text-pair", "location": "x.csv", "format": "csv"}
    >>> columns = {"query": "q", "positive": "a"}
    >>> with_balance(Source(**pairs, columns=columns, balance={"key": "topic", "limit": 50})).columns
    {'query': 'q', 'positive': 'a', 'balance': 'topic'}
    """
    if source.balance is None:
        return source
    return source.model_copy(update={"columns": source.columns | {BALANCE: source.balance.key}})


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
    types = usual_types(opened, Features({name: kind for name, kind in found.features.items() if name != FAULT}))
    for name, kind in types.items():
        if found.features[name] != kind:
            try:
                found = found.cast_column(name, kind)
            except pa.ArrowInvalid as error:  # scores that no float can be
                raise DataError(
                    f"Source {opened.source.name!r}, {opened.name}: column {columns[name]!r}: {error}. Correct the"
                    " value, or remove its row."
                ) from error
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
            said = "classes or by" if ours.startswith(LABEL) else ours
            raise DataError(
                f"Source {source.name!r}: {opened.name} has no column {theirs!r} for {said}.{hint} Its columns are"
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


def usual_types(opened: Opened, features: Features) -> Features:
    """The types that the columns, under our names, are read as: few kinds, whatever library wrote the file.

    Raises:
        DataError: a column that cannot be what it must. It is an ``Unreadable`` where the fast reader of JSON has made
            dates of texts: value by value they stay texts.
    """
    found = {}
    for ours, feature in features.items():
        found[ours] = _usual(ours, feature, isinstance(opened.builder, Csv))
        if found[ours] is None:
            source, words = opened.source, _WORDS["id" if ours.startswith(LABEL) else ours]
            dates = isinstance(opened.builder, Json) and "timestamp" in str(feature)
            raise (Unreadable if dates else DataError)(
                f"Source {source.name!r}, {opened.name}: column {source.columns[ours]!r} holds {feature}, but {ours}"
                f" must be {words}. Convert the column or map another one."
            )
    return Features(found)


def _usual(ours: str, feature: Any, of_csv: bool) -> Any:
    """The type to read a column as; None if it cannot be what it must."""
    if ours == "image":
        return _usual_image(feature)
    if ours in ("caption", "negatives") and isinstance(feature, List | LargeList):
        inner = _usual_text(feature.feature)
        return inner and List(inner)
    if ours == BALANCE and isinstance(feature, List | LargeList):
        inner = None if isinstance(feature.feature, List | LargeList) else _usual(ours, feature.feature, of_csv)
        return inner and List(inner)
    if ours == "margins":
        numbers = isinstance(feature, List | LargeList) and _is_number(getattr(feature.feature, "dtype", ""))
        return List(Value("float64")) if numbers else None
    kind = getattr(feature, "dtype", "") if isinstance(feature, Value) else ""
    if ours == "score":
        if kind.startswith(("float", "int")):
            return feature
        # The cells of a CSV file are texts; those that are not numbers are found by their rows.
        return (
            Value("float64")
            if kind.startswith(("uint", "decimal"))
            else feature
            if of_csv and feature in TEXT
            else None
        )
    label = ours == BALANCE or ours.startswith(LABEL)
    if label and isinstance(feature, ClassLabel):
        return feature
    if (ours == "id" or label) and "int" in kind:
        return {"int32": feature, "int64": feature, "uint64": Value("string")}.get(kind, Value("int64"))
    return None if ours == "negatives" else _usual_text(feature)


def _is_number(kind: str) -> bool:
    return kind.startswith(("float", "int", "uint", "decimal"))


def _usual_text(feature: Any) -> Any:
    return feature if feature in TEXT else _LONG_TEXT if feature == Value("string_view") else None


def _usual_image(feature: Any) -> Any:
    if isinstance(feature, dict) and "bytes" in feature:
        if "view" in str(feature["bytes"]) or "view" in str(feature.get("path")):
            return {"bytes": Value("large_binary"), "path": Value("string")}
        return feature
    kind = getattr(feature, "dtype", None)
    if isinstance(feature, Image) or kind in ("binary", "large_binary"):
        return feature
    return Value("large_binary") if kind == "binary_view" else _usual_text(feature)


def usual_values(ours: str, values: Any) -> Any:
    """A block of a stream's column by the types of ``usual_types``; numbers among texts stay numbers, to be refused."""
    kind = values.type
    if ours == "id":  # numbers in one block and texts in the next are labels all the same
        return values.cast(pa.string())
    if ours == "score" and (pa.types.is_unsigned_integer(kind) or pa.types.is_decimal(kind)):
        return values.cast(pa.float64(), safe=False)  # rounded, as Python rounds whole numbers beyond 2**53
    if ours == "margins" and is_numbers(kind):
        return values.cast(pa.list_(pa.float64()), safe=False)
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = pa.large_string() if kind.value_type == pa.string_view() else kind.value_type
        return values.cast(pa.list_(inner))
    if ours == "image" and kind == pa.binary_view():
        return values.cast(pa.large_binary())
    return values.cast(pa.large_string()) if kind == pa.string_view() else values
