"""``torch.compile`` of both towers: one graph without a break, for any shape, and the uncompiled values."""

from collections.abc import Callable

import pytest
import torch

from modeling_jina_clip import (
    JinaCLIPTextConfig,
    JinaCLIPTextModel,
    JinaCLIPVisionConfig,
    JinaCLIPVisionModel,
    modeling_jina_clip_text,
)

TEXT = {
    "embed_dim": 48,
    "vocab_size": 99,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
VISION = {
    "embed_dim": 48,
    "width": 48,
    "head_width": 16,
    "layers": 1,
    "image_size": 32,
    "patch_size": 8,
    "patch_dropout": 0.4,
    "initializer_range": 0.2,
}
Tower = JinaCLIPTextModel | JinaCLIPVisionModel
TOWERS: dict[str, Callable[[], Tower]] = {
    "text v1": lambda: JinaCLIPTextModel(JinaCLIPTextConfig(**TEXT)),
    "text v2": lambda: JinaCLIPTextModel(
        JinaCLIPTextConfig(**TEXT, position_embedding_type="rotary", mlp_type="mlp", rotary_emb_base=20000.0)
    ),
    "vision": lambda: JinaCLIPVisionModel(JinaCLIPVisionConfig(**VISION)),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tower_of(name: str) -> Tower:
    """In training mode: with patch dropout, and without other dropout, whose draws need not agree."""
    torch.manual_seed(0)
    return TOWERS[name]().train()


def batches(name: str) -> list[torch.Tensor]:
    """Two shapes; the texts are padded, so that the uncompiled tower packs them and the compiled one does not."""
    torch.manual_seed(1)
    if name == "vision":
        return [torch.randn(3, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    ids = torch.randint(1, 99, (4, 21))
    for row, length in enumerate((21, 9, 1, 2)):
        ids[row, length:] = 0
    return [ids, ids[:2, :13]]


def features(run: Callable, inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(2)
    return run(inputs).pooler_output


def gradients(tower: Tower, run: Callable, inputs: torch.Tensor) -> list[torch.Tensor]:
    tower.zero_grad()
    output = features(run, inputs)
    (output * torch.linspace(-1, 1, 48)).mean().backward()
    return [output.detach(), *(parameter.grad.clone() for parameter in tower.parameters())]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert max(tensor.abs().max() for tensor in expected[1:]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["text v1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("text v2", "vision"))]
)
def test_one_graph_for_all_shapes_gives_the_uncompiled_values(name: str) -> None:
    tower = tower_of(name)
    compiled = torch.compile(tower, fullgraph=True, dynamic=True, backend="eager")
    for inputs in batches(name):
        expected = features(tower, inputs)
        torch.testing.assert_close(features(compiled, inputs), expected, rtol=0, atol=1e-5)
        assert expected.abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", TOWERS)
def test_compiled_gradients_are_the_uncompiled_ones(name: str, attention: str, checkpointing: bool) -> None:
    tower = tower_of(name)
    tower.set_attn_implementation(attention)
    plain = [gradients(tower, tower, inputs) for inputs in batches(name)]
    if checkpointing:
        tower.gradient_checkpointing_enable()
    compiled = torch.compile(tower, fullgraph=True, dynamic=True, backend="aot_eager")
    for inputs, expected in zip(batches(name), plain, strict=True):
        assert_same(gradients(tower, compiled, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_compiled_in_evaluation_mode(name: str) -> None:
    tower = tower_of(name).eval()
    compiled = torch.compile(tower, fullgraph=True, dynamic=True, backend="aot_eager")
    for inputs in batches(name):
        assert_same(gradients(tower, compiled, inputs), gradients(tower, tower, inputs))


@pytest.mark.slow
def test_blocks_of_the_bias_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_jina_clip_text, "MAX_BIAS_ELEMENTS", 4 * 3 * 21 * 8)  # eight rows at a time
    tower, inputs = tower_of("text v1"), batches("text v1")[0]
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    assert_same(gradients(tower, compiled, inputs), gradients(tower, tower, inputs))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", TOWERS)
def test_flex_attention_compiles_into_the_tower(name: str) -> None:
    tower, inputs = tower_of(name), batches(name)[0]
    tower.set_attn_implementation("flex_attention")
    expected = features(tower, inputs)
    compiled = torch.compile(tower, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(features(compiled, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_inductor_gives_the_uncompiled_values_and_gradients(name: str) -> None:
    tower = tower_of(name)
    tower.eval()  # inductor draws other random numbers than eager execution, and patches drop by them
    compiled = torch.compile(tower, fullgraph=True)
    inputs = batches(name)[0]
    assert_same(gradients(tower, compiled, inputs), gradients(tower, tower, inputs))
