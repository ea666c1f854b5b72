"""A configuration with ``truncate_dim``: every door gives the same unit vector of that width."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from hub_upload import build, verify
from modeling_jina_clip import JinaCLIPModel
from tests.hub_checkpoint import finished_run

TEXTS, DIM = ["a red bus", "two people dancing"], 16


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("widths")
    checkpoint = finished_run(golden, place / "run")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"truncate_dim": DIM}))
    return build(checkpoint, place / "hub", onnx=True)


def test_all_doors_give_the_same_unit_vectors(folder: Path) -> None:
    model = JinaCLIPModel.from_pretrained(folder)
    pictures = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    texts, images = model.encode_text(TEXTS), model.encode_image(pictures)
    assert texts.shape == images.shape == (2, DIM)
    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert np.allclose(encoder.encode(TEXTS), texts, atol=1e-5)
    assert np.allclose(encoder.encode(pictures), images, atol=1e-5)
    assert np.allclose(encoder.encode([*TEXTS, *pictures]), [*texts, *images], atol=1e-5)
    for tower, name, vectors in (("text", "text", texts), ("vision", "images", images)):
        session = onnxruntime.InferenceSession(folder / "onnx" / f"{tower}_model.onnx")
        inputs = model.processor(**{name: TEXTS if name == "text" else pictures}, padding=True, return_tensors="np")
        [found] = session.run(None, {wanted.name: inputs[wanted.name] for wanted in session.get_inputs()})
        assert np.allclose(found, vectors, atol=1e-5)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-6)


@pytest.mark.slow
def test_verify_compares_vectors_as_sentence_transformers_gives_them(folder: Path) -> None:
    verify(folder)
    settings = json.loads((folder / "modules.json").read_text())
    assert settings[-1]["type"].endswith("Normalize")
