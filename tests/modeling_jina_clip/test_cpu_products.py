"""The product by convolution is that of ``torch.nn.functional.linear``, on machines that choose it and on others."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, cpu_products
from modeling_jina_clip.cpu_products import MIN_ROWS, faster_products, linear_by_convolution, prefers_onednn


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every machine with oneDNN can take the way that AMD's take."""
    assert torch.backends.mkldnn.is_available()
    capabilities = {"cpu_name": "AMD EPYC", "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    prefers_onednn.cache_clear()
    yield
    prefers_onednn.cache_clear()


class Convolutions(TorchFunctionMode):
    """Counts calls of conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.conv2d
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(MIN_ROWS,), (2, 37), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("widths", [(8, 24), (33, 1), (1, 5), (256, 64)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(shape: tuple, widths: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    inputs, outputs = widths
    states = torch.randn(*shape, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    leaves = [states, weight] + ([torch.randn(outputs, requires_grad=True)] if bias else [])
    with Convolutions() as calls:
        found = linear_by_convolution(*leaves)
    assert calls.count == 1
    expected = F.linear(*leaves)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous()
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_strided_states_and_weights_are_read_right() -> None:
    states, weight = torch.randn(6, 2, 40).transpose(0, 2), torch.randn(6, 9).t()
    torch.testing.assert_close(linear_by_convolution(states, weight), F.linear(states, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("case", ["few rows", "nothing", "bfloat16", "double", "autocast", "meta"])
def test_what_is_no_plain_float32_matrix_stays_with_torch(case: str) -> None:
    rows = {"few rows": MIN_ROWS - 1, "nothing": 0}.get(case, 2 * MIN_ROWS)
    dtype = {"bfloat16": torch.bfloat16, "double": torch.float64}.get(case, torch.float32)
    device = "meta" if case == "meta" else "cpu"
    layer = torch.nn.Linear(4, 6, device=device, dtype=dtype)
    states = torch.randn(rows, 4, device=device, dtype=dtype)
    with Convolutions() as calls, torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        with faster_products(states):
            output = layer(states)
    assert (calls.count, output.shape) == (0, (rows, 6))


@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("position_embedding_type", ["alibi", "rotary"])
def test_both_towers_take_it_with_the_same_vectors_and_gradients(
    monkeypatch: pytest.MonkeyPatch, position_embedding_type: str, checkpointing: bool
) -> None:
    torch.manual_seed(0)
    rotary = {"position_embedding_type": "rotary", "mlp_type": "mlp"} if position_embedding_type == "rotary" else {}
    text = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, **rotary}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = {"width": 32, "head_width": 8, "layers": 2, "image_size": 32, "patch_size": 8, "embed_dim": 32}
    vision["patch_dropout"] = 0.0
    config = JinaCLIPConfig(
        text_config={**text, "intermediate_size": 48, "embed_dim": 32}, vision_config=vision, projection_dim=32
    )
    model = JinaCLIPModel(config)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    else:
        model.eval()
    inputs = {"input_ids": torch.randint(1, 64, (5, 20)), "pixel_values": torch.randn(5, 3, 32, 32)}

    def vectors_and_gradients() -> tuple[int, list[torch.Tensor]]:
        with Convolutions() as calls:
            output = model(**inputs, return_loss=True)
            gradients = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
        return calls.count, [output.text_embeds, output.image_embeds, *(g for g in gradients if g is not None)]

    count, found = vectors_and_gradients()
    assert count >= 1 + 2 * 4 + 2 * 7  # with checkpointing each block runs once more
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: False)
    none, expected = vectors_and_gradients()
    assert none == 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


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
    with Convolutions() as calls, faster_products(states):
        Around(torch.nn.Linear(4, 6))(states)
    assert calls.count == 1


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "AMD EPYC 9575F", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC 7763", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R) Platinum", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_only_amd_with_avx512_prefers_it(monkeypatch: pytest.MonkeyPatch, capabilities: dict, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    prefers_onednn.cache_clear()
    try:
        assert prefers_onednn() is expected
    finally:
        prefers_onednn.cache_clear()
