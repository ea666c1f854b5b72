"""The losses of a stage on rows that training never sees: ``validation_loss: true`` in a recipe.

The same objective on the same kind of batches as training, with these differences: no dropout, no augmentation (but
for two views of one picture, which it makes), the captions and pictures that the seed draws in epoch 0, and the same
batches every time, so figures of two steps can be compared. The main process computes it by itself, whatever the number
of processes.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.picture_pairs import picture_groups
from trainer_ext.data.plan import Key
from trainer_ext.losses.gather import alone
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import SIDES, Side, SideName
from trainer_ext.recipe.stages import Stage
from trainer_ext.training.embedding import InputEmbedder, encoder_inputs

# Rows that are embedded at once.
_ROWS_AT_ONCE = 64
PREFIX = "validation"
FIGURES = (f"{PREFIX}/loss", *(f"{PREFIX}/loss_{name}" for name in SIDES))


class ValidationLoss:
    """Measures a stage's losses on held-out rows.

    Args:
        recipe: its stages say which losses there are, and of which sources.
        held: held-out rows by source; sources without some are left out.
        processor: makes tensors of rows.
        objective: of the trainer, whose parameters are trained.

    >>> ValidationLoss(recipe, {"photos": held}, processor, trainer.objective)(model, stage=0)  # doctest: +SKIP
    {'validation/loss_image_text': 1.93, 'validation/loss': 1.93}
    """

    def __init__(
        self, recipe: Recipe, held: Mapping[str, Dataset], processor: JinaCLIPProcessor, objective: JointObjective
    ) -> None:
        plain = {"random_resized_crop": None, "augmentation": None}
        self._stages = [_without_short_caption(stage.model_copy(update=plain)) for stage in recipe.stages]
        self._held = dict(held)
        sources = [source for source in recipe.sources if source.name in self._held]
        groups = picture_groups(sources, self._held)
        self._units = {name: len(groups.get(name, table)) for name, table in self._held.items()}
        self._views = {one.name for one in sources if one.task == "image-pair" and not one.pairs_by_id()}
        self._rows = JointDataset(sources, self._held, recipe.seed, stages=self._stages)
        self._collate = JointCollator(processor, self._stages, recipe.seed)
        self._collate_views = JointCollator(processor, recipe.stages, recipe.seed)
        self._objective = objective
        self._means = processor.image_processor.mean, processor.image_processor.std

    @torch.no_grad()
    def __call__(self, model: JinaCLIPModel, stage: int) -> dict[str, float]:
        """``validation/loss_SIDE``, a mean over batches, of each side that has held-out rows; and their weighted sum.

        Every batch has the side's ``batch_size``, on which the loss depends; held-out rows beyond the last full batch
        are left out, and of fewer rows than one batch all are taken at once.
        """
        embed = InputEmbedder(*self._means, device=model.device)
        training = model.training
        model.eval()
        try:
            with alone():
                losses = {
                    name: np.mean([self._loss(model, embed, batch, name) for batch in self._batches(stage, name, side)])
                    for name, side in self._stages[stage].sides()
                    if self._of(side)
                }
        finally:
            model.train(training)
        weights = {name: side.weight for name, side in self._stages[stage].sides()}
        figures = {f"{PREFIX}/loss_{name}": float(loss) for name, loss in losses.items()}
        if figures:
            figures[f"{PREFIX}/loss"] = float(sum(weights[name] * loss for name, loss in losses.items()))
        return figures

    def _of(self, side: Side) -> list[str]:
        return [name for name in side.sources if name in self._held]

    def _batches(self, stage: int, name: SideName, side: Side) -> Iterator[dict[str, Any]]:
        for source in self._of(side):
            order = np.random.default_rng(0).permutation(self._units[source])
            collate = self._collate_views if source in self._views else self._collate
            size = min(side.batch_size, len(order))
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size].tolist()
                keys = [Key(step=0, stage=stage, side=name, source=source, epoch=0, index=row) for row in rows]
                yield collate(self._rows.__getitems__(keys))

    def _loss(self, model: JinaCLIPModel, embed: InputEmbedder, batch: dict[str, Any], name: SideName) -> float:
        columns = encoder_inputs(batch)
        vectors = {column: self._embedded(model, embed, inputs) for column, inputs in columns.items()}
        vectors["temperature"] = clamped_temperature(model.logit_scale)
        ids = {
            key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch[name].items()
        }
        _, terms = self._objective(_only(self._stages[batch["stage"]], name), {name: ids}, vectors)
        return terms[f"loss_{name}"].item()

    @staticmethod
    def _embedded(model: JinaCLIPModel, embed: InputEmbedder, inputs: Mapping[str, Tensor]) -> Tensor:
        pieces = zip(*(tensor.split(_ROWS_AT_ONCE) for tensor in inputs.values()), strict=True)
        return torch.cat([embed(model, dict(zip(inputs, piece, strict=True))) for piece in pieces])


def _only(stage: Stage, name: SideName) -> Stage:
    """The stage with one side alone."""
    return stage.model_copy(update={other: None for other in SIDES if other != name})


def _without_short_caption(stage: Stage) -> Stage:
    """Terms beside the losses are not measured, and this one would embed texts of its own."""
    side = stage.image_text
    return stage.model_copy(update={"image_text": side and side.model_copy(update={"short_caption": None})})


def validation_problems(recipe: Recipe, held: Collection[str]) -> Iterator[Problem]:
    """Nothing held out although ``validation_loss`` asks for it: it would measure nothing, without a word."""
    if recipe.evaluation is not None and recipe.evaluation.validation_loss and not held:
        names = sorted({name for stage in recipe.stages for _, side in stage.sides() for name in side.sources})
        words = f"measures losses on held-out rows, but no source holds some out. Give holdout: 0.05 to {names[0]!r}"
        yield "evaluation.validation_loss", f"{words}{' or another source' if names[1:] else ''}."
