"""Jina CLIP: a JinaBERT text tower and an EVA02 image tower in one embedding space (arXiv 2405.20204).

``forward`` returns normalised embeddings of whatever it was given; ``get_text_features`` and ``get_image_features``
return them before normalisation; ``encode_text`` and ``encode_image`` take raw inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_jina_clip import JinaCLIPConfig
from .encoding_jina_clip import EncodingMixin
from .modeling_jina_clip_text import JinaCLIPTextModel
from .modeling_jina_clip_vision import JinaCLIPVisionModel
from .published_layout import export_published
from .strict_loading import StrictLoadingMixin
from .tower_initialization import InitializationReport, initialize_text, initialize_vision

# isort: split
# Used by the files above. Old versions of transformers (5.5) copy only those files of a local folder that the file of
# the model imports itself, so each of them is named here once.
from .attention_backends import flex_attention_forward as flex_attention_forward
from .attention_functions import short_attention as short_attention
from .checkpoint_keys import Rule as Rule
from .cpu_products import faster_products as faster_products
from .image_inputs import open_image as open_image
from .image_processing_jina_clip import JinaCLIPImageProcessor as JinaCLIPImageProcessor
from .image_urls import fetch_url as fetch_url
from .input_lists import list_of_texts as list_of_texts
from .model_origin import ModelOrigin as ModelOrigin
from .processing_jina_clip import JinaCLIPProcessor as JinaCLIPProcessor
from .tensor_checks import check_pixels as check_pixels
from .text_adapters import AdaptedWeight as AdaptedWeight
from .text_positions import TextPositions as TextPositions
from .vision_positions import rope_tables as rope_tables


@dataclass
class JinaCLIPOutput(ModelOutput):
    """Output of ``JinaCLIPModel``; fields of an absent side are None.

    Args:
        loss: symmetric contrastive loss over the batch, scalar, with ``return_loss=True``.
        logits_per_image: (images, texts) cosine similarity times ``exp(logit_scale)``.
        logits_per_text: its transpose.
        text_embeds: (texts, dim), L2-normalised.
        image_embeds: (images, dim), L2-normalised.
        text_model_output: output of the text tower.
        vision_model_output: output of the image tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class JinaCLIPPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base class: loading rules of the composite model. The towers initialise their own weights."""

    config: JinaCLIPConfig
    base_model_prefix = "jina_clip"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "JinaCLIPTextEmbeddings",
        "JinaCLIPTextLayer",
        "JinaCLIPVisionPatchEmbed",
        "JinaCLIPVisionLayer",
    ]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Rotary tables are stored by some published files, in several places; they are computed here.
    _keys_to_ignore_on_load_unexpected = [r"rope\.freqs_(cos|sin)$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, JinaCLIPModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class JinaCLIPModel(EncodingMixin, JinaCLIPPreTrainedModel):
    """Two towers and a trainable logit scale.

    Example::

        model = JinaCLIPModel.from_pretrained("path/to/jina-clip-v1")
        texts = model.encode_text(["a blue cat", "a red bus"])      # (2, 768) float32, L2-normalised
        images = model.encode_image(["cat.png", "bus.png"])         # (2, 768)
        texts @ images.T
    """

    def __init__(self, config: JinaCLIPConfig):
        super().__init__(config)
        self.text_model = JinaCLIPTextModel._from_config(config.text_config)
        self.vision_model = JinaCLIPVisionModel._from_config(config.vision_config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Text vectors (batch, dim), not normalised, from ``input_ids`` (batch, length). Always a tensor.

        Pass what a tokenizer gives by name: ``model.get_text_features(**inputs)``.
        """
        kwargs["return_dict"] = True
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).pooler_output

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Image vectors (batch, dim), not normalised, from ``pixel_values`` (batch, 3, height, width). Always a tensor.

        Pass what an image processor gives by name: ``model.get_image_features(**inputs)``.
        """
        kwargs["return_dict"] = True
        return self.vision_model(pixel_values=pixel_values, pooled_only=True, **kwargs).pooler_output

    def initialize_towers(
        self, text: str | Path | Mapping | None = None, vision: str | Path | Mapping | None = None
    ) -> dict[str, InitializationReport]:
        """Set one or both towers from public checkpoints: JinaBERT, EVA02 of timm, open_clip or EVA-CLIP.

        Each source is a safetensors file, a folder of them, or a state dict. Raises ``ValueError`` when a tensor has
        no place or a parameter no tensor. Example::

            model = JinaCLIPModel(JinaCLIPConfig())
            print(model.initialize_towers(text="jina-bert-v2-base", vision="eva02_base_patch14.safetensors"))
        """
        reports = {}
        if text is not None:
            reports["text"] = initialize_text(self.text_model, text)
        if vision is not None:
            reports["vision"] = initialize_vision(self.vision_model, vision)
        return reports

    def merge_task_adapter(self, task: str | None = None) -> Self:
        """Fold jina-clip-v2's low-rank adapter into plain layers, in place; returns the model.

        The adapter is that of ``task``, by default the one that the configuration names; the others are gone, and
        ``text_config.lora_adaptations`` is None. In float32 the vectors stay the same to 1e-6; in 16 bits each merged
        weight is rounded once. A model without adapters stays as it is.

        Do it for what looks for ``torch.nn.Linear`` and would pass over the text tower: 8- and 4-bit quantizers, and
        LoRA of PEFT (``target_modules="all-linear"``). Raises ``ValueError`` for a task that has no adapter, and for
        weights that ``device_map`` left on disk. Example::

            model = JinaCLIPModel.from_pretrained("path/to/jina-clip-v2").merge_task_adapter()
            model.save_pretrained("jina-clip-v2-merged")  # loads as any other, with BitsAndBytesConfig too
        """
        self.text_model.merge_task_adapter(task)
        self.config.text_config = self.text_model.config
        return self

    def save_published(self, folder: str | Path) -> Path:
        """Write a new folder in the published layout, for runtimes that know only the original code and names.

        ``save_pretrained`` is for everything else. Raises ``ValueError`` for what that layout cannot say.
        """
        return export_published(self, folder)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        pooled_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> JinaCLIPOutput:
        """Embed texts, images or both.

        ``pooled_only`` saves the image tower what only ``last_hidden_state`` needs (see ``JinaCLIPVisionModel``).
        With both, logits over all pairs are returned too, and with ``return_loss`` CLIP's loss, for which text i
        belongs to image i. Raises ``ValueError`` when both are absent, or when the loss is asked for unequal batches.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("JinaCLIPModel needs input_ids, pixel_values or both; got neither")
        output = JinaCLIPOutput()
        kwargs["return_dict"] = True  # of the towers; `can_return_tuple` has taken the caller's
        if input_ids is not None:
            output.text_model_output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            output.text_embeds = F.normalize(output.text_model_output.pooler_output, dim=-1)  # (T, D)
        if pixel_values is not None:
            output.vision_model_output = self.vision_model(pixel_values, pooled_only, **kwargs)
            output.image_embeds = F.normalize(output.vision_model_output.pooler_output, dim=-1)  # (I, D)
        if output.text_embeds is not None and output.image_embeds is not None:
            cosine = output.text_embeds @ output.image_embeds.to(output.text_embeds.device).T  # (T, I)
            output.logits_per_text = self.logit_scale.exp().to(cosine.device) * cosine
            output.logits_per_image = output.logits_per_text.T
        if return_loss:
            output.loss = contrastive_loss(output.logits_per_text)
        return JinaCLIPOutput(**output)  # made anew: a tuple of it has the order of the fields, not of the lines above


def contrastive_loss(logits_per_text: torch.Tensor | None) -> torch.Tensor:
    """CLIP's loss (arXiv 2103.00020): mean of the cross-entropies of rows and columns of a square (n, n) matrix."""
    if logits_per_text is None or logits_per_text.shape[0] != logits_per_text.shape[1]:
        shape = None if logits_per_text is None else tuple(logits_per_text.shape)
        raise ValueError(f"return_loss needs as many texts as images, text i for image i; got logits of shape {shape}")
    labels = torch.arange(len(logits_per_text), device=logits_per_text.device)
    logits = logits_per_text.float()
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
