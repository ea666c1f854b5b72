"""The products by oneDNN are those of ``torch.nn.functional.linear``, on machines that choose them and on others."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, modeling_jina_clip_base
from modeling_jina_clip.modeling_jina_clip_base import (
    FEW_ROWS,
    MIN_ROWS,
    faster_products,
    fused_linear,
    is_amd,
    linear_in_onednn,
    prefers_onednn,
)

SHAPES = [(MIN_ROWS,), (2, 37), (3, 5, 7)]
WIDTHS = [(8, 24), (33, 1), (1, 5), (256, 64)]


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, instructions: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    is_amd.cache_clear()
    prefers_onednn.cache_clear()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    is_amd.cache_clear()
    prefers_onednn.cache_clear()
    fused_linear.cache_clear()


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine with oneDNN can take the way that AMD's take."""
    assert torch.backends.mkldnn.is_available()
    pretend(monkeypatch, "AMD EPYC", "AVX512")


class Ways(TorchFunctionMode):
    """Counts the products by the way they took."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"conv2d": 0, "linear": 0, "_linear_pointwise": 0}

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        name = str(func).rpartition(".")[2] if name not in self.counts else name
        if name in self.counts:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def needs_fused(dtype: torch.dtype) -> None:
    if fused_linear(dtype) is None:
        pytest.skip("this torch, or this machine, has no fused operator")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(shape: tuple, widths: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    inputs, outputs = widths
    states = torch.randn(*shape, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    leaves = [states, weight] + ([torch.randn(outputs, requires_grad=True)] if bias else [])
    with Ways() as ways:
        found = linear_in_onednn(*leaves)
    assert ways.counts == {"conv2d": 1, "linear": 0, "_linear_pointwise": 0}
    expected = F.linear(*leaves)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 3e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_values_without_gradients(
    shape: tuple, widths: tuple[int, int], bias: bool, dtype: torch.dtype, near: float
) -> None:
    """In bfloat16 as near to the product in float32 as its own rounding, 2**-8, allows."""
    needs_fused(dtype)
    torch.manual_seed(0)
    inputs, outputs = widths
    arguments = [torch.randn(*shape, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)]
    arguments += [torch.randn(outputs, dtype=dtype)] if bias else []
    found = linear_in_onednn(*arguments)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), F.linear(*(item.float() for item in arguments)), atol=near, rtol=near)


@pytest.mark.parametrize("gradients", [True, False])
def test_strided_states_and_weights_are_read_right(gradients: bool) -> None:
    states, weight = torch.randn(6, 2, 40).transpose(0, 2), torch.randn(6, 9).t()
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(linear_in_onednn(states, weight), F.linear(states, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("case", ["few rows", "nothing", "bfloat16 with gradients", "double", "autocast", "meta"])
def test_all_else_stays_with_torch(case: str) -> None:
    rows = {"few rows": MIN_ROWS - 1, "nothing": 0}.get(case, 2 * MIN_ROWS)
    dtype = {"bfloat16 with gradients": torch.bfloat16, "double": torch.float64}.get(case, torch.float32)
    device = "meta" if case == "meta" else "cpu"
    layer = torch.nn.Linear(4, 6, device=device, dtype=dtype)
    states = torch.randn(rows, 4, device=device, dtype=dtype)
    with Ways() as ways, torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), faster_products(states):
        output = layer(states)
    assert ways.counts == {"conv2d": 0, "linear": 1, "_linear_pointwise": 0}
    assert output.shape == (rows, 6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("missing", ["operator", "support"])
def test_a_torch_without_the_operator_does_as_before(
    monkeypatch: pytest.MonkeyPatch, missing: str, dtype: torch.dtype
) -> None:
    operators = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False, _linear_pointwise=torch.add)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace() if missing == "operator" else operators)
    if missing == "support":
        pretend(monkeypatch, "", "DEFAULT")  # as on ARM
    fused_linear.cache_clear()
    states, layer = torch.randn(MIN_ROWS, 4, dtype=dtype), torch.nn.Linear(4, 6, dtype=dtype)
    with Ways() as ways, faster_products(states):
        layer(states)
    assert ways.counts == {"conv2d": 0, "linear": 1, "_linear_pointwise": 0}


def small_model(rotary: bool) -> JinaCLIPModel:
    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "embed_dim": 32}
    text |= {"intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text |= {"position_embedding_type": "rotary", "mlp_type": "mlp"} if rotary else {}
    vision = {"width": 32, "head_width": 8, "layers": 2, "image_size": 32, "patch_size": 8, "embed_dim": 32}
    vision["patch_dropout"] = 0.0
    return JinaCLIPModel(JinaCLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


INPUTS = {"input_ids": torch.arange(100).view(5, 20) % 63 + 1, "pixel_values": torch.linspace(-1, 1, 15360).sin()}
INPUTS["pixel_values"] = INPUTS["pixel_values"].view(5, 3, 32, 32)
LINEAR_LAYERS = 2 * 4 + 1 + 2 * 7  # of both towers, the patches' included


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_both_towers_take_it_with_the_same_vectors_and_gradients(
    monkeypatch: pytest.MonkeyPatch, rotary: bool, checkpointing: bool
) -> None:
    model = small_model(rotary).train()
    if checkpointing:
        model.gradient_checkpointing_enable()

    def vectors_and_gradients() -> tuple[int, list[torch.Tensor]]:
        with Ways() as ways:
            output = model(**INPUTS, return_loss=True)
            gradients = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
        return ways.counts["conv2d"], [
            output.text_embeds,
            output.image_embeds,
            *(g for g in gradients if g is not None),
        ]

    count, found = vectors_and_gradients()
    assert count >= LINEAR_LAYERS  # with checkpointing each block runs once more
    monkeypatch.setattr(modeling_jina_clip_base, "prefers_onednn", lambda: False)
    none, expected = vectors_and_gradients()
    assert none == 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("on_amd")
def test_both_towers_encode_with_it(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    needs_fused(dtype)
    model = small_model(rotary=False).eval().to(dtype)
    with Ways() as ways:
        found = model(**INPUTS)
    assert ways.counts == {"conv2d": 0, "linear": 0, "_linear_pointwise": LINEAR_LAYERS}
    monkeypatch.setattr(modeling_jina_clip_base, "linear_in_onednn", F.linear)
    expected = model(**INPUTS)
    near = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=near, rtol=0)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=near, rtol=0)


@pytest.mark.usefixtures("on_amd")
def test_layers_within_other_layers_take_it_too() -> None:
    """What LoRA puts around a linear layer still calls it."""

    class Around(torch.nn.Module):
        def __init__(self, base_layer: torch.nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.base_layer(states) + 1

    states = torch.randn(MIN_ROWS, 4)
    with Ways() as ways, faster_products(states):
        Around(torch.nn.Linear(4, 6))(states)
    assert ways.counts["conv2d"] == 1


@pytest.mark.parametrize(
    ("name", "instructions", "expected"),
    [
        ("AMD EPYC 9575F", "AVX512", True),
        ("AMD EPYC 7763", "AVX2", False),
        ("Intel(R) Xeon(R) Platinum", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_only_amd_with_avx512_prefers_it(
    monkeypatch: pytest.MonkeyPatch, name: str, instructions: str, expected: bool
) -> None:
    pretend(monkeypatch, name, instructions)
    assert prefers_onednn() is expected


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "rows", "fused"),
    [
        ("Intel(R) Xeon(R)", 1, False),
        ("Intel(R) Xeon(R)", FEW_ROWS.start, True),
        ("Intel(R) Xeon(R)", FEW_ROWS.stop - 1, True),
        ("Intel(R) Xeon(R)", FEW_ROWS.stop, False),
        ("AMD EPYC 7763", 1, True),
        ("AMD EPYC 7763", FEW_ROWS.stop, True),
        ("AMD EPYC 7763", 0, False),
    ],
)
def test_few_rows_without_gradients(monkeypatch: pytest.MonkeyPatch, name: str, rows: int, fused: bool) -> None:
    needs_fused(torch.float32)
    pretend(monkeypatch, name, "AVX2")
    states, layer = torch.randn(rows, 24), torch.nn.Linear(24, 6)
    with Ways() as ways, faster_products(states):
        found = layer(states)
    assert ways.counts == {"conv2d": 0, "linear": int(not fused), "_linear_pointwise": int(fused)}
    torch.testing.assert_close(found, F.linear(states, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_of_other_classes_keep_their_products() -> None:
    """Such as quantised ones, which say that they are float32."""

    class Quantised(torch.Tensor):
        pass

    weight = torch.randn(6, 24).as_subclass(Quantised)
    with Ways() as ways:
        linear_in_onednn(torch.randn(12, 24), weight)
    assert ways.counts == {"conv2d": 0, "linear": 1, "_linear_pointwise": 0}
