"""The README's promises: its commands exist and run, its snippets run, its links and paths lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from tests.source_imports import ROOT
from tests.workspace import blocks, commands, make_workspace
from trainer_ext.recipe.recipe import load_recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "examples" / "README.md"]
]


def python_commands() -> list[list[str]]:
    return [words for words in commands("README.md") if words[0] == "python"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make demo`, the reader's own files beside it, and the README's recipe."""
    folder = make_workspace(tmp_path_factory.mktemp("checkout"))
    [recipe] = blocks("README.md", "yaml")
    (folder / "my_recipe.yaml").write_text(recipe)
    return folder


def test_first_screen_says_what_to_type_and_where_things_are() -> None:
    screen = "\n".join(README.splitlines()[:30])
    assert "make demo" in screen
    assert "make test" in screen
    for words in (
        "Two kinds of configuration: model presets (JSON) and training recipes (YAML)",
        "each is checked against a schema.",
        "The values are in `configuration/`",
        "`modeling_jina_clip/configuration_jina_clip.py` and `trainer_ext/recipe/schema.py`",
    ):
        assert words in " ".join(screen.split())


def test_the_tree_is_the_tree() -> None:
    """Every path is there, and every file of the model, every room of the trainer has its line."""
    [tree] = blocks("README.md", "text")
    found, folder = set(), ""
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folder = folder if indent else name
        found.add(folder + name if indent else name)
    assert [path for path in found if not (ROOT / path).exists()] == []
    for package in ("modeling_jina_clip", "trainer_ext"):
        inside = {path.name + "/" * path.is_dir() for path in (ROOT / package).iterdir() if path.name[0] != "_"}
        assert {path.partition("/")[2] for path in found if path.startswith(f"{package}/")} - {""} == inside
    assert {"hub_upload.py", "examples/", "benchmarks/", "docs/", "tests/", "configuration/recipes/"} <= found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    assert set(named) <= set(targets)
    assert page != Path("README.md") or named


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    folders = "configuration|docs|examples|modeling_jina_clip|tests|trainer_ext"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    for link in links:
        assert (ROOT / page.parent / link.partition("#")[0]).exists(), f"{page} links to {link}"
    for path in paths:
        assert (ROOT / path).exists(), f"{page} names {path}"


def test_every_example_has_its_line() -> None:
    """The list of examples is complete, and each is short."""
    table = re.findall(r"^\| .*", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = set(re.findall(r"`(\w+(?:\.py|/))`", "".join(table)))
    scripts = {path.name: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "examples").glob("*.py")}
    assert listed == {*scripts, "app/", "study/"}
    assert max(scripts.values()) < 180


def test_packaged_recipe_command_is_valid() -> None:
    [words] = [words for words in python_commands() if words[1:3] == ["-m", "trainer_ext"] and words[3] == "openmoji"]
    overrides = [word for word in words if "=" in word]
    assert overrides
    recipe = load_recipe(words[3], overrides)
    assert recipe.stages[0].steps != load_recipe(words[3]).stages[0].steps


def test_recipe_for_own_data_is_valid(workspace: Path) -> None:
    recipe = load_recipe(workspace / "my_recipe.yaml")
    assert [source.name for source in recipe.used_sources()] == ["pictures", "answers"]
    assert yaml.safe_load(blocks("README.md", "yaml")[0])["model"] == "outputs/openmoji"
