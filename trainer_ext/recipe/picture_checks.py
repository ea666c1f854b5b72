"""What a stage's changes of pictures and texts must be to what it reads."""

from collections.abc import Iterator, Sequence

from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.schema import LOSS_RULES, Source
from trainer_ext.recipe.stages import Stage


def augmentation_problems(place: str, stage: Stage) -> Iterator[Problem]:
    """Changes of pictures that the stage does not have, changes of nothing, and words taken from scored texts."""
    spec = stage.augmentation
    if spec is None:
        return
    if spec.changes_pictures() and not stage.has_pictures():
        names = [name for name in type(spec).model_fields if not name.startswith("word_") and getattr(spec, name)]
        yield (
            f"{place}.{names[0]}",
            "changes pictures, and this stage has none. Take it out, or add image_text or images.",
        )
    jitter = spec.color_jitter
    strengths = () if jitter is None else (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    if jitter is not None and jitter.probability and not any(strengths):
        yield f"{place}.color_jitter", "has no strength above 0, so it changes nothing. Give one, or take it out."
    scored = stage.text is not None and LOSS_RULES[stage.text.loss].tasks.get("text") == "scored-pair"
    if scored and spec.changes_texts():
        name = "word_deletion" if spec.word_deletion else "word_swap"
        words = "changes texts whose scores are of them as they stand. Take it out, or give scored pairs another stage."
        yield f"{place}.{name}", words


def view_problems(place: str, stage: Stage, sources: Sequence[Source]) -> Iterator[Problem]:
    """Pictures that are to be paired with themselves, in a stage that does not change them: both would be the same."""
    if stage.images is None or stage.tells_views_apart():
        return
    columns = {source.name: source.columns for source in sources}
    for position, name in enumerate(stage.images.sources):
        if "id" not in columns.get(name, {"id": ""}):
            words = (
                f"{name!r} maps no id, so that a picture's partner is the picture itself, and nothing in this stage "
                "tells the two apart. Map id: THE DATA'S COLUMN that pictures of one thing share, or give the stage "
                "random_resized_crop: [0.5, 1.0] or an augmentation such as color_jitter: {}."
            )
            yield f"{place}.images.sources.{position}", words
