"""Readers for files in which single rows cannot be read: such a row comes as nulls, with its fault in words.

``datasets`` gives up a file at its first bad line or member, and cannot say which one it was. Here such a row keeps its
place, so that it is named, and left out within a source's budget, like any other row that cannot be used.

- ``JsonRows``: JSON lines, or one JSON list, value by value. Slow, so it is used only where ``datasets`` has given up.
- ``Tars``: webdataset files, whose members are decoded one by one anyway.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.webdataset.webdataset import WebDataset

# A column beside the data's own: null, or JSON [column, what is wrong with it].
FAULT = "__fault__"
_ROWS_AT_ONCE = 1000
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def reported(column: str, message: str) -> str:
    """A fault as it is written into the column ``FAULT``."""
    return json.dumps([column, message])


# Of texts, these may be written as whole numbers.
_ID = Value("large_string")


# --- JSON --------------------------------------------------------------------------------------------------------


def json_features(columns: Mapping[str, str]) -> Features:
    """What ``JsonRows`` gives for a source's ``columns`` (ours to the data's)."""
    types = {"caption": List(Value("string")), "negatives": List(Value("string")), "score": Value("float64"), "id": _ID}
    found = {theirs: types.get(ours, Value("string")) for ours, theirs in columns.items()}
    return Features({**found, FAULT: Value("string")})


class JsonRows(Csv):
    """JSON lines as tables of ``json_features``. Its base has the files and the shards; reading is its own."""

    def _generate_tables(self, base_files: Any, files_iterables: Any) -> Iterator[tuple[Key, pa.Table]]:
        for shard, files in enumerate(files_iterables):
            for file in files:
                for number, table in enumerate(json_tables(file, self.config.features)):
                    yield Key(shard, number), table


def json_tables(file: str, features: Features, skip: int = 0) -> Iterator[pa.Table]:
    """The rows of one file from ``skip`` on, some at a time."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_json_values(file)):
        if number < skip:
            continue
        rows.append(_json_row(line, features))
        if len(rows) == _ROWS_AT_ONCE:
            yield pa.Table.from_pylist(rows, schema=features.arrow_schema)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=features.arrow_schema)


def _json_values(file: str) -> Iterator[bytes | Any]:
    """The lines that are not blank, as bytes; of a file that is one list, its items."""
    with open(file, "rb") as lines:
        for line in lines:
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if line.startswith(b"["):
                lines.seek(0)
                yield from json.loads(lines.read().decode("utf-8-sig"))
                return
            if line:
                yield line
                break
        yield from filter(None, map(bytes.strip, lines))


def _json_row(line: bytes | Any, features: Features) -> dict[str, Any]:
    names = [name for name in features if name != FAULT]
    try:
        values = json.loads(line.decode()) if isinstance(line, bytes) else line
    except ValueError as error:
        wrong = f"not JSON: {error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else None
        return {FAULT: reported(names[0], f"the line is {wrong or f'not UTF-8: {error}'}. Correct it or remove it.")}
    if not isinstance(values, dict):
        return {FAULT: reported(names[0], f"the line holds {_kind(values)}, not an object. Correct it or remove it.")}
    row: dict[str, Any] = {FAULT: None}
    for name in names:
        try:
            row[name] = _checked(_nested(values, name), features[name])
        except ValueError as error:
            row[FAULT] = row[FAULT] or reported(name, str(error))
    return row


def _nested(values: Any, name: str) -> Any:
    """``values["a"]["b"]`` for the name ``a.b``; null where there is none."""
    if not isinstance(values, dict) or name in values:
        return values.get(name) if isinstance(values, dict) else None
    outer = next((key for key in values if name.startswith(f"{key}.")), None)
    return None if outer is None else _nested(values[outer], name.removeprefix(f"{outer}."))


def _checked(value: Any, feature: Any) -> Any:
    if value is None:
        return None
    if isinstance(feature, List):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
        raise ValueError(f"{_kind(value)} where texts belong. Correct the row or remove it.")
    if feature == _ID and type(value) is int:
        return str(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if feature == Value("float64"):
        if number:
            return float(value)
        raise ValueError(f"{_kind(value)} where a number belongs. Correct the row or remove it.")
    if not isinstance(value, str):
        raise ValueError(f"{_kind(value)} where a text belongs. Correct the row or remove it.")
    return value


def _kind(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{_KINDS.get(type(value), 'null')} ({shown})"


# --- webdataset --------------------------------------------------------------------------------------------------


class _Unreadable:
    def __init__(self, error: Exception) -> None:
        self.message = f"the member cannot be read: {' '.join(str(error).split())}. Correct it or remove the sample."


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except ValueError as error:  # what JSON, UTF-8 and whole numbers raise
            return _Unreadable(error)

    return decoded


class Tars(WebDataset):
    """A webdataset whose members that are no JSON, no UTF-8 or no number are null, and told in ``FAULT``."""

    DECODERS = {name: _lenient(decode) for name, decode in WebDataset.DECODERS.items()}

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path: str, tar_iterator: Any) -> Iterator[dict[str, Any]]:
        for example in super()._get_pipeline_from_tar(tar_path, tar_iterator):
            bad = [(name, value) for name, value in example.items() if isinstance(value, _Unreadable)]
            fault = reported(bad[0][0], bad[0][1].message) if bad else None
            yield {**example, **dict.fromkeys(name for name, _ in bad), FAULT: fault}

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        splits = super()._split_generators(dl_manager)
        self.info.features[FAULT] = Value("string")  # the first samples hold nothing but nulls there
        return splits
