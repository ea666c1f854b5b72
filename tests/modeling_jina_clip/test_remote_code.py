"""A saved folder loads where this package is not installed, and with the Auto classes where it is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor
from tests.golden_tolerance import IMAGE_TOLERANCE

LOADER = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_jina_clip", "trainer_ext", "hub_upload"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, golden, out = sys.argv[1:]
texts = json.load(open(golden + "/tiny_encode.json"))
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "jina_clip"
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
assert type(AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)).__name__ == "JinaCLIPImageProcessor"
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False).mask_token == "[MASK]"
images = [golden + "/" + name for name in texts["images"]]
inputs = processor(text=texts["texts"][:2], images=images[:1], padding=True, return_tensors="pt")
assert sorted(inputs) == ["attention_mask", "input_ids", "pixel_values"], sorted(inputs)
np.savez(out, text=model.encode_text(texts["texts"]), image=model.encode_image(images))
"""


def test_a_saved_folder_loads_without_this_package(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    out = tmp_path / "vectors.npz"
    command = [sys.executable, "-I", "-c", LOADER, str(folder), str(golden), str(out)]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    vectors, expected = np.load(out), np.load(golden / "tiny_encode.npz")
    np.testing.assert_allclose(vectors["text"], expected["text_default"], atol=1e-5)
    np.testing.assert_allclose(vectors["image"], expected["image_default"], atol=IMAGE_TOLERANCE)
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"].count("--") == 0


@pytest.mark.slow
def test_encoding_with_a_folders_own_code_warns_of_nothing(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    program = "from transformers import AutoModel; import sys; folder = sys.argv[1]\n"
    program += "AutoModel.from_pretrained(folder, trust_remote_code=True).encode_text(['a red bus'])"
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-I", "-c", program, str(folder)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "instantiate a model of type" not in result.stderr


def test_auto_classes_prefer_this_package_over_the_published_code(golden: Path) -> None:
    """The published auto_map names another repository; nothing may be fetched from it."""
    folder = golden / "tiny_model"
    assert "jina-clip-implementation--" in (folder / "config.json").read_text()
    assert isinstance(AutoModel.from_pretrained(folder), JinaCLIPModel)
    assert isinstance(AutoProcessor.from_pretrained(folder), JinaCLIPProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), JinaCLIPImageProcessor)


def test_pipelines(golden: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=model.processor.tokenizer,
        image_processor=model.processor.image_processor,
    )
    labels = ["a cat", "two dogs"]
    scores = classify(str(golden / "images" / "gray_257x190.png"), candidate_labels=labels, hypothesis_template="{}")
    image = model.encode_image(golden / "images" / "gray_257x190.png")
    logits = np.exp(model.logit_scale.item()) * model.encode_text(labels) @ image
    expected = dict(zip(labels, np.exp(logits) / np.exp(logits).sum(), strict=True))
    assert {row["label"]: pytest.approx(row["score"], abs=1e-4) for row in scores} == expected


def test_feature_extraction_pipeline_gives_unit_vectors_of_texts(golden: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    extract = pipeline("feature-extraction", model=model, tokenizer=model.processor.tokenizer)
    texts = ["a cat", "two dogs on the beach"]
    rows = np.array([extract(text)[0] for text in texts])
    np.testing.assert_allclose(rows, model.encode_text(texts), atol=1e-5)


def test_a_tuple_of_the_output_begins_as_documented(golden: Path) -> None:
    """Pipelines take the first item for the result, and the stock Trainer takes it for the loss."""
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    inputs = model.processor(text=["a", "b"], images=[golden / "images" / "gray_257x190.png"] * 2, return_tensors="pt")
    output = model(**inputs, return_loss=True)
    names = ["loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    assert list(output)[:5] == names
    assert model(**inputs, return_loss=True, return_dict=False)[0] == output.loss
