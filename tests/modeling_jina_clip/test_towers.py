"""Both towers against their definitions, written naively here, and against what they promise."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPModel,
    JinaCLIPTextConfig,
    JinaCLIPTextModel,
    JinaCLIPVisionConfig,
    JinaCLIPVisionModel,
)
from modeling_jina_clip import modeling_jina_clip_text as text_module
from modeling_jina_clip.modeling_jina_clip_text import TextPositions, alibi_slopes
from modeling_jina_clip.modeling_jina_clip_vision import (
    apply_rope,
    resize_position_embedding,
    rope_tables,
    rope_with_cls,
)

TEXT = {"embed_dim": 48, "vocab_size": 99, "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2}
VISION = {"embed_dim": 48, "width": 48, "head_width": 8, "layers": 2, "image_size": 32, "patch_size": 8}


def text_tower(**changes) -> JinaCLIPTextModel:
    torch.manual_seed(0)
    return JinaCLIPTextModel(JinaCLIPTextConfig(**{**TEXT, "intermediate_size": 96, **changes})).eval()


def vision_tower(**changes) -> JinaCLIPVisionModel:
    torch.manual_seed(0)
    return JinaCLIPVisionModel(JinaCLIPVisionConfig(**{**VISION, "pt_hw_seq_len": 4, **changes})).eval()


def test_alibi_slopes_of_twelve_heads_interleave() -> None:
    expected = [2.0**-exponent for exponent in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]
    assert alibi_slopes(12).tolist() == pytest.approx(expected, rel=1e-7)
    assert alibi_slopes(8).tolist() == expected[:8]


def test_alibi_bias_is_symmetric_and_hides_padding() -> None:
    padding = torch.tensor([[True, True, True], [True, True, False]])
    config = JinaCLIPTextConfig(embed_dim=8, hidden_size=8, num_attention_heads=2)
    bias = TextPositions(config, padding, torch.float32).whole
    assert bias.shape == (2, 2, 3, 3)
    assert torch.equal(bias[0], bias[0].transpose(-1, -2))
    assert bias[0, 0, 0].tolist() == [0.0, -0.0625, -0.125]
    assert (bias[1, :, :, 2] == torch.finfo(torch.float32).min).all()


@torch.no_grad()
def test_text_padding_changes_nothing() -> None:
    tower = text_tower()
    ids = torch.randint(1, 99, (1, 9))
    alone = tower(ids).pooler_output
    padded = tower(F.pad(ids, (0, 7))).pooler_output
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_explicit_mask_wins_over_the_pad_rule() -> None:
    tower = text_tower()
    ids = torch.tensor([[5, 0, 7]])
    with_zero = tower(ids, attention_mask=torch.ones_like(ids)).pooler_output
    assert (with_zero - tower(ids).pooler_output).abs().max() > 1e-3


@torch.no_grad()
def test_a_text_of_nothing_gives_zeros_and_not_nan() -> None:
    assert text_tower()(torch.zeros(1, 4, dtype=torch.long)).pooler_output.abs().max() == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_blocks_of_the_bias_equal_the_whole_in_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, attention: str, length: int
) -> None:
    tower = text_tower(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    tower.set_attn_implementation(attention)
    ids = torch.randint(1, 99, (3, length))
    ids[1, length // 2 + 1 :] = 0

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        tower.zero_grad()
        output = tower(ids).pooler_output
        output.square().sum().backward()
        return output.detach(), [parameter.grad.clone() for parameter in tower.parameters()]

    whole, whole_gradients = run()
    monkeypatch.setattr(text_module, "MAX_BIAS_ELEMENTS", 3 * 6 * length * 3)  # three rows at a time
    blocked, blocked_gradients = run()
    torch.testing.assert_close(whole, blocked, rtol=0, atol=1e-6)
    for one, other in zip(whole_gradients, blocked_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert max(gradient.abs().max() for gradient in whole_gradients) > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_tokens_equal_padded_ones_in_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    tower = text_tower(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    tower.set_attn_implementation(attention)
    ids = torch.randint(1, 99, (4, 12))
    for row, length in enumerate((12, 5, 1, 0)):
        ids[row, length:] = 0
    seen = []
    tower.transformer.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        tower.zero_grad()
        output = tower(ids).pooler_output
        (output * torch.linspace(-1, 1, 48)).sum().backward()
        return output.detach(), [parameter.grad.clone() for parameter in tower.parameters()]

    packed, packed_gradients = run()
    monkeypatch.setattr(text_module.JinaCLIPTextTransformer, "_packs", lambda *args: False)
    padded, padded_gradients = run()
    assert seen == [(18, 48), (4, 12, 48)]
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)
    for one, other in zip(packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in packed_gradients) > 0.01


def test_rope_turns_pairs_by_row_then_column() -> None:
    config = JinaCLIPVisionConfig(**VISION)
    cos, sin = rope_tables(config, (3, 5))
    frequencies = 10000.0 ** -(np.arange(0, 4, 2) / 4)
    for row in range(3):
        for column in range(5):
            angles = np.concatenate([np.repeat(row * frequencies, 2), np.repeat(column * frequencies, 2)])
            np.testing.assert_allclose(cos[row * 5 + column], np.cos(angles), atol=1e-6)
            np.testing.assert_allclose(sin[row * 5 + column], np.sin(angles), atol=1e-6)


def test_intp_freq_squeezes_any_grid_onto_the_trained_one() -> None:
    config = JinaCLIPVisionConfig(**VISION, intp_freq=True, pt_hw_seq_len=4)
    small, large = rope_tables(config, (4, 4))[0], rope_tables(config, (8, 8))[0]
    torch.testing.assert_close(large.view(8, 8, -1)[::2, ::2], small.view(4, 4, -1))


def test_rope_is_a_rotation_that_spares_the_class_token() -> None:
    config = JinaCLIPVisionConfig(**VISION)
    states = torch.randn(2, 6, 1 + 12, 8)
    turned = apply_rope(states, *rope_with_cls(rope_tables(config, (3, 4)), torch.float32))
    assert torch.equal(turned[:, :, 0], states[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), states.norm(dim=-1))
    # A pair (x0, x1) turns as the complex number x0 + i x1: column 1 of row 0, first column frequency is 1.
    pair = torch.view_as_complex(states[0, 0, 2, 4:6].contiguous()) * np.exp(1j)
    torch.testing.assert_close(torch.view_as_complex(turned[0, 0, 2, 4:6].contiguous()), pair, atol=1e-5, rtol=0)


def test_position_embedding_keeps_its_grid_and_a_constant_table() -> None:
    table = torch.randn(1, 17, 8)
    assert resize_position_embedding(table, (4, 4)) is table
    constant = torch.ones(1, 17, 8)
    assert resize_position_embedding(constant, (3, 7)).shape == (1, 22, 8)
    torch.testing.assert_close(resize_position_embedding(constant, (3, 7)), torch.ones(1, 22, 8))


@torch.no_grad()
@pytest.mark.parametrize("intp_freq", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 48), (8, 8)])
def test_any_image_size_that_the_patch_divides(size: tuple[int, int], intp_freq: bool) -> None:
    features = vision_tower(intp_freq=intp_freq)(torch.randn(2, 3, *size)).pooler_output
    assert features.shape == (2, 48)
    assert features.isfinite().all()


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (29, 21)])
def test_patches_are_those_of_the_convolution_in_values_and_gradients(size: tuple[int, int]) -> None:
    embed = vision_tower().patch_embed
    pixels = torch.randn(2, 3, *size)

    def run(output: torch.Tensor) -> list[torch.Tensor]:
        embed.zero_grad()
        (output * torch.arange(48)).sum().backward()
        return [output.detach(), embed.proj.weight.grad.clone(), embed.proj.bias.grad.clone()]

    ours, convolution = run(embed(pixels)), run(embed.proj(pixels).flatten(2).transpose(1, 2))
    assert ours[0].shape == (2, (size[0] // 8) * (size[1] // 8), 48)
    for one, other in zip(ours, convolution, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_image_size_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="33 x 32 px cannot be cut into 8 px patches"):
        vision_tower()(torch.zeros(1, 3, 33, 32))


def test_patch_dropout_drops_the_same_rows_from_rope() -> None:
    """A tower whose kept patches are known gives what the tower gives on just those tokens."""
    tower = vision_tower(patch_dropout=0.5)
    pixels = torch.randn(2, 3, 32, 32)
    seen = []
    tower.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    tower.train()
    tower(pixels)
    tokens, (cos, sin) = seen[0]
    assert tokens.shape == (2, 1 + 8, 48)
    full_cos, full_sin = (table[1:] for table in rope_with_cls(rope_tables(tower.config, (4, 4)), torch.float32))
    patches = tower.patch_embed(pixels) + tower.pos_embed[:, 1:]
    for image in range(2):
        for token in range(8):
            source = (patches[image] - tokens[image, 1 + token]).abs().sum(-1).argmin()
            torch.testing.assert_close(patches[image, source], tokens[image, 1 + token])
            torch.testing.assert_close(full_cos[source], cos[image, 0, 1 + token])
            torch.testing.assert_close(full_sin[source], sin[image, 0, 1 + token])


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 16), (0.1, 14), (0.25, 12), (0.3, 11), (0.5, 8), (0.9, 1), (0.99, 1)])
def test_patch_dropout_keeps_the_share_of_16_patches(rate: float, kept: int) -> None:
    tower = vision_tower(patch_dropout=rate).train()
    assert tower(torch.randn(1, 3, 32, 32)).last_hidden_state.shape[1] == 1 + kept
    assert tower.patch_dropout == rate


def test_patch_dropout_is_off_in_evaluation_and_settable() -> None:
    tower = vision_tower(patch_dropout=0.5)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(tower(pixels).pooler_output, tower(pixels).pooler_output)
        tower.train().set_patch_dropout(0.0)
        assert tower(pixels).last_hidden_state.shape[1] == 17
    with pytest.raises(ValueError, match=r"patch_dropout=1.0 must lie in \[0, 1\)"):
        tower.set_patch_dropout(1.0)


@pytest.mark.parametrize("patch_dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(patch_dropout: float) -> None:
    torch.manual_seed(0)
    config = JinaCLIPConfig(
        text_config={**TEXT, "intermediate_size": 96, "hidden_dropout_prob": 0.1},
        vision_config={**VISION, "patch_dropout": patch_dropout},
    )
    model = JinaCLIPModel(config).train()
    ids, pixels = torch.randint(1, 99, (3, 7)), torch.randn(3, 3, 32, 32)

    def gradients(network: JinaCLIPModel) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        network.zero_grad()
        network(input_ids=ids, pixel_values=pixels, return_loss=True).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    plain = gradients(model)
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.text_model.transformer.encoder.layers[0].gradient_checkpointing
    for name, gradient in gradients(checkpointed).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
    assert plain["logit_scale"].abs() > 0


def test_hidden_states_and_attentions_are_recorded() -> None:
    tower = text_tower()
    tower.set_attn_implementation("eager")
    output = tower(torch.randint(1, 99, (2, 5)), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (2, 6, 5, 5)
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 6, 5))
    pixels = torch.randn(1, 3, 32, 32)
    assert len(vision_tower()(pixels, output_hidden_states=True).hidden_states) == 3


def test_default_config_is_the_published_model() -> None:
    with torch.device("meta"):
        model = JinaCLIPModel(JinaCLIPConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 222_647_041
    assert len(model.state_dict()) == 395


@torch.no_grad()
def test_fresh_weights_are_deterministic_and_finite() -> None:
    one, other = text_tower(), text_tower()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.isfinite().all(), name
    assert vision_tower().cls_token.std() > 0.01


def test_the_loss_needs_pairs() -> None:
    model = JinaCLIPModel(JinaCLIPConfig(text_config=TEXT, vision_config=VISION))
    ids = torch.randint(1, 99, (3, 4))
    with pytest.raises(ValueError, match=r"as many texts as images.*\(3, 2\)"):
        model(input_ids=ids, pixel_values=torch.randn(2, 3, 32, 32), return_loss=True)
    with pytest.raises(ValueError, match="got neither"):
        model()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("patch_dropout", [0.0, 0.5])
def test_pooled_only_changes_no_vector_and_no_gradient(attention: str, patch_dropout: float) -> None:
    """The last layer for the class token alone, against all of it."""
    tower = vision_tower().train()
    tower.set_attn_implementation(attention)
    tower.set_patch_dropout(patch_dropout)
    pixels, weights, found = torch.randn(2, 3, 32, 32), torch.randn(2, 48), []
    for pooled_only in (False, True):
        torch.manual_seed(1)
        output = tower(pixels, pooled_only=pooled_only)
        assert output.last_hidden_state.shape[1] == (1 if pooled_only else output.last_hidden_state.shape[1])
        tower.zero_grad()
        (output.pooler_output * weights).sum().backward()
        found.append((output.pooler_output, {name: p.grad.clone() for name, p in tower.named_parameters()}))
    (whole, expected), (pooled, gradients) = found
    torch.testing.assert_close(pooled, whole, rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=1e-5 * scale + 1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert expected["blocks.0.mlp.w1.weight"].abs().max() > 1e-6
