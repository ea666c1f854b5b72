"""Which code the files of a folder name: ``auto_map``, ``custom_pipelines``, the modules of sentence-transformers.

A name such as ``owner/repository--module.Class`` has a loader fetch and run code from that repository, wherever in a
configuration it stands. Ours name files beside them and nothing else.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import HubFolderError
from .folder import read_json, write_json
from .installed import remote_code

ELSEWHERE = re.compile(r"[\w.-]+(?:/[\w.-]+)?--[\w./-]+\.\w+")
HERE = re.compile(r"(\w+)\.(\w+)")
# Tables of words, which name no code.
TOKENS = ("tokenizer.json", "vocab.json")


def keep_own_code(folder: Path) -> None:
    """Take every reference out of the configurations that is not to our code beside them.

    A checkpoint brings those of the model that it came from, in the configuration of each part.
    """
    for path, value in _configurations(folder):
        if (kept := _without_foreign(value)) != value:
            write_json(path, kept)


def foreign_code(folder: Path) -> list[str]:
    """One line for every reference in the folder's configurations to code that is not ours, beside them.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_json(folder / "config.json", {"text_config": {"auto_map": {"AutoModel": "me/x--code.Model"}}})
    >>> foreign_code(folder)
    ["config.json: text_config.auto_map.AutoModel is 'me/x--code.Model', code that is not of this folder; ..."]
    """
    found = [
        f"{path.relative_to(folder).as_posix()}: {place} is {text!r}, code that is not of this folder; take the key out"
        for path, value in _configurations(folder)
        for place, text in _strings(value)
        if _is_foreign(path.name, place.split("."), text)
    ]
    if (folder / "adapter_config.json").is_file():
        found.append("adapter_config.json makes loaders fetch another model; merge the adapter, and remove it")
    return found


def _configurations(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.rglob("*.json")):
        if path.name not in TOKENS:
            try:
                yield path, read_json(path)
            except ValueError as error:
                raise HubFolderError(
                    f"{path.relative_to(folder)} is no JSON ({error}); build the folder again"
                ) from error


def _is_ours(text: Any) -> bool:
    """Whether it is ``module.Class`` of a file that ``build`` puts into the folder."""
    found = HERE.fullmatch(text) if isinstance(text, str) else None
    return found is not None and any(path.stem == found[1] for path in remote_code())


def _is_foreign(file: str, place: list[str], text: str) -> bool:
    if ELSEWHERE.fullmatch(text):
        return True
    if "auto_map" in place or ("custom_pipelines" in place and place[-1] == "impl"):
        return not _is_ours(text)
    if file == "modules.json" and place[-1] == "type":
        return not (text.startswith("sentence_transformers.") or _is_ours(text))
    return False


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its place, as ``text_config.auto_map.AutoModel``."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _strings(item, f"{place}.{key}" if place else str(key))


def _without_foreign(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_foreign(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_foreign(item) for key, item in value.items() if key not in ("auto_map", "custom_pipelines")}
    names = value.get("auto_map")
    ours = {key: name for key, name in names.items() if _is_ours(name)} if isinstance(names, dict) else {}
    return {**kept, "auto_map": ours} if ours else kept
