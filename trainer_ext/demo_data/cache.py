"""The cache folder: prepared once, all or nothing, by one process at a time."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainer_ext.demo_data.errors import PACKAGES, EmbeddedDataError, require_all
from trainer_ext.files import whole_folder

FORMAT = 4
_NAME = "openmoji"


def default_cache_dir() -> Path:
    """``$JINA_CLIP_CACHE``, or ``~/.cache/modeling-jina-clip``."""
    chosen = os.environ.get("JINA_CLIP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "modeling-jina-clip"


def prepare(cache_dir: Path | str | None = None, progress: bool = True) -> Path:
    """Build the embedded data once and return its folder; at once when it is already complete.

    The folder is ``cache_dir/openmoji`` and holds ``<table>/<split>.parquet`` and ``manifest.json``. It is built beside
    its final place and renamed when finished, so an interruption leaves nothing half-written. It is built again when
    the format or the version of one of the packages it comes from has changed. No network is used.

    Raises:
        EmbeddedDataError: a package is missing, one of its files is damaged, or the folder cannot be written.
    """
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    folder = root / _NAME
    if _is_current(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Another process may be building: wait for it, then look again.
        with FileLock(root / f".{_NAME}.lock"):
            if not _is_current(folder):
                _build_into_place(folder, progress)
    except OSError as error:
        raise EmbeddedDataError(
            f"Cannot write the embedded data to {root}: {error}. Free some space there, or choose another folder "
            f"with the environment variable JINA_CLIP_CACHE"
        ) from error
    return folder


def read_manifest(folder: Path | str) -> dict[str, Any] | None:
    """What a prepared folder holds and what it was built from, or None when it is not complete."""
    try:
        return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_current(folder: Path) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("format") != FORMAT:
        return False
    installed = _installed_versions()
    # A package that is gone changes nothing in what was built from it.
    return all(installed.get(name, built) == built for name, built in manifest["packages"].items())


def _installed_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _build_into_place(folder: Path, progress: bool) -> None:
    from trainer_ext.demo_data.build import build, write_manifest

    require_all()
    with whole_folder(folder) as fresh:  # under the lock: what a killed process left there is cleared first
        manifest = build(fresh, progress)
        write_manifest(fresh, {"format": FORMAT, "packages": _installed_versions(), **manifest})
