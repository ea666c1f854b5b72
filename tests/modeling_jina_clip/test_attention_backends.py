"""Every attention backend against eager attention, in values and gradients, and what cannot run says so."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPModel,
    JinaCLIPTextConfig,
    JinaCLIPTextModel,
    JinaCLIPVisionConfig,
    JinaCLIPVisionModel,
)
from modeling_jina_clip import modeling_jina_clip_text as text_module
from modeling_jina_clip.modeling_jina_clip_base import (
    ALL_ATTENTION_FUNCTIONS,
    allow_empty,
    eager_attention_forward,
    text_score_mod,
)
from modeling_jina_clip.modeling_jina_clip_text import TextPositions

# Heads 16 wide, the least that the GPU kernels take; three heads, so that the slopes interleave.
TEXT = {"vocab_size": 99, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 96}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VISION = {"width": 48, "head_width": 16, "layers": 2, "image_size": 32, "patch_size": 8, "pt_hw_seq_len": 4}

TOWERS = {
    "text v1": lambda: JinaCLIPTextModel(JinaCLIPTextConfig(embed_dim=48, **TEXT, **NO_DROPOUT)),
    "text v2": lambda: JinaCLIPTextModel(
        JinaCLIPTextConfig(embed_dim=48, position_embedding_type="rotary", mlp_type="mlp", **TEXT, **NO_DROPOUT)
    ),
    "vision": lambda: JinaCLIPVisionModel(JinaCLIPVisionConfig(embed_dim=48, patch_dropout=0.4, **VISION)),
}
BATCHES = ("whole", "padded", "packed")
CASES = [(tower, batch) for tower in TOWERS for batch in BATCHES if batch == "whole" or tower != "vision"]
Tower = JinaCLIPTextModel | JinaCLIPVisionModel


def tower_of(name: str) -> Tower:
    torch.manual_seed(0)
    tower = TOWERS[name]().train()  # patch dropout included; the text towers have none
    with torch.no_grad():  # fresh weights are so small that any attention would do
        for parameter in tower.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return tower


def inputs_of(name: str, batch: str) -> torch.Tensor:
    torch.manual_seed(1)
    if name == "vision":
        return torch.randn(3, 3, 32, 48)
    ids = torch.randint(1, 99, (4, 21))
    for row, length in enumerate((21, 9, 1, 0) if batch != "whole" else ()):
        ids[row, length:] = 0
    return ids


def set_batch(monkeypatch: pytest.MonkeyPatch, batch: str) -> None:
    if batch == "padded":
        monkeypatch.setattr(text_module.JinaCLIPTextTransformer, "_packs", lambda *args: False)


def features(tower: Tower, inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(2)  # of patch dropout
    return tower(inputs).pooler_output


def run(tower: Tower, backend: str, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Features and the gradients of a loss that weighs every one of them."""
    tower.set_attn_implementation(backend)
    tower.zero_grad()
    output = features(tower, inputs)
    (output * torch.linspace(-1, 1, output.shape[-1], device=output.device)).mean().backward()
    return output.detach(), {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}


def attention_matters(tower: Tower, inputs: torch.Tensor, expected: torch.Tensor) -> bool:
    """The guard of every comparison: without attention's result the features are far from the expected ones."""
    AttentionInterface.register("zeros", lambda module, query, key, value, *_, **__: (0 * value.transpose(1, 2), None))
    tower.set_attn_implementation("zeros")
    with torch.no_grad():
        return (features(tower, inputs) - expected).abs().max() > 0.05


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_sdpa_equals_eager_in_values_and_gradients(monkeypatch: pytest.MonkeyPatch, name: str, batch: str) -> None:
    set_batch(monkeypatch, batch)
    tower, inputs = tower_of(name), inputs_of(name, batch)
    expected, gradients = run(tower, "eager", inputs)
    found, others = run(tower, "sdpa", inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(others[parameter], gradient, rtol=0, atol=1e-5, msg=parameter)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-2
    assert attention_matters(tower, inputs, expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_flex_equals_eager(monkeypatch: pytest.MonkeyPatch, name: str, batch: str) -> None:
    set_batch(monkeypatch, batch)
    tower, inputs = tower_of(name), inputs_of(name, batch)
    tower.set_attn_implementation("eager")
    expected = features(tower, inputs)
    tower.set_attn_implementation("flex_attention")
    torch.testing.assert_close(features(tower, inputs), expected, rtol=0, atol=1e-5)
    assert attention_matters(tower, inputs, expected)


@pytest.mark.parametrize("position", ["alibi", "rotary"])
def test_the_change_of_scores_under_flex_is_the_bias_of_eager(position: str) -> None:
    """Where both add the same to each score, gradients agree too: torch has no gradient of flex on a CPU."""
    config = JinaCLIPTextConfig(embed_dim=48, position_embedding_type=position, **TEXT)
    padding = inputs_of("text v1", "padded") != 0
    config._attn_implementation = "eager"
    bias = TextPositions(config, padding, torch.float32).whole.expand(4, 3, 21, 21)
    config._attn_implementation = "flex_attention"
    change: Callable = text_score_mod(*TextPositions(config, padding, torch.float32).whole)
    for axis in (3, 2, 1, 0):  # over columns, rows, heads and texts, innermost first
        change = torch.vmap(change, in_dims=(0, *(0 if place == axis else None for place in range(4))))
    changed = change(torch.ones(4, 3, 21, 21), *(torch.arange(size) for size in (4, 3, 21, 21)))
    hidden = ~padding[:, None, None, :].expand_as(bias)
    torch.testing.assert_close((changed - 1)[~hidden], bias[~hidden], rtol=0, atol=1e-6)
    assert (changed[hidden] < -1e29).all()
    assert 0 < hidden.sum() < hidden.numel()


@pytest.mark.parametrize("name", TOWERS)
def test_flex_on_a_cpu_says_that_it_has_no_gradient(name: str) -> None:
    tower = tower_of(name)
    tower.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"no gradient on a CPU.*torch\.no_grad.*sdpa"):
        tower(inputs_of(name, "whole"))


def test_flex_refuses_dropout_with_its_rate() -> None:
    tower = JinaCLIPTextModel(JinaCLIPTextConfig(embed_dim=48, **{**TEXT, "attention_probs_dropout_prob": 0.25}))
    tower.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"attention_probs_dropout_prob=0\.25: set it to 0"), torch.no_grad():
        tower.train()(inputs_of("text v1", "whole"))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", TOWERS)
def test_a_batch_of_nothing_gives_nothing(name: str, backend: str) -> None:
    tower = tower_of(name)
    tower.set_attn_implementation(backend)
    output = tower(inputs_of(name, "whole")[:0])
    assert output.pooler_output.shape == (0, 48)
    output.pooler_output.sum().backward()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_stays_close_to_float32(name: str, backend: str) -> None:
    torch.manual_seed(0)
    tower, inputs = TOWERS[name]().eval(), inputs_of(name, "padded")[:3]
    tower.set_attn_implementation("eager")
    exact = features(tower, inputs)
    tower.set_attn_implementation(backend)
    rounded = features(tower.bfloat16(), inputs)
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(rounded.float(), exact).min() > 0.999
    assert not torch.equal(rounded.float(), exact)


def composite(**options: object) -> JinaCLIPModel:
    config = JinaCLIPConfig(text_config={**TEXT, "embed_dim": 48}, vision_config={**VISION, "embed_dim": 48})
    return JinaCLIPModel._from_config(config, **options)


def backends(model: JinaCLIPModel) -> tuple[str, str]:
    return model.text_model.config._attn_implementation, model.vision_model.config._attn_implementation


def test_each_tower_has_its_own_backend() -> None:
    mixed = {"text_config": "flex_attention", "vision_config": "eager"}
    assert backends(composite(attn_implementation=mixed)) == ("flex_attention", "eager")
    model = composite()
    assert backends(model) == ("sdpa", "sdpa")
    model.set_attn_implementation(mixed)
    assert backends(model) == ("flex_attention", "eager")
    model.set_attn_implementation("eager")
    assert backends(model) == ("eager", "eager")


def test_a_loaded_model_takes_one_backend_per_tower(tmp_path) -> None:
    composite().save_pretrained(tmp_path)
    mixed = {"text_config": "eager", "vision_config": "flex_attention"}
    assert backends(JinaCLIPModel.from_pretrained(tmp_path, attn_implementation=mixed)) == ("eager", "flex_attention")


@pytest.mark.parametrize("cls", [JinaCLIPTextModel, JinaCLIPVisionModel, JinaCLIPModel])
def test_an_unknown_backend_is_refused_with_the_known_ones(cls: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="flash_atention") as error:
        cls._from_config(cls.config_class(), attn_implementation="flash_atention")
    assert all(name in str(error.value) for name in ("eager", "sdpa", "flex_attention"))


@pytest.mark.parametrize("backend", ["flash_attention_2", "flash_attention_3"])
def test_alibi_refuses_flash_attention_and_says_what_to_choose(backend: str) -> None:
    message = rf"'{backend}' does not support this text tower: it has ALiBi.*\"text_config\": \"sdpa\""
    with pytest.raises(ValueError, match=message):
        JinaCLIPTextModel._from_config(JinaCLIPTextConfig(), attn_implementation=backend)
    tower = tower_of("text v1")
    with pytest.raises(ValueError, match=message):
        tower.set_attn_implementation(backend)
    tower.config._attn_implementation = backend  # past every check of transformers
    with pytest.raises(ValueError, match=message):
        tower(inputs_of("text v1", "whole"))
    with pytest.raises(ValueError, match=message):
        composite().text_model.set_attn_implementation(backend)


@pytest.mark.parametrize("name", ["text v2", "vision"])
def test_flash_attention_is_refused_only_for_want_of_its_package(name: str) -> None:
    """transformers checks support first and the package after, so this error shows that the tower may have it."""
    if find_spec("flash_attn"):
        pytest.skip("flash_attn is installed; the GPU test runs it")
    with pytest.raises(ImportError, match=r"package for FlashAttention2|flash_attn"):
        tower_of(name).set_attn_implementation("flash_attention_2")


@pytest.mark.parametrize("batch", ["whole", "padded"])
@pytest.mark.parametrize("name", ["text v2", "vision"])
def test_flash_attention_gets_what_transformers_hands_to_its_kernels(
    monkeypatch: pytest.MonkeyPatch, name: str, batch: str
) -> None:
    """The dispatch is transformers'; eager attention stands at its end where the kernel would run on a GPU."""
    seen = []

    def kernel(module, query, key, value, attention_mask, **options):
        seen.append(attention_mask)
        bias = attention_mask if attention_mask is None else torch.where(attention_mask, 0.0, -1e30)[:, None, None]
        return eager_attention_forward(module, query, key, value, bias, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", allow_empty(kernel))
    set_batch(monkeypatch, batch)
    tower, inputs = tower_of(name), inputs_of(name, batch)
    expected, _ = run(tower, "eager", inputs)
    tower.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(features(tower, inputs), expected, rtol=0, atol=1e-5)
    assert len(seen) == 2
    assert (seen[0] is None) == (batch == "whole" or name == "vision")
    assert features(tower, inputs[:0]).shape == (0, 48)
    assert len(seen) == 2


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "batch"), [case for case in CASES if case[1] != "packed"])
def test_flex_on_a_gpu_equals_eager_in_values_and_gradients(name: str, batch: str) -> None:
    tower, inputs = tower_of(name).cuda(), inputs_of(name, batch).cuda()
    expected, gradients = run(tower, "eager", inputs)
    found, others = run(tower, "flex_attention", inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(others[parameter], gradient, rtol=0, atol=1e-4, msg=parameter)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-2
    assert attention_matters(tower, inputs, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "batch"), [case for case in CASES if case[0] != "text v1" and case[1] != "packed"])
def test_flash_on_a_gpu_equals_eager_in_values_and_gradients(name: str, batch: str) -> None:
    pytest.importorskip("flash_attn")
    tower, inputs = tower_of(name).cuda().bfloat16(), inputs_of(name, batch).cuda()
    expected, gradients = run(tower, "eager", inputs)
    found, others = run(tower, "flash_attention_2", inputs)
    assert torch.cosine_similarity(found.float(), expected.float())[:3].min() > 0.999
    for parameter, gradient in gradients.items():
        if gradient.float().norm() > 1e-3:
            cosine = torch.cosine_similarity(others[parameter].flatten().float(), gradient.flatten().float(), dim=0)
            assert cosine > 0.99, parameter
    assert attention_matters(tower, inputs, expected)
