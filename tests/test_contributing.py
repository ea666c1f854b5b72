"""CONTRIBUTING's guides, done as they say: their diffs are applied to a copy of the tree, their tests run there.

And what they ask of every addition holds for what is here: each loss, format and stage key has its reader and its docs.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.source_imports import ROOT, files_of
from trainer_ext.recipe import schema
from trainer_ext.recipe.stages import Stage

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
GUIDES = dict(re.findall(r"^## (Add a [^\n]+)\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL))


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)


def apply(diff: str, root: Path) -> None:
    """Replace the lines of a diff, which has one place and no line numbers; they must occur once."""
    head, *lines = diff.splitlines()
    path = root / head.removeprefix("--- ")
    text = path.read_text(encoding="utf-8")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"{head}: CONTRIBUTING shows lines that are there {text.count(old)} times:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a change touches."""
    unwanted = shutil.ignore_patterns("__pycache__", "golden")
    for name in ("trainer_ext", "modeling_jina_clip", "tests", "configuration"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_guides_are_there() -> None:
    assert set(GUIDES) == {"Add a loss", "Add a source format", "Add a stage key"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, guide in GUIDES.items() if blocks(guide, "diff")])
def test_a_guide_works_as_shown(name: str, tree: Path) -> None:
    for block in blocks(GUIDES[name], "python"):
        (tree / block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    shown = [block.splitlines()[0].removeprefix("# ") for block in blocks(GUIDES[name], "python")]
    tests = [path for path in shown if path.startswith("tests/")]
    assert tests, "a guide shows the test of what it adds"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    before = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert before.returncode == 1, f"without the change its test must fail\n{before.stdout}"
    for block in blocks(GUIDES[name], "diff"):
        apply(block, tree)
    after = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert after.returncode == 0, after.stdout + after.stderr


@pytest.mark.parametrize("name", GUIDES)
def test_the_files_of_a_guide_are_there(name: str) -> None:
    paths = re.findall(r"`((?:trainer_ext|docs|tests)/[\w/.]+)`|^--- (.+)$", GUIDES[name], re.MULTILINE)
    named = {first or second for first, second in paths}
    assert len(named) >= 2
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_diffs_show_lines_that_are_there(tree: Path) -> None:
    for guide in GUIDES.values():
        for block in blocks(guide, "diff"):
            apply(block, tree)
            assert block.splitlines()[0].removeprefix("--- ") in {
                str(path.relative_to(ROOT)) for path in files_of("trainer_ext")
            }


def attributes_read(*folders: str) -> set[str]:
    """Every name that is read as ``something.name``."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for folder in folders for path in files_of(folder)]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_stage_key_has_a_reader_and_a_line_in_the_guide() -> None:
    """``Stage.sides`` and ``trained_parts`` read those named here."""
    read = attributes_read(*(f"trainer_ext/{room}" for room in ("data", "losses", "training", "run")))
    guide = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for key in Stage.model_fields:
        assert key in read or key in (*schema.SIDES, "trainable"), f"no code reads stages.N.{key}"
        assert re.search(rf"`{key}\b", guide), f"docs/recipes.md does not explain stages.N.{key}"


def test_every_format_and_loss_has_its_words_in_the_guides() -> None:
    recipes, losses = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("recipes", "losses"))
    [row] = re.findall(r"^\| `format` \|.*$", recipes, re.MULTILINE)
    assert [name for name in get_args(schema.Format) if f"`{name}`" not in row] == []
    assert [name for name in schema.LOSS_RULES if f"`{name}`" not in losses] == []
