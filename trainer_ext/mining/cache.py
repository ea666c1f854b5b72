"""Work that is kept in a folder the user names: a run that was stopped, or a second one, goes on from there.

Each piece is a file of its own, named by a hash of all that it depends on: another model, other texts or settings have
other names. Without a folder nothing is kept.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainer_ext.files import file_hash, write_whole

_MODEL_FILES = {".bin", ".json", ".model", ".py", ".safetensors", ".txt"}


def digest(*parts: Any) -> str:
    """A hash of values that JSON can write.

    >>> digest("a", ["b"]) == digest("a", ["b"]) != digest("a", "b")
    True
    """
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def folder_digest(folder: Path) -> str:
    """A hash of a model's files: weights, configuration, tokenizer, code. Takes about a second for each GB."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _MODEL_FILES)
    return digest([[str(path.relative_to(folder)), file_hash(path)] for path in files])


class WorkCache:
    """Arrays and JSON values by name; ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under this name, else the one that ``make`` returns; one with a NaN is not kept."""
        path = None if self._folder is None else self._folder / f"{name}.npy"
        if path is not None and path.is_file():
            return np.load(path, allow_pickle=False)
        made = make()
        if path is not None and not np.isnan(made).any():
            content = io.BytesIO()
            np.save(content, made, allow_pickle=False)
            write_whole(path, content.getvalue())
        return made

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value kept under this name, else the one that ``make`` returns."""
        path = None if self._folder is None else self._folder / f"{name}.json"
        if path is not None and path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        made = make()
        if path is not None:
            write_whole(path, json.dumps(made).encode())
        return made
