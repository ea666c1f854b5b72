"""The published checkpoint layout gives the vectors of the original code (random weights, float32)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPTextModel, JinaCLIPVisionModel
from tests.golden_tolerance import IMAGE_TOLERANCE, LONG_TOLERANCE

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "tiny_io.npz"))


def assert_close(actual: torch.Tensor | np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert expected.std() > 0.01, "the comparison would be empty"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features(golden: Path, arrays: dict[str, np.ndarray], attention: str) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model", attn_implementation=attention).eval()
    assert model.text_model.config._attn_implementation == attention
    ids, mask = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["attention_mask"])
    assert_close(model.get_text_features(ids, mask), arrays["text_features"])
    assert_close(model.get_text_features(ids), arrays["text_features"])  # the mask defaults to ids != pad
    assert_close(model.get_image_features(torch.tensor(arrays["pixel_values"])), arrays["image_features"])


@torch.no_grad()
def test_forward(model: JinaCLIPModel, arrays: dict[str, np.ndarray]) -> None:
    output = model(input_ids=torch.tensor(arrays["input_ids"]), pixel_values=torch.tensor(arrays["pixel_values"]))
    assert_close(output.text_embeds, arrays["text_features_normalized"])
    assert_close(output.image_embeds, arrays["image_features_normalized"])
    assert_close(output.logits_per_text, arrays["logits_per_text"])
    assert torch.equal(output.logits_per_image, output.logits_per_text.T)


@torch.no_grad()
def test_bfloat16_stays_close(golden: Path, arrays: dict[str, np.ndarray]) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model", dtype=torch.bfloat16).eval()
    ids, mask = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["attention_mask"])
    for actual, name in (
        (model.get_text_features(ids, mask), "text_features"),
        (model.get_image_features(torch.tensor(arrays["pixel_values"])), "image_features"),
    ):
        assert actual.dtype == torch.bfloat16
        cosine = torch.cosine_similarity(actual.float(), torch.tensor(arrays[name]), dim=-1)
        assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("text_default", {}),
        ("text_batch2", {"batch_size": 2}),
        ("text_max8192", {"max_length": 8192}),
        ("text_max8", {"max_length": 8}),
        ("text_raw", {"normalize_embeddings": False}),
        ("text_trunc16", {"truncate_dim": 16}),
        ("text_default", {"padding": "max_length"}),
        ("text_query", {"task": "retrieval.query"}),
    ],
)
def test_encode_text(golden: Path, model: JinaCLIPModel, key: str, options: dict) -> None:
    texts = json.loads((golden / "tiny_encode.json").read_text())["texts"]
    expected = np.load(golden / "tiny_encode.npz")
    assert_close(model.encode_text(texts, **options), expected[key])


def test_encode_image(golden: Path, model: JinaCLIPModel) -> None:
    paths = [golden / name for name in json.loads((golden / "tiny_encode.json").read_text())["images"]]
    expected = np.load(golden / "tiny_encode.npz")
    assert_close(model.encode_image(paths), expected["image_default"], IMAGE_TOLERANCE)
    assert_close(
        model.encode_image([str(path) for path in paths], batch_size=3), expected["image_default"], IMAGE_TOLERANCE
    )
    assert_close(model.encode_image(paths, normalize_embeddings=False), expected["image_raw"], LONG_TOLERANCE)
    assert_close(model.encode_image(paths, truncate_dim=16), expected["image_trunc16"], IMAGE_TOLERANCE)
    assert_close(model.encode_image(paths[0]), expected["image_single"], IMAGE_TOLERANCE)


@pytest.mark.parametrize("key", ["landscape_641x427.png|224", "rgba_300x200.png|224"])
def test_pixels_are_those_of_the_original_to_the_bit(golden: Path, key: str) -> None:
    name, side = key.split("|")
    pixels = JinaCLIPImageProcessor(size=int(side))(golden / "images" / name)["pixel_values"][0]
    np.testing.assert_array_equal(pixels, np.load(golden / "preprocess_io.npz")[key])


def test_towers_load_from_the_whole_checkpoint(golden: Path, model: JinaCLIPModel) -> None:
    text = JinaCLIPTextModel.from_pretrained(golden / "tiny_model", config=model.config.text_config)
    vision = JinaCLIPVisionModel.from_pretrained(golden / "tiny_model", config=model.config.vision_config)
    for tower, whole in ((text, model.text_model), (vision, model.vision_model)):
        weights = tower.state_dict()
        assert weights
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(
    "rope", [[], ["vision_model.rope"], ["vision_model.blocks.0.attn.rope", "vision_model.blocks.1.attn.rope"]]
)
def test_stored_rotary_tables_are_ignored_wherever_they_lie(
    golden: Path, tmp_path: Path, arrays: dict[str, np.ndarray], rope: list[str]
) -> None:
    weights = {
        name: tensor
        for name, tensor in load_file(golden / "tiny_model" / "model.safetensors").items()
        if ".rope." not in name
    }
    for prefix in rope:
        weights |= {f"{prefix}.freqs_{part}": torch.full((16, 16), 7.0) for part in ("cos", "sin")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((golden / "tiny_model" / "config.json").read_bytes())
    model = JinaCLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(model.get_image_features(torch.tensor(arrays["pixel_values"])), arrays["image_features"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vision_model.norm.weight"), "1 missing keys: vision_model.norm.weight"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 unexpected keys: extra"),
        # Names that a tower alone would leave to the other one.
        (
            lambda w: w.update({"vision_model.blocks.9.norm1.bias": torch.zeros(64)}),
            "1 unexpected keys: vision_model.blocks.9.norm1.bias",
        ),
        (
            lambda w: w.update({"text_model.transformer.pooler.bias": torch.zeros(64)}),
            "1 unexpected keys: text_model.transformer.pooler.bias",
        ),
        (
            lambda w: w.update({"vision_model.norm.weight": torch.zeros(63)}),
            r"vision_model.norm.weight \(checkpoint \(63,\), model \(64,\)\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(golden: Path, tmp_path: Path, change, message: str) -> None:
    weights = load_file(golden / "tiny_model" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((golden / "tiny_model" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=message):
        JinaCLIPModel.from_pretrained(tmp_path)
