"""Fewer layers: the first ones of each tower as a model of its own. Part of the package only, not served.

The vector of an earlier layer is its hidden state through the tower's own end, as the last layer's is: mean pooling of
texts; of pictures the class token, the final norm and the head. 2D Matryoshka (arXiv 2402.14776) trains such vectors to
be used by themselves; docs/losses.md has the key for it. Without it they are poor.

1. ``shortened`` makes the model of the first layers.
2. ``with_earlier_layers`` gives the vectors of such a model beside those of the whole one, in one forward pass: what
   training needs.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .modeling_jina_clip import JinaCLIPModel
from .modeling_jina_clip_text import TextPositions, mean_pool


def tower_layers(model: JinaCLIPModel) -> dict[str, nn.ModuleList]:
    """The layers of both towers, ``text`` and ``image``, in order.

    Raises:
        TypeError: another class of model.
    """
    if not isinstance(model, JinaCLIPModel):
        raise TypeError(
            f"model is a {type(model).__name__} and must be a JinaCLIPModel; of PEFT's wrapper, give what its "
            "merge_and_unload() returns"
        )
    return {"text": model.text_model.backbone.encoder.layers, "image": model.vision_model.blocks}


def shortened(model: JinaCLIPModel, text_layers: int | None = None, image_layers: int | None = None) -> JinaCLIPModel:
    """The model of the first layers of each tower: a copy, smaller and faster, with a configuration that says so.

    The weights are copied, those of the layers left out are not, so neither model changes with the other. Type, device
    and mode of the weights stay, as does the processor. It is saved and loaded like any other model.

    Args:
        model: the whole model; it is left as it is.
        text_layers: how many layers of the text tower to keep, from 1 to all; by default all.
        image_layers: the same for the image tower.

    Raises:
        TypeError: not a ``JinaCLIPModel``, or not a whole number.
        ValueError: neither number is given, the tower has not as many layers, or ``device_map`` left weights on disk.

    Example::

        >>> from modeling_jina_clip import JinaCLIPConfig, JinaCLIPTextConfig, JinaCLIPVisionConfig
        >>> text = JinaCLIPTextConfig(embed_dim=16, vocab_size=50, hidden_size=16, num_attention_heads=2,
        ...                           num_hidden_layers=4, intermediate_size=32)
        >>> vision = JinaCLIPVisionConfig(embed_dim=16, width=16, head_width=8, layers=4, image_size=32, patch_size=8)
        >>> short = shortened(JinaCLIPModel(JinaCLIPConfig(text_config=text, vision_config=vision)), image_layers=2)
        >>> short.config.text_config.num_hidden_layers, short.config.vision_config.layers
        (4, 2)
    """
    layers = tower_layers(model)
    if text_layers is None and image_layers is None:
        depths = " and ".join(f"{len(layers[tower])} {tower} layers" for tower in layers)
        raise ValueError(f"text_layers and image_layers are both None: give how many of {depths} to keep")
    kept = {
        "text": _checked("text_layers", text_layers, len(layers["text"])),
        "image": _checked("image_layers", image_layers, len(layers["image"])),
    }
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("layers can be taken only where the weights are in memory; load without device_map")
    # A copy finds what is listed here copied already: of a layer that is left out, an empty place.
    left_out = {id(layer): nn.Identity() for tower in layers for layer in layers[tower][kept[tower] :]}
    short = copy.deepcopy(model, left_out)
    for tower, stack in tower_layers(short).items():
        del stack[kept[tower] :]
    _set_depths(short)
    return short


def _checked(name: str, number: int | None, depth: int, more: str = "", most: int | None = None) -> int:
    """The number, or ``depth`` for None. ``most`` is the largest that is allowed; ``more`` says why it is not all."""
    most = depth if most is None else most
    if number is None:
        return depth
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}={number!r} must be a whole number from 1 to {most}, or None")
    if not 1 <= number <= most:
        reason = f"this tower has {depth} layers{more and ', and '}{more}"
        raise ValueError(f"{name}={number}, but {reason}; give a number from 1 to {most}")
    return number


def _set_depths(model: JinaCLIPModel) -> None:
    """Write the number of layers into the configurations of the model and of its towers."""
    for config in (model.config.text_config, model.text_model.config):
        config.num_hidden_layers = len(model.text_model.backbone.encoder.layers)
    for config in (model.config.vision_config, model.vision_model.config):
        config.layers = len(model.vision_model.blocks)


@contextmanager
def with_earlier_layers(
    model: JinaCLIPModel, text_layer: int | None = None, image_layer: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Inside, each forward pass of ``model`` also leaves the vectors of an earlier layer of the towers that it runs.

    They are unit vectors (rows, dim) like the model's own, with a graph where it has one, and equal those of
    ``shortened(model, text_layer, image_layer)``. The layer's states are taken between two layers, so gradient
    checkpointing, adapters inside the layers and wrappers around the model do not matter.

    Args:
        model: the model itself, without wrappers; one thread at a time.
        text_layer: from 1 to the layer before the last; None for a tower without.
        image_layer: the same.

    Yields:
        the vectors of the latest pass by tower, ``text`` and ``image``.

    Raises:
        TypeError: not a ``JinaCLIPModel``, or not a whole number.
        ValueError: the last layer or none that there is, or the model is inside another such block.

    Example::

        with with_earlier_layers(model, image_layer=8) as earlier:
            whole = model(pixel_values=pixels).image_embeds
        shorter = earlier["image"]
    """
    layers, found = tower_layers(model), dict[str, Tensor]()
    wanted = {"text": text_layer, "image": image_layer}
    if any(isinstance(layer, _Tap) for stack in layers.values() for layer in stack):
        raise ValueError("the model is inside with_earlier_layers already; ask for both towers in one block")
    for tower, number in wanted.items():
        _checked(f"{tower}_layer", number, len(layers[tower]), "the last one is no earlier one", len(layers[tower]) - 1)
    taps = {tower: number for tower, number in wanted.items() if number is not None}
    try:
        for tower, number in taps.items():
            layers[tower].insert(number, _Tap(tower, partial(_ENDS[tower], model), found))
        yield found
    finally:
        for tower in taps:
            _remove_tap(layers[tower])


class _Tap(nn.Module):
    """Stands between two layers: hands on the states, and keeps the vectors that the tower's end makes of them."""

    def __init__(self, tower: str, end: Callable[[Tensor, Any], Tensor], found: dict[str, Tensor]) -> None:
        super().__init__()
        self.tower, self.end, self.found = tower, end, found

    def forward(self, states: Tensor, place: Any, **kwargs: Any) -> Tensor:
        self.found[self.tower] = self.end(states, place)
        return states


def _remove_tap(stack: nn.ModuleList) -> None:
    for position, layer in enumerate(stack):
        if isinstance(layer, _Tap):
            del stack[position]
            return


def _text_end(model: JinaCLIPModel, states: Tensor, positions: TextPositions) -> Tensor:
    pooled = mean_pool(positions.pad(states), positions.padding)
    return F.normalize(model.text_projection(model.text_model.proj(pooled)), dim=-1)


def _image_end(model: JinaCLIPModel, states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    tower = model.vision_model
    return F.normalize(model.visual_projection(tower.head(tower.norm(states[:, 0]))), dim=-1)


_ENDS: dict[str, Callable[[JinaCLIPModel, Tensor, Any], Tensor]] = {"text": _text_end, "image": _image_end}
