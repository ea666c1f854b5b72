"""Fine-tunes of the published code with projections: the same vectors, strict names, training, and the way back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPTextModel, initialize_towers, save_published

DIM = 24
KINDS: dict[str, dict[str, Any]] = {
    "projections": {"add_projections": True, "projection_dim": DIM},
    "linear": {"text": {"proj_type": "linear"}},
    "linear with bias": {"text": {"proj_type": "linear", "proj_bias": True}},
    "mlp": {"text": {"proj_type": "mlp"}},
    "mlp with bias": {"text": {"proj_type": "mlp", "proj_bias": True}},
    # The published code has two layers only between equal widths.
    "mlp to another width": {"text": {"proj_type": "mlp", "embed_dim": DIM}, "add_projections": True},
    "all": {"text": {"proj_type": "mlp"}, "add_projections": True, "projection_dim": DIM},
}


def layers_of(kind: dict[str, Any], width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file of the published code, beside those of the towers."""
    text, dim = kind.get("text", {}), kind.get("projection_dim", DIM)
    wide = text.get("embed_dim", width)
    shapes: dict[str, tuple[int, ...]] = {}
    if text.get("proj_type") == "mlp" and wide == width:
        shapes |= {"text_model.proj.0.weight": (width, width), "text_model.proj.2.weight": (width, width)}
    elif text.get("proj_type"):
        shapes["text_model.proj.weight"] = (wide, width)
    if kind.get("add_projections"):
        shapes |= {"text_projection.weight": (dim, wide), "visual_projection.weight": (dim, width)}
    biased = [name for name in shapes if name.startswith("text_model.")] if text.get("proj_bias") else []
    return shapes | {name.replace("weight", "bias"): shapes[name][:1] for name in biased}


def published(golden: Path, folder: Path, kind: dict[str, Any]) -> tuple[Path, dict[str, torch.Tensor]]:
    """The golden checkpoint with random layers of that kind, written as the published code writes it."""
    folder.mkdir()
    for path in (golden / "tiny_model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    width = config["text_config"]["embed_dim"]
    config["text_config"] |= kind.get("text", {})
    config |= {name: value for name, value in kind.items() if name != "text"}
    if kind.get("add_projections"):
        config["projection_dim"] = DIM
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: torch.randn(shape, generator=generator) / math.sqrt(width)
        for name, shape in layers_of(kind, width).items()
    }
    weights = load_file(folder / "model.safetensors") | layers
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, layers


def by_hand(layers: dict[str, torch.Tensor], text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the published code makes of the pooled vectors of both towers, not normalised."""

    def linear(name: str, states: torch.Tensor) -> torch.Tensor:
        return states @ layers[f"{name}.weight"].T + layers.get(f"{name}.bias", torch.zeros(1))

    if "text_model.proj.0.weight" in layers:
        first = linear("text_model.proj.0", text)
        text = linear("text_model.proj.2", first * 0.5 * (1 + torch.erf(first / math.sqrt(2))))
    elif "text_model.proj.weight" in layers:
        text = linear("text_model.proj", text)
    if "text_projection.weight" in layers:
        text, image = linear("text_projection", text), linear("visual_projection", image)
    return text, image


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_vectors_are_those_of_the_published_code(golden: Path, tmp_path: Path, kind: dict[str, Any]) -> None:
    folder, layers = published(golden, tmp_path / "model", kind)
    plain = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    model = JinaCLIPModel.from_pretrained(folder).eval()
    arrays = np.load(golden / "tiny_io.npz")
    ids, pixels = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["pixel_values"])
    with torch.no_grad():
        expected = by_hand(layers, plain.get_text_features(ids), plain.get_image_features(pixels))
        found = model.get_text_features(ids), model.get_image_features(pixels)
        output = model(input_ids=ids, pixel_values=pixels)
    for theirs, ours, unit in zip(expected, found, (output.text_embeds, output.image_embeds), strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        torch.testing.assert_close(unit, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    texts = model.encode_text(["a red bus", "a cat"])
    assert texts.shape == (2, model.config.projection_dim)
    # And back: what is written has the names and numbers that were read.
    again = save_published(model, tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    rope = {name for name in after if "rope" in name}
    assert after.keys() - rope == {name for name in before if "rope" not in name}
    assert all(torch.equal(after[name], layers[name]) for name in layers)
    np.testing.assert_allclose(
        JinaCLIPModel.from_pretrained(again).eval().encode_text(["a red bus", "a cat"]), texts, atol=1e-6
    )


def test_names_are_strict(golden: Path, tmp_path: Path) -> None:
    folder, layers = published(golden, tmp_path / "model", KINDS["all"])
    whole = load_file(folder / "model.safetensors")
    for name in layers:
        save_file(
            {key: value for key, value in whole.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
        )
        with pytest.raises(ValueError, match=f"1 missing keys: {name}"):
            JinaCLIPModel.from_pretrained(folder)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"add_projections": False, "projection_dim": config["text_config"]["embed_dim"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"2 unexpected keys: text_projection\.weight, visual_projection\.weight"):
        JinaCLIPModel.from_pretrained(folder)


def test_towers_of_such_a_file_start_others(golden: Path, tmp_path: Path) -> None:
    folder, layers = published(golden, tmp_path / "model", KINDS["all"])
    model = JinaCLIPModel.from_pretrained(folder)
    fresh = JinaCLIPModel(model.config)
    reports = initialize_towers(fresh, text=folder, vision=folder)
    assert torch.equal(fresh.text_model.proj[0].weight, layers["text_model.proj.0.weight"])
    assert {"text_projection.weight", "visual_projection.weight"} <= set(reports["text"].dropped)
    assert not torch.equal(fresh.text_projection.weight, layers["text_projection.weight"])
    # A tower by itself ignores what belongs to both.
    tower = JinaCLIPTextModel.from_pretrained(folder, config=model.config.text_config)
    assert torch.equal(tower.proj[2].weight, layers["text_model.proj.2.weight"])


def test_new_projections_have_the_published_spread() -> None:
    sizes = {"embed_dim": 400, "hidden_size": 400, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 50}
    vision = {"embed_dim": 100, "width": 100, "head_width": 20, "layers": 1, "image_size": 8, "patch_size": 4}
    config = JinaCLIPConfig(text_config=sizes, vision_config=vision, add_projections=True, projection_dim=300)
    model = JinaCLIPModel(config)
    assert model.text_projection.weight.std().item() == pytest.approx(400**-0.5, rel=0.05)
    assert model.visual_projection.weight.std().item() == pytest.approx(100**-0.5, rel=0.05)
    with pytest.raises(ValueError, match=r"text_config.embed_dim=400, vision_config.embed_dim=100; .* add_projections"):
        JinaCLIPConfig(text_config=sizes, vision_config=vision)


def test_one_step_trains_them(golden: Path, tmp_path: Path) -> None:
    folder, layers = published(golden, tmp_path / "model", KINDS["all"])
    model = JinaCLIPModel.from_pretrained(folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arrays = np.load(golden / "tiny_io.npz")
    ids, pixels = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["pixel_values"])
    count = min(len(ids), len(pixels))
    model(input_ids=ids[:count], pixel_values=pixels[:count], return_loss=True).loss.backward()
    optimizer.step()
    state = model.state_dict()
    assert all(not torch.equal(state[name], layers[name]) for name in layers)


@pytest.mark.slow
def test_onnx_graphs_have_them(golden: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from trainer_ext.hub.onnx_export import TEXT, VISION, export_onnx

    folder, _ = published(golden, tmp_path / "model", KINDS["all"])
    model = JinaCLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    export_onnx(model, tmp_path)
    arrays = np.load(golden / "tiny_io.npz")
    ids, pixels = torch.tensor(arrays["input_ids"]), torch.tensor(arrays["pixel_values"])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels)
    inputs = {"input_ids": ids.numpy(), "attention_mask": (ids != 0).long().numpy()}
    [texts] = onnxruntime.InferenceSession(tmp_path / TEXT).run(None, inputs)
    [images] = onnxruntime.InferenceSession(tmp_path / VISION).run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(texts, expected.text_embeds, atol=1e-4)
    np.testing.assert_allclose(images, expected.image_embeds, atol=1e-4)
