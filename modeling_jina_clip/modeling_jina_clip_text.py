"""The text tower: token ids in, one pooled vector per text out.

A post-norm BERT without position embeddings, in two published kinds that share all but what is named here:

- JinaBERT (jina-clip-v1): symmetric ALiBi (arXiv 2108.12409, made bidirectional as in arXiv 2310.19923), where each
  head adds ``-slope * |i - j|`` to its attention scores, and a gated GELU;
- Jina-XLM-RoBERTa (jina-clip-v2, arXiv 2412.08802): rotary positions, a plain GELU, and a low-rank task adapter.

Parameter names are those of the published files.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import nn
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

from .attention_backends import ALL_ATTENTION_FUNCTIONS, refuse_flash_with_alibi
from .attention_functions import eager_attention_forward, is_short, short_attention
from .configuration_jina_clip import JinaCLIPTextConfig
from .cpu_products import faster_products
from .strict_loading import StrictLoadingMixin
from .tensor_checks import check_token_ids
from .text_adapters import AdaptedWeight, embedding_layer, linear_layer, merge_task_adapter
from .text_positions import TextPositions, attention_dtype, turn_halves


class JinaCLIPTextEmbeddings(nn.Module):
    """Word plus token-type embeddings; every token has type 0."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.word_embeddings = embedding_layer(
            config, config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = embedding_layer(config, config.type_vocab_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
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
        self.is_causal = False  # without it, sdpa turns causal whenever the mask is None
        self.Wqkv = linear_layer(config, config.hidden_size, 3 * config.hidden_size)
        self.out_proj = linear_layer(config, config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, positions: TextPositions, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        self,
        attend: Callable,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: TextPositions,
        options: dict,
    ) -> torch.Tensor:
        """Attention of a few query rows after the other, (B, L, H, D), each with a bias that lives no longer than it.

        For the gradient each block runs twice: its bias would otherwise wait for the backward pass, and all of them
        together are as large as the whole.
        """

        def block(rows: slice) -> torch.Tensor:
            return attend(self, query[:, :, rows], key, value, positions.bias(rows), **options)[0]

        if torch.is_grad_enabled():
            return torch.cat([checkpoint(block, rows, use_reentrant=False) for rows in positions.blocks()], dim=1)
        return torch.cat([block(rows) for rows in positions.blocks()], dim=1)


class JinaCLIPTextGatedMLP(nn.Module):
    """Gated GELU: the first half of ``gated_layers`` passes the GELU and gates the second half (JinaBERT)."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gated_layers(hidden_states).chunk(2, dim=-1)
        # Without gradients in place: fresh memory of this size costs a CPU more than the arithmetic.
        inner = F.gelu(gate) * up if torch.is_grad_enabled() else F.gelu(gate).mul_(up)
        return self.wo(self.dropout(inner))


class JinaCLIPTextMLP(nn.Module):
    """Two layers with a GELU between (Jina-XLM-RoBERTa)."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.fc1 = linear_layer(config, config.hidden_size, config.intermediate_size)
        self.fc2 = linear_layer(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
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

    def forward(
        self, hidden_states: torch.Tensor, positions: TextPositions, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
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

    def forward(
        self, input_ids: torch.Tensor, padding: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        packed = self._packs(padding, kwargs)
        dtype = attention_dtype(self.emb_ln.weight, padding.device)
        positions = TextPositions(self.config, padding, dtype, packed)
        if packed:
            input_ids = input_ids.flatten().index_select(0, positions.tokens)  # (tokens,)
        hidden_states = self.emb_drop(self.emb_ln(self.embeddings(input_ids)))  # (B, L, W) or (tokens, W)
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, positions, **kwargs)
        return positions.pad(hidden_states)

    def _packs(self, padding: torch.Tensor, kwargs: dict) -> bool:
        """Whether to leave padding out of the linear layers: on the CPU, where each row of a matrix costs time.

        Not while a graph is recorded, whose shapes must not depend on values, and not on a GPU, which would have to
        wait for their number; nor when the caller wants the padded states of every layer.
        """
        if padding.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        wanted = ("output_hidden_states", "output_attentions")
        if any(kwargs.get(name, getattr(self.config, name, False)) for name in wanted):
            return False
        return not bool(padding.all())


class JinaCLIPTextRoberta(nn.Module):
    """The same transformer one level deeper, where the published v2 file keeps its text tower."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.roberta = JinaCLIPTextTransformer(config)


class JinaCLIPTextPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base of the text tower: loading rules and weight initialisation."""

    config: JinaCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaCLIPTextEmbeddings", "JinaCLIPTextLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": JinaCLIPTextLayer, "attentions": JinaCLIPTextAttention}
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^logit_scale$", r"rope\.freqs_(cos|sin)$", r"^cls\."]

    @property
    def _supports_flash_attn(self) -> bool:
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


class JinaCLIPTextModel(JinaCLIPTextPreTrainedModel):
    """The text tower with its masked mean pooling.

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
        self.proj = (
            nn.Linear(config.hidden_size, config.embed_dim, bias=config.proj_bias)
            if config.proj_type == "linear"
            else nn.Identity()
        )
        self.post_init()

    @property
    def backbone(self) -> JinaCLIPTextTransformer:
        """The transformer itself, wherever the published naming puts it."""
        return getattr(self.transformer, "roberta", self.transformer)

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
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode ``input_ids`` (batch, length) int64.

        ``attention_mask`` (batch, length) is nonzero on real tokens; without it every token that is not
        ``pad_token_id`` counts, as in the published code. ``pooler_output`` is (batch, embed_dim), not normalised.
        Raises ``ValueError`` for other shapes.
        """
        check_token_ids(input_ids, attention_mask)
        padding = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask != 0
        hidden_states = self.backbone(input_ids, padding, **kwargs)  # (B, L, W)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.proj(mean_pool(hidden_states, padding))
        )


def mean_pool(hidden_states: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Mean of the real tokens, (batch, length, width) to (batch, width). A text without tokens gives zeros, not NaN."""
    weights = padding[..., None].to(hidden_states)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
