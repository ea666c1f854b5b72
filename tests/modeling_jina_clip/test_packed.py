"""A model of packed weights gives the same vectors, and says what it cannot do."""

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_jina_clip import JinaCLIPModel, pack_weights
from modeling_jina_clip import packed_jina_clip as packing
from modeling_jina_clip.modeling_jina_clip_base import fused_linear
from modeling_jina_clip.packed_jina_clip import PackedLinear

TEXTS = ["a cat", "two words more than the first", "", "one"] + ["word " * length for length in (3, 17, 40)]
PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8))


def needs_operator(dtype: torch.dtype) -> None:
    if fused_linear(dtype) is None or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this torch, or this machine, has no product of packed weights")


def tiny(golden: Path, dtype: torch.dtype = torch.float32) -> JinaCLIPModel:
    needs_operator(dtype)
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").to(dtype).eval()


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 12, 33, 300])
@pytest.mark.parametrize("widths", [(8, 24), (33, 1), (768, 96)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_a_layer_is_the_product(
    rows: int, widths: tuple[int, int], bias: bool, dtype: torch.dtype, near: float
) -> None:
    needs_operator(dtype)
    torch.manual_seed(0)
    layer = nn.Linear(*widths, bias=bias, dtype=dtype).eval()
    states = torch.randn(rows, 2, widths[0], dtype=dtype).transpose(0, 1)  # strided
    expected = F.linear(states.float(), layer.weight.float(), layer.bias.float() if bias else None)
    found = PackedLinear(layer)(states)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=near, rtol=near)
    assert PackedLinear(layer)(states[:, :0]).shape == (2, 0, widths[1])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_vectors_are_the_same(golden: Path, dtype: torch.dtype, near: float) -> None:
    plain, packed = tiny(golden, dtype), pack_weights(tiny(golden, dtype))
    assert not any(isinstance(part, nn.Linear) for part in packed.modules())
    assert pack_weights(packed) is packed
    for batch in (TEXTS, TEXTS[0]):
        assert np.abs(packed.encode_text(batch) - plain.encode_text(batch)).max() < near
    assert np.abs(packed.encode_image(PICTURES) - plain.encode_image(PICTURES)).max() < near
    with torch.no_grad():
        ids = torch.tensor([[2, 5, 6, 3]])
        difference = packed.get_text_features(ids) - plain.get_text_features(ids)
        assert isinstance(difference, torch.Tensor)
        assert difference.abs().max() < 10 * near


def test_towers_can_be_packed_alone(golden: Path) -> None:
    plain, packed = tiny(golden), tiny(golden)
    pack_weights(packed.text_model)
    assert any(isinstance(part, nn.Linear) for part in packed.vision_model.modules())
    assert np.abs(packed.encode_text(TEXTS) - plain.encode_text(TEXTS)).max() < 1e-5


def test_plain_weights_are_gone(golden: Path) -> None:
    """Else it would take the memory of two models."""
    model = tiny(golden)
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    before = sum(parameter.numel() for parameter in model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    pack_weights(model)
    assert sum(parameter.numel() for parameter in model.parameters()) <= before - linear
    assert all(layer.weight is None for layer in layers)


def test_threads_get_what_each_would_get_alone(golden: Path) -> None:
    packed = pack_weights(tiny(golden))
    alone = [packed.encode_text(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(packed.encode_text, TEXTS), alone, strict=True):
            assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda model: model.train(), "cannot be trained"),
        (lambda model: model.get_text_features(torch.tensor([[2, 5, 3]])), r"run it under torch\.inference_mode"),
        (lambda model: model.state_dict(), "cannot be saved"),
        (lambda model: model.save_pretrained("/nonexistent/never"), "cannot be saved"),
        (lambda model: model.load_state_dict({}, strict=False), "cannot be replaced"),
        (lambda model: model.to(torch.bfloat16), "stay torch.float32 on the processor"),
        (lambda model: model.to("meta"), "stay torch.float32 on the processor"),
        (copy.deepcopy, "cannot be copied"),
        (pickle.dumps, "cannot be copied"),
    ],
)
def test_what_it_cannot_do_is_said(golden: Path, action: Callable[[Any], Any], words: str) -> None:
    model = pack_weights(tiny(golden))
    with pytest.raises((ValueError, TypeError), match=f"{words}.*; load the model again, and pack it last"):
        action(model)


def test_what_changes_nothing_passes(golden: Path) -> None:
    model = pack_weights(tiny(golden))
    before = model.encode_text(TEXTS)
    assert (model.to("cpu").float().eval().encode_text(TEXTS) == before).all()


@torch.no_grad()
def test_states_of_another_type_are_refused() -> None:
    needs_operator(torch.float32)
    with pytest.raises(ValueError, match=r"are torch\.float32 and the states torch\.bfloat16"):
        PackedLinear(nn.Linear(4, 2))(torch.zeros(1, 4, dtype=torch.bfloat16))


def adapted() -> nn.Module:
    layer = nn.Module()
    layer.add_module("query", nn.Linear(4, 4))
    layer.query.add_module("lora_A", nn.Linear(4, 1))
    return layer.eval()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(4, 4), "in training mode.*call model.eval"),
        (adapted(), "query.lora_A is an adapter; merge it first"),
        (nn.Sequential(nn.LayerNorm(4)).eval(), "has none, or quantised ones"),
        (nn.Sequential(nn.Linear(4, 4, dtype=torch.float16)).eval(), r"torch\.float16 on cpu; call model\.float"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")).eval(), r"torch\.float32 on meta"),
    ],
)
def test_what_cannot_be_packed_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pack_weights(model)


def test_quantised_models_are_refused(golden: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends another package
        small = torch.ao.quantization.quantize_dynamic(tiny(golden), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="quantised"):
        pack_weights(small)


def test_machines_without_the_product_are_refused(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(golden)
    monkeypatch.setattr(packing, "fused_linear", lambda dtype: None)
    with pytest.raises(ValueError, match="has no oneDNN product of packed weights; use the model as it is"):
        pack_weights(model)
    assert sum(isinstance(part, nn.Linear) for part in model.modules())
