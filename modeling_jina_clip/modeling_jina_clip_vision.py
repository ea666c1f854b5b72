"""The EVA02 image tower: pixels in, one pooled vector per image out.

A pre-norm ViT with 2-D rotary positions on top of a learned absolute position embedding, sub-LayerNorm in attention
and feed-forward, SwiGLU, and the class token as output (EVA-02, arXiv 2303.11331; EVA-CLIP, arXiv 2303.15389).
Parameter names are those of the published jina-clip-v1 file.

Order of this file: positions (2-D rotary tables, resizing of the learned table), layers, the tower.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_jina_clip import JinaCLIPVisionConfig
from .modeling_jina_clip_base import (
    ALL_ATTENTION_FUNCTIONS,
    StrictLoadingMixin,
    attention_dtype,
    check_pixels,
    eager_attention_forward,
    faster_products,
    is_short,
    short_attention,
)

ROPE_THETA = 10000.0


def rope_tables(
    config: JinaCLIPVisionConfig, grid: tuple[int, int], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the 2-D rotary positions, each (rows * columns, head_width), float32.

    The first half of the head dimension turns with the row, the second with the column; neighbouring pairs share an
    angle. With ``intp_freq`` a grid of any size is scaled to ``pt_hw_seq_len`` positions; without it positions count
    patches. Computed at every call: transformers leaves non-persistent buffers uninitialised when loading.

    Example::

        >>> config = JinaCLIPVisionConfig(width=8, embed_dim=8, head_width=8, image_size=32, patch_size=8)
        >>> cos, sin = rope_tables(config, (2, 3))
        >>> cos.shape, sin[1].tolist()[:4]      # row 0, column 1: the row half does not turn
        (torch.Size([6, 8]), [0.0, 0.0, 0.0, 0.0])
    """
    half = config.head_width // 2
    frequencies = ROPE_THETA ** -(torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)

    def angles(count: int) -> Tensor:
        positions = torch.arange(count, dtype=torch.float32, device=device)
        if config.intp_freq:
            positions = positions / count * config.pt_hw_seq_len
        return torch.outer(positions, frequencies).repeat_interleave(2, dim=-1)  # (count, half)

    rows, columns = grid
    by_row = angles(rows)[:, None, :].expand(rows, columns, half)
    by_column = angles(columns)[None, :, :].expand(rows, columns, half)
    table = torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, 2 * half)
    return table.cos(), table.sin()


def apply_rope(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn every token of (batch, heads, tokens, head_width) by its row of the tables.

    A pair (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin): each element times cos, plus its neighbour times a sine
    of alternating sign (``signed_sin``). This takes one copy instead of three.
    """
    swapped = states.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    if torch.is_grad_enabled():
        return torch.addcmul(states * cos, swapped, signed_sin)
    return (states * cos).addcmul_(swapped, signed_sin)


def rope_with_cls(tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables of the patches (..., patches, head_width) to tables of all tokens, for ``apply_rope``.

    The class token comes first with an angle of zero; the first sine of each pair is negated.
    """
    cos, sin = tables
    signs = torch.tensor([-1.0, 1.0], device=sin.device).repeat(sin.shape[-1] // 2)
    cos = F.pad(cos, (0, 0, 1, 0), value=1.0)
    return cos.to(dtype), F.pad(sin * signs, (0, 0, 1, 0)).to(dtype)


def resize_position_embedding(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a learned position table (1, 1 + n * n, width) to another grid by bicubic interpolation.

    The row of the class token is kept. For its own grid the table is returned as it is.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).to(table.dtype)
    return torch.cat([table[:, :1], patches], dim=1)


# Rows of a sequence: the class token comes first.
CLASS_ROW, ALL_ROWS = slice(0, 1), slice(None)
# Shares of patches are integers in this unit: torch.compile treats an integer of a module as a constant, a float not.
SHARES = 2**20


class JinaCLIPVisionPatchProjection(nn.Conv2d):
    """A strided convolution without overlap, as one matrix product of flattened patches: (B, C, h, w) to (B, W, r, c).

    The same sums, and several times faster in training on a CPU. As in a convolution, pixels on the right and at the
    bottom that do not fill a patch are cut off.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        size = self.kernel_size[0]
        rows, columns = pixel_values.shape[-2] // size, pixel_values.shape[-1] // size
        pixels = pixel_values[..., : rows * size, : columns * size]
        patches = pixels.unflatten(3, (columns, size)).unflatten(2, (rows, size))  # (B, C, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C * p * p)
        with faster_products(patches):
            projected = F.linear(patches, self.weight.flatten(1), self.bias)  # (B, N, W)
        return projected.transpose(1, 2).unflatten(2, (rows, columns))


class JinaCLIPVisionPatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token: (batch, channels, height, width) to (batch, patches, width).

    The projection is called as a module: accelerate loads offloaded weights when their module is called.
    """

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__()
        size = config.patch_size
        self.proj = JinaCLIPVisionPatchProjection(config.num_channels, config.width, kernel_size=size, stride=size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, N, W), a view


class JinaCLIPVisionAttention(nn.Module):
    """Self-attention with bias on queries and values only, and a LayerNorm before the output projection."""

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_width
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        # Outside the Linear modules because the published file names them so; keys have no bias.
        self.q_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.inner_attn_ln = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: Tensor, rope: tuple[Tensor, Tensor], rows: slice, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        asking = hidden_states[:, rows]
        query, key, value = self.q_proj(asking), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.q_bias is not None and self.v_bias is not None:
            query, value = query + self.q_bias.to(query.dtype), value + self.v_bias.to(value.dtype)

        def heads_first(states: Tensor) -> Tensor:
            return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, 1+N, D)

        query = apply_rope(heads_first(query), *(table[..., rows, :] for table in rope))
        key = apply_rope(heads_first(key), *rope)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if is_short(self.config._attn_implementation, query, dropout=0.0):
            attend = short_attention
        context, weights = attend(
            self, query, key, heads_first(value), None, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.proj(self.inner_attn_ln(context.reshape(asking.shape))), weights


class JinaCLIPVisionMLP(nn.Module):
    """SwiGLU with a LayerNorm before the last projection."""

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__()
        self.w1 = nn.Linear(config.width, config.intermediate_size)
        self.w2 = nn.Linear(config.width, config.intermediate_size)
        self.ffn_ln = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.w3 = nn.Linear(config.intermediate_size, config.width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.w1(hidden_states), self.w2(hidden_states)
        # In place without gradients: on a CPU, new memory of this size costs more than the arithmetic.
        inner = F.silu(gate) * up if torch.is_grad_enabled() else F.silu(gate, inplace=True).mul_(up)
        return self.w3(self.ffn_ln(inner))


class JinaCLIPVisionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = JinaCLIPVisionAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = JinaCLIPVisionMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rope: tuple[Tensor, Tensor],
        rows: slice = ALL_ROWS,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Update the tokens of ``rows``, which attend to all tokens: (batch, rows, width)."""
        with faster_products(hidden_states):
            attended, _ = self.attn(self.norm1(hidden_states), rope, rows, **kwargs)
            hidden_states = hidden_states[:, rows] + attended
            return hidden_states + self.mlp(self.norm2(hidden_states))


class JinaCLIPVisionPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base of the image tower: loading rules and weight initialisation."""

    config: JinaCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # tuples, as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaCLIPVisionPatchEmbed", "JinaCLIPVisionLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": JinaCLIPVisionLayer, "attentions": JinaCLIPVisionAttention}
    # Some published files store rotary tables, under several names; here they are computed.
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^(text|visual)_projection\.",
        r"^logit_scale$",
        r"rope\.freqs_(cos|sin)$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, JinaCLIPVisionAttention) and module.q_bias is not None and module.v_bias is not None:
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        elif isinstance(module, JinaCLIPVisionModel):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.pos_embed, std=std)


class JinaCLIPVisionModel(JinaCLIPVisionPreTrainedModel):
    """The image tower, for images whose height and width are multiples of the patch size.

    Example::

        >>> config = JinaCLIPVisionConfig(embed_dim=16, width=16, head_width=8, layers=1, image_size=32, patch_size=8)
        >>> tower = JinaCLIPVisionModel(config).eval()
        >>> tower(torch.zeros(2, 3, 32, 48)).pooler_output.shape
        torch.Size([2, 16])
    """

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__(config)
        side = config.image_size // config.patch_size
        self.set_patch_dropout(config.patch_dropout)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, config.width))
        self.patch_embed = JinaCLIPVisionPatchEmbed(config)
        self.blocks = nn.ModuleList(JinaCLIPVisionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        linear = config.proj_type == "linear"
        self.head = nn.Linear(config.width, config.embed_dim, bias=config.qkv_bias) if linear else nn.Identity()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @property
    def patch_dropout(self) -> float:
        """The share of patches dropped in training."""
        return self.config.patch_dropout

    def set_patch_dropout(self, rate: float) -> None:
        """Change the share of patches dropped in training, e.g. at a stage boundary."""
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"patch_dropout={rate} must lie in [0, 1)")
        self.kept_shares = ceil(round((1.0 - rate) * SHARES, 6))
        self.config.patch_dropout = rate

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        patch, trained = self.config.patch_size, self.config.image_size
        # The trained size may leave a remainder (v2: 512 = 36 * 14 + 8), which the convolution cuts off.
        if any(side < patch or (side % patch and side != trained) for side in (height, width)):
            raise ValueError(
                f"pixel_values of {height} x {width} px cannot be cut into {patch} px patches; resize the images to a "
                f"multiple of {patch} (the image processor's size)."
            )
        return height // patch, width // patch

    def _drop_patches(self, tokens: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Keep a random subset of patches per image (FLIP, arXiv 2212.00794); their rotary rows go with them."""
        batch, patches = tokens.shape[0], tokens.shape[1] - 1
        keep = max(1, patches * self.kept_shares // SHARES)
        kept = torch.rand(batch, patches, device=tokens.device).topk(keep, dim=-1).indices  # (B, keep)
        rows = kept[..., None].expand(-1, -1, tokens.shape[-1])
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, rows)], dim=1)
        cos, sin = (table[kept][:, None] for table in rope)  # (B, 1, keep, D)
        return tokens, (cos, sin)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, pixel_values: Tensor, pooled_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode ``pixel_values`` (batch, 3, height, width). ``pooler_output`` is (batch, embed_dim), not normalised.

        The output comes from the class token. With ``pooled_only`` the last layer computes only that token, which
        saves 5/6 of its products, and ``last_hidden_state`` is (batch, 1, width).
        Raises ``ValueError`` for other shapes and for sizes that are not multiples of the patch size.
        """
        check_pixels(pixel_values, self.config.num_channels)
        grid = self._grid(pixel_values)
        rope = rope_tables(self.config, grid, pixel_values.device)
        patches = self.patch_embed(pixel_values.to(self.patch_embed.proj.weight.dtype))  # (B, N, W)
        tokens = torch.cat([self.cls_token.to(patches).expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = tokens + resize_position_embedding(self.pos_embed, grid).to(patches.device)  # (B, 1+N, W)
        if self.training and self.kept_shares < SHARES:
            tokens, rope = self._drop_patches(tokens, rope)
        rope = rope_with_cls(rope, attention_dtype(tokens))
        for block in self.blocks[:-1]:
            tokens = block(tokens, rope, **kwargs)
        tokens = self.blocks[-1](tokens, rope, CLASS_ROW if pooled_only else ALL_ROWS, **kwargs)
        tokens = self.norm(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.head(tokens[:, 0]))
