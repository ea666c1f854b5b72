"""The schema of fine-tuning: which parts of the model a stage trains, at which rates, and LoRA.

A model has five parts. A tower's name stands for its projection too::

    text, vision                            the towers
    text_projection, vision_projection      their last linear layers, where the model has them
    temperature                             of the image-text loss
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from trainer_ext.recipe_errors import Problem
from trainer_ext.recipe_sources import Strict

Part = Literal["text", "vision", "text_projection", "vision_projection", "temperature"]
Tower = Literal["text", "vision"]
Decay = Annotated[float, Field(gt=0.0, le=1.0)]

PARTS: tuple[Part, ...] = get_args(Part)
# What a step without images cannot move.
_OF_IMAGES: frozenset[Part] = frozenset({"vision", "vision_projection", "temperature"})
_OF_TEXTS: frozenset[Part] = frozenset({"text", "text_projection"})


class LayerDecay(Strict):
    """Layer-wise learning-rate decay of each tower: layer i of n has ``rate * decay ** (n + 1 - i)``.

    Embeddings are layer 0, the last norm and the projection layer n + 1, as in BEiT (arXiv 2106.08254, appendix;
    ``get_num_layer_for_vit`` of its ``optim_factory.py``) and in EVA-CLIP, which has one decay for each tower too.
    """

    text: Decay = 1.0
    vision: Decay = 1.0


class LoraSpec(Strict):
    """Low-rank updates in place of the towers' own weights (arXiv 2106.09685), through PEFT.

    ``r`` is the rank; the update is scaled by ``alpha / r``. ``target_modules`` are the last words of the names of
    linear layers; a tower without an entry has all linear layers of its transformer blocks.
    """

    towers: Annotated[list[Tower], Field(min_length=1)] = ["text", "vision"]
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: dict[Tower, Annotated[list[str], Field(min_length=1)]] = {}

    def problems(self) -> Iterator[Problem]:
        """A tower listed twice, or modules for a tower without adapters."""
        if len(set(self.towers)) < len(self.towers):
            yield "lora.towers", f"{self.towers} lists a tower twice. Name each once."
        for tower in self.target_modules.keys() - set(self.towers):
            yield f"lora.target_modules.{tower}", f"the {tower} tower has no adapters. Add it to lora.towers."


def part_names(part: Part) -> frozenset[Part]:
    """The part and what belongs to it.

    >>> sorted(part_names("text")), sorted(part_names("temperature"))
    (['text', 'text_projection'], ['temperature'])
    """
    return frozenset({part, f"{part}_projection"}) if part in get_args(Tower) else frozenset({part})


def trained_parts(trainable: Iterable[Part] | None, lora: LoraSpec | None) -> frozenset[Part]:
    """The parts that a stage trains; one that says nothing trains all, or with LoRA the adapters and the temperature.

    >>> sorted(trained_parts(None, LoraSpec(towers=["text"])))
    ['temperature', 'text']
    """
    if trainable is None:
        return frozenset(PARTS) if lora is None else frozenset({*lora.towers, "temperature"})
    return frozenset(name for part in trainable for name in part_names(part)) - _projections(lora)


def _projections(lora: LoraSpec | None) -> frozenset[Part]:
    """Projections are no part of an adapted tower: only its blocks have adapters."""
    return frozenset() if lora is None else frozenset({"text_projection", "vision_projection"})


def stage_problems(
    place: str,
    trainable: list[Part] | None,
    rates: Mapping[Part, float],
    sides: Iterable[str],
    lora: LoraSpec | None,
) -> Iterator[Problem]:
    """What cannot be trained as asked: a side whose parts are frozen, or a part that nothing reaches."""
    sides = set(sides)
    trained = trained_parts(trainable, lora)
    for part in trainable or []:
        if lora is not None and part not in {*lora.towers, "temperature"}:
            yield (
                f"{place}.trainable",
                (
                    f"{part!r} has no adapters, and with lora only adapters and the temperature are trained. Add it to "
                    "lora.towers if it is a tower, or leave it out."
                ),
            )
        if "image_text" not in sides and part in _OF_IMAGES:
            yield f"{place}.trainable", f"{part!r} learns nothing without images. Leave it out, or add image_text."
    if "text" in sides and not trained & _OF_TEXTS:
        yield f"{place}.text", "the text tower is frozen, so this side teaches nothing. Set text: null, or train it."
    for part in rates:
        if not part_names(part) & trained:
            yield f"{place}.learning_rates.{part}", "this part is not trained here. Leave its rate out."
