"""The keys of stages, with the parts of the model that they train, and the sections for a whole run.

A model has five parts. A tower's name also stands for its projection::

    text, vision                            the towers
    text_projection, vision_projection      their last linear layers, where the model has them
    temperature                             of the image-text loss

What keys must be to each other is in ``checks`` and ``start_checks``.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trainer_ext.recipe.schema import (
    MAX_IMAGE_SIZE,
    MAX_STEPS,
    SIDES,
    CropScale,
    ImagesSide,
    Name,
    Side,
    SideName,
    Strict,
)

Part = Literal["text", "vision", "text_projection", "vision_projection", "temperature"]
Tower = Literal["text", "vision"]
Decay = Annotated[float, Field(gt=0.0, le=1.0)]

PARTS: tuple[Part, ...] = get_args(Part)
# What only images can train, and only texts; the temperature needs both.
VISION_PARTS: frozenset[Part] = frozenset({"vision", "vision_projection"})
TEXT_PARTS: frozenset[Part] = frozenset({"text", "text_projection"})
_REACHED: dict[SideName, frozenset[Part]] = {
    "image_text": frozenset(PARTS),
    "text": TEXT_PARTS,
    "images": VISION_PARTS,
}

Schedule = Literal["cosine", "linear", "constant"]


class LayerDecay(Strict):
    """Layer-wise learning-rate decay of each tower: layer i of n has ``rate * decay ** (n + 1 - i)``.

    Embeddings are layer 0, the last norm and the projection layer n + 1, as in BEiT (arXiv 2106.08254, appendix;
    ``get_num_layer_for_vit`` of its ``optim_factory.py``) and in EVA-CLIP, which has one decay for each tower too.
    """

    text: Decay = 1.0
    vision: Decay = 1.0


Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class ColorJitter(Strict):
    """With this ``probability`` a picture's colours change, each by a factor or a turn drawn up to its strength.

    The strengths are BYOL's (arXiv 2006.07733, appendix B). ``hue`` is a share of the circle of colours.
    """

    probability: Probability = 0.8
    brightness: Annotated[float, Field(ge=0.0)] = 0.4
    contrast: Annotated[float, Field(ge=0.0)] = 0.4
    saturation: Annotated[float, Field(ge=0.0)] = 0.2
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1


class Augmentation(Strict):
    """Random changes of pictures and texts, drawn anew for each row in each epoch; ``data.augmentation`` has the steps.

    Numbers are probabilities: of a picture, ``word_deletion`` of each word; ``word_swap`` is swaps per word of a text.

    >>> Augmentation(word_swap=0.1).changes_texts(), Augmentation(word_swap=0.1).changes_pictures()
    (True, False)
    """

    horizontal_flip: Probability = 0.0
    color_jitter: ColorJitter | None = None
    grayscale: Probability = 0.0
    gaussian_blur: Probability = 0.0
    word_deletion: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    word_swap: Probability = 0.0

    def changes_pictures(self) -> bool:
        """Whether some picture may change."""
        jitter = self.color_jitter is not None and self.color_jitter.probability > 0
        return jitter or max(self.horizontal_flip, self.grayscale, self.gaussian_blur) > 0

    def changes_texts(self) -> bool:
        """Whether some text may change."""
        return max(self.word_deletion, self.word_swap) > 0

    def tells_views_apart(self) -> bool:
        """Whether a picture that is changed twice may come out differently: a flip of every picture makes none.

        >>> Augmentation(horizontal_flip=1.0).tells_views_apart(), Augmentation(grayscale=0.2).tells_views_apart()
        (False, True)
        """
        jitter = self.color_jitter is not None and self.color_jitter.probability > 0
        return (
            jitter or self.gaussian_blur > 0 or any(0 < share < 1 for share in (self.horizontal_flip, self.grayscale))
        )


class Stage(Strict):
    """One training stage: everything that may change at a boundary.

    ``warmup_steps`` below 1 is a share of the steps, as in TrainingArguments; what is kept is their number.

    >>> Stage(name="short", steps=50, learning_rate=1e-3, warmup_steps=0.1, max_length=77).warmup_steps
    5
    """

    name: Name
    steps: Annotated[PositiveInt, Field(le=MAX_STEPS)]
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "cosine"
    max_length: Annotated[int, Field(ge=3)]  # two special tokens and one of the text; with fewer nothing would be cut
    image_size: Annotated[PositiveInt, Field(le=MAX_IMAGE_SIZE)] | None = None
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    random_resized_crop: CropScale | None = None
    augmentation: Augmentation | None = None
    trainable: Annotated[list[Part], Field(min_length=1)] | None = None
    learning_rates: dict[Part, PositiveFloat] = {}
    layer_decay: Decay | LayerDecay = 1.0
    reset_optimizer: bool = False
    image_text: Side | None = None
    text: Side | None = None
    images: ImagesSide | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_warmup(cls, values: Any) -> Any:
        if isinstance(values, dict):
            share, steps = values.get("warmup_steps"), values.get("steps")
            if isinstance(share, float) and 0 <= share < 1 and isinstance(steps, int):
                return {**values, "warmup_steps": int(share * steps)}
        return values

    def sides(self) -> Iterator[tuple[SideName, Side]]:
        """The parts of this stage's joint step that are switched on, image-text first."""
        for side_name in SIDES:
            side = getattr(self, side_name)
            if side is not None:
                yield side_name, side

    def has_pictures(self) -> bool:
        """Whether some side reads pictures."""
        return self.image_text is not None or self.images is not None

    def tells_views_apart(self) -> bool:
        """Whether a picture that is shown twice in a step may look different."""
        cropped = self.random_resized_crop is not None and self.random_resized_crop[0] < 1
        return cropped or (self.augmentation is not None and self.augmentation.tells_views_apart())


# --- sections for a whole run -------------------------------------------------------------------------------------
AttentionName = Literal["eager", "sdpa"]


class InitializeSpec(Strict):
    """Checkpoints that replace the towers of ``model``: safetensors files, or folders of them, under any public names.

    ``text``: JinaBERT, with or without the head of a masked language model, or a Jina-XLM-RoBERTa; ``vision``: EVA02
    of timm, open_clip or EVA-CLIP.
    """

    text: str | None = None
    vision: str | None = None


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


def part_names(part: Part) -> frozenset[Part]:
    """The part and what belongs to it.

    >>> sorted(part_names("text")), sorted(part_names("temperature"))
    (['text', 'text_projection'], ['temperature'])
    """
    return frozenset({part, cast(Part, f"{part}_projection")}) if part in get_args(Tower) else frozenset({part})


def reached_parts(sides: Iterable[SideName]) -> frozenset[Part]:
    """The parts that the losses of these sides depend on.

    >>> sorted(reached_parts(["text"]))
    ['text', 'text_projection']
    """
    return frozenset().union(*(_REACHED[side] for side in sides))


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


class TeacherSpec(Strict):
    """A finished model that the trained one should agree with; it is read from a folder and never changed.

    It is a Jina CLIP, or for texts any model of sentence-transformers.

    ``kind``: "scores" compares how the two rank a batch's candidates, "vectors" the vectors themselves, "margins" by
    how much right answers beat their hard negatives. Margins may be a column of the sources, in place of the model's
    own; they are divided by ``scale``. ``weight`` is the term's beside the loss of each of ``sides``.

    >>> TeacherSpec(kind="margins", sides=["text"]).margin_sides()
    frozenset({'text'})
    """

    model: str | None = None
    kind: Literal["scores", "vectors", "margins"]
    weight: PositiveFloat = 1.0
    scale: PositiveFloat = 1.0
    sides: Annotated[list[SideName], Field(min_length=1)] = ["image_text", "text"]

    def margin_sides(self) -> frozenset[SideName]:
        """The sides whose margins are compared, which therefore read hard negatives with any loss."""
        return frozenset(self.sides if self.kind == "margins" else ())

    def compares(self, side_name: SideName) -> bool:
        """Whether the batch's pairs of a side are compared: their scores, or their vectors."""
        return side_name in self.sides and self.kind != "margins"


ImageDecoding = Literal["exact", "fast"]


class ImageCacheSpec(Strict):
    """A folder in which training keeps pictures at the model's size, of at most so many gigabytes (10**9 bytes).

    >>> ImageCacheSpec(folder="/scratch/pictures", max_gigabytes=20).folder
    '/scratch/pictures'
    """

    folder: Annotated[str, Field(min_length=1)]
    max_gigabytes: PositiveFloat


class TokenizerSpec(Strict):
    """Train a WordPiece tokenizer on the texts of the recipe's own training sources."""

    vocab_size: PositiveInt
