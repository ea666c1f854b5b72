"""The snippets for LangChain and LlamaIndex in docs/publishing.md, run as shown where those packages are installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_upload import build
from modeling_jina_clip import JinaCLIPModel
from tests.source_imports import ROOT
from trainer_ext.hub_folder.card import snippets

SHOWN = {program.split()[1]: program for program in snippets((ROOT / "docs" / "publishing.md").read_text())}
# Another interpreter that has them, for those who keep this environment free of their many packages.
PYTHON = os.environ.get("INTEGRATIONS_PYTHON", sys.executable)

COMPARE = """
import json
print(json.dumps({"vectors": vectors, "query": query}))
"""


def test_both_are_shown() -> None:
    assert set(SHOWN) == {"langchain_huggingface", "llama_index.embeddings.huggingface"}


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
