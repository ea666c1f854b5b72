"""Readers for files in which single rows cannot be read: such a row comes as nulls, with its fault in words.

``datasets`` gives up a file at its first bad line or member, and cannot say which one it was. Here such a row keeps its
place, so that it is named, and left out within a source's budget, like any other row that cannot be used.

- ``JsonRows``: JSON lines, or one JSON list, value by value. Slow, so it is used only where ``datasets`` has given up.
- ``Tars``: webdataset files, whose members are decoded one by one anyway.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import BuilderConfig, Features, List, Value
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import xopen
from datasets.utils.version import Version

# A column beside the data's own: null, or JSON [column, what is wrong with it].
FAULT = "row fault (trainer_ext)"
ROWS_AT_ONCE = 1000
# Brackets in a line of JSON beyond which the fast reader does not see it.
MAX_NESTING = 500
_FIRST_BYTES = 2**20
# Samples of a tar that tell which members there are.
_SAMPLES = 50
# A member of a tar that is no picture: larger ones are not looked into.
MAX_MEMBER = 2**24
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def reported(column: str, message: str) -> str:
    """A fault as it is written into the column ``FAULT``; a column "" stands for the whole row."""
    return json.dumps([column, message])


# Of texts, these may be written as whole numbers.
_ID = Value("large_string")
_NUMBERS = List(Value("float64"))


# --- JSON --------------------------------------------------------------------------------------------------------


def json_features(columns: Mapping[str, str]) -> Features:
    """What ``JsonRows`` gives for a source's ``columns`` (ours to the data's)."""
    types = {"caption": List(Value("string")), "negatives": List(Value("string")), "margins": _NUMBERS}
    types |= {"score": Value("float64"), "id": _ID}
    types["balance"] = List(_ID)
    found = {theirs: types.get(ours, Value("string")) for ours, theirs in columns.items()}
    return Features({**found, FAULT: Value("string")})


class JsonRows(Csv):
    """JSON lines as tables of ``json_features``. Its base has the files and the shards; reading is its own."""

    VERSION = Version("2.0.0")  # a part of the cache's path: tables that an older reader made are not taken

    def _generate_tables(self, base_files: Any, files_iterables: Any) -> Iterator[tuple[Key, pa.Table]]:
        for shard, files in enumerate(files_iterables):
            for file in files:
                for number, table in enumerate(json_tables(file, self.config.features)):
                    yield Key(shard, number), table


class HubJson(Json):
    """JSON of the Hub by the reader of ``datasets``, after a look whether it can be read without taking us down."""

    def _generate_tables(self, *, files_iterables: Any, **more: Any) -> Iterator[tuple[Key, pa.Table]]:
        shards = [list(files) for files in files_iterables]
        for file in (str(file) for files in shards for file in files):
            if not plain_json(file):
                raise ValueError(
                    f"{file} holds lines that are no objects, or are nested deeply. Download the data set and name its "
                    "files: of local files such rows are named, and may be left out"
                )
        yield from super()._generate_tables(files_iterables=shards, **more)


def json_tables(file: str, features: Features, skip: int = 0) -> Iterator[pa.Table]:
    """The rows of one file from ``skip`` on, some at a time."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_json_values(file)):
        if number < skip:
            continue
        rows.append(_json_row(line, features))
        if len(rows) == ROWS_AT_ONCE:
            yield pa.Table.from_pylist(rows, schema=features.arrow_schema)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=features.arrow_schema)


def plain_json(file: str) -> bool:
    """Whether the fast reader may see the file: lines of objects, none of them deeply nested.

    At a line of ``null``, or at thousands of open brackets, pyarrow's reader does not fail but takes the process down.
    Of a file that is elsewhere only the beginning is looked at: it would be fetched twice.
    """
    limit = _FIRST_BYTES if "://" in file else math.inf
    with xopen(file, "rb") as lines:
        for number, line in enumerate(lines):
            line = (line.removeprefix(b"\xef\xbb\xbf") if not number else line).strip()
            if (limit := limit - len(line)) < 0:
                return True
            if line and (not line.startswith(b"{") or line.count(b"{") + line.count(b"[") > MAX_NESTING):
                return False
    return True


def json_line_of(file: str, row: int) -> int:
    """The line, from 1, of a row, from 0, of JSON lines; 0 where rows are no lines. Reads the file: for messages."""
    number = -1
    with open(file, "rb") as lines:
        for place, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if number < 0 and text.startswith(b"["):  # one list of rows
                return 0
            number += bool(text)
            if number == row and text:
                return place
    return 0


def _json_values(file: str) -> Iterator[bytes | Any]:
    """The lines that are not blank, as bytes; of a file that is one list, its items."""
    with open(file, "rb") as lines:
        first = next((text for line in lines if (text := line.removeprefix(b"\xef\xbb\xbf").strip())), b"")
        if first.startswith(b"["):
            lines.seek(0)
            try:
                values = json.loads(lines.read().decode("utf-8-sig"))
            except (ValueError, RecursionError):
                values = None  # no list of rows, but a line that happens to begin like one
            if isinstance(values, list):
                yield from values
                return
            lines.seek(0)
            next((line for line in lines if line.strip()), None)
        if first:
            yield first
        yield from filter(None, map(bytes.strip, lines))


def _json_row(line: bytes | Any, features: Features) -> dict[str, Any]:
    names = [name for name in features if name != FAULT]
    try:
        values = json.loads(line.decode()) if isinstance(line, bytes) else line
    except (ValueError, RecursionError) as error:
        return {FAULT: reported("", f"the line is {_not_json(error)}. Correct it or remove it.")}
    if not isinstance(values, dict):
        return {FAULT: reported("", f"the line holds {_kind(values)}, not an object. Correct it or remove it.")}
    row: dict[str, Any] = {FAULT: None}
    for name in names:
        try:
            row[name] = _checked(_nested(values, name), features[name])
        except ValueError as error:
            row[FAULT] = row[FAULT] or reported(name, str(error))
    return row


def _not_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not to be read: a number of thousands of digits"  # Python's limit for whole numbers


def _nested(values: Any, name: str) -> Any:
    """``values["a"]["b"]`` for the name ``a.b``; null where there is none."""
    if not isinstance(values, dict) or name in values:
        return values.get(name) if isinstance(values, dict) else None
    outer = next((key for key in values if name.startswith(f"{key}.")), None)
    return None if outer is None else _nested(values[outer], name.removeprefix(f"{outer}."))


def _checked(value: Any, feature: Any) -> Any:
    if value is None:
        return None
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (place := lone_surrogate(text)) is not None:
            raise ValueError(f"half a letter (U+{ord(text[place]):04X}) at character {place}. Correct the row.")
    if feature == _NUMBERS:
        if isinstance(value, list) and all(map(_is_number, value)):
            return [float(item) for item in value]
        raise ValueError(f"{_kind(value)} where a list of numbers belongs. Correct the row or remove it.")
    if isinstance(feature, List):
        items = value if isinstance(value, list) else [value]
        if feature.feature == _ID:
            items = [str(item) if type(item) is int else item for item in items]
        if all(isinstance(item, str) for item in items):
            return items
        raise ValueError(f"{_kind(value)} where texts belong. Correct the row or remove it.")
    if feature == _ID and type(value) is int:
        return str(value)
    if feature == Value("float64"):
        if _is_number(value):
            return float(value)
        raise ValueError(f"{_kind(value)} where a number belongs. Correct the row or remove it.")
    if not isinstance(value, str):
        raise ValueError(f"{_kind(value)} where a text belongs. Correct the row or remove it.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lone_surrogate(text: str) -> int | None:
    """The place of the first half of a surrogate pair that stands alone, which is no letter in any encoding.

    >>> lone_surrogate("a cat"), lone_surrogate("a \\ud83d cat")
    (None, 2)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _kind(value: Any) -> str:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{_KINDS.get(type(value), 'null')} ({shown})"


# --- webdataset --------------------------------------------------------------------------------------------------


_COMPRESSED = ("gz", "bz2", "xz", "lz4", "zst")


class _Unreadable:
    def __init__(self, error: Exception) -> None:
        self.message = f"the member cannot be read: {' '.join(str(error).split())}. Correct it or remove the sample."


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        if len(data) > MAX_MEMBER:
            return _Unreadable(ValueError(f"{len(data):,} bytes, above {MAX_MEMBER:,}"))
        try:
            return decode(data)
        except (ValueError, RecursionError) as error:  # what JSON, UTF-8 and whole numbers raise
            return _Unreadable(error)

    return decoded


# Of what ``datasets`` would decode, only what can be a text, a number or an id. The rest (arrays, torch files, ...) are
# bytes here, as pictures are.
_DECODED = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json", "jsn")


@dataclass
class TarsConfig(BuilderConfig):
    """``choices``: columns that stand for the first of several members that a sample has, such as ``jpg;png``."""

    choices: tuple[str, ...] = ()


class Tars(WebDataset):
    """A webdataset whose members that are no JSON, no UTF-8 or no number are null, and reported in ``FAULT``.

    So is a member that a sample lacks and others have. Compressed members are left as they are: a few MB may unpack to
    gigabytes.
    """

    VERSION = Version("2.0.0")
    BUILDER_CONFIG_CLASS = TarsConfig
    DECODERS = {name: _lenient(WebDataset.DECODERS[name]) for name in _DECODED}
    _names: tuple[str, ...] = ()

    def _get_pipeline_from_tar(self, tar_path: str, tar_iterator: Any) -> Iterator[dict[str, Any]]:
        for example in super()._get_pipeline_from_tar(tar_path, _uncompressed(tar_iterator)):
            for choice in self.config.choices:
                found = [example.pop(name, None) for name in choice.split(";")]
                example[choice] = next((value for value in found if value is not None), None)
            bad = [(name, value) for name, value in example.items() if isinstance(value, _Unreadable)]
            fault = reported(bad[0][0], bad[0][1].message) if bad else None
            whole = dict.fromkeys(self._names) | example
            yield {**whole, **dict.fromkeys(name for name, _ in bad), FAULT: fault}

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        first = next(iter(dl_manager.download(self.config.data_files).values()))[0]
        samples = islice(self._get_pipeline_from_tar(first, dl_manager.iter_archive(first)), _SAMPLES)
        self._names = tuple(dict.fromkeys(name for sample in samples for name in sample if name != FAULT))
        splits = super()._split_generators(dl_manager)
        self.info.features[FAULT] = Value("string")  # the first samples hold nothing but nulls there
        return splits


def _uncompressed(members: Any) -> Iterator[tuple[str, Any]]:
    """The members of a tar; those that the base class would unpack by their ending get another one."""
    for name, file in members:
        yield (f"{name}_" if name.rsplit(".", 1)[-1].lower() in _COMPRESSED else name), file
