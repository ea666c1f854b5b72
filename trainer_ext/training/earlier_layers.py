"""Embeddings of an earlier layer beside those of the last, from one forward pass: ``matryoshka.layers``."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modeling_jina_clip import JinaCLIPModel, with_earlier_layers
from trainer_ext.losses.layers import EARLIER, drawn_layer
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.training.embedding import InputEmbedder


class LayeredEmbedder:
    """Embeds as ``InputEmbedder`` does, also at the layer that is drawn for the step: (rows, 2, dim), last layer first.

    Inputs of a tower without ``layers`` are (rows, dim). As one tensor, both go through the gradient cache like any
    embedding.

    Args:
        embed: the last layer's.
        model: without wrappers.
        recipe: its Matryoshka layers and its seed.
        step: the number of steps done.
    """

    def __init__(self, embed: InputEmbedder, model: JinaCLIPModel, recipe: Recipe, step: Callable[[], int]) -> None:
        self._embed, self._model, self._seed, self._step = embed, model, recipe.seed, step
        self._layers = recipe.matryoshka.layers_by_tower() if recipe.matryoshka is not None else {}

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        tower = "image" if "pixel_values" in inputs else "text"
        if tower not in self._layers:
            return self._embed(model, inputs)
        layer = drawn_layer(self._layers[tower], self._seed, tower, self._step())
        with with_earlier_layers(self._model, **{f"{tower}_layer": layer}) as earlier:
            last = self._embed(model, inputs)
        return torch.stack([last, earlier[tower].to(last)], dim=1)


def apart(embeddings: Mapping[str, Tensor]) -> dict[str, Any]:
    """The last layer's embeddings by column, and under ``earlier`` those of earlier layers, where there are any.

    >>> found = apart({"image": torch.zeros(3, 2, 8), "caption": torch.zeros(3, 8)})
    >>> found["image"].shape, found["caption"].shape, found["earlier"]["image"].shape
    (torch.Size([3, 8]), torch.Size([3, 8]), torch.Size([3, 8]))
    """
    both = {name: x.unbind(dim=1) for name, x in embeddings.items() if x.ndim == 3}
    last = dict(embeddings) | {name: pair[0] for name, pair in both.items()}
    return last | ({EARLIER: {name: pair[1] for name, pair in both.items()}} if both else {})
