"""Short attention against attention written out in float32: values, gradients, and when it is taken."""

import pytest
import torch
from torch import nn

from modeling_jina_clip.modeling_jina_clip_base import SHORT, eager_attention_forward, is_short, short_attention

MASKS = {"none": None, "per head": (2, 4, 7, 7), "padding": (2, 1, 1, 7), "one for all": (1, 4, 7, 7)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_short_attention_equals_the_written_out_one(shape: tuple | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, 7, 4, 16, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = None if shape is None else torch.randn(shape).to(dtype)
    weights = torch.randn(2, 7, 4, 16)
    found, none = short_attention(nn.Identity(), *states, mask, scaling=0.25)
    gradients = torch.autograd.grad((found.float() * weights).sum(), states)

    exact = [part.detach().float().requires_grad_() for part in states]
    expected, _ = eager_attention_forward(nn.Identity(), *exact, None if mask is None else mask.float(), scaling=0.25)
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 5e-2}
    assert none is None
    assert found.shape == (2, 7, 4, 16)
    torch.testing.assert_close(found.float(), expected, **tolerance)
    for gradient, correct in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(gradient.float(), correct, **tolerance)
        assert correct.abs().max() > 0.1


def test_short_attention_stands_in_for_sdpa_alone() -> None:
    query = torch.zeros(1, 1, SHORT, 8, dtype=torch.bfloat16)
    assert is_short("sdpa", query, dropout=0.0)
    assert not is_short("eager", query, dropout=0.0)
    assert not is_short("sdpa", query, dropout=0.1)
    assert not is_short("sdpa", query.float(), dropout=0.0)
    assert not is_short("sdpa", query.to("meta"), dropout=0.0)
    assert not is_short("sdpa", torch.zeros(1, 1, SHORT + 1, 8, dtype=torch.bfloat16), dropout=0.0)
