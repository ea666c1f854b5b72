"""What an ONNX graph names beside itself: the files of its weights, and the operators that its runtime must have.

A graph is a protocol buffer, read here field by field, so that a folder is checked where onnx is not installed. Only
the messages that can hold a tensor or a node are entered; weights inside the graph are passed over, not copied.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainer_ext.hub.onnx_export import WEIGHTS_SUFFIX

# Message -> number of a field -> the message in it, or the word for what is taken from it: onnx.proto, field by field.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute", 7: "=domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {1: "=key", 2: "=value"},
}
_DEPTH = 50  # graphs inside of graphs
DOMAINS = ("", "ai.onnx")  # the operators that every runtime has


def graph_problems(folder: Path) -> list[str]:
    """One line for everything in the folder's graphs that leads out of it, or to a file that is no graph's weights.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a.onnx").write_bytes(b"no graph")
    8
    >>> graph_problems(folder)
    ['a.onnx is not an ONNX graph; remove it, or build the folder again']
    """
    return [
        f"{path.relative_to(folder).as_posix()} {words}"
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() == ".onnx" and path.is_file()
        for words in _problems(path)
    ]


def _problems(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = dict.fromkeys(_named(content, "model", 0, len(content), 0))
    except ValueError:  # an empty file cannot be mapped, and is no graph either
        yield "is not an ONNX graph; remove it, or build the folder again"
        return
    for kind, name in found:
        if kind == "location":
            place = PurePosixPath(name)
            inside = name.endswith(WEIGHTS_SUFFIX) and place.name == name and (path.parent / name).is_file()
            if not inside:
                yield f"takes weights from {name[:100]!r}, no {WEIGHTS_SUFFIX} file beside it; build the folder again"
        elif name not in DOMAINS:
            yield f"needs operators of {name[:100]!r}, which are code from elsewhere; build the folder again"


def _named(content: mmap.mmap, message: str, at: int, end: int, depth: int) -> Iterator[tuple[str, str]]:
    """("location", file) of each tensor that lies outside of the graph, and ("domain", name) of each node."""
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    texts: list[tuple[str, str]] = []
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(content, at, end)
            continue
        if wire == 2:
            size, at = _varint(content, at, end)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("no field of a protocol buffer")
        if number == 0 or at + size > end:
            raise ValueError("cut")
        kind = _FIELDS[message].get(number) if wire == 2 else None
        if kind is not None and kind.startswith("="):
            texts.append((kind[1:], content[at : at + size].decode("utf-8", errors="replace")))
        elif kind is not None:
            yield from _named(content, kind, at, at + size, depth + 1)
        at += size
    if message == "external" and ("key", "location") in texts:
        yield from (("location", text) for word, text in texts if word == "value")
    elif message == "node":
        yield from (("domain", text) for word, text in texts if word == "domain")


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = content[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("cut")
