"""The snippets for LangChain, LlamaIndex and MTEB in docs/publishing.md, run as shown where those are installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hub_upload import build
from modeling_jina_clip import JinaCLIPModel
from tests.source_imports import ROOT
from trainer_ext.hub.card import snippets

SNIPPETS = {program.split()[1]: program for program in snippets((ROOT / "docs" / "publishing.md").read_text())}
PROGRAMS = {name: program for name, program in SNIPPETS.items() if name != "modeling_jina_clip"}
SHOWN = {name: program for name, program in PROGRAMS.items() if name != "mteb"}  # that one downloads data
# Another interpreter that has them, for those who keep this environment free of their many packages.
PYTHON = os.environ.get("INTEGRATIONS_PYTHON", sys.executable)

COMPARE = """
import json
print(json.dumps({"vectors": vectors, "query": query}))
"""


def test_all_are_shown() -> None:
    assert set(PROGRAMS) == {"langchain_huggingface", "llama_index.embeddings.huggingface", "mteb"}


@pytest.mark.slow
def test_what_is_shown_of_mteb_exists() -> None:
    """Its last line needs the data of the task; the test of the wrapper brings its own."""
    mteb = pytest.importorskip("mteb")
    [name] = re.findall(r'get_task\("(\w+)"\)', PROGRAMS["mteb"])
    assert mteb.get_task(name).metadata.category == "t2i"
    wrapper = importlib.import_module("mteb.models").SentenceTransformerEncoderWrapper
    assert "SentenceTransformerEncoderWrapper" in PROGRAMS["mteb"]
    assert wrapper.encode


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(SHOWN))
def test_snippet_gives_the_models_vectors(package: str, golden: Path, tmp_path: Path) -> None:
    if sys.executable == PYTHON and importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed; INTEGRATIONS_PYTHON may name an interpreter that has it")
    build(golden / "tiny_model", tmp_path / "outputs" / "openmoji-hub")
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [PYTHON, "-I", "-c", SHOWN[package] + COMPARE],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    expected = model.encode_text(["a red circle", "a green square"])
    assert abs(expected - found["vectors"]).max() < 1e-5
    assert abs(expected[0] - found["query"]).max() < 1e-5
