"""The README's promises: its commands exist and run, its snippets run, its links and paths lead somewhere.

The commands run in a folder laid out like a checkout after `make demo`, with the golden tiny model in place of the
trained one and a few pictures and texts in place of the reader's own.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hub_upload import build
from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.source_imports import ROOT
from trainer_ext.recipe import load_recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]]
# Rows of the reader's own data: more than the batch of 64 in the README's recipe.
ROWS = 66


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the README's shell commands, split into words, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands() -> list[list[str]]:
    return [words for words in commands() if words[0] == "python"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make demo`, and the reader's own files beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hub_upload.py", "examples", "configuration"):
        (folder / name).symlink_to(ROOT / name)
    golden = ROOT / "tests" / "fixtures" / "golden" / "tiny_model"
    for part in (JinaCLIPModel, JinaCLIPProcessor):
        part.from_pretrained(golden).save_pretrained(folder / "outputs" / "openmoji")
    build(folder / "outputs" / "openmoji", folder / "outputs" / "openmoji-hub")
    (folder / "my_pictures").mkdir()
    with (folder / "my_pictures" / "metadata.csv").open("w", newline="") as table:
        csv.writer(table).writerow(["file_name", "text"])
        for number in range(ROWS):
            Image.new("RGB", (40, 30), (number, 255 - number, 90)).save(folder / "my_pictures" / f"{number}.png")
            csv.writer(table).writerow([f"{number}.png", f"shade {number}"])
    with (folder / "my_pairs.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["question", "answer"], *([f"what is {n}", f"it is {n}"] for n in range(ROWS))])
    Image.new("RGB", (64, 48), "red").save(folder / "apple.png")
    [recipe] = blocks("yaml")
    (folder / "my_recipe.yaml").write_text(recipe)
    return folder


def run(words: list[str], folder: Path, **variables: str) -> str:
    """Run a command in the folder as a reader would, offline; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")} | variables
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_first_screen_says_what_to_type_and_where_things_are() -> None:
    screen = "\n".join(README.splitlines()[:30])
    assert "make demo" in screen
    assert "make test" in screen
    for words in (
        "`configuration/` holds values",
        "`configuration_jina_clip.py` holds the schema",
        "`recipe.py` is the schema",
    ):
        assert words in " ".join(screen.split())


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


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [words for words in commands() if words[:2] == ["pip", "install"]]
    named = {extra for words in installs for extra in re.findall(r"\w+", "".join(re.findall(r"\[.*]", words[-1])))}
    assert named
    assert named <= set(extras)
    assert {words[0] for words in commands()} <= {"make", "pip", "python"}


def test_packaged_recipe_command_is_valid() -> None:
    [words] = [words for words in python_commands() if words[1:3] == ["-m", "trainer_ext"] and words[3] == "openmoji"]
    overrides = [word for word in words if "=" in word]
    assert overrides
    recipe = load_recipe(words[3], overrides)
    assert recipe.stages[0].steps != load_recipe(words[3]).stages[0].steps


def test_recipe_for_own_data_is_valid(workspace: Path) -> None:
    recipe = load_recipe(workspace / "my_recipe.yaml")
    assert [source.name for source in recipe.used_sources()] == ["pictures", "answers"]
    assert yaml.safe_load(blocks("yaml")[0])["model"] == "outputs/openmoji"


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_snippets_run(number: int, workspace: Path) -> None:
    assert run(["-c", blocks("python")[number]], workspace)


@pytest.mark.slow
def test_commands_run_in_the_order_they_stand(workspace: Path) -> None:
    """Search, fine-tune on own data, build, verify, push. The packaged recipe is the demo's; it is only checked."""
    ran = []
    for words in python_commands():
        if words[3:4] == ["openmoji"]:
            continue
        shorter = ["stages.0.steps=2", "stages.0.warmup_steps=1"] if "trainer_ext" in words else []
        with LoopbackHub() as hub:  # `push` asks the Hub what is there, even for a dry run
            reach = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
            run([*words[1:], *shorter], workspace, **(reach if "push" in words else {}))
        ran.append(words[1] if words[1] != "-m" else words[2])
    assert ran == ["examples/search_images.py", "trainer_ext", "hub_upload.py", "hub_upload.py", "hub_upload.py"]
    assert (workspace / "outputs" / "mine" / "model.safetensors").is_file()
