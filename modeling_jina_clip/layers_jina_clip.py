"""Fewer layers: the first ones of each tower as a model of its own. Part of the package only, not served.

The vector of an earlier layer is its hidden state through the tower's own end, as the last layer's is: mean pooling of
texts; of pictures the class token, the final norm and the head. 2D Matryoshka (arXiv 2402.14776) trains such vectors to
be used by themselves; docs/losses.md has the key for it. Without it they are poor.
"""

import copy

from torch import nn

from .modeling_jina_clip import JinaCLIPModel


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


def _checked(name: str, number: int | None, depth: int) -> int:
    """How many of ``depth`` layers to keep."""
    if number is None:
        return depth
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}={number!r} must be a whole number from 1 to {depth}, or None for all layers")
    if not 1 <= number <= depth:
        raise ValueError(f"{name}={number}, but this tower has {depth} layers; give a number from 1 to {depth}")
    return number


def _set_depths(model: JinaCLIPModel) -> None:
    """Write the number of layers into the configurations of the model and of its towers."""
    for config in (model.config.text_config, model.text_model.config):
        config.num_hidden_layers = len(model.text_model.backbone.encoder.layers)
    for config in (model.config.vision_config, model.vision_model.config):
        config.layers = len(model.vision_model.blocks)
