"""The one error of the embedded data: what is missing or damaged, and the command that cures it."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType

CURE = "pip install 'modeling-jina-clip[demo]'"


class EmbeddedDataError(RuntimeError):
    """The embedded data cannot be prepared or read; the message names the file or package and the cure."""


def require(module: str, package: str) -> ModuleType:
    """Import ``module`` or say which ``package`` is missing and how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EmbeddedDataError(
            f"The embedded data needs the package '{package}' (module '{module}'): {error}. Install it with: {CURE}"
        ) from error


def package_folder(module: str, package: str, *parts: str) -> Path:
    """The data folder ``parts`` inside an installed package, or a clear error when the package or folder is missing."""
    folder = Path(str(files(require(module, package)).joinpath(*parts)))
    if not folder.is_dir():
        raise EmbeddedDataError(
            f"The package '{package}' has no folder {folder}. "
            f"Reinstall it with: pip install --force-reinstall {package}"
        )
    return folder
