"""The schema of a training run: a YAML recipe becomes a validated ``Recipe``.

``configuration/`` holds the values, this file says which values are allowed. Unknown keys are refused with the
nearest valid name, before any data is read or any model is built.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Task = Literal["image-text", "text-pair", "triplet"]
LossName = Literal["info_nce", "info_nce_plus"]
Schedule = Literal["cosine", "linear", "constant"]


class _Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """One list of training rows, as an item of ``configuration/sources/*.yaml``.

    ``columns`` maps our names (image, caption, query, positive, negatives) to the data's own column names.
    ``weight`` is the factor f in P(source) = rows * f / sum (PAPER: data, "rows x factor").
    """

    name: str
    task: Task
    location: str
    format: Literal["parquet", "arrow", "json", "csv", "imagefolder", "embedded"]
    columns: dict[str, str]
    split: str = "train"
    weight: PositiveFloat = 1.0


class Side(_Strict):
    """One half of a joint step: which sources feed it, how many rows a step takes, and its loss."""

    sources: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt
    loss: LossName = "info_nce"
    weight: PositiveFloat = 1.0


class Stage(_Strict):
    """One training stage: everything that may change at a boundary."""

    name: str
    steps: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "cosine"
    max_length: PositiveInt
    image_size: PositiveInt | None = None
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    image_text: Side | None = None
    text: Side | None = None


class TokenizerSpec(_Strict):
    """Train a WordPiece tokenizer on the texts of the recipe's own training sources."""

    vocab_size: PositiveInt


class Recipe(_Strict):
    """One training run. ``training`` holds the recipe's top-level keys that are TrainingArguments fields."""

    name: str
    model: str
    tokenizer: TokenizerSpec | str | None = None
    sources: list[Source]
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluation: str | None = None
    seed: int = 42
    training: dict[str, Any] = Field(default_factory=dict)
