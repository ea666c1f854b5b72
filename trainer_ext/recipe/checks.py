"""What a recipe's keys must be to each other, and to the files they name: each check yields its problems.

1. sources: names, columns, prompts, keys of one format; the shares of a side's sources.
2. losses: the side, sources and options that each loss takes; Matryoshka's dimensions.
3. stages: sides, warm-up, and what is trained.
4. the start of a run: tower checkpoints, LoRA, a teacher; models between it and the end.

A check that needs the disk has its own function (``missing_towers``, ``teacher_width_problems``); the others need the
recipe alone.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_ext.recipe.picture_checks import augmentation_problems, view_problems
from trainer_ext.recipe.problems import Problem, RecipeError, nearest
from trainer_ext.recipe.schema import (
    CAPTION_KEYS,
    LOSS_RULES,
    PROMPTED,
    RIGHT_ANSWERS,
    TASK_COLUMNS,
    TERMS,
    Matryoshka,
    ShortCaption,
    Side,
    SideLoss,
    SideName,
    Source,
)
from trainer_ext.recipe.stages import (
    TEXT_PARTS,
    VISION_PARTS,
    LoraSpec,
    Part,
    Stage,
    TeacherSpec,
    part_names,
    reached_parts,
    trained_parts,
)


def source_problems(sources: Sequence[Source]) -> Iterator[Problem]:
    """What the types alone cannot say: names, columns, prompts and the keys that belong to one format only."""
    yield from name_problems("sources", [source.name for source in sources])
    for position, source in enumerate(sources):
        for path, message in (*_column_problems(source), *_prompt_problems(source), *_format_problems(source)):
            yield f"sources.{position}.{path}", message


def name_problems(place: str, names: Sequence[str]) -> Iterator[Problem]:
    """Items of one name in a list of them.

    >>> list(name_problems("tasks", ["shop", "words", "shop"]))
    [('tasks.2.name', "'shop' is taken by tasks.0. Give it another name.")]
    """
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if first.setdefault(name, position) != position:
            yield f"{place}.{position}.name", f"{name!r} is taken by {place}.{first[name]}. Give it another name."


def shares_problem(sources: Sequence[Source], names: Sequence[str], alpha: float) -> str | None:
    """Why a side's sources have no shares: they depend on sizes, and a streaming source has no known size."""
    streaming = [source.name for source in sources if source.streaming and source.name in names]
    if not streaming or len(names) == 1 or alpha == 0:
        return None
    return (
        f"must be 0, got {alpha}: the number of rows of {', '.join(streaming)} is not known, because it is streaming."
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
    if "margins" in source.columns and "negatives" in optional - source.columns.keys():
        yield "columns.margins", "is of hard negatives, and none are mapped. Map negatives, too, or take it out."
    for name in sorted(required - source.columns.keys()):
        yield f"columns.{name}", f"is required by task {source.task}. Add it: {name}: THE DATA'S COLUMN NAME."


def _prompt_problems(source: Source) -> Iterator[Problem]:
    allowed = [name for name in PROMPTED if name in TASK_COLUMNS[source.task][0]]
    if source.prompts and not allowed:
        yield "prompts", f"stand before texts; task {source.task} has none. Take them out."
        return
    for name in source.prompts.keys() - set(allowed):
        right = next((column for column in RIGHT_ANSWERS if column in allowed), "")
        more = f" Negatives get the prompt of {right}." if name == "negatives" else ""
        yield f"prompts.{name}", f"task {source.task} has prompts for {' and '.join(allowed)}.{more}"


def _format_problems(source: Source) -> Iterator[Problem]:
    if source.format == "hub":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source.location):
            yield "location", f"{source.location!r} is not a data set of the Hub: expected owner/name."
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
    pictures = "image" in TASK_COLUMNS[source.task][0]
    if source.background is not None and not pictures:
        yield "background", f"is for pictures; task {source.task} has none. Take it out."
    if source.image_folder is not None and (not pictures or source.format in ("hub", "embedded")):
        yield "image_folder", "is for paths of pictures in files of yours. Take it out."
    if source.separator is not None and source.format not in ("csv", "imagefolder", "hub"):
        yield "separator", f"is for format csv; {source.format} has no such thing. Take it out."
    if source.shuffle_buffer is not None and not source.streaming:
        yield "shuffle_buffer", "is for streaming sources; others are shuffled as a whole. Take it out."
    if source.balance is not None and source.pairs_by_id():
        yield "balance", "is of rows, but a step takes ids here, each as often as the others. Take it out."
    if source.streaming and source.pairs_by_id():
        words = "but pairs are made of rows of one id, and all ids have to be known. Take streaming out; or id, for two"
        yield "streaming", f"is on, {words} views of each picture."
    if source.holdout is not None and source.streaming:
        yield "holdout", "needs all rows at once, and a streaming source is not read before training. Take one out."
    if source.task == "text" and source.holdout is not None:
        yield "holdout", "is to measure on, and texts without pairs have no right answers. Take it out."
    if source.repeat_words is not None and source.task != "text":
        yield "repeat_words", f"is for texts without pairs; task {source.task} has pairs. Take it out."
    if source.balance is not None and source.streaming:
        words = "counts values in all rows, and a streaming source is not read before training. Take one out."
        yield "balance", words


def loss_problems(place: str, side_name: SideName, side: SideLoss) -> Iterator[Problem]:
    """Options of a side that do not go together, each with its value and the cure."""
    rule = LOSS_RULES[side.loss]
    if side_name not in rule.tasks:
        names = " or ".join(repr(name) for name, other in LOSS_RULES.items() if side_name in other.tasks)
        yield f"{place}.loss", f"{side.loss!r} {rule.elsewhere}; the {side_name} side takes {names}."
        return
    if side_name == "images" and side.temperature == "trained":
        yield f"{place}.temperature", "is 'trained', but the model's belongs to images and captions. Give a number."
    no_use = {
        "compares pairs and has no directions": () if rule.has_directions else ("reduction", "directions"),
        "has no softmax over candidates": () if rule.has_softmax else ("label_smoothing", "hardness"),
        "is for pairs that are not all true": TERMS if rule.tasks[side_name] == "scored-pair" else (),
    }
    for reason, options in no_use.items():
        for option in options:
            value = getattr(side, option)
            if value != SideLoss.model_fields[option].default:
                yield f"{place}.{option}", f"is {value!r}, but {side.loss} {reason}. Take it out."
    for option, values in rule.refused.items():
        value = getattr(side, option)
        if value in values:
            yield f"{place}.{option}", f"is {value!r}, {values[value]}"
    if side.matryoshka is not None:
        yield from matryoshka_problems(f"{place}.matryoshka", side.matryoshka)


def caption_problems(place: str, side_name: SideName, side: Side, margins: bool) -> Iterator[Problem]:
    """Several captions, or parts of them, where a side has none or its loss takes one."""
    for option in CAPTION_KEYS:
        value = getattr(side, option)
        if value == Side.model_fields[option].default:
            continue
        if side_name != "image_text":
            yield f"{place}.{option}", "is for the captions of pictures; this side has none. Take it out."
        elif margins or LOSS_RULES[side.loss].takes_negatives(side_name):
            who = "a teacher's margins contrast" if margins else f"{side.loss} contrasts"
            cure = "leave image_text out of teacher.sides" if margins else "use info_nce"
            words = f"and {who} whole captions with the row's negatives. Take it out, or {cure}."
            shown = value.model_dump() if isinstance(value, ShortCaption) else value
            yield f"{place}.{option}", f"is {shown!r}, {words}"


def component_problems(stages: Sequence[Stage], width: int, accumulated: int) -> Iterator[Problem]:
    """More principal components than vectors have numbers, or one of ``accumulated`` micro-batches has pictures."""
    for position, stage in enumerate(stages):
        side = stage.image_text
        if side is None or side.short_caption is None:
            continue
        asked = side.short_caption.principal_components
        rows = side.batch_size // accumulated
        if asked > min(width, rows):
            words = f"is {asked}, but vectors of {width} numbers of {rows} pictures have at most {min(width, rows)}."
            words += f" Use at most {min(width, rows)}."
            yield f"stages.{position}.image_text.short_caption.principal_components", words


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
    content, width = read_model_config(model), None
    for part in (content, content.get("text_config")):
        width = width or (part.get("projection_dim") or part.get("embed_dim") if isinstance(part, dict) else None)
    return width if isinstance(width, int) else None


def read_model_config(model: Path) -> dict[str, Any]:
    """The content of a preset or of a checkpoint folder's config.json, not checked further.

    Raises:
        RecipeError: it cannot be read, or is no JSON object.
    """
    file = model / "config.json" if model.is_dir() else model
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise RecipeError(f"model {file} cannot be read: {words}. It is cut or damaged: copy it again.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"model {file} is not a model's configuration: expected a JSON object. Copy it again.")
    return content


def width_problems(place: str, dims: list[int], width: int) -> Iterator[Problem]:
    """Dimensions that an embedding of this width does not have."""
    if wide := [dim for dim in dims if dim > width]:
        yield place, f"{wide} are larger than the model's embedding of {width}. Use dims of at most {width}."


def stage_problems(
    sources: Sequence[Source], stages: Sequence[Stage], teacher: TeacherSpec | None = None
) -> Iterator[Problem]:
    """Names given twice, a warm-up as long as its stage, no side at all; and what is wrong with each side."""
    yield from name_problems("stages", [stage.name for stage in stages])
    for position, stage in enumerate(stages):
        place = f"stages.{position}"
        if stage.warmup_steps >= stage.steps:
            yield f"{place}.warmup_steps", f"must be less than steps ({stage.steps}), got {stage.warmup_steps}."
        if not any(True for _ in stage.sides()):
            yield place, "trains nothing: give it image_text, text or images."
        yield from augmentation_problems(f"{place}.augmentation", stage)
        for side_name, side in stage.sides():
            margins = teacher is not None and side_name in teacher.margin_sides()
            yield from _side_problems(f"{place}.{side_name}", side_name, side, sources, margins)
        yield from view_problems(place, stage, sources)


def _side_problems(
    place: str, side_name: SideName, side: Side, sources: Sequence[Source], margins: bool
) -> Iterator[Problem]:
    tasks = {source.name: source.task for source in sources}
    yield from loss_problems(place, side_name, side)
    rule = LOSS_RULES[side.loss]
    task = rule.tasks.get(side_name)
    without = {source.name for source in sources if "negatives" not in source.columns}
    if task is None:
        return
    yield from caption_problems(place, side_name, side, margins)
    shares = shares_problem(sources, side.sources, side.sampling_alpha)
    if shares is not None:
        yield f"{place}.sampling_alpha", shares
    for position, name in enumerate(side.sources):
        if name not in tasks:
            close = nearest(name, tasks)
            hint = f" Did you mean {close!r}?" if close else ""
            yield (
                f"{place}.sources.{position}",
                (
                    f"{name!r} {'matches' if '*' in name else 'is'} none of this recipe's sources.{hint}"
                    f" Sources: {', '.join(tasks) or 'none (add them under sources)'}."
                ),
            )
        elif name in side.sources[:position]:
            yield f"{place}.sources.{position}", f"{name!r} is listed twice. Raise its weight instead."
        elif not rule.fits(side_name, tasks[name], margins):
            yield (
                f"{place}.sources.{position}",
                (f"{name!r} has task {tasks[name]}, but {side_name} with loss {side.loss} needs task {task}."),
            )
        elif rule.takes_negatives(side_name) and name in without:
            yield (
                f"{place}.sources.{position}",
                f"{name!r} maps no column negatives, which loss {side.loss} needs. Add negatives: THE DATA'S COLUMN "
                "NAME to its columns (python -m trainer_ext mine makes one), or take loss info_nce.",
            )


def tuning_problems(
    place: str,
    trainable: list[Part] | None,
    rates: Mapping[Part, float],
    sides: Iterable[SideName],
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
        if part not in reached_parts(sides):
            what = "texts" if part in TEXT_PARTS else "images" if part in VISION_PARTS else "images and captions"
            yield f"{place}.trainable", f"{part!r} learns nothing without {what}. Leave it out, or add image_text."
    if "images" in sides and not trained & VISION_PARTS:
        yield (
            f"{place}.images",
            "the image tower is frozen, so this side teaches nothing. Set images: null, or train it.",
        )
    if "text" in sides and not trained & TEXT_PARTS:
        yield f"{place}.text", "the text tower is frozen, so this side teaches nothing. Set text: null, or train it."
    for part in rates:
        if not part_names(part) & trained:
            yield f"{place}.learning_rates.{part}", "this part is not trained here. Leave its rate out."
