"""The text tower with a masked-language-model head, to pre-train it like the text tower of the paper.

JinaBERT's recipe (arXiv 2310.19923): mask some tokens and predict them from both sides. The head is BERT's: a dense
layer, a GELU, a LayerNorm, and a projection to the vocabulary that shares the word embeddings and has its own bias.

Part of the package only: its folders do not carry this code, and load with AutoModelForMaskedLM where the package is
imported.
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

from .checkpoints_jina_clip import InitializationReport, initialize_masked_lm
from .configuration_jina_clip import JinaCLIPTextConfig
from .modeling_jina_clip_base import faster_products
from .modeling_jina_clip_text import JinaCLIPTextModel, JinaCLIPTextPreTrainedModel

NOT_MASKED = -100  # transformers' label for positions without a prediction


class JinaCLIPTextPredictionTransform(nn.Module):
    """Between the tower and the vocabulary: dense layer, GELU, LayerNorm."""

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
    """One more level, for the parameter names of BERT: ``cls.predictions``."""

    def __init__(self, config: JinaCLIPTextConfig):
        super().__init__()
        self.predictions = JinaCLIPTextPredictions(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.predictions(hidden_states)


class JinaCLIPTextForMaskedLM(JinaCLIPTextPreTrainedModel):
    """The text tower and a head that predicts masked tokens; trains with transformers' ``Trainer``.

    Start from a saved folder by ``initialize_towers(model, text=folder)``, which drops the head.
    Raises ``ValueError`` for configurations whose word embeddings cannot be shared with the head.

    Example::

        >>> config = JinaCLIPTextConfig(embed_dim=16, vocab_size=50, hidden_size=16, num_attention_heads=2,
        ...                             num_hidden_layers=1, intermediate_size=32)
        >>> model = JinaCLIPTextForMaskedLM(config)
        >>> ids, labels = torch.tensor([[1, 4, 3, 4]]), torch.tensor([[-100, 7, -100, 9]])     # two masked tokens
        >>> model.eval()(ids, labels=labels).logits.shape
        torch.Size([1, 4, 50])
        >>> model.train()(ids, labels=labels).logits.shape
        torch.Size([2, 50])
    """

    # Unlike the list of the tower, without the head.
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

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.cls.predictions.decoder = value

    def initialize(self, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
        """Set the tower, and the head if ``source`` has one, from a JinaBERT checkpoint.

        ``source`` is a safetensors file, a folder of them, or a state dict, such as jina-bert-v2's. If it has no head,
        the report lists ours as fresh. Raises ``ValueError`` for a tensor without a parameter or the reverse.
        """
        return initialize_masked_lm(self, source)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # TransformersKwargs repeats num_items_in_batch
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Predict tokens of ``input_ids`` (batch, length).

        ``logits`` are (batch, length, vocab_size), as ``Trainer.evaluate`` needs for metrics. ``labels``
        (batch, length) are -100 at positions without a prediction. In training mode only labelled positions go through
        the head, which at BERT's share saves five sixths of the largest tensor: the logits are then (labelled
        positions, vocab_size), in reading order. ``loss`` is the mean cross-entropy of those positions, or 0 if there
        are none. With ``num_items_in_batch``, which the ``Trainer`` passes when it accumulates gradients, the sum is
        divided by it instead.
        """
        kwargs["return_dict"] = True  # for the tower; `can_return_tuple` handles the caller's
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states, loss = output.last_hidden_state, None  # (B, L, W)
        wanted = None if labels is None else labels != NOT_MASKED
        if self.training and wanted is not None:
            states = states[wanted]  # (N, W)
        logits = self.cls(states)  # (B, L, V) or (N, V)
        if labels is not None and wanted is not None:
            guesses = logits if self.training else logits[wanted.to(logits.device)]  # (N, V)
            total = F.cross_entropy(guesses.float(), labels[wanted].to(guesses.device), reduction="sum")
            count = len(guesses) if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
