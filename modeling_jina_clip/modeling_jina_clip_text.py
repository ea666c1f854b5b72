"""The text tower: token ids in, one pooled vector per text out.

A post-norm BERT without position embeddings, in two published kinds that differ in:

- JinaBERT (jina-clip-v1): symmetric ALiBi (arXiv 2108.12409, made bidirectional as in arXiv 2310.19923), where each
  head adds ``-slope * |i - j|`` to its attention scores, and a gated GELU;
- Jina-XLM-RoBERTa (jina-clip-v2, arXiv 2412.08802): rotary positions, a plain GELU, and a low-rank task adapter.

Parameter names are those of the published files.

jina-clip-v2 stores each adapted weight as ``parametrizations.weight.original`` beside the factors of all tasks. The
original code computes ``W + scale * B A`` at every call, even for the 250,002-row embedding table. Here the factors act
on the activations: the same product in another order, at almost no cost. ``merge_task_adapter`` merges them into plain
layers, which quantizers and PEFT look for.

Order of this file: adapters, positions (ALiBi, rotary, padding), layers, the tower.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_jina_clip import JinaCLIPTextConfig
from .modeling_jina_clip_base import (
    ALL_ATTENTION_FUNCTIONS,
    StrictLoadingMixin,
    attention_dtype,
    check_token_ids,
    eager_attention_forward,
    faster_products,
    is_flash,
    is_short,
    refuse_flash_with_alibi,
    short_attention,
)


class LowRankFactors(nn.Module):
    """The two factors of each task's update; called with the inputs of the weight, it returns what they add."""

    def __init__(self, shape: tuple[int, int], config: JinaCLIPTextConfig, embedding: bool) -> None:
        super().__init__()
        rows, columns = shape
        tasks, rank = len(config.lora_adaptations or ()), config.lora_rank
        # The files store W + B A for linear layers and W + A B for embeddings.
        a_shape, b_shape = ((rows, rank), (rank, columns)) if embedding else ((rank, columns), (rows, rank))
        self.lora_A = nn.Parameter(torch.zeros(tasks, *a_shape))
        self.lora_B = nn.Parameter(torch.zeros(tasks, *b_shape))
        self.embedding, self.scale = embedding, config.lora_alpha / rank

    def forward(self, inputs: Tensor, task: int) -> Tensor:
        first, second = self.lora_A[task], self.lora_B[task]
        if self.embedding:
            return (F.embedding(inputs, first) @ second) * self.scale
        return F.linear(F.linear(inputs, first), second) * self.scale


class AdaptedWeight(nn.Module):
    """A weight with low-rank factors for each task, named as in the published file.

    The module that holds a weight also applies it: accelerate loads offloaded weights when their module is called.
    """

    def __init__(self, shape: tuple[int, int], config: JinaCLIPTextConfig, embedding: bool) -> None:
        super().__init__()
        self.original = nn.Parameter(torch.empty(shape))
        self.add_module("0", LowRankFactors(shape, config, embedding))
        self.embedding, self.task = embedding, config.lora_task_index

    @property
    def factors(self) -> LowRankFactors:
        return cast(LowRankFactors, self.get_submodule("0"))

    def merged(self, task: int | None) -> nn.Parameter:
        """The weight plus the update of a task, if any, added in float32 and returned in the type of the weight."""
        weight = self.original.detach().float()
        if task is not None:
            first, second = self.factors.lora_A[task].detach().float(), self.factors.lora_B[task].detach().float()
            weight = weight + (first @ second if self.embedding else second @ first) * self.factors.scale
        return nn.Parameter(weight.to(self.original.dtype), requires_grad=self.original.requires_grad)

    def forward(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        plain = F.embedding(inputs, self.original) if self.embedding else F.linear(inputs, self.original, bias)
        return plain if self.task is None else plain + self.factors(inputs, self.task)


class AdaptedLinear(nn.Module):
    """``nn.Linear`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.parametrizations = nn.ModuleDict({"weight": AdaptedWeight((outputs, inputs), config, embedding=False)})
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, states: Tensor) -> Tensor:
        return self.parametrizations["weight"](states, self.bias)

    def plain(self, task: int | None) -> nn.Linear:
        """The same layer without adapters."""
        weight = cast(AdaptedWeight, self.parametrizations["weight"]).merged(task)
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").train(self.training)
        layer.weight, layer.bias = weight, self.bias
        return layer


class AdaptedEmbedding(nn.Module):
    """``nn.Embedding`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.parametrizations = nn.ModuleDict({"weight": AdaptedWeight((count, width), config, embedding=True)})

    def forward(self, ids: Tensor) -> Tensor:
        return self.parametrizations["weight"](ids)

    def plain(self, task: int | None) -> nn.Embedding:
        """The same table without adapters."""
        weight = cast(AdaptedWeight, self.parametrizations["weight"]).merged(task)
        count, width = weight.shape
        table = nn.Embedding(count, width, padding_idx=self.padding_idx, device="meta").train(self.training)
        table.weight = weight
        return table


def linear_layer(config: JinaCLIPTextConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias, with adapters where the checkpoint has them."""
    return AdaptedLinear(config, inputs, outputs) if config.lora_adaptations else nn.Linear(inputs, outputs)


def embedding_layer(config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> nn.Module:
    """An embedding table, with adapters where the checkpoint has them."""
    if config.lora_adaptations:
        return AdaptedEmbedding(config, count, width, padding_idx)
    return nn.Embedding(count, width, padding_idx=padding_idx)


def merge_task_adapter(tower: nn.Module, config: JinaCLIPTextConfig, task: str | None = None) -> None:
    """Replace the adapted layers of ``tower`` by plain ones, and remove the adapters from ``config``.

    Raises ``ValueError`` for a task without an adapter, and for offloaded weights.
    """
    known = config.lora_adaptations or []
    if task is not None and task not in known:
        raise ValueError(f"task={task!r} has no adapter in this model; it has {known or 'none, or none any more'}")
    index = config.lora_task_index if task is None else known.index(task)
    adapted = [
        (name, part) for name, part in tower.named_modules() if isinstance(part, AdaptedLinear | AdaptedEmbedding)
    ]
    if any(parameter.is_meta for _, part in adapted for parameter in part.parameters()):
        raise ValueError("task adapters can be merged only where the weights are in memory; load without device_map")
    for name, part in adapted:
        parent, _, child = name.rpartition(".")
        setattr(tower.get_submodule(parent), child, part.plain(index))
    config.lora_adaptations = config.default_lora_task = None


# A bias (batch, heads, length, length) with more elements is not kept in memory: attention then runs over blocks of
# query rows, each with its slice of the bias. 2**25 float32 elements are 128 MiB.
MAX_BIAS_ELEMENTS = 2**25


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """One slope per head, float32: a geometric sequence from 2^(-8/n), interleaved when n is not a power of two.

    Source: the reference rule of arXiv 2108.12409, section 3.

    Example::

        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
    """
    largest_power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * (head + 1) / largest_power for head in range(largest_power)]
    # Further heads take every other slope of the sequence for twice as many heads.
    exponents += [4 * (2 * head + 1) / largest_power for head in range(num_heads - largest_power)]
    return torch.tensor([2.0**-exponent for exponent in exponents], device=device)


class TextPositions:
    """The positions of a batch in the form that attention needs; one object for all layers.

    ALiBi adds ``-slope * distance`` to the scores, rotary models turn queries and keys by ``rope``; both hide padding.
    ``whole`` is the backend's mask for all rows at once: padding and slopes for flex attention, ``padding`` or None for
    flash attention, otherwise an additive bias (batch, heads or 1, length or 1, length). A bias that is too large is
    not kept: ``in_blocks`` is then true, and each layer iterates over ``blocks`` of query rows and computes their
    ``bias``.

    With ``packed`` the hidden states between attentions hold only the real tokens, (tokens, width): linear layers,
    norms and activations skip the padding. ``pad`` and ``pack`` convert between the two.
    """

    def __init__(self, config: JinaCLIPTextConfig, padding: Tensor, dtype: torch.dtype, packed: bool = False) -> None:
        self.padding, self.dtype = padding, dtype
        # (tokens,) indices into batch * length
        self.tokens = padding.flatten().nonzero().squeeze(1) if packed else None
        self.batch, self.length = padding.shape
        self.heads = config.num_attention_heads
        alibi = config.position_embedding_type == "alibi"
        self.slopes = alibi_slopes(self.heads, padding.device) if alibi else None
        self.rope = None if alibi else text_rope(config, self.length, padding.device, dtype)
        self.backend = config._attn_implementation
        refuse_flash_with_alibi(config, self.backend)
        rows = MAX_BIAS_ELEMENTS // max(1, self.batch * self.heads * self.length)
        self.block_rows = max(1, min(self.length, rows))
        # Flex and flash attention need no bias; the scores of eager attention are as large even if its bias is small.
        square = self.backend == "eager" or (alibi and self.backend != "flex_attention")
        self.in_blocks = square and self.block_rows < self.length
        self.whole = None if self.in_blocks else self._mask()

    def _mask(self) -> Tensor | tuple[Tensor, Tensor | None] | None:
        if self.backend == "flex_attention":
            return self.padding, self.slopes
        if is_flash(self.backend):
            # Reading the values would break a graph that is being recorded.
            return None if not torch.compiler.is_compiling() and self.padding.all() else self.padding
        return self.bias(slice(0, self.length))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "TextPositions":
        """A copy on another device; accelerate calls it if ``device_map`` spreads layers over several."""
        device = torch.device(device)
        if device == self.padding.device:
            return self
        moved = copy.copy(self)
        for name in ("padding", "tokens", "slopes", "rope", "whole"):
            setattr(moved, name, _send(getattr(self, name), device, non_blocking))
        return moved

    def pack(self, states: Tensor) -> Tensor:
        """(batch, length, width) to (tokens, width) of the real tokens, if packed."""
        return states if self.tokens is None else _TakeRows.apply(states.flatten(0, 1), self.tokens)

    def pad(self, states: Tensor) -> Tensor:
        """The inverse of ``pack``, with zeros for padding."""
        if self.tokens is None:
            return states
        padded = states.new_zeros(self.batch * self.length, states.shape[-1]).index_copy(0, self.tokens, states)
        return padded.view(self.batch, self.length, -1)

    def blocks(self) -> list[slice]:
        """Slices of query rows, each as many as ``MAX_BIAS_ELEMENTS`` allows."""
        return [
            slice(start, min(start + self.block_rows, self.length)) for start in range(0, self.length, self.block_rows)
        ]

    def bias(self, rows: slice) -> Tensor:
        """Additive bias of some query rows: (batch, heads or 1, rows, length)."""
        hidden = ~self.padding[:, None, None, :]  # (B, 1, 1, L)
        lowest = torch.finfo(self.dtype).min
        if self.slopes is None:
            return torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill(hidden, lowest)
        places = torch.arange(self.length, device=self.slopes.device)
        distance = (places[rows, None] - places[None, :]).abs()
        bias = (-self.slopes[:, None, None] * distance).to(self.dtype)  # (H, rows, L)
        return bias[None].masked_fill(hidden, lowest)


def _send(held: Tensor | tuple | None, device: torch.device, non_blocking: bool) -> Tensor | tuple | None:
    if isinstance(held, tuple):
        return tuple(_send(part, device, non_blocking) for part in held)
    return None if held is None else held.to(device, non_blocking=non_blocking)


class _TakeRows(torch.autograd.Function):
    """``states[rows]`` for distinct rows. torch's own backward adds row by row, which distinct rows do not need."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(states)
        return states.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, gradient.shape[-1]).index_copy(0, rows, gradient), None


def text_rope(
    config: JinaCLIPTextConfig, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of one-dimensional rotary positions (arXiv 2104.09864), each (length, head_dim / 2)."""
    half = config.hidden_size // config.num_attention_heads // 2
    frequencies = config.rotary_emb_base ** -(torch.arange(half, dtype=torch.float32, device=device) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn_halves(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (batch, heads, length, head_dim): element i of the first half pairs with element i of the second."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class JinaCLIPTextEmbeddings(nn.Module):
    """Word plus token-type embeddings; every token has type 0."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.word_embeddings = embedding_layer(
            config, config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = embedding_layer(config, config.type_vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        token_type = torch.zeros(1, dtype=torch.long, device=input_ids.device)
        return self.word_embeddings(input_ids) + self.token_type_embeddings(token_type)  # (B, L, W)


class JinaCLIPTextAttention(nn.Module):
    """Multi-head self-attention with one fused query-key-value matrix, as in the published file."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # otherwise sdpa is causal if the mask is None
        self.Wqkv = linear_layer(config, config.hidden_size, 3 * config.hidden_size)
        self.out_proj = linear_layer(config, config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, positions: TextPositions, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        qkv = positions.pad(self.Wqkv(hidden_states))  # (B, L, 3W)
        qkv = qkv.view(positions.batch, positions.length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, L, D)
        if positions.rope is not None:
            query, key = turn_halves(query, *positions.rope), turn_halves(key, *positions.rope)
        dropout = self.attention_dropout if self.training else 0.0
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if is_short(self.config._attn_implementation, query, dropout):
            attend = short_attention
        options = {"dropout": dropout, "scaling": self.scaling, **kwargs}
        if positions.in_blocks:
            context, weights = self._attend_in_blocks(attend, query, key, value, positions, options), None
        else:
            context, weights = attend(self, query, key, value, positions.whole, **options)  # (B, L, H, D)
        context = context.reshape(positions.batch, positions.length, self.num_heads * self.head_dim)
        return self.out_proj(positions.pack(context)), weights

    def _attend_in_blocks(
        self, attend: Callable, query: Tensor, key: Tensor, value: Tensor, positions: TextPositions, options: dict
    ) -> Tensor:
        """Attention over blocks of query rows, (B, L, H, D); the bias of a block is freed after it.

        With gradients each block runs twice. Otherwise its bias would be kept for the backward pass, and together the
        blocks are as large as the whole.
        """

        def block(rows: slice) -> Tensor:
            return attend(self, query[:, :, rows], key, value, positions.bias(rows), **options)[0]

        if torch.is_grad_enabled():
            return torch.cat([checkpoint(block, rows, use_reentrant=False) for rows in positions.blocks()], dim=1)
        return torch.cat([block(rows) for rows in positions.blocks()], dim=1)


class JinaCLIPTextGatedMLP(nn.Module):
    """Gated GELU (JinaBERT): the GELU of the first half of ``gated_layers`` gates the second half."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gated_layers(hidden_states).chunk(2, dim=-1)
        # In place without gradients: on a CPU, new memory of this size costs more than the arithmetic.
        inner = F.gelu(gate) * up if torch.is_grad_enabled() else F.gelu(gate).mul_(up)
        return self.wo(self.dropout(inner))


class JinaCLIPTextMLP(nn.Module):
    """Two layers with a GELU between (Jina-XLM-RoBERTa)."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.fc1 = linear_layer(config, config.hidden_size, config.intermediate_size)
        self.fc2 = linear_layer(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class JinaCLIPTextLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.mixer = JinaCLIPTextAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = JinaCLIPTextGatedMLP(config) if config.mlp_type == "glu" else JinaCLIPTextMLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, positions: TextPositions, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        with faster_products(hidden_states):
            attended, _ = self.mixer(hidden_states, positions, **kwargs)
            hidden_states = self.norm1(hidden_states + self.dropout(attended))
            return self.norm2(hidden_states + self.dropout(self.mlp(hidden_states)))


class JinaCLIPTextEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.layers = nn.ModuleList(JinaCLIPTextLayer(config) for _ in range(config.num_hidden_layers))


class JinaCLIPTextTransformer(nn.Module):
    """Embeddings, their norm, and the encoder: ``(batch, length)`` ids to ``(batch, length, hidden_size)``."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.config = config
        self.embeddings = JinaCLIPTextEmbeddings(config)
        self.emb_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.emb_drop = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = JinaCLIPTextEncoder(config)

    def forward(self, input_ids: Tensor, padding: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        packed = self._packs(padding, kwargs)
        dtype = attention_dtype(self.emb_ln.weight, padding.device)
        positions = TextPositions(self.config, padding, dtype, packed)
        if positions.tokens is not None:
            input_ids = input_ids.flatten().index_select(0, positions.tokens)  # (tokens,)
        hidden_states = self.emb_drop(self.emb_ln(self.embeddings(input_ids)))  # (B, L, W) or (tokens, W)
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, positions, **kwargs)
        return positions.pad(hidden_states)

    def _packs(self, padding: Tensor, kwargs: TransformersKwargs) -> bool:
        """Whether linear layers skip padding: on a CPU, where each row of a matrix costs time.

        Not while a graph is recorded, since its shapes must not depend on values; not on a GPU, which would have to
        wait for the number of tokens; and not if the caller wants the padded states of every layer.
        """
        if padding.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        wanted = ("output_hidden_states", "output_attentions")
        if any(kwargs.get(name, getattr(self.config, name, False)) for name in wanted):
            return False
        return not bool(padding.all())


class JinaCLIPTextRoberta(nn.Module):
    """The same transformer one level deeper, as named in the published v2 file."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.roberta = JinaCLIPTextTransformer(config)


class JinaCLIPTextPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base of the text tower: loading rules and weight initialisation."""

    config: JinaCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)  # type: ignore[assignment]  # tuples, as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaCLIPTextEmbeddings", "JinaCLIPTextLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": JinaCLIPTextLayer, "attentions": JinaCLIPTextAttention}
    _keys_to_ignore_on_load_unexpected = [
        *(r"^vision_model\.", r"^(text|visual)_projection\.", r"^logit_scale$", r"rope\.freqs_(cos|sin)$", r"^cls\.")
    ]

    @property
    def _supports_flash_attn(self) -> bool:  # type: ignore[override]  # read-only: it depends on the configuration
        return self.config.position_embedding_type == "rotary"

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention in ALL_ATTENTION_FUNCTIONS:
            refuse_flash_with_alibi(self.config, requested_attention)
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, AdaptedWeight):
            init.normal_(module.original, std=std)
            for factor in module.factors.parameters():
                init.zeros_(factor)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


def text_projection(config: JinaCLIPTextConfig) -> nn.Module:
    """As the published code: "mlp" has its two layers only between equal widths, otherwise one."""
    inputs, outputs, bias = config.hidden_size, config.embed_dim, config.proj_bias
    if config.proj_type == "mlp" and inputs == outputs:
        return nn.Sequential(nn.Linear(inputs, inputs, bias=bias), nn.GELU(), nn.Linear(inputs, outputs, bias=bias))
    return nn.Linear(inputs, outputs, bias=bias) if config.proj_type else nn.Identity()


class JinaCLIPTextModel(JinaCLIPTextPreTrainedModel):
    """The text tower with mean pooling over real tokens.

    Example::

        >>> config = JinaCLIPTextConfig(embed_dim=16, vocab_size=50, hidden_size=16, num_attention_heads=2,
        ...                             num_hidden_layers=1, intermediate_size=32)
        >>> tower = JinaCLIPTextModel(config).eval()
        >>> tower(torch.tensor([[1, 2, 3]])).pooler_output.shape
        torch.Size([1, 16])
    """

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__(config)
        rotary = config.position_embedding_type == "rotary"
        self.transformer = JinaCLIPTextRoberta(config) if rotary else JinaCLIPTextTransformer(config)
        self.proj = text_projection(config)
        self.post_init()

    @property
    def backbone(self) -> JinaCLIPTextTransformer:
        """The transformer itself, at either of its published names."""
        return self.transformer.roberta if isinstance(self.transformer, JinaCLIPTextRoberta) else self.transformer

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embeddings.word_embeddings = value

    def merge_task_adapter(self, task: str | None = None) -> Self:
        """See ``JinaCLIPModel.merge_task_adapter``."""
        merge_task_adapter(self, self.config, task)
        return self

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode ``input_ids`` (batch, length) int64.

        ``attention_mask`` (batch, length) is nonzero on real tokens; without it all tokens but ``pad_token_id`` count,
        as in the published code. ``pooler_output`` is (batch, embed_dim), not normalised.
        Raises ``ValueError`` for other shapes.
        """
        check_token_ids(input_ids, attention_mask)
        padding = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask != 0
        hidden_states = self.backbone(input_ids, padding, **kwargs)  # (B, L, W)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.proj(mean_pool(hidden_states, padding))
        )


def mean_pool(hidden_states: Tensor, padding: Tensor) -> Tensor:
    """Mean over real tokens, (batch, length, width) to (batch, width). A text without tokens gives zeros, not NaN."""
    weights = padding[..., None].to(hidden_states)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
