"""What ``matryoshka.layers`` must be: to the towers' depths, and to what the stages train."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.schema import Matryoshka
from trainer_ext.recipe.stages import LoraSpec, Stage, Tower, reached_parts, trained_parts

PLACE = "matryoshka.layers"
_PARTS: dict[str, Tower] = {"text": "text", "image": "vision"}


def layer_problems(matryoshka: Matryoshka, stages: Sequence[Stage], lora: LoraSpec | None) -> Iterator[Problem]:
    """Layers out of order, of a tower that no stage runs or trains, and those of no tower."""
    by_tower = matryoshka.layers_by_tower()
    if matryoshka.layers is not None and not by_tower:
        yield PLACE, "names no tower: give it text, image, or both, or take it out."
    reached = reached_parts(name for stage in stages for name, _ in stage.sides())
    for tower, other, what in (("image", "text", "images"), ("text", "image", "texts")):
        if tower in by_tower and _PARTS[tower] not in reached:
            yield _place(matryoshka, tower), f"no stage has {what}, so nothing would train them. Name {other} alone."
            del by_tower[tower]
    for tower, layers in by_tower.items():
        if any(left >= right for left, right in pairwise(layers)):
            yield _place(matryoshka, tower), f"{layers} must rise, each layer once: {sorted(set(layers))}."
        if not any(_PARTS[tower] in trained_parts(stage.trainable, lora) for stage in stages):
            words = f"no stage trains the {tower} tower, so its earlier layers would learn nothing. Leave it out."
            yield _place(matryoshka, tower), words


def compiled_layer_problems(matryoshka: Matryoshka | None, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Towers that are compiled: each earlier layer is a program of its own, and torch soon gives up compiling more."""
    compiled = [name for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode") if training.get(name)]
    if compiled and matryoshka is not None and matryoshka.layers is not None:
        yield compiled[0], "compiles the towers anew for each earlier layer that is drawn. Take it or the layers out."


def side_layer_problems(stages: Sequence[Stage]) -> Iterator[Problem]:
    """Layers in a side: a tower is run once, and its earlier layer is drawn once, for both sides."""
    for position, stage in enumerate(stages):
        for name, side in stage.sides():
            if side.matryoshka is not None and side.matryoshka.layers is not None:
                words = "is for the whole run, as both sides have the text tower. Move it to the recipe's matryoshka."
                yield f"stages.{position}.{name}.{PLACE}", words


def depth_problems(matryoshka: Matryoshka | None, depths: Mapping[str, int]) -> Iterator[Problem]:
    """Lists that do not end at the tower's last layer."""
    for tower, layers in matryoshka.layers_by_tower().items() if matryoshka is not None else ():
        depth = depths.get(tower)
        if depth is None or layers[-1] == depth:
            continue
        words = f"{layers} must end at the last layer of the {tower} tower, which has {depth}"
        earlier = [layer for layer in layers if layer < depth]
        cure = f"give {[*earlier, depth]}" if earlier else "leave this tower out"
        yield _place(matryoshka, tower), f"{words}: {cure}."


def tower_depths(config: Mapping[str, Any]) -> dict[str, int]:
    """The number of layers of each tower that a model's configuration states.

    >>> tower_depths({"text_config": {"num_hidden_layers": 2}, "vision_config": {}})
    {'text': 2}
    """
    parts = {name: config.get(name) for name in ("text_config", "vision_config")}
    text, vision = (part if isinstance(part, dict) else {} for part in parts.values())
    published = text.get("hf_model_config_kwargs")
    inside = published if isinstance(published, dict) else {}
    found = {
        "text": inside.get("num_hidden_layers", text.get("num_hidden_layers")),
        "image": vision.get("layers", vision.get("num_hidden_layers")),
    }
    return {tower: depth for tower, depth in found.items() if isinstance(depth, int)}


def _place(matryoshka: Matryoshka | None, tower: str) -> str:
    """Where the layers of a tower stand."""
    one_list = matryoshka is not None and isinstance(matryoshka.layers, list)
    return PLACE if one_list else f"{PLACE}.{tower}"
