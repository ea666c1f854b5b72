"""Where the tokens of a batch of texts stand: ALiBi slopes, rotary tables, the additive bias, and packing."""

import copy
import math

import torch

from .attention_backends import is_flash, refuse_flash_with_alibi
from .configuration_jina_clip import JinaCLIPTextConfig

# A bias of (batch, heads, length, length) beyond this many elements is not kept: attention then runs over blocks of
# query rows, each with its own slice of the bias. 2**25 float32 elements are 128 MiB.
MAX_BIAS_ELEMENTS = 2**25


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> torch.Tensor:
    """One slope per head, float32: a geometric sequence from 2^(-8/n), interleaved when n is not a power of two.

    Source: the reference rule of arXiv 2108.12409, section 3.

    Example::

        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
    """
    largest_power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * (head + 1) / largest_power for head in range(largest_power)]
    # The heads beyond the power of two take every other slope of the sequence for twice as many heads.
    exponents += [4 * (2 * head + 1) / largest_power for head in range(num_heads - largest_power)]
    return torch.tensor([2.0**-exponent for exponent in exponents], device=device)


class TextPositions:
    """Where the tokens of a batch stand, in the form that attention wants; one object for all layers.

    ALiBi models get ``-slope * distance`` on their scores, rotary ones turn queries and keys by ``rope``; padding is
    hidden in both. ``whole`` is what the backend takes as its mask for all rows at once: padding and slopes for flex
    attention, ``padding`` or None for flash attention, else an additive bias (batch, heads or 1, length or 1, length)
    where that is small enough to keep. With ``in_blocks`` it is not: each layer then walks over ``blocks`` of query
    rows and asks for their ``bias``.

    With ``packed`` the hidden states between attentions are those of the real tokens alone, (tokens, width): all
    linear layers, norms and activations then skip the padding. ``pad`` and ``pack`` go to and fro.
    """

    def __init__(
        self, config: JinaCLIPTextConfig, padding: torch.Tensor, dtype: torch.dtype, packed: bool = False
    ) -> None:
        self.padding, self.dtype = padding, dtype
        self.tokens = padding.flatten().nonzero().squeeze(1) if packed else None  # (tokens,) places in batch * length
        self.batch, self.length = padding.shape
        self.heads = config.num_attention_heads
        alibi = config.position_embedding_type == "alibi"
        self.slopes = alibi_slopes(self.heads, padding.device) if alibi else None
        self.rope = None if alibi else text_rope(config, self.length, padding.device, dtype)
        self.backend = config._attn_implementation
        refuse_flash_with_alibi(config, self.backend)
        rows = MAX_BIAS_ELEMENTS // max(1, self.batch * self.heads * self.length)
        self.block_rows = max(1, min(self.length, rows))
        # Flex and flash attention need no bias; eager attention has scores of that size even where the bias is small.
        square = self.backend == "eager" or (alibi and self.backend != "flex_attention")
        self.in_blocks = square and self.block_rows < self.length
        self.whole = None if self.in_blocks else self._mask()

    def _mask(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None] | None:
        if self.backend == "flex_attention":
            return self.padding, self.slopes
        if is_flash(self.backend):
            # Asking for the values would break a graph that is being recorded.
            return None if not torch.compiler.is_compiling() and self.padding.all() else self.padding
        return self.bias(slice(0, self.length))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "TextPositions":
        """The same on another device: accelerate calls it where ``device_map`` puts layers on several."""
        device = torch.device(device)
        if device == self.padding.device:
            return self
        moved = copy.copy(self)
        for name in ("padding", "tokens", "slopes", "rope", "whole"):
            setattr(moved, name, _send(getattr(self, name), device, non_blocking))
        return moved

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to (tokens, width) of the real tokens, when packed."""
        return states if self.tokens is None else _TakeRows.apply(states.flatten(0, 1), self.tokens)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """Back again, with zeros for padding."""
        if self.tokens is None:
            return states
        padded = states.new_zeros(self.batch * self.length, states.shape[-1]).index_copy(0, self.tokens, states)
        return padded.view(self.batch, self.length, -1)

    def blocks(self) -> list[slice]:
        """Query rows, as many at a time as ``MAX_BIAS_ELEMENTS`` allows."""
        return [
            slice(start, min(start + self.block_rows, self.length)) for start in range(0, self.length, self.block_rows)
        ]

    def bias(self, rows: slice) -> torch.Tensor:
        """Additive bias of some query rows: (batch, heads or 1, rows, length)."""
        hidden = ~self.padding[:, None, None, :]  # (B, 1, 1, L)
        lowest = torch.finfo(self.dtype).min
        if self.slopes is None:
            return torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill(hidden, lowest)
        places = torch.arange(self.length, device=self.slopes.device)
        distance = (places[rows, None] - places[None, :]).abs()
        bias = (-self.slopes[:, None, None] * distance).to(self.dtype)  # (H, rows, L)
        return bias[None].masked_fill(hidden, lowest)


def _send(held: torch.Tensor | tuple | None, device: torch.device, non_blocking: bool) -> torch.Tensor | tuple | None:
    if isinstance(held, tuple):
        return tuple(_send(part, device, non_blocking) for part in held)
    return None if held is None else held.to(device, non_blocking=non_blocking)


class _TakeRows(torch.autograd.Function):
    """``states[rows]`` for distinct rows. torch adds up gradients row by row there, which distinct rows do not need."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(states)
        return states.index_select(0, rows)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, gradient.shape[-1]).index_copy(0, rows, gradient), None


def text_rope(
    config: JinaCLIPTextConfig, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of one-dimensional rotary positions (arXiv 2104.09864), each (length, head_dim / 2)."""
    half = config.hidden_size // config.num_attention_heads // 2
    frequencies = config.rotary_emb_base ** -(torch.arange(half, dtype=torch.float32, device=device) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn_halves(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn (batch, heads, length, head_dim): element i of the first half pairs with element i of the second."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention_dtype(states: torch.Tensor, device: torch.device | None = None) -> torch.dtype:
    """The type that queries and keys made from ``states`` have: under autocast that of autocast.

    ``device`` is where they will be, when a weight stands for them that may wait elsewhere.
    """
    device = (device or states.device).type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
