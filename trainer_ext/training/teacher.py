"""The teacher of a run: a finished Jina CLIP that embeds each batch's pictures and texts beside the trained model.

It is frozen and in evaluation mode, draws no random number, and is not saved with the run. It reads texts by its own
tokenizer and pictures by its own image processor, from the same rows, captions and crops as the student.
``losses.distillation`` compares the two.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.losses.columns import COLUMNS
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.checks import read_model_config
from trainer_ext.recipe.reading import path_of
from trainer_ext.recipe.stages import TeacherSpec
from trainer_ext.training.embedding import InputEmbedder, chunks_of, encoder_inputs


class Teacher:
    """Embeds batches.

    Args:
        spec: the recipe's; its folder is loaded now.
        attn_implementation: the recipe's.

    Raises:
        ValueError: the folder is another kind of model, or its weights or processor cannot be loaded.
    """

    def __init__(self, spec: TeacherSpec, attn_implementation: str | None = None) -> None:
        folder = path_of(spec.model)
        self.columns = [column for side in spec.sides for column in COLUMNS[side]]
        kind = read_model_config(folder).get("model_type")
        if kind != JinaCLIPConfig.model_type:
            raise ValueError(
                f"teacher {spec.model!r}: its config.json is of model_type {kind!r}; give a Jina CLIP's folder"
            )
        try:
            self.processor = JinaCLIPProcessor.from_pretrained(folder)
        except Exception as error:  # libraries have no common class for a tokenizer that is damaged
            words = (" ".join(str(error).split()) or type(error).__name__)[:200]
            raise ValueError(f"teacher {spec.model!r}: its processor cannot be read: {words}; copy it again") from error
        with torch.random.fork_rng():
            self.model = JinaCLIPModel.from_pretrained(folder, attn_implementation=attn_implementation)
        self.model.requires_grad_(False).eval()
        entries, rows = len(self.processor.tokenizer), self.model.config.text_config.vocab_size
        if entries > rows:
            raise ValueError(
                f"teacher {spec.model!r}: its tokenizer has {entries} entries, its model {rows}: not a pair"
            )

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], arguments: JinaCLIPTrainingArguments) -> dict[str, Tensor]:
        """(rows, dim) of each column of the sides it teaches, and its ``temperature``.

        Args:
            batch: of its own tokens and pixels, as ``TaughtCollator`` has it under ``teacher``.
            arguments: of the run, with its device, and its chunk size where there is a gradient cache.
        """
        device, chunk_size = arguments.device, arguments.gradient_cache_chunk_size
        self.model.to(device)
        images = self.processor.image_processor
        embed = InputEmbedder(images.mean, images.std, device)
        inputs = {name: item for name, item in encoder_inputs(batch).items() if name in self.columns}
        vectors = {"temperature": clamped_temperature(self.model.logit_scale)}
        if chunk_size is None:
            return vectors | {name: embed(self.model, item) for name, item in inputs.items()}
        for name, (pieces, order) in chunks_of(inputs, chunk_size, self.model.config.vision_config.patch_size).items():
            embedded = torch.cat([embed(self.model, piece) for piece in pieces])
            vectors[name] = embedded if order is None else embedded[order.to(device)]
        return vectors
