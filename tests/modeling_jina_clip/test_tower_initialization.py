"""Towers from public checkpoints: names, fused layers, other sizes, and everything that must be refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPModel,
    JinaCLIPTextConfig,
    JinaCLIPTextModel,
    initialize_towers,
)
from modeling_jina_clip.checkpoints_jina_clip import EVA_CLIP, JINA_BERT, TIMM_EVA02, choose_table, convert

VISION = {"embed_dim": 64, "width": 64, "head_width": 16, "layers": 2, "image_size": 32, "patch_size": 8}
TEXT = {
    "embed_dim": 64,
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def fresh_model(**vision) -> JinaCLIPModel:
    torch.manual_seed(1)
    config = {**VISION, "pt_hw_seq_len": 4, **vision}
    return JinaCLIPModel(JinaCLIPConfig(text_config=TEXT, vision_config=config)).eval()


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "tiny_model" / "model.safetensors")


def vision_weights(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "vision_model."
    return {name.removeprefix(prefix): t for name, t in published.items() if name.startswith(prefix)}


def timm_names(weights: dict[str, torch.Tensor], fused: bool) -> dict[str, torch.Tensor]:
    """The published tower under timm's names."""
    renames = [("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."), ("mlp.ffn_ln.", "mlp.norm."), ("w3.", "fc2.")]
    renames += [("attn.inner_attn_ln.", "attn.norm.")]
    if not fused:
        renames += [("attn.q_bias", "attn.q_proj.bias"), ("attn.v_bias", "attn.v_proj.bias")]
    out = {}
    for name, tensor in weights.items():
        if "rope." in name:
            continue
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        out[name] = tensor
    if fused:
        for block in range(2):
            parts = [out.pop(f"blocks.{block}.attn.{letter}_proj.weight") for letter in "qkv"]
            out[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
            out[f"blocks.{block}.attn.k_bias"] = torch.zeros(64)
    return out


@torch.no_grad()
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_text_from_jina_bert(golden: Path, prefix: str, head: bool) -> None:
    weights = load_file(golden / "jina_bert_v2_style.safetensors")
    weights = {prefix + name: tensor for name, tensor in weights.items()}
    if head:
        weights |= {
            "cls.predictions.decoder.weight": torch.zeros(1000, 64),
            prefix + "pooler.dense.bias": torch.zeros(4),
        }
    expected = np.load(golden / "jina_bert_v2_style_io.npz")
    model = fresh_model()
    report = initialize_towers(model, text=weights)["text"]
    assert report.fresh == []
    assert len(report.dropped) == 2 * head
    ids, mask = torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])
    output = model.text_model(ids, mask)
    np.testing.assert_allclose(output.pooler_output, expected["mean_pooled"], atol=1e-5)
    real = expected["attention_mask"] != 0
    np.testing.assert_allclose(
        output.last_hidden_state[torch.tensor(real)], expected["last_hidden_state"][real], atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "rename",
    [
        lambda w: w,
        lambda w: {"visual." + name: t for name, t in w.items()} | {"text.ln_final.bias": w["norm.bias"]},
        lambda w: timm_names(w, fused=False),
        lambda w: timm_names(w, fused=True),
        lambda w: (
            {"visual.trunk." + name: t for name, t in timm_names(w, fused=False).items()}
            | {"logit_scale": torch.tensor(1.0), "positional_embedding": torch.zeros(3)}
        ),
        lambda w: w | {"head.weight": torch.zeros(5, 64)},
    ],
    ids=["published", "eva-clip", "timm", "timm-fused", "open-clip", "with-head"],
)
def test_vision_from_every_source(golden: Path, published: dict[str, torch.Tensor], rename) -> None:
    expected = np.load(golden / "tiny_io.npz")
    model = fresh_model()
    report = initialize_towers(model, vision=rename(vision_weights(published)))["vision"]
    assert report.fresh == []
    features = model.get_image_features(torch.tensor(expected["pixel_values"]))
    np.testing.assert_allclose(features, expected["image_features"], atol=1e-5)


def test_mim_weights_leave_the_inner_norm_fresh_and_say_so(published: dict[str, torch.Tensor]) -> None:
    weights = timm_names(vision_weights(published), fused=False)
    weights = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in weights.items()
    }
    weights = {name: tensor for name, tensor in weights.items() if ".attn.norm." not in name}
    report = initialize_towers(fresh_model(), vision=weights)["vision"]
    assert report.fresh == [f"blocks.{b}.attn.inner_attn_ln.{part}" for b in (0, 1) for part in ("bias", "weight")]
    assert "4 left fresh" in str(report)


@torch.no_grad()
def test_other_patch_and_image_sizes_are_interpolated(published: dict[str, torch.Tensor]) -> None:
    model = fresh_model(patch_size=16, image_size=96)
    report = initialize_towers(model, vision=vision_weights(published))["vision"]
    assert sorted(report.resized) == ["patch_embed.proj.weight", "pos_embed"]
    assert model.vision_model.pos_embed.shape == (1, 1 + 36, 64)
    torch.testing.assert_close(model.vision_model.pos_embed[:, 0], published["vision_model.pos_embed"][:, 0])
    source = published["vision_model.patch_embed.proj.weight"]
    torch.testing.assert_close(model.vision_model.patch_embed.proj.weight.mean(), source.mean(), atol=2e-3, rtol=0)


def test_from_files_and_folders(golden: Path, tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    names = sorted(published)
    save_file({name: published[name] for name in names[:40]}, tmp_path / "model-1.safetensors")
    save_file({name: published[name] for name in names[40:]}, tmp_path / "model-2.safetensors")
    model = fresh_model()
    reports = initialize_towers(model, text=golden / "jina_bert_v2_style.safetensors", vision=str(tmp_path))
    assert sorted(reports) == ["text", "vision"]
    assert torch.equal(model.vision_model.cls_token, published["vision_model.cls_token"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"blocks.0.weird": torch.zeros(1)}),
            "fit no known source.*EVA-CLIP.*blocks.0.weird",
        ),
        (lambda w: w.pop("blocks.1.mlp.w1.weight"), r"without a tensor there: blocks.1.mlp.w1.weight"),
        (lambda w: w.update({"blocks.2.norm1.bias": torch.zeros(64)}), "a parameter here: blocks.2.norm1.bias"),
        (lambda w: w.update({"norm.bias": torch.zeros(3)}), r"norm.bias has shape \(3,\) .* and \(64,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(published, change, message: str) -> None:
    weights = vision_weights(published)
    change(weights)
    model = fresh_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_towers(model, vision=weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_broken_files(tmp_path: Path, golden: Path) -> None:
    model = fresh_model()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match="pickles are not read"):
        initialize_towers(model, text=tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no .safetensors file"):
        initialize_towers(model, text=tmp_path)
    half = (golden / "jina_bert_v2_style.safetensors").read_bytes()[:5000]
    (tmp_path / "half.safetensors").write_bytes(half)
    with pytest.raises(ValueError, match="broken or cut short"):
        initialize_towers(model, text=tmp_path / "half.safetensors")


def test_a_missing_third_of_a_fused_layer_is_refused(golden: Path) -> None:
    weights = load_file(golden / "jina_bert_v2_style.safetensors")
    del weights["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(ValueError, match=r"incomplete query, key and value for .*layers.1.mixer.Wqkv.bias"):
        convert(weights, JINA_BERT)


def test_one_tensor_under_two_names_is_taken_once_unless_they_differ(golden: Path) -> None:
    weights = load_file(golden / "jina_bert_v2_style.safetensors")
    expected, _ = convert(weights, JINA_BERT)
    weights["bert.emb_ln.bias"] = weights["embeddings.LayerNorm.bias"]
    converted, _ = convert(weights, JINA_BERT)
    assert converted.keys() == expected.keys()
    weights["bert.emb_ln.bias"] = weights["embeddings.LayerNorm.bias"] + 1
    with pytest.raises(ValueError, match=r"become 'transformer.emb_ln.bias' and differ, the second is 'bert.emb_ln"):
        convert(weights, JINA_BERT)


def test_the_table_is_told_by_the_names(published: dict[str, torch.Tensor]) -> None:
    tables = {"EVA-CLIP": EVA_CLIP, "timm": TIMM_EVA02}
    assert choose_table(vision_weights(published), tables) is EVA_CLIP
    assert choose_table(timm_names(vision_weights(published), fused=True), tables) is TIMM_EVA02


def test_another_depth_is_refused(golden: Path) -> None:
    tower = JinaCLIPTextModel(JinaCLIPTextConfig(**{**TEXT, "num_hidden_layers": 3}))
    model = fresh_model()
    model.text_model = tower
    with pytest.raises(ValueError, match=r"without a tensor there: transformer.encoder.layers.2"):
        initialize_towers(model, text=golden / "jina_bert_v2_style.safetensors")
