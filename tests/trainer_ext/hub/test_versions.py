"""`verify --python` with other library versions: the lowest that are declared and the newest."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from hub_upload import build, main, verify
from tests.hub_checkpoint import v2_checkpoint
from tests.source_imports import ROOT
from trainer_ext.hub.folder import STAMP
from trainer_ext.hub.onnx_export import LIBRARIES

pytestmark = pytest.mark.slow
LOWEST = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints-min.txt").read_text(), re.MULTILINE))
LOADERS = ("transformers", "sentence-transformers")
MADE = ROOT / ".venv-min" / "bin" / "python"  # by `make test-min`


def overlay(place: Path, *requirements: str) -> Path:
    """The Python of a new environment with some packages of other versions in front of the ones of this environment."""
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    torch_pin = f"torch=={torch.__version__.partition('+')[0]}"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *requirements, torch_pin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"pip could not get {requirements}: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the lowest versions: of all libraries where `make test-min` was run, else of these two."""
    if (MADE.parents[1] / ".installed").is_file():
        return MADE
    return overlay(tmp_path_factory.mktemp("lowest") / "venv", *(f"{name}=={LOWEST[name]}" for name in LOADERS))


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_verify_with_the_lowest_versions_declared(
    golden: Path, lowest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    """Both layouts, v2 with its instructions as prompts; this interpreter has to agree, too."""
    instructions = {"retrieval.query": "Represent the query: ", "other/one": "Other: "}
    v1 = golden / "tiny_model"
    source = v1 if layout == "v1" else v2_checkpoint(golden, tmp_path / "v2", task_instructions=instructions)
    folder = build(source, tmp_path / "hub")
    assert main(["verify", str(folder), "--python", str(lowest), "--python", sys.executable]) == 0
    shown = capsys.readouterr().out
    for name in LOADERS:
        assert f"{name} {LOWEST[name]}" in shown
    assert ("SentenceTransformer/task other/one" in shown) == (layout == "v2")
    assert (folder / STAMP).is_file()


def test_verify_with_the_lowest_and_the_newest_libraries(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Snippets and graphs included, in one command; then one interpreter that differs is enough to fail."""
    for library in LIBRARIES:
        pytest.importorskip(library)
    folder = build(golden / "tiny_model", tmp_path / "tiny-clip", onnx=True)
    lowest = overlay(tmp_path / "lowest", *(f"{name}=={LOWEST[name]}" for name in LOADERS))
    newest = overlay(tmp_path / "newest", "transformers>=5.23", "sentence-transformers>=6.2")
    assert main(["verify", str(folder), "--python", str(lowest), "--python", str(newest)]) == 0
    shown = capsys.readouterr().out
    assert ", ".join(f"{name} {LOWEST[name]}" for name in LOADERS) in shown
    for python in (lowest, newest):
        for way in ("onnxruntime, one by one/images (5, 64)", "SentenceTransformer/mixed", "the card's 3 snippets run"):
            assert f"{python}: {way}" in shown
    assert (folder / STAMP).is_file()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'ImportError: too old' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert verify(folder, python=[newest, broken]) == [f"{broken} exited with 1:\nImportError: too old"]
    assert not (folder / STAMP).exists()
