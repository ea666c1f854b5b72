"""The text tower with a masked-language-model head, to pre-train it as the text tower of the paper was.

JinaBERT's recipe (arXiv 2310.19923): hide some tokens, guess them from both sides. The head is BERT's: a dense layer, a
GELU, a LayerNorm, and a projection onto the vocabulary that shares the word embeddings and has a bias of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_jina_clip import JinaCLIPTextConfig
from .cpu_products import faster_products
from .modeling_jina_clip_text import JinaCLIPTextModel, JinaCLIPTextPreTrainedModel
from .tower_initialization import InitializationReport, initialize_masked_lm

# isort: split
# Old versions of transformers (5.5) copy only the files that this one imports itself; see modeling_jina_clip.py.
from .attention_backends import flex_attention_forward as flex_attention_forward
from .attention_functions import short_attention as short_attention
from .checkpoint_keys import Rule as Rule
from .strict_loading import StrictLoadingMixin as StrictLoadingMixin
from .tensor_checks import check_token_ids as check_token_ids
from .text_adapters import AdaptedWeight as AdaptedWeight
from .text_positions import TextPositions as TextPositions
from .vision_positions import resize_position_embedding as resize_position_embedding

NOT_MASKED = -100  # the label of positions that are not to be guessed, as everywhere in transformers


class JinaCLIPTextPredictionTransform(nn.Module):
    """What stands between the tower and the vocabulary: dense, GELU, LayerNorm."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden_states)))


class JinaCLIPTextPredictions(nn.Module):
    """States (..., hidden_size) to logits (..., vocab_size)."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.transform = JinaCLIPTextPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with faster_products(hidden_states):
            return self.decoder(self.transform(hidden_states))


class JinaCLIPTextMaskedLMHead(nn.Module):
    """One level more, for the names of BERT's files: ``cls.predictions``."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.predictions = JinaCLIPTextPredictions(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden_states)


class JinaCLIPTextForMaskedLM(JinaCLIPTextPreTrainedModel):
    """The text tower and a head that guesses masked tokens; trains with transformers' ``Trainer``.

    A saved folder is a starting point for ``initialize_towers(text=folder)``, which leaves the head behind.
    Raises ``ValueError`` for configurations whose word embeddings cannot be shared with the head.

    Example::

        >>> config = JinaCLIPTextConfig(embed_dim=16, vocab_size=50, hidden_size=16, num_attention_heads=2,
        ...                             num_hidden_layers=1, intermediate_size=32)
        >>> model = JinaCLIPTextForMaskedLM(config)
        >>> ids, labels = torch.tensor([[1, 4, 3, 4]]), torch.tensor([[-100, 7, -100, 9]])     # two tokens to guess
        >>> model.eval()(ids, labels=labels).logits.shape
        torch.Size([1, 4, 50])
        >>> model.train()(ids, labels=labels).logits.shape
        torch.Size([2, 50])
    """

    # Not the list of the tower, which ignores a head in its files.
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^logit_scale$", r"rope\.freqs_(cos|sin)$"]
    _tied_weights_keys = {
        r"cls\.predictions\.decoder\.weight": r"text_model\.transformer\.(roberta\.)?embeddings\.word_embeddings\.w.*"
    }

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__(config)
        for field, value, wanted in (
            ("tie_word_embeddings", config.tie_word_embeddings, True),
            ("lora_adaptations", config.lora_adaptations, None),
        ):
            if (value or None) != (wanted or None):
                raise ValueError(
                    f"text_config.{field}={value!r}, but the head of a masked language model shares the plain word "
                    f"embeddings; use {field}={wanted}."
                )
        self.text_model = JinaCLIPTextModel(config)
        self.cls = JinaCLIPTextMaskedLMHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.cls.predictions.decoder = value

    def initialize(self, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
        """Set the tower, and the head where ``source`` has one, from a JinaBERT checkpoint.

        ``source`` is a safetensors file, a folder of them, or a state dict, such as jina-bert-v2's. Without a head in
        it the report lists ours as fresh. Raises ``ValueError`` when a tensor has no place or a parameter no tensor.
        """
        return initialize_masked_lm(self, source)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Guess tokens of ``input_ids`` (batch, length).

        The logits are (batch, length, vocab_size), as ``Trainer.evaluate`` with metrics needs them. ``labels`` (batch,
        length) are -100 where nothing is to be guessed. In training mode only labelled positions go through the head,
        which at BERT's share of them spares five sixths of the largest tensor: the logits are then (labelled positions,
        vocab_size), in reading order. ``loss`` is the mean cross-entropy of those positions, 0 where there are none.
        ``num_items_in_batch`` divides the sum instead of their number, as the ``Trainer`` wants it when it accumulates
        gradients.
        """
        kwargs["return_dict"] = True  # of the tower; `can_return_tuple` has taken the caller's
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states, loss = output.last_hidden_state, None  # (B, L, W)
        wanted = None if labels is None else labels != NOT_MASKED
        if self.training and wanted is not None:
            states = states[wanted]  # (N, W)
        logits = self.cls(states)  # (B, L, V) or (N, V)
        if wanted is not None:
            guesses = logits if self.training else logits[wanted.to(logits.device)]  # (N, V)
            total = F.cross_entropy(guesses.float(), labels[wanted].to(guesses.device), reduction="sum")
            count = len(guesses) if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
