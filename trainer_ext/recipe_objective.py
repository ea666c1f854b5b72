"""The schema of a recipe's objectives: which loss a side has, its options, and what does not go together.

docs/losses.md explains every option with its equation.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError

from trainer_ext.recipe_errors import Problem
from trainer_ext.recipe_sources import Strict, Task

LossName = Literal["info_nce", "info_nce_plus", "siglip", "cosent"]
SideName = Literal["image_text", "text"]
Reduction = Literal["sum", "mean"]
Directions = Literal["both", "forward", "backward"]
Temperature = float | Literal["trained"]

# Which task a side and its loss need; a pair that is not here does not exist.
SIDE_TASK: dict[tuple[SideName, LossName], Task] = {
    ("image_text", "info_nce"): "image-text",
    ("image_text", "siglip"): "image-text",
    ("text", "info_nce"): "text-pair",
    ("text", "info_nce_plus"): "triplet",
    ("text", "cosent"): "scored-pair",
}
_NOT_HERE = {
    ("image_text", "info_nce_plus"): "needs triplets of texts",
    ("image_text", "cosent"): "needs scored pairs of texts",
    ("text", "siglip"): "is for images and captions and has no place for hard negatives",
}


class Matryoshka(Strict):
    """Every loss is the sum over these prefixes of the embeddings, renormalised, each weighted (1 by default).

    The embedding's full width must be one of them.

    >>> Matryoshka(dims=[64, 32]).weights is None
    True
    """

    dims: Annotated[list[PositiveInt], Field(min_length=1)]
    weights: list[PositiveFloat] | None = None


def _temperature(value: Any) -> Temperature | None:
    """One message for both kinds; pydantic would have one for each."""
    if value is None or value == "trained":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise PydanticCustomError("temperature", "must be a number above 0 or 'trained'")


class SideLoss(Strict):
    """The objective of one half of a joint step.

    ``temperature`` is a fixed number or "trained". Without it the loss of images is trained, that of texts has the
    run's ``text_temperature``. ``matryoshka`` comes before the recipe's own. ``weight`` is the loss's in the sum.
    """

    loss: LossName = "info_nce"
    weight: PositiveFloat = 1.0
    temperature: Annotated[Temperature | None, PlainValidator(_temperature)] = None
    reduction: Reduction = "sum"
    directions: Directions = "both"
    matryoshka: Matryoshka | None = None


def trains_temperature(side_name: SideName, side: SideLoss) -> bool:
    """Whether the side's temperature is a parameter.

    >>> trains_temperature("image_text", SideLoss()), trains_temperature("text", SideLoss(temperature=0.02))
    (True, False)
    """
    return side.temperature == "trained" or (side.temperature is None and side_name == "image_text")


def loss_problems(place: str, side_name: SideName, side: SideLoss) -> Iterator[Problem]:
    """Options of a side that do not go together, each with its value and the cure."""
    if (side_name, side.loss) not in SIDE_TASK:
        names = " or ".join(repr(loss) for name, loss in SIDE_TASK if name == side_name)
        yield f"{place}.loss", f"{side.loss!r} {_NOT_HERE[side_name, side.loss]}; the {side_name} side takes {names}."
        return
    if side.loss in ("siglip", "cosent"):
        for option, default in (("reduction", "sum"), ("directions", "both")):
            value = getattr(side, option)
            if value != default:
                words = f"is {value!r}, but {side.loss} compares pairs and has no directions. Take it out."
                yield f"{place}.{option}", words
    if side.loss == "info_nce_plus" and side.directions == "backward":
        words = "is 'backward', which leaves all hard negatives out. Use 'both' or 'forward'."
        yield f"{place}.directions", words
    if side.loss == "cosent" and side.temperature == "trained":
        words = "is 'trained', but cosent only counts the order of pairs: it would fall without end. Give a number."
        yield f"{place}.temperature", words
    if side.matryoshka is not None:
        yield from matryoshka_problems(f"{place}.matryoshka", side.matryoshka)


def matryoshka_problems(place: str, matryoshka: Matryoshka) -> Iterator[Problem]:
    """Dimensions twice, or not as many weights as dimensions."""
    dims, weights = matryoshka.dims, matryoshka.weights
    if len(set(dims)) < len(dims):
        yield f"{place}.dims", f"{dims} holds a dimension twice. Raise its weight instead."
    if weights is not None and len(weights) != len(dims):
        yield f"{place}.weights", f"has {len(weights)} weights for {len(dims)} dims. Give one for each of {dims}."


def left_out_problems(place: str, matryoshka: Matryoshka, width: int) -> Iterator[Problem]:
    """Dimensions too many, or the whole embedding not among them."""
    dims = matryoshka.dims
    yield from width_problems(f"{place}.dims", dims, width)
    if max(dims) < width:
        words = (
            f"{dims} leaves out the embedding's dimensions from {max(dims)} on: nothing would train them. Add {width}."
        )
        yield f"{place}.dims", words


def embedding_width(model: Path) -> int | None:
    """The embedding's width that a preset or a checkpoint folder states; None where its configuration does not."""
    file = model / "config.json" if model.is_dir() else model
    content = json.loads(file.read_text(encoding="utf-8"))
    return content.get("projection_dim") or content.get("text_config", {}).get("embed_dim")


def width_problems(place: str, dims: list[int], width: int) -> Iterator[Problem]:
    """Dimensions that an embedding of this width does not have."""
    if wide := [dim for dim in dims if dim > width]:
        yield place, f"{wide} are larger than the model's embedding of {width}. Use dims of at most {width}."
