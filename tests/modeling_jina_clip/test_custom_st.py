"""The sentence-transformers module: texts, images, mixed lists, prompts, and no guessing about strings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

import modeling_jina_clip
from modeling_jina_clip import JinaCLIPModel


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sentence-transformers folder, as the export step writes it."""
    folder = tmp_path_factory.mktemp("st") / "model"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    shutil.copy(Path(modeling_jina_clip.__file__).parent / "custom_st.py", folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    method = {"text": "get_text_features", "image": "get_image_features"}
    modalities = {kind: {"method": name, "method_output_name": None} for kind, name in method.items()}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": "sentence_embedding",
    }
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def reference(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model")


@pytest.fixture(scope="module")
def images(golden: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted((golden / "images").glob("*.png"))]


def test_texts_images_and_mixed_lists(model, reference, images) -> None:
    texts = ["a cat on the beach", "two dogs."]
    text, image = reference.encode_text(texts), reference.encode_image(images)
    np.testing.assert_allclose(model.encode(texts), text, atol=1e-5)
    np.testing.assert_allclose(model.encode(images), image, atol=1e-5)
    mixed = model.encode([images[0], texts[0], {"image": images[1]}, {"text": texts[1]}, images[2]])
    np.testing.assert_allclose(mixed, [image[0], text[0], image[1], text[1], image[2]], atol=1e-5)
    assert model.encode("a cat").shape == (64,)
    assert model.get_embedding_dimension() == 64


def test_a_string_is_always_a_text(model, reference, golden: Path) -> None:
    path = str(golden / "images" / "gray_257x190.png")
    texts = [path, "http://127.0.0.1:9/cat.png", "data:image/png;base64,AAAA"]
    np.testing.assert_allclose(model.encode(texts), reference.encode_text(texts), atol=1e-5)


def test_prompts_truncation_and_similarity(model, reference) -> None:
    np.testing.assert_allclose(model.encode(["cat"], prompt="a "), reference.encode_text(["a cat"]), atol=1e-5)
    short = model.encode(["a cat"], truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(short, reference.encode_text(["a cat"], truncate_dim=16), atol=1e-5)
    assert model.similarity(model.encode(["a cat"]), model.encode(["a cat"])).item() == pytest.approx(1, abs=1e-5)


def test_save_and_reload(model, images, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    batch = ["a cat", images[0]]
    np.testing.assert_allclose(again.encode(batch), model.encode(batch), atol=1e-6)


def test_an_item_of_another_kind_is_refused(model) -> None:
    with pytest.raises((ValueError, TypeError)):
        model.encode([{"audio": np.zeros(100, dtype=np.float32)}])
