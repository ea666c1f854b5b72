"""Parameters by the part of the model they belong to, and how deep each one lies.

Works on the names of ``JinaCLIPModel``, with or without LoRA's layers. Which parts a stage trains: ``stages``.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

from torch import nn

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.recipe.stages import Part, Tower

_PARTS: tuple[tuple[str, Part], ...] = (
    ("text_model.proj.", "text_projection"),
    ("vision_model.head.", "vision_projection"),
    ("text_projection.", "text_projection"),
    ("visual_projection.", "vision_projection"),
    ("text_model.", "text"),
    ("vision_model.", "vision"),
    ("logit_scale", "temperature"),
)
_EMBEDDINGS = re.compile(r"\.(embeddings|emb_ln|cls_token|pos_embed|patch_embed)\b")
_LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")
# The modules that PEFT puts beside an adapted layer's own weight.
LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\.\w+(\.weight)?$")


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by its name.

    Raises:
        ValueError: the parameter belongs to none of the parts.

    >>> part_of("vision_model.head.weight"), part_of("vision_model.blocks.0.norm1.bias"), part_of("logit_scale")
    ('vision_projection', 'vision', 'temperature')
    """
    for prefix, part in _PARTS:
        if name.startswith(prefix):
            return part
    raise ValueError(
        f"parameter {name!r} belongs to no known part: expected {', '.join(prefix for prefix, _ in _PARTS)}"
    )


def tower_of(part: Part) -> Tower | None:
    """The tower of a part; the temperature has none."""
    return None if part == "temperature" else "text" if part.startswith("text") else "vision"


def tower_depths(names: Iterable[str]) -> dict[Tower, int]:
    """Number of transformer blocks of each tower that the parameters belong to."""
    depths: dict[Tower, int] = {}
    for name in names:
        tower, layer = tower_of(part_of(name)), _LAYER.search(name)
        if tower is not None and layer is not None:
            depths[tower] = max(depths.get(tower, 0), int(layer[1]) + 1)
    return depths


def layers_above(name: str, blocks: int) -> int:
    """How many layers lie between a parameter and its tower's output; the tower has embeddings and ``blocks`` blocks.

    >>> names = ["vision_model.pos_embed", "vision_model.blocks.0.norm1.bias", "vision_model.blocks.11.norm1.bias"]
    >>> [layers_above(name, blocks=12) for name in [*names, "vision_model.norm.bias"]]
    [13, 12, 1, 0]
    """
    layer = _LAYER.search(name)
    if layer is not None:
        return blocks - int(layer[1])
    return blocks + 1 if _EMBEDDINGS.search(name) else 0


def train_only(model: nn.Module, parts: Set[Part]) -> None:
    """Let gradients reach the parameters of ``parts`` alone; of a tower with LoRA, its adapters alone.

    Raises:
        ValueError: the model has nothing of a part that is to be trained by itself.
    """
    adapted = any(LORA.search(name) for name, _ in model.named_parameters())
    found: set[Part] = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad = part in parts and (not adapted or part == "temperature" or bool(LORA.search(name)))
        found |= {part} if parameter.requires_grad else set()
    for part in sorted(parts - found):
        tower = tower_of(part)
        if tower not in parts:
            raise ValueError(
                f"{part} cannot be trained: the model has no such parameters"
                + (f"; its {tower} tower ends without a projection" if tower != part else "")
            )


def unreached_parameters(model: JinaCLIPModel, inputs: Mapping[str, Mapping[str, Any]]) -> list[nn.Parameter]:
    """What the losses of a step cannot reach: the tower of texts, or of pictures, that it has none of.

    Args:
        inputs: the step's columns, each with the arguments of the model's forward.

    The trained temperature is not among them: every joint loss holds it, times zero at least.
    """
    read = {argument for column in inputs.values() for argument in column}
    modules = [] if "input_ids" in read else [model.text_model, model.text_projection]
    modules += [] if "pixel_values" in read else [model.vision_model, model.visual_projection]
    return [parameter for module in modules for parameter in module.parameters()]


def drop_gradients_except(model: nn.Module, parts: Set[Part]) -> None:
    """Take back the gradients of all parameters but those of ``parts``."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and part_of(name) not in parts:
            parameter.grad = None
