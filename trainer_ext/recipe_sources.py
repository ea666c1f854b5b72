"""The schema of a recipe's sources: where rows come from, which columns they have, and how they are read."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from trainer_ext.recipe_errors import Problem
from trainer_ext.resources import nearest

Task = Literal["image-text", "text-pair", "triplet", "scored-pair"]
Format = Literal["parquet", "arrow", "json", "csv", "imagefolder", "webdataset", "hub", "embedded"]

# Our column names per task: (required, optional). ``id`` marks rows that show the same thing (duplicates), and is the
# only one that may share its column with another.
TASK_COLUMNS: dict[Task, tuple[frozenset[str], frozenset[str]]] = {
    "image-text": (frozenset({"image", "caption"}), frozenset({"id"})),
    "text-pair": (frozenset({"query", "positive"}), frozenset({"id"})),
    "triplet": (frozenset({"query", "positive", "negatives"}), frozenset({"id"})),
    "scored-pair": (frozenset({"query", "positive", "score"}), frozenset()),
}
# Columns that may have a prompt. Negatives get the positives' one: a prompt must not tell them apart.
PROMPTED = ("caption", "query", "positive")
# Rows that a streaming source holds in memory to shuffle them, where the recipe does not say.
SHUFFLE_BUFFER = 10_000


def _in_order(scale: list[float]) -> list[float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{scale} is no range of areas: expected two shares such as [0.9, 1.0]")
    return scale


# Smallest and largest share of a picture's area that a random crop keeps, as open_clip's ``scale``.
CropScale = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Source(Strict):
    """One list of training rows, as an item of ``configuration/sources/*.yaml``.

    ``columns`` maps our names (image, caption, id | query, positive, negatives | query, positive, score) to the data's
    own column names; a dot leads into a nested one (``caption: json.text``).
    ``location`` is a file, a glob pattern or a folder; for "hub" a data set's name such as ``owner/photos``, read at
    the commit ``revision`` and configuration ``config``; for "embedded" a table such as ``openmoji/short_captions``.
    ``weight`` is the factor f in P(source) = rows * f / sum (arXiv 2405.20204, training data).
    ``streaming`` reads rows one after the other, without a copy on disk and without knowing how many there are;
    ``shuffle_buffer`` rows at a time are shuffled in memory.
    ``prompts`` are put before the texts of a column.
    ``max_broken_rows`` may be left out, each with its reason in the run's ``broken_rows.jsonl``; one more ends the run.
    """

    name: str
    task: Task
    location: str
    format: Format
    columns: dict[str, str]
    split: str = "train"
    weight: PositiveFloat = 1.0
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt | None = None
    prompts: dict[str, str] = Field(default_factory=dict)
    max_broken_rows: Annotated[int, Field(ge=0)] = 0


def source_problems(sources: Sequence[Source]) -> Iterator[Problem]:
    """What the types alone cannot say: names, columns, prompts and the keys that belong to one format only."""
    first: dict[str, int] = {}
    for position, source in enumerate(sources):
        place = f"sources.{position}"
        if source.name in first:
            yield f"{place}.name", f"{source.name!r} is taken by sources.{first[source.name]}. Give it another name."
        first.setdefault(source.name, position)
        for path, message in (*_column_problems(source), *_prompt_problems(source), *_format_problems(source)):
            yield f"{place}.{path}", message


def shares_problem(sources: Sequence[Source], names: Sequence[str], alpha: float) -> str | None:
    """Why the shares of a side's sources cannot be told: a streaming one among several, and sizes that should count."""
    streaming = [source.name for source in sources if source.streaming and source.name in names]
    if not streaming or len(names) == 1 or alpha == 0:
        return None
    return (
        f"must be 0, got {alpha}: nobody knows how many rows {', '.join(streaming)} has, because it is streaming."
        " Set it to 0 and give every source of this side its share by weight."
    )


def _column_problems(source: Source) -> Iterator[Problem]:
    required, optional = TASK_COLUMNS[source.task]
    for name in sorted(source.columns.keys() - required - optional):
        close = nearest(name, required | optional)
        hint = f" Did you mean {close!r}?" if close else ""
        names = ", ".join(sorted(required | optional))
        yield f"columns.{name}", f"task {source.task} has no such column.{hint} Its columns are {names}."
    # An id may well be the picture's path or a text: rows with the same one are then duplicates.
    theirs = [column for name, column in source.columns.items() if name != "id"]
    for name, column in source.columns.items():
        if name != "id" and theirs.count(column) > 1:
            yield f"columns.{name}", f"column {column!r} is mapped twice. Map another one."
    for name in sorted(required - source.columns.keys()):
        yield f"columns.{name}", f"is required by task {source.task}. Add it: {name}: THE DATA'S COLUMN NAME."


def _prompt_problems(source: Source) -> Iterator[Problem]:
    allowed = [name for name in PROMPTED if name in TASK_COLUMNS[source.task][0]]
    for name in source.prompts.keys() - set(allowed):
        more = " Negatives get the prompt of positive." if name == "negatives" else ""
        yield f"prompts.{name}", f"task {source.task} has prompts for {' and '.join(allowed)}.{more}"


def _format_problems(source: Source) -> Iterator[Problem]:
    if source.format == "hub":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source.location):
            yield "location", f"{source.location!r} is no data set of the Hub: expected owner/name."
        if source.revision is None or not re.fullmatch(r"[0-9a-f]{40}", source.revision):
            yield (
                "revision",
                f"{source.revision!r} does not pin the data. Give the commit, 40 hex digits: a branch or a tag can"
                " move, and the run could not be repeated or resumed.",
            )
    else:
        for name in ("config", "revision"):
            if getattr(source, name) is not None:
                yield name, f"is for format hub; {source.format} has no such thing. Take it out."
    if source.shuffle_buffer is not None and not source.streaming:
        yield "shuffle_buffer", "is for streaming sources; others are shuffled as a whole. Take it out."
