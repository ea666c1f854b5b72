"""A folder laid out like a checkout after `make demo`, in which the commands and snippets of README and docs run.

The golden tiny model stands in place of the trained one, a few pictures and texts in place of the reader's own.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from hub_upload import build
from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.source_imports import ROOT

# Rows of the reader's own data: more than the batch of 64 in the README's recipe.
ROWS = 66


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Return the shell commands of a page, split into words, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def make_workspace(folder: Path) -> Path:
    """Fill ``folder``."""
    for name in ("hub_upload.py", "examples", "configuration"):
        (folder / name).symlink_to(ROOT / name)
    golden = ROOT / "tests" / "fixtures" / "golden" / "tiny_model"
    for part in (JinaCLIPModel, JinaCLIPProcessor):
        part.from_pretrained(golden).save_pretrained(folder / "outputs" / "openmoji")
    build(folder / "outputs" / "openmoji", folder / "outputs" / "openmoji-hub")
    (folder / "notes.md").write_text("Trained on drawings; photographs are foreign to it.\n")
    (folder / "my_pictures").mkdir()
    with (folder / "my_pictures" / "metadata.csv").open("w", newline="") as table:
        csv.writer(table).writerow(["file_name", "text"])
        for number in range(ROWS):
            Image.new("RGB", (40, 30), (number, 255 - number, 90)).save(folder / "my_pictures" / f"{number}.png")
            csv.writer(table).writerow([f"{number}.png", f"shade {number}"])
    with (folder / "my_pairs.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["question", "answer"], *([f"what is {n}", f"it is {n}"] for n in range(ROWS))])
    Image.new("RGB", (64, 48), "red").save(folder / "apple.png")
    return folder


def run(words: list[str], folder: Path, **variables: str) -> str:
    """Run Python with ``words`` in the folder as a reader would, offline; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")} | variables
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_online(words: list[str], folder: Path) -> str:
    """As ``run``, with an empty Hub on loopback: `push` asks what is there, even for a dry run."""
    with LoopbackHub() as hub:
        reach = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return run(words, folder, **reach)
