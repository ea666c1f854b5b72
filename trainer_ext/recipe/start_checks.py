"""What a run's start must be: tower checkpoints, LoRA, a teacher; models between it and the end; pictures.

A check that needs the disk has its own function (``missing_towers``, ``teacher_width_problems``); the others need the
recipe alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer_ext.files import refuse_unwritable
from trainer_ext.recipe.checks import embedding_width, read_model_config
from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.reading import path_of
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import ImageCacheSpec, ImageDecoding, InitializeSpec, LoraSpec, Stage, TeacherSpec

# ``model_type`` of our models, which their code has as well; recipes load without it.
OURS = "jina_clip"


def initialize_problems(initialize: InitializeSpec, trains_tokenizer: bool) -> Iterator[Problem]:
    """What is wrong with ``initialize`` whatever lies on the disk."""
    if initialize.text is None and initialize.vision is None:
        yield "initialize", "names no tower: give it text, vision, or both, or leave it out."
    if initialize.text is not None and trains_tokenizer:
        reason = f"a tokenizer trained anew does not fit the word embeddings of initialize.text ({initialize.text})."
        yield "tokenizer", f"{reason} Name the folder of theirs; null takes the one beside them."


def missing_towers(initialize: InitializeSpec) -> Iterator[Problem]:
    """The files of ``initialize`` that are not on the disk."""
    for tower, value in initialize:
        if value is None:
            continue
        path = path_of(value)
        if path.is_dir() and not any(path.glob("*.safetensors")):
            yield f"initialize.{tower}", f"{value!r} is a folder without a .safetensors file. Pickles are not read."
        elif not path.is_dir() and not (path.is_file() and path.suffix == ".safetensors"):
            found = "is not a .safetensors file" if path.is_file() else "does not exist"
            yield f"initialize.{tower}", f"{value!r} {found}. Give a .safetensors file or a folder of them."


def lora_problems(lora: LoraSpec) -> Iterator[Problem]:
    """A tower listed twice, or modules for a tower without adapters."""
    if len(set(lora.towers)) < len(lora.towers):
        yield "lora.towers", f"{lora.towers} lists a tower twice. Name each once."
    for tower in lora.target_modules.keys() - set(lora.towers):
        yield f"lora.target_modules.{tower}", f"the {tower} tower has no adapters. Add it to lora.towers."


def teacher_problems(teacher: TeacherSpec, stages: Sequence[Stage], sources: Sequence[Source]) -> Iterator[Problem]:
    """A teacher of a side that no stage has, one side twice, or margins of no negatives or of nothing."""
    trained = {name for stage in stages for name, _ in stage.sides()}
    if len(set(teacher.sides)) < len(teacher.sides):
        yield "teacher.sides", f"{teacher.sides} lists a side twice. Name each once."
    if not trained & set(teacher.sides):
        yield (
            "teacher.sides",
            f"no stage trains {' or '.join(teacher.sides)}, so it teaches nothing. Name another side.",
        )
    if teacher.kind == "margins":
        yield from _margin_problems(teacher, stages, {source.name: source for source in sources})
        return
    if teacher.model is None:
        yield "teacher.model", f"is missing, and kind {teacher.kind!r} compares with a model. Give its folder."
    if teacher.scale != 1:
        yield "teacher.scale", f"is {teacher.scale:g}, but kind {teacher.kind!r} has no margins. Take it out."


def _margin_problems(teacher: TeacherSpec, stages: Sequence[Stage], sources: Mapping[str, Source]) -> Iterator[Problem]:
    taught = [
        (f"stages.{position}.{name}", name, sources[source])
        for position, stage in enumerate(stages)
        for name, side in stage.sides()
        if name in teacher.sides
        for source in side.sources
        if source in sources  # another check names those that are not there
    ]
    for place, name, source in taught:
        if "negatives" not in source.columns:
            yield (
                place,
                f"teacher.kind is 'margins', but source {source.name!r} has no column negatives. Take one that has "
                f"(python -m trainer_ext mine makes it), leave {name} out of teacher.sides, or give this stage its own "
                "run.",
            )
    without = [source.name for _, _, source in taught if "margins" not in source.columns]
    if teacher.model is None and without:
        yield (
            "teacher.model",
            f"is missing, and source {without[0]!r} has no column margins. Add margins: THE DATA'S COLUMN NAME to its "
            "columns (python -m trainer_ext mine writes one), or give the folder of a model.",
        )
    if teacher.model is not None and taught and not without:
        yield (
            "teacher.model",
            "would teach nothing: every source of its sides has a column margins. Take it out, or margins out of their "
            "columns.",
        )


def picture_problems(
    decoding: ImageDecoding, cache: ImageCacheSpec | None, stages: Sequence[Stage], teacher: TeacherSpec | None
) -> Iterator[Problem]:
    """How pictures are decoded and kept, said of a run without any; a cache of which no stage could have anything."""
    with_pictures = [stage for stage in stages if stage.has_pictures()]
    if decoding != "exact" and not with_pictures:
        yield "image_decoding", f"is {decoding!r}, but no stage has pictures. Take it out, or add image_text."
    if cache is None:
        return
    if not with_pictures:
        yield "image_cache", "keeps pictures, but no stage has any. Take it out, or add image_text."
    elif all(stage.random_resized_crop for stage in with_pictures):
        words = "keeps whole pictures, but every stage crops them anew in each epoch. Take it out, or leave out"
        yield "image_cache", f"{words} random_resized_crop in a stage."
    if teacher is not None and teacher.model is not None and "image_text" in teacher.sides:
        words = (
            "keeps pictures as the model sees them, and the teacher fits them in its own way. Take one of the two out."
        )
        yield "image_cache", words


def cache_folder_problems(cache: ImageCacheSpec) -> Iterator[Problem]:
    """A folder for pictures that cannot be one."""
    try:
        refuse_unwritable(cache.folder, "the folder")
    except ValueError as error:
        yield "image_cache.folder", f"{error}."


def embeds_texts_alone(model: Path) -> bool:
    """Whether a folder holds a model of sentence-transformers that is none of ours."""
    if not (model / "modules.json").is_file():
        return False
    return not (model / "config.json").is_file() or read_model_config(model).get("model_type") != OURS


def teacher_width_problems(teacher: TeacherSpec, width: int | None) -> Iterator[Problem]:
    """A teacher that is no folder of a model, or whose vectors have another width than the model's."""
    if teacher.model is None:
        return
    folder = path_of(teacher.model)
    if embeds_texts_alone(folder):
        if teacher.sides != ["text"]:
            words = f"is {teacher.sides}, but {teacher.model!r} is a model of sentence-transformers, for texts alone."
            yield "teacher.sides", f"{words} Give sides: [text]."
        return
    if not (folder / "config.json").is_file():
        words = "has no config.json: a teacher is the folder of a finished model. Check the path."
        yield "teacher.model", f"{teacher.model!r} {words}"
        return
    theirs = embedding_width(folder)
    if teacher.kind == "vectors" and width and theirs and theirs != width:
        words = f"its vectors have {theirs} dimensions and the model's {width}. Use kind: scores."
        yield "teacher.kind", f"is 'vectors', but {words}"


def merge_problems(
    shares: Sequence[float], initialize: InitializeSpec | None, stages: Sequence[Stage]
) -> Iterator[Problem]:
    """Shares of the way that lie behind its end or have a name that is taken, or a start that is in no folder."""
    taken = [stage.name for stage in stages]
    names = [merged_name(share) for share in shares]
    for position, share in enumerate(shares):
        place = f"merge_with_start.{position}"
        if share > 1:
            words = "1 is the finished model itself. Give shares of the way from the start, above 0 and at most 1."
            yield place, f"{share:g} lies behind the end of the way: {words}"
        elif names[position] in names[:position]:
            yield place, f"{share!r} is the folder {names[position]} once more. Leave one out."
        elif names[position] in taken:
            yield place, f"{share!r} is {names[position]} in the report, as a stage is. Rename the stage."
    if shares and initialize is not None:
        yield (
            "merge_with_start",
            "the start is put together by initialize and is in no folder. Save it by examples/convert_checkpoint.py, "
            "and name that folder as model.",
        )


def merge_start_problems(shares: Sequence[float] | None, model: str, start: Path) -> Iterator[Problem]:
    """Random weights at the start: between them and a trained model lies nothing that is of use."""
    if shares and not start.is_dir():
        yield (
            "merge_with_start",
            f"model {model!r} is a preset: the run starts from random weights, and between those and trained ones lie "
            "no models of use. Take it out, or name a trained model's folder as model.",
        )


def merged_name(share: float) -> str:
    """The folder, and the report's row, of the model at this share of the way from a run's start.

    >>> merged_name(0.5), merged_name(1.0)
    ('merged-0.5', 'merged-1')
    """
    return f"merged-{share:g}"
