"""The folder: what it may hold, and its manifest."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from .errors import HubFolderError
from .installed import model_package
from .onnx_export import WEIGHTS_SUFFIX
from .probe import versions
from .secrets_scan import find_secret

MANIFEST, STAMP, FORMAT = "manifest.json", ".verified.json", "jina-clip-hub-folder/1"
HUB_FILE, HUB_CACHE = ".gitattributes", ".cache/huggingface/"  # added by the Hub, and by its client when downloading
PLACEHOLDER = "your-name/your-model"  # stands in the card until `push` knows the repository
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REQUIREMENTS = {"transformers": ">=5.5", "sentence-transformers": ">=5.5.1"}  # earlier ones cannot load the folder

# Suffixes of formats that run code when they are read, and the first bytes of such files under another name.
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".zip"}
ARCHIVE_START = b"PK\x03\x04"
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", ARCHIVE_START)
ENDS = 1 << 20  # of a graph's weights, which are numbers: a text or an archive under that name shows there


def folder_files(folder: Path) -> dict[str, Path]:
    """Every file by its name on the Hub, without manifest and stamp. Refuses links, pickles and secrets.

    Of weights only the part that could be text is searched for secrets: the header of a safetensors file, both ends of
    the numbers that lie beside an ONNX graph.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if f"{name}/".startswith(HUB_CACHE):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise HubFolderError(f"{name} in {folder} is not a plain file; replace it by a copy of what it points to")
        if path.is_file() and name not in (MANIFEST, STAMP, HUB_FILE):
            found[name] = path
            _refuse_unsafe(name, path)
    return found


def _refuse_unsafe(name: str, path: Path) -> None:
    is_weights = path.suffix == ".safetensors"
    is_numbers = name.endswith(WEIGHTS_SUFFIX) and path.with_suffix("").is_file()  # a graph has them
    with path.open("rb") as stream:
        content = stream.read(8)
        if is_weights:
            content += stream.read(int.from_bytes(content, "little"))
        elif is_numbers:
            content += stream.read(ENDS)
            stream.seek(max(stream.tell(), path.stat().st_size - ENDS))
            content += stream.read()
        else:
            content += stream.read()
    is_pickle = not is_weights and content.startswith(PICKLE_STARTS)
    if is_numbers and not content.startswith(ARCHIVE_START):  # four bytes of numbers may look like a pickle's
        is_pickle = is_pickle and content.endswith(b".")
    if path.suffix.lower() in PICKLE_SUFFIXES or is_pickle:
        raise HubFolderError(f"{name} is a pickle or an archive, which can run code when loaded; remove it")
    if found := find_secret(content):
        raise HubFolderError(
            f"{name}, line {found[0]}, seems to hold a secret ({found[1]}...); remove it, revoke it if real"
        )


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the hash of every file, the versions that built them, the name used in the card."""
    files = {name: file_hash(path) for name, path in folder_files(folder).items()}
    built_with = {"modeling-jina-clip": model_package().__version__, **versions()}
    write_json(folder / MANIFEST, {"format": FORMAT, "repo_id": PLACEHOLDER, "versions": built_with, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that ``build`` wrote; an error for any other folder."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] == FORMAT and REPO_ID.fullmatch(manifest["repo_id"]) and dict(manifest["files"]):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise HubFolderError(f"{folder} is no folder of `hub_upload.py build` (no valid {MANIFEST}); build it first")


def manifest_differences(folder: Path) -> list[str]:
    """One line for every file that is missing, changed or unknown to the manifest."""
    listed, present = read_manifest(folder)["files"], folder_files(folder)
    unknown = [f"{name} is not in the manifest" for name in present.keys() - listed.keys()]
    missing = [f"{name} is missing" for name in listed.keys() - present.keys()]
    both = listed.keys() & present.keys()
    changed = [f"{name} was changed after the build" for name in both if file_hash(present[name]) != listed[name]]
    return sorted(unknown + missing + changed)


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people: indented, letters as they are."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
