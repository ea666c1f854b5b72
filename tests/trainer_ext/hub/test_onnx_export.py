"""The ONNX graphs of a Hub folder: the model's own vectors at sizes that were not traced, and what they do not hold."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hub_upload import HubFolderError, build, main, verify
from modeling_jina_clip import JinaCLIPModel
from tests.hub_checkpoint import v2_model
from trainer_ext.hub.folder import manifest_differences, read_manifest, write_manifest
from trainer_ext.hub.onnx_export import TEXT, VISION, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROOT = Path(__file__).parents[1]
TEXT_SHAPES = [(1, 1), (1, 2), (2, 1), (3, 7), (5, 13), (2, 90), (0, 4)]


@pytest.fixture(scope="module")
def built(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "tiny-clip", onnx=True)


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model", attn_implementation="eager").eval()


def compare(model: JinaCLIPModel, folder: Path, name: str, **features: torch.Tensor) -> None:
    """Hold one graph against the model on the same inputs; they differ by rounding alone."""
    session = onnxruntime.InferenceSession(folder / name)
    [output] = session.get_outputs()
    with torch.no_grad():
        expected = model(**features)[output.name].numpy()
    assert {key.name for key in session.get_inputs()} == set(features)
    [found] = session.run(None, {key: value.numpy() for key, value in features.items()})
    assert (
        found.shape == expected.shape == (*features["pixel_values" if "vision" in name else "input_ids"].shape[:1], 64)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)  # asked for are 1e-4
    assert len(found) < 2 or np.ptp(found, axis=0).max() > 1e-3  # equal rows would agree with anything


def compare_texts(model: JinaCLIPModel, folder: Path) -> None:
    """Lengths and batches other than the traced one; every row has another number of padding tokens."""
    generator = torch.Generator().manual_seed(0)
    for batch, length in TEXT_SHAPES:
        ids = torch.randint(3, model.config.text_config.vocab_size, (batch, length), generator=generator)
        mask = (torch.arange(length) < (length - 2 * torch.arange(batch)[:, None]).clamp(min=1)).long()
        compare(model, folder, TEXT, input_ids=ids, attention_mask=mask)


def compare_images(model: JinaCLIPModel, folder: Path, sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    for batch, (height, width) in zip((1, 2, 3, 0, 1), sizes, strict=False):
        pixels = torch.randn(batch, 3, height, width, generator=generator)
        compare(model, folder, VISION, pixel_values=pixels)


@pytest.mark.slow
def test_graphs_give_the_models_vectors_at_any_size(model: JinaCLIPModel, built: Path) -> None:
    compare_texts(model, built)
    compare_images(model, built, [(32, 32), (24, 40), (8, 8), (32, 32), (64, 48)])  # trained at 32, traced at 40 x 48


@pytest.mark.slow
def test_padding_decides_nothing(built: Path) -> None:
    session = onnxruntime.InferenceSession(built / TEXT)
    ids, mask = np.array([[2, 7, 8, 9]]), np.ones((1, 4), dtype=np.int64)
    longer = np.concatenate([ids, np.full((1, 9), 5)], axis=1), np.concatenate([mask, np.zeros((1, 9), int)], axis=1)
    [short] = session.run(None, {"input_ids": ids, "attention_mask": mask})
    [padded] = session.run(None, dict(zip(("input_ids", "attention_mask"), longer, strict=True)))
    np.testing.assert_allclose(padded, short, atol=1e-6)
    [seen] = session.run(None, {"input_ids": longer[0], "attention_mask": np.ones_like(longer[0])})
    assert np.abs(seen - short).max() > 1e-3


@pytest.mark.slow
def test_graphs_are_in_manifest_and_card_and_tell_nothing_of_this_machine(built: Path, tmp_path: Path) -> None:
    graphs = {TEXT, VISION, f"{TEXT}.data", f"{VISION}.data"}
    assert {name for name in read_manifest(built)["files"] if name.startswith("onnx/")} == graphs
    assert manifest_differences(built) == []
    card = ModelCard.load(built / "README.md")
    assert "onnx" in card.data.tags
    assert "onnx/vision_model.onnx" in card.text
    for name in (TEXT, VISION):
        content = (built / name).read_bytes()
        assert len(content) < 60_000  # the weights are beside it
        places = (str(ROOT), str(Path.home()) + "/", sys.prefix, "modeling_jina_clip_", "site-packages", ".py")
        assert [place for place in places if place.encode() in content] == []
    moved = shutil.move(shutil.copytree(built / "onnx", tmp_path / "a"), tmp_path / "b")
    assert onnxruntime.InferenceSession(Path(moved) / "text_model.onnx")  # finds its weights where it lies


def test_without_the_option_nothing_is_exported(golden: Path, tmp_path: Path) -> None:
    folder = build(golden / "tiny_model", tmp_path / "out")
    assert not (folder / "onnx").exists()
    assert "onnx" not in (folder / "README.md").read_text()


def test_a_missing_library_is_said_before_anything_is_made(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(HubFolderError, match=r"onnxscript not installed; run `pip install '\.\[onnx\]'"):
        build(golden / "tiny_model", tmp_path / "out", onnx=True)
    assert main(["build", str(golden / "tiny_model"), str(tmp_path / "out"), "--onnx"]) == 2
    assert "onnxscript" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_layout_of_v2_with_adapters_exports_too(tmp_path: Path) -> None:
    model = v2_model()
    model.set_attn_implementation("eager")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    compare_texts(model, tmp_path)
    compare_images(model, tmp_path, [(36, 36), (36, 36)])


@pytest.mark.slow
def test_half_precision_weights_become_float32_graphs(golden: Path, tmp_path: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model", dtype=torch.bfloat16).eval()
    export_onnx(model, tmp_path)
    assert model.dtype == torch.bfloat16
    model.float().set_attn_implementation("eager")
    compare_texts(model, tmp_path)
    compare_images(model, tmp_path, [(32, 32), (48, 40)])


@pytest.mark.slow
def test_a_graph_with_other_weights_is_not_verified(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "tiny-clip"))
    weights = np.fromfile(folder / f"{VISION}.data", dtype=np.float32)
    (weights * 0.99).tofile(folder / f"{VISION}.data")
    write_manifest(folder)
    failures = verify(folder)
    assert [line.partition("/")[2].split()[0] for line in failures] == ["images", "images"]
    assert all(line.startswith("onnxruntime") and line.endswith("allowed are 1e-04") for line in failures)
    assert json.loads((folder / "manifest.json").read_text())["files"][f"{VISION}.data"]
