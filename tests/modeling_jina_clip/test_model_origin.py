"""The processor that a model reads on first use: from the same folder, subfolder, commit and cache as the model."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_jina_clip import JinaCLIPModel
from modeling_jina_clip.modeling_jina_clip import ModelOrigin
from tests.loopback_hub import MAIN, TOKEN, Blob, LoopbackHub, Repository

ROOT = Path(__file__).parents[2]


@pytest.fixture
def expected(golden: Path) -> np.ndarray:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").encode_text("a cat")


def test_a_relative_path_holds_after_a_change_of_folder(
    golden: Path, tmp_path: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden / "tiny_model", tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = JinaCLIPModel.from_pretrained("model")
    monkeypatch.chdir("elsewhere")
    np.testing.assert_array_equal(model.encode_text("a cat"), expected)


def test_a_subfolder_is_remembered(golden: Path, expected: np.ndarray) -> None:
    model, info = JinaCLIPModel.from_pretrained(golden, subfolder="tiny_model", output_loading_info=True)
    assert not info["missing_keys"]
    np.testing.assert_array_equal(model.encode_text("a cat"), expected)
    np.testing.assert_array_equal(copy.deepcopy(model).encode_text("a cat"), expected)


def test_the_token_is_in_no_pickle_and_not_printed() -> None:
    origin = ModelOrigin("somebody/clip", {"token": "secret", "subfolder": "v1", "local_files_only": True})
    assert origin.options["token"] == copy.deepcopy(origin).options["token"] == "secret"
    assert b"secret" not in pickle.dumps(origin)
    assert "secret" not in repr(origin)
    assert origin.__getstate__()["options"] == {"subfolder": "v1", "local_files_only": True}


def test_a_folder_that_is_gone_is_named(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "tiny_model", tmp_path / "model")
    model = JinaCLIPModel.from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert ModelOrigin(tmp_path / "model", {}).name == str(tmp_path / "model")
    with pytest.raises(OSError, match=str(tmp_path / "model")):
        model.encode_text("a cat")


# Loads by branch, then waits for a line: meanwhile the branch moves on.
LOADER = """
import json, sys
import modeling_jina_clip
from transformers import AutoModel
model = AutoModel.from_pretrained("somebody/clip", **json.loads(sys.argv[1]))
print("loaded", flush=True)
sys.stdin.readline()
print(json.dumps(model.encode_text("a cat").tolist()), model.processor.image_processor.size)
"""


@pytest.mark.parametrize("revision", [pytest.param(None, marks=pytest.mark.slow), "other"])
def test_a_private_repository_is_read_at_the_commit_of_the_model(
    golden: Path, tmp_path: Path, expected: np.ndarray, revision: str | None
) -> None:
    folder = golden / "tiny_model"
    files = {f"sub/{path.name}": Blob(path.read_bytes(), lfs=False) for path in folder.iterdir()}
    settings = json.loads(files["sub/preprocessor_config.json"].data)
    moved = {"sub/preprocessor_config.json": Blob(json.dumps(settings | {"size": 8}).encode(), lfs=False)}
    ref = MAIN if revision is None else f"refs/heads/{revision}"
    options = {"revision": revision, "subfolder": "sub", "token": TOKEN, "cache_dir": str(tmp_path / "cache")}
    with LoopbackHub() as hub:
        repository = hub.repositories["somebody/clip"] = Repository(private=True)
        repository.commit(MAIN, {})
        repository.commit(ref, files)
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER, json.dumps(options)],
            env={**{key: value for key, value in os.environ.items() if key != "HF_TOKEN"}, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "loaded\n", process.stderr.read()
        repository.commit(ref, files | moved)
        out, errors = process.communicate("go\n", timeout=120)
    assert process.returncode == 0, errors
    vector, _, size = out.rpartition(" ")
    np.testing.assert_allclose(json.loads(vector), expected, atol=1e-6)
    assert int(size) == settings["size"]
