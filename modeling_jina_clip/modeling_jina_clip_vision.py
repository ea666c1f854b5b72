"""The EVA02 image tower: pixels in, one pooled vector per image out.

A pre-norm ViT with 2-D rotary positions on top of a learned absolute position embedding, sub-LayerNorm in attention
and feed-forward, SwiGLU, and the class token as output (EVA-02, arXiv 2303.11331; EVA-CLIP, arXiv 2303.15389).
Parameter names are those of the published jina-clip-v1 file.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_backends import ALL_ATTENTION_FUNCTIONS
from .attention_functions import eager_attention_forward, is_short, short_attention
from .configuration_jina_clip import JinaCLIPVisionConfig
from .cpu_products import faster_products
from .strict_loading import StrictLoadingMixin
from .tensor_checks import check_pixels
from .text_positions import attention_dtype
from .vision_positions import apply_rope, resize_position_embedding, rope_tables, rope_with_cls

# Rows of a sequence: the class token stands first.
CLASS_ROW, ALL_ROWS = slice(0, 1), slice(None)
# Shares of patches are counted in these: torch.compile takes an integer of a module as it stands, a float as unknown.
SHARES = 2**20


class JinaCLIPVisionPatchProjection(nn.Conv2d):
    """A strided convolution without overlap, as one matrix product of flattened patches: (B, C, h, w) to (B, W, r, c).

    The same sums, and in training several times faster on a CPU. What the patch size leaves over on the right and at
    the bottom is cut off, as a convolution does.
    """

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
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

    The layer is called, not read: accelerate fetches weights that wait on disk when their own module is called.
    """

    def __init__(self, config: JinaCLIPVisionConfig):
        super().__init__()
        size = config.patch_size
        self.proj = JinaCLIPVisionPatchProjection(config.num_channels, config.width, kernel_size=size, stride=size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
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
        # Not inside the Linear modules: the published file names them so, and keys have none.
        self.q_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.inner_attn_ln = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        rows: slice,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        asking = hidden_states[:, rows]
        query, key, value = self.q_proj(asking), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.q_bias is not None:
            query, value = query + self.q_bias.to(query.dtype), value + self.v_bias.to(value.dtype)

        def heads_first(states: torch.Tensor) -> torch.Tensor:
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

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.w1(hidden_states), self.w2(hidden_states)
        # Without gradients in place: fresh memory of this size costs a CPU more than the arithmetic.
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
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        rows: slice = ALL_ROWS,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """The tokens of ``rows``, each having looked at all tokens: (batch, rows, width)."""
        with faster_products(hidden_states):
            attended, _ = self.attn(self.norm1(hidden_states), rope, rows, **kwargs)
            hidden_states = hidden_states[:, rows] + attended
            return hidden_states + self.mlp(self.norm2(hidden_states))


class JinaCLIPVisionPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base of the image tower: loading rules and weight initialisation."""

    config: JinaCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaCLIPVisionPatchEmbed", "JinaCLIPVisionLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": JinaCLIPVisionLayer, "attentions": JinaCLIPVisionAttention}
    # Rotary tables are stored by some published files, in several places; they are computed here.
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_scale$", r"rope\.freqs_(cos|sin)$"]

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
        elif isinstance(module, JinaCLIPVisionAttention) and module.q_bias is not None:
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        elif isinstance(module, JinaCLIPVisionModel):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.pos_embed, std=std)


class JinaCLIPVisionModel(JinaCLIPVisionPreTrainedModel):
    """The image tower; images of any size that the patch size divides, square or not.

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
        self.head = nn.Linear(config.width, config.embed_dim) if config.proj_type == "linear" else nn.Identity()
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

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        patch, trained = self.config.patch_size, self.config.image_size
        # The trained size may leave a rest (v2: 512 = 36 * 14 + 8), which the convolution cuts off.
        if any(side < patch or (side % patch and side != trained) for side in (height, width)):
            raise ValueError(
                f"pixel_values of {height} x {width} px cannot be cut into {patch} px patches; resize the images to a "
                f"multiple of {patch} (the image processor's size)."
            )
        return height // patch, width // patch

    def _drop_patches(
        self, tokens: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
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
        self, pixel_values: torch.Tensor, pooled_only: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode ``pixel_values`` (batch, 3, height, width). ``pooler_output`` is (batch, embed_dim), not normalised.

        The output is the class token's alone. With ``pooled_only`` the last layer leaves out what no one reads then,
        5/6 of its products, and ``last_hidden_state`` is (batch, 1, width), the class token.
        Raises ``ValueError`` for other shapes, and when the patch size does not divide the image.
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
