"""The keys of sources and losses, each with its type; ``stages`` has those of stages, ``recipe`` the ``Recipe`` itself.

1. ``Source``: where rows come from, which columns they have, and how they are read.
2. ``LossRule``, ``SideLoss``, ``Side``: the loss of half a joint step. docs/losses.md has each option's equation.

What keys must be to each other is in ``checks``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
)
from pydantic_core import PydanticCustomError


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w([\w .,+@()&'-]{0,98}[\w)'+])?", name):
        words = "cannot name a file, as it must: begin with a letter or digit, then letters, digits, spaces, .,+-_@&()'"
        raise PydanticCustomError("name", "{words}", {"words": words})
    return name


# Of a stage or a source: it becomes the name of a folder or file of the run, so it must not lead out of it.
Name = Annotated[str, AfterValidator(_file_name)]


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- sources ------------------------------------------------------------------------------------------------------
SourceTask = Literal["image-text", "text-pair", "triplet", "scored-pair", "text", "image-pair"]
Format = Literal["parquet", "arrow", "json", "csv", "imagefolder", "webdataset", "hub", "embedded"]

# Our column names per task: (required, optional). ``id`` marks rows that show the same thing (duplicates), and is the
# only one that may share its column with another.
TASK_COLUMNS: dict[SourceTask, tuple[frozenset[str], frozenset[str]]] = {
    "image-text": (frozenset({"image", "caption"}), frozenset({"id", "negatives", "margins"})),
    "text-pair": (frozenset({"query", "positive"}), frozenset({"id"})),
    "triplet": (frozenset({"query", "positive", "negatives"}), frozenset({"id", "margins"})),
    "scored-pair": (frozenset({"query", "positive", "score"}), frozenset()),
    "text": (frozenset({"text"}), frozenset({"id"})),
    # Two pictures of one ``id``; without ids, one picture twice, changed in two ways.
    "image-pair": (frozenset({"image"}), frozenset({"id"})),
}
# Columns that may have a prompt. Negatives get that of the right answers: a prompt must not tell them apart.
PROMPTED = ("caption", "query", "positive", "text")
RIGHT_ANSWERS = ("caption", "positive")
# Rows that a streaming source holds in memory to shuffle them, where the recipe does not say.
SHUFFLE_BUFFER = 10_000


def _in_order(scale: list[float]) -> list[float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{scale} is not a range of areas: expected two shares such as [0.9, 1.0]")
    return scale


def _colour(value: Any) -> Any:
    whole = isinstance(value, list | tuple) and all(type(part) is int and 0 <= part <= 255 for part in value)
    if value is None or value == "white" or (whole and len(value) == 3):
        return value
    raise PydanticCustomError("background", "must be 'white' or [red, green, blue], whole numbers from 0 to 255")


# What shows through transparent pictures.
Background = Annotated[Literal["white"] | list[int] | None, PlainValidator(_colour)]

# Smallest and largest share of a picture's area that a random crop keeps, as open_clip's ``scale``.
MAX_STEPS = 10**8  # of a stage: the plan keeps some numbers for each
MAX_IMAGE_SIZE = 8192  # beyond it one batch would be terabytes
MAX_CAPTIONS = 100  # of a picture in a step: each is a text to embed
CropScale = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


class Balance(Strict):
    """How often a row is trained on where few values of a column have most of the rows (MetaCLIP, arXiv 2309.16671).

    ``key`` is a column of the data, with one value or a list of them for each row; ``limit`` is how many rows a value
    keeps in an epoch, on average. A row with values v has the probability 1 - prod(1 - min(1, limit / count(v))).
    """

    key: Annotated[str, Field(min_length=1)]
    limit: PositiveInt


class Source(Strict):
    """One list of training rows, as an item of ``configuration/sources/*.yaml``.

    ``columns`` maps our names (image, caption, negatives, margins, id | query, positive, negatives, margins | query,
    positive, score | text | image, id) to the data's own column names; a dot leads into a nested one
    (``caption: json.text``).
    ``location`` is a file, a glob pattern or a folder; for "hub" a data set's name such as ``owner/photos``, read at
    the commit ``revision`` and configuration ``config``; for "embedded" a table such as ``openmoji/short_captions``.
    ``image_folder`` is where relative paths of pictures start, if that is not the folder of the files that name them.
    ``weight`` is the factor f in P(source) = rows * f / sum (arXiv 2405.20204, training data).
    ``streaming`` reads rows one after the other, without a copy on disk and without knowing how many there are;
    ``shuffle_buffer`` rows at a time are shuffled in memory.
    ``separator`` stands between the cells of a CSV file; without it the header tells which one it is.
    ``prompts`` are put before the texts of a column.
    ``background`` is the colour, "white" or [red, green, blue], on which transparent pictures lie; without it, that of
    the model's image processor.
    ``max_broken_rows`` may be left out, each with its reason in the run's ``broken_rows.jsonl``; one more ends the run.
    ``holdout`` keeps this share of the rows from training, to measure on them.
    ``balance`` leaves rows out of an epoch, others in the next one, of values of a column that many rows share.
    ``repeat_words`` is for texts without pairs: this share of a text's words at most stands twice in its second view.
    """

    name: Name
    task: SourceTask
    location: str
    format: Format
    columns: dict[str, str]
    split: str = "train"
    image_folder: str | None = None
    weight: PositiveFloat = 1.0
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt | None = None
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    prompts: dict[str, str] = Field(default_factory=dict)
    background: Background = None
    max_broken_rows: Annotated[int, Field(ge=0)] = 0
    holdout: Annotated[float, Field(gt=0.0, le=0.5)] | None = None
    balance: Balance | None = None
    repeat_words: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    def pairs_by_id(self) -> bool:
        """Whether two rows of one id make a pair, so that a batch counts ids and not rows."""
        return self.task == "image-pair" and "id" in self.columns


# --- losses -------------------------------------------------------------------------------------------------------
SideName = Literal["image_text", "text", "images"]
Reduction = Literal["sum", "mean"]
Directions = Literal["both", "forward", "backward"]
Temperature = float | Literal["trained"]
FalseNegatives = Literal["mask", "positive", "keep"]

# Keys of a side about its captions, which pictures alone have.
CAPTION_KEYS = ("captions_per_image", "split_captions", "short_caption")
# Terms beside a side's loss, for pairs that are all true; their functions are in ``losses.joint``.
TERMS = ("alignment", "uniformity", "cross_uniformity")
# The plan's random numbers count sides by their place here: new ones go to the end.
SIDES: tuple[SideName, ...] = ("image_text", "text", "images")
# Of the side ``images``, where a recipe gives none: SimCLR's and SLIP's.
IMAGES_TEMPERATURE = 0.1


@dataclass(frozen=True)
class LossRule:
    """What a recipe may ask of a loss. Its function is in ``losses.joint``, so that recipes load without torch.

    ``words`` name it on a model card and in the run's record. ``tasks`` are the sides that it works for, each with the
    task of their sources; ``elsewhere`` says why it does not work for the other one. A loss without ``has_directions``
    has neither ``reduction`` nor ``directions``; only one with ``has_softmax`` has ``label_smoothing`` and
    ``hardness``. ``has_negatives``: it needs the column ``negatives`` of image-text
    sources, which is optional there; triplets have it anyway. ``refused`` are values of a side's options, each with the
    reason and the cure: ``{"temperature": {"trained": "but ... Give a number."}}``.
    """

    words: str
    tasks: Mapping[SideName, SourceTask]
    elsewhere: str = "does not work here"
    has_directions: bool = True
    has_softmax: bool = False
    has_negatives: bool = False
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def fits(self, side_name: SideName, task: SourceTask, margins: bool = False) -> bool:
        """Whether a source with this task can feed the side; texts without pairs become pairs of two views.

        ``margins``: a teacher reads the negatives of triplets, if the loss does not.
        """
        wanted = self.tasks.get(side_name)
        return task == wanted or (wanted == "text-pair" and (task == "text" or (margins and task == "triplet")))

    def takes_negatives(self, side_name: SideName) -> bool:
        """Whether the loss of this side gets hard negatives."""
        return self.has_negatives or self.tasks[side_name] == "triplet"


# The losses that a recipe may name. ``losses.joint.register`` adds those from elsewhere.
LOSS_RULES: dict[str, LossRule] = {
    "info_nce": LossRule("InfoNCE", {"image_text": "image-text", "text": "text-pair"}, has_softmax=True),
    "info_nce_plus": LossRule(
        "InfoNCE with hard negatives",
        {"image_text": "image-text", "text": "triplet"},
        has_softmax=True,
        has_negatives=True,
        refused={"directions": {"backward": "which leaves all hard negatives out. Use 'both' or 'forward'."}},
    ),
    "siglip": LossRule(
        "SigLIP",
        {"image_text": "image-text"},
        elsewhere="is for images and captions and has no place for hard negatives",
        has_directions=False,
    ),
    "cosent": LossRule(
        "CoSENT",
        {"text": "scored-pair"},
        elsewhere="needs scored pairs of texts",
        has_directions=False,
        refused={
            "temperature": {
                "trained": "but cosent only counts the order of pairs: it would fall without end. Give a number."
            }
        },
    ),
    "nt_xent": LossRule(
        "NT-Xent",
        {"images": "image-pair"},
        elsewhere="is for pictures against pictures",
        has_directions=False,
        has_softmax=True,
    ),
}


def _known_loss(value: Any) -> str:
    """Looked up at validation, not at import: losses may be registered in between."""
    if isinstance(value, str) and value in LOSS_RULES:
        return value
    *names, last = map(repr, LOSS_RULES)
    context = {"expected": f"{', '.join(names)} or {last}", "choices": list(LOSS_RULES)}
    raise PydanticCustomError("loss", "must be {expected}", context)


Layers = Annotated[list[PositiveInt], Field(min_length=2)]


class TowerLayers(Strict):
    """Layers whose vectors shall serve, in rising order, the last one at the end; a tower without keeps all of its."""

    text: Layers | None = None
    image: Layers | None = None


class Matryoshka(Strict):
    """Every loss is the sum over these prefixes of the embeddings, renormalised, each weighted (1 by default).

    The embedding's full width must be one of them. ``layers`` trains the vectors of earlier layers, too, one list for
    both towers or one for each.

    >>> Matryoshka(dims=[64, 32], layers=[4, 8, 12]).layers_by_tower()
    {'text': [4, 8, 12], 'image': [4, 8, 12]}
    """

    dims: Annotated[list[PositiveInt], Field(min_length=1)]
    weights: list[PositiveFloat] | None = None
    layers: Layers | TowerLayers | None = None

    def layers_by_tower(self) -> dict[str, list[int]]:
        """The layers of the towers that have some."""
        given = self.layers
        if given is None or isinstance(given, list):
            return {} if given is None else dict.fromkeys(TowerLayers.model_fields, given)
        return {tower: layers for tower, layers in given if layers is not None}


def _temperature(value: Any) -> Temperature | None:
    """One message for both kinds; pydantic would have one for each."""
    if value is None or value == "trained":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise PydanticCustomError("temperature", "must be a number above 0 or 'trained'")


class SideLoss(Strict):
    """The objective of one half of a joint step.

    ``temperature`` is a fixed number or "trained". Without it the loss of images and captions is trained, that of texts
    has the run's ``text_temperature``, that of pictures against pictures ``IMAGES_TEMPERATURE``. ``matryoshka`` comes
    before the recipe's own. ``weight`` is the side's in the sum.
    ``label_smoothing`` and ``hardness`` change the softmax; ``alignment``, ``uniformity`` and ``cross_uniformity`` are
    weights of terms that are added to the loss.
    """

    loss: Annotated[str, PlainValidator(_known_loss)] = "info_nce"
    weight: PositiveFloat = 1.0
    temperature: Annotated[Temperature | None, PlainValidator(_temperature)] = None
    reduction: Reduction = "sum"
    directions: Directions = "both"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    hardness: Annotated[float, Field(ge=0.0)] = 0.0
    alignment: Annotated[float, Field(ge=0.0)] = 0.0
    uniformity: Annotated[float, Field(ge=0.0)] = 0.0
    cross_uniformity: Annotated[float, Field(ge=0.0)] = 0.0
    matryoshka: Matryoshka | None = None


def trains_temperature(side_name: SideName, side: SideLoss) -> bool:
    """Whether the side's temperature is a parameter.

    >>> trains_temperature("image_text", SideLoss()), trains_temperature("text", SideLoss(temperature=0.02))
    (True, False)
    """
    return side.temperature == "trained" or (side.temperature is None and side_name == "image_text")


class ShortCaption(Strict):
    """A contrast beside a side's loss: the first sentence of a picture against its vector's main directions alone.

    ``principal_components`` are kept of the batch's picture vectors; ``weight`` is the term's in the sum.
    """

    principal_components: PositiveInt
    weight: PositiveFloat = 1.0


class Side(SideLoss):
    """One half of a joint step: which sources feed it, how many rows a step takes, and its loss.

    ``batch_size`` counts the rows of one optimiser step over all processes and all accumulated micro-batches, so that
    a recipe means the same run on one process and on eight.
    ``sources`` are names; a pattern such as ``pairs-*`` stands for all sources it matches. A step's rows come from one
    of them, drawn by P(source) = rows ** sampling_alpha * weight / sum: 1 is the paper's (arXiv 2405.20204), lower
    values help small sources (XLM-R's alpha, arXiv 1911.02116), and at 0 weights alone decide.
    ``split_captions`` puts the sentences of a picture's captions in their place; ``captions_per_image`` of them are
    drawn. ``short_caption`` adds a contrast with the first one's first sentence.
    """

    sources: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt
    sampling_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    captions_per_image: Annotated[int, Field(ge=1, le=MAX_CAPTIONS)] = 1
    split_captions: Literal["sentences"] | None = None
    short_caption: ShortCaption | None = None


class ImagesSide(Side):
    """The part of a joint step that sets pictures against pictures."""

    loss: Annotated[str, PlainValidator(_known_loss)] = "nt_xent"
