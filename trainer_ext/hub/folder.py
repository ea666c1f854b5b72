"""A Hub folder: the files that it may hold, and the manifest that lists them."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trainer_ext.files import file_hash, read_json, write_json
from trainer_ext.hub.installed import HubFolderError, model_package, plain_file
from trainer_ext.hub.probe import versions
from trainer_ext.hub.safety import refuse_unsafe
from trainer_ext.locks import FolderInUseError, held

MANIFEST, STAMP, FORMAT = "manifest.json", ".verified.json", "jina-clip-hub-folder/1"
HUB_FILE, HUB_CACHE = ".gitattributes", ".cache/huggingface/"  # added by the Hub, and by its client when downloading
PLACEHOLDER = "your-name/your-model"  # stands in the card until `push` knows the repository
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@contextmanager
def alone_in(folder: Path, step: str) -> Iterator[None]:
    """Inside the block no other step of ours works on this Hub folder.

    Raises:
        HubFolderError: another process does; the message names it.
    """
    try:
        with held(folder, ["hub_upload.py", step, str(folder)], partial(print, file=sys.stderr)):
            yield
    except FolderInUseError as error:
        raise HubFolderError(str(error)) from None


def folder_files(folder: Path) -> dict[str, Path]:
    """Every file by its name on the Hub, without manifest and stamp.

    Raises:
        HubFolderError: one of them is a link, a pickle, or holds a secret.
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
            refuse_unsafe(name, path)
    return found


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the hash of every file, the versions that built them, the name used in the card."""
    files = {name: file_hash(path) for name, path in folder_files(folder).items()}
    built_with = {"modeling-jina-clip": model_package().__version__, **versions()}
    write_json(folder / MANIFEST, {"format": FORMAT, "repo_id": PLACEHOLDER, "versions": built_with, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that ``build`` wrote.

    Raises:
        HubFolderError: any other folder.
    """
    plain_file(folder / MANIFEST)
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest["files"]
        if (
            manifest["format"] == FORMAT
            and REPO_ID.fullmatch(manifest["repo_id"])
            and isinstance(files, dict)
            and files
        ):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise HubFolderError(f"{folder} is not a folder of `hub_upload.py build` (no valid {MANIFEST}); build it first")


def manifest_differences(folder: Path) -> list[str]:
    """One line for every file that is missing, changed or unknown to the manifest."""
    listed, present = read_manifest(folder)["files"], folder_files(folder)
    unknown = [f"{name} is not in the manifest" for name in present.keys() - listed.keys()]
    missing = [f"{name} is missing" for name in listed.keys() - present.keys()]
    both = listed.keys() & present.keys()
    changed = [f"{name} was changed after the build" for name in both if file_hash(present[name]) != listed[name]]
    return sorted(unknown + missing + changed)
