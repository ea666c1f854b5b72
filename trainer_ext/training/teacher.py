"""The teacher of a run: a finished model that embeds each batch's pictures and texts beside the trained one.

It is a Jina CLIP, or for texts any model of sentence-transformers. It is frozen and in evaluation mode, draws no random
number, and is not saved with the run. It reads texts by its own tokenizer and pictures by its own image processor, from
the same rows, captions and crops as the student. ``losses.distillation`` compares the two.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.sources import Rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.losses.columns import COLUMNS, NEGATIVES
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.checks import read_model_config
from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.reading import path_of
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.stages import TeacherSpec
from trainer_ext.recipe.start_checks import embeds_texts_alone
from trainer_ext.sentence_files import refuse_own_code
from trainer_ext.training.embedding import InputEmbedder, chunks_of, encoder_inputs

# Rows of a source whose margins are looked at before training.
_LOOKED_AT = 1000
# Texts that a model of sentence-transformers embeds at once, without a gradient cache.
_TEXTS_AT_ONCE = 32


def teacher_of(recipe: Recipe) -> "Teacher | SentenceTeacher | None":
    """The recipe's teacher, loaded now; None without one, or where all that it says is in columns of the sources."""
    spec = recipe.teacher
    if spec is None or spec.model is None:
        return None
    if embeds_texts_alone(path_of(spec.model)):
        return SentenceTeacher(spec, spec.model)
    return Teacher(spec, spec.model, recipe.attn_implementation)


def far_margins(recipe: Recipe, tables: Mapping[str, Rows]) -> Iterator[Problem]:
    """Columns of margins that no cosines can have: those of a cross-encoder, mostly, without a ``scale``.

    The first rows are looked at. Two cosines differ by at most 2.
    """
    teacher = recipe.teacher
    sides = [(name, side) for stage in recipe.stages for name, side in stage.sides()]
    taught = {source for name, side in sides if teacher and name in teacher.margin_sides() for source in side.sources}
    for source in recipe.sources:
        if teacher is None or source.name not in taught or "margins" not in source.columns:
            continue
        sizes = np.abs(_first_margins(tables[source.name]))
        if len(sizes) and sizes.mean() > 2 * teacher.scale:
            yield (
                "teacher.scale",
                f"is {teacher.scale:g}, but the margins of source {source.name!r} are {sizes.mean():.3g} on average, "
                f"and cosines differ by at most 2. Give scale: {np.quantile(sizes, 0.99):.2g}: most are then below 1.",
            )


def _first_margins(rows: Rows) -> np.ndarray:
    if isinstance(rows, SourceStream):
        lists = rows.first_rows(_LOOKED_AT)["margins"].to_pylist()
    else:
        lists = rows.select_columns(["margins"])[:_LOOKED_AT]["margins"]
    return np.array([margin for row in lists for margin in row or [] if margin is not None], dtype=np.float64)


class Teacher:
    """Embeds batches.

    Args:
        spec: the recipe's.
        model: its folder, loaded now.
        attn_implementation: the recipe's.

    Raises:
        ValueError: the folder is another kind of model, or its weights or processor cannot be loaded.
    """

    def __init__(self, spec: TeacherSpec, model: str, attn_implementation: str | None = None) -> None:
        folder = path_of(model)
        self.columns = _columns(spec)
        kind = read_model_config(folder).get("model_type")
        if kind != JinaCLIPConfig.model_type:
            raise ValueError(
                f"teacher {model!r}: its config.json is of model_type {kind!r}; give the folder of a Jina CLIP, or for "
                "texts one that sentence-transformers has saved, with a modules.json"
            )
        try:
            self.processor = JinaCLIPProcessor.from_pretrained(folder)
        except Exception as error:  # libraries have no common class for a tokenizer that is damaged
            raise ValueError(
                f"teacher {model!r}: its processor cannot be read: {_words(error)}; copy it again"
            ) from error
        with torch.random.fork_rng():
            self.model = JinaCLIPModel.from_pretrained(folder, attn_implementation=attn_implementation)
        self.model.requires_grad_(False).eval()
        entries, rows = len(self.processor.tokenizer), self.model.config.text_config.vocab_size
        if entries > rows:
            raise ValueError(f"teacher {model!r}: its tokenizer has {entries} entries, its model {rows}: not a pair")

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], arguments: JinaCLIPTrainingArguments) -> dict[str, Tensor]:
        """(rows, dim) of each column of the sides it teaches, and its ``temperature``.

        Args:
            batch: of its own tokens and pixels, as ``TaughtCollator`` has them under ``teacher``.
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


class SentenceTeacher:
    """Embeds texts with a model of sentence-transformers, by its own ``encode_query`` and ``encode_document``.

    It gets the texts of a row after augmentation and cuts them at its own limit of tokens. The source's prompts stand
    before them; without them the model's own for queries and documents do. Arguments as for ``Teacher``.

    Raises:
        ValueError: the folder cannot be loaded, or only with code of its own, which never runs.
    """

    processor = None

    def __init__(self, spec: TeacherSpec, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.columns = _columns(spec)
        folder = path_of(model)
        try:
            refuse_own_code(folder)
            with torch.random.fork_rng():
                self.model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except Exception as error:  # libraries have no common class for files that are damaged
            raise ValueError(f"teacher {model!r}: cannot be loaded: {_words(error)}") from error
        self.model.requires_grad_(False).eval()

    def __call__(self, batch: Mapping[str, Any], arguments: JinaCLIPTrainingArguments) -> dict[str, Tensor]:
        """(rows, dim) of each text column that it teaches.

        Args:
            batch: of texts, as ``TextCollator`` makes it.
            arguments: of the run, with its device, and its chunk size where there is a gradient cache.
        """
        texts, device = batch.get("text", {}), arguments.device
        size = arguments.gradient_cache_chunk_size or _TEXTS_AT_ONCE
        vectors = {}
        for name in self.columns & texts.keys():
            encode = self.model.encode_query if name == "query" else self.model.encode_document
            found = encode(
                texts[name], prompt=texts["prompts"].get(name), batch_size=size, device=str(device),
                convert_to_tensor=True, show_progress_bar=False,
            )  # fmt: skip
            # A copy is no tensor of inference mode, which no loss could keep for its backward pass.
            vectors[name] = found.to(device, torch.float32).clone()
        return vectors


def _columns(spec: TeacherSpec) -> set[str]:
    """What a teacher embeds of its sides."""
    negatives = {NEGATIVES[side] for side in spec.margin_sides() if side in NEGATIVES}
    return {column for side in spec.sides for column in COLUMNS[side]} | negatives


def _words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
