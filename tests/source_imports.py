"""Read the imports of source files with ``ast``, for the tests that keep rules about them."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Files of the model's package that the Hub does not serve: functions around the model.
NOT_SERVED = {
    "__init__.py",
    "checkpoints_jina_clip.py",
    "layers_jina_clip.py",
    "modeling_jina_clip_masked_lm.py",
    "packed_jina_clip.py",
    "records_jina_clip.py",
}


class Import(NamedTuple):
    """One import: absolute module (relative ones are resolved), names taken from it, its dots, line, in a function?"""

    module: str
    names: tuple[str, ...]
    level: int
    line: int
    late: bool

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path, package: str = "") -> Iterator[Import]:
    """Yield every import of a file; ``package`` is the dotted package the file belongs to."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), 0, node.lineno, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            yield Import(module, names, node.level, node.lineno, id(node) in late)


def files_of(folder: str) -> list[Path]:
    """Return the Python files under a folder of the repository, in a fixed order."""
    return sorted((ROOT / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    """Return the dotted package of a file of the repository."""
    return ".".join(path.relative_to(ROOT).parent.parts)


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def module_of(path: Path) -> str:
    """Return the dotted module of a file of the repository; a package's ``__init__.py`` is the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_in(found: Import) -> set[str]:
    """Return what an import leads to: the module, or those of the names that are files of ours in it."""

    def is_file(module: str) -> bool:
        place = ROOT.joinpath(*module.split("."))
        return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()

    return {name if is_file(name := f"{found.module}.{item}") else found.module for item in found.names} or {
        found.module
    }
