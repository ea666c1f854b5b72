"""The peer of ``encode_speed``: jina-clip-v1's two towers as the published code runs them on a CPU, written plainly.

Texts sorted by length in padded batches, attention written out in float32 with an ALiBi bias that is made once for the
longest text, one operation after the other. It reads the tensors of one of our models, so both sides have the same
weights and must give the same vectors.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from modeling_jina_clip import JinaCLIPModel
from modeling_jina_clip.modeling_jina_clip_text import alibi_slopes
from modeling_jina_clip.modeling_jina_clip_vision import rope_tables

Weights = dict[str, torch.Tensor]


class PublishedStyle:
    """Both towers as functions of a state dict; ``batch_size`` rows a batch, padded to the longest of them."""

    def __init__(self, model: JinaCLIPModel) -> None:
        self.weights: Weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.tokenizer, self.image_processor = model.processor.tokenizer, model.processor.image_processor
        self.text, self.vision = model.config.text_config, model.config.vision_config

    @torch.inference_mode()
    def encode_text(self, sentences: Sequence[str], batch_size: int = 32) -> torch.Tensor:
        """L2-normalised (n, dim) float32."""
        rows = self.tokenizer(list(sentences), truncation=True, max_length=512)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        places = torch.arange(len(rows[order[0]]))
        distance = (places[:, None] - places[None, :]).abs()
        alibi = -alibi_slopes(self.text.num_attention_heads)[None, :, None, None] * distance  # (1, H, L, L)
        vectors = torch.empty(len(rows), self.text.embed_dim)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer.pad({"input_ids": [rows[i] for i in chosen]}, return_tensors="pt")
            vectors[chosen] = self._texts(batch["input_ids"], batch["attention_mask"], alibi)
        return F.normalize(vectors, dim=-1)

    @torch.inference_mode()
    def encode_image(self, images: Sequence, batch_size: int = 16) -> torch.Tensor:
        """L2-normalised (n, dim) float32."""
        vectors = [
            self._images(self.image_processor(list(images[i : i + batch_size]), return_tensors="pt")["pixel_values"])
            for i in range(0, len(images), batch_size)
        ]
        return F.normalize(torch.cat(vectors), dim=-1)

    def _linear(self, name: str, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, states: torch.Tensor, eps: float) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(states, weight.shape, weight, bias, eps)

    def _texts(self, input_ids: torch.Tensor, mask: torch.Tensor, alibi: torch.Tensor) -> torch.Tensor:
        config, eps = self.text, self.text.layer_norm_eps
        batch, length = input_ids.shape
        heads, width = config.num_attention_heads, config.hidden_size
        root = "text_model.transformer"
        hidden = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        bias = alibi[:, :, :length, :length] + hidden  # (B, H, L, L)
        states = F.embedding(input_ids, self.weights[f"{root}.embeddings.word_embeddings.weight"])
        states = states + self.weights[f"{root}.embeddings.token_type_embeddings.weight"][0]
        states = self._norm(f"{root}.emb_ln", states, eps)
        for number in range(config.num_hidden_layers):
            layer = f"{root}.encoder.layers.{number}"
            qkv = self._linear(f"{layer}.mixer.Wqkv", states).view(batch, length, 3, heads, width // heads)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(-1, -2) / (width // heads) ** 0.5 + bias
            context = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width)
            states = self._norm(f"{layer}.norm1", states + self._linear(f"{layer}.mixer.out_proj", context), eps)
            gate, up = self._linear(f"{layer}.mlp.gated_layers", states).chunk(2, dim=-1)
            states = self._norm(f"{layer}.norm2", states + self._linear(f"{layer}.mlp.wo", F.gelu(gate) * up), eps)
        weights = mask[..., None].float()
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        config, eps, weights = self.vision, self.vision.layer_norm_eps, self.weights
        heads = config.width // config.head_width
        patches = F.conv2d(
            pixels,
            weights["vision_model.patch_embed.proj.weight"],
            weights["vision_model.patch_embed.proj.bias"],
            stride=config.patch_size,
        )
        batch, _, *grid = patches.shape
        states = patches.flatten(2).transpose(1, 2)
        states = torch.cat([weights["vision_model.cls_token"].expand(batch, -1, -1), states], dim=1)
        states = states + weights["vision_model.pos_embed"]
        cos, sin = rope_tables(config, tuple(grid))

        def turn(tokens: torch.Tensor) -> torch.Tensor:
            patches = tokens[:, :, 1:]
            first, second = patches[..., ::2], patches[..., 1::2]
            turned = torch.stack((-second, first), dim=-1).flatten(-2)
            return torch.cat([tokens[:, :, :1], patches * cos + turned * sin], dim=2)

        def heads_first(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.view(batch, -1, heads, config.head_width).transpose(1, 2)

        for number in range(config.layers):
            block = f"vision_model.blocks.{number}"
            normed = self._norm(f"{block}.norm1", states, eps)
            query = self._linear(f"{block}.attn.q_proj", normed) + weights[f"{block}.attn.q_bias"]
            key = self._linear(f"{block}.attn.k_proj", normed)
            value = self._linear(f"{block}.attn.v_proj", normed) + weights[f"{block}.attn.v_bias"]
            query, key = turn(heads_first(query)) * config.head_width**-0.5, turn(heads_first(key))
            context = (query @ key.transpose(-1, -2)).softmax(dim=-1) @ heads_first(value)
            context = context.transpose(1, 2).reshape(states.shape)
            context = self._norm(f"{block}.attn.inner_attn_ln", context, eps)
            states = states + self._linear(f"{block}.attn.proj", context)
            normed = self._norm(f"{block}.norm2", states, eps)
            inner = F.silu(self._linear(f"{block}.mlp.w1", normed)) * self._linear(f"{block}.mlp.w2", normed)
            states = states + self._linear(f"{block}.mlp.w3", self._norm(f"{block}.mlp.ffn_ln", inner, eps))
        states = self._norm("vision_model.norm", states, eps)
        return self._linear("vision_model.head", states[:, 0]) if config.proj_type == "linear" else states[:, 0]
