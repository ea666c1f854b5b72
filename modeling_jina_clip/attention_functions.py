"""Attention in two ways of our own, beside those of transformers' registry.

Both take heads first, (batch, heads, length, head_width), with an additive bias of a shape that expands to the scores',
and return the context (batch, length, heads, head_width) and the weights or None.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

# Up to this many keys two batched products beat torch's fused kernel in bfloat16 on a CPU: 3 times at 32 to 64 keys,
# 1.5 times at 200; level at 256 (benchmarks/encode_speed.py has the whole).
SHORT = 256


def is_short(backend: str | None, query: torch.Tensor, dropout: float) -> bool:
    """Whether ``short_attention`` shall stand in for "sdpa": short bfloat16 rows on a CPU, without dropout."""
    return (
        backend == "sdpa"
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and not dropout
        and not torch.compiler.is_compiling()  # there the length may be a symbol
        and query.shape[-2] <= SHORT
    )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the reference for every other backend."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (B, H, rows, L)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights  # (B, rows, H, D)


def short_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, None]:
    """The same without dropout, with scale and bias inside the first product and a softmax that stays in its type."""
    batch, heads, rows, _ = query.shape
    query, key, value = (states.flatten(0, 1) for states in (query, key, value))  # (B * H, L, D)
    if attention_mask is None:
        scores = torch.bmm(query * scaling, key.transpose(1, 2))  # (B * H, rows, L)
    else:
        bias = attention_mask.expand(batch, heads, rows, key.shape[1]).flatten(0, 1)
        scores = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=scaling)
    context = torch.bmm(F.softmax(scores, dim=-1), value)
    return context.unflatten(0, (batch, heads)).transpose(1, 2), None  # (B, rows, H, D)
