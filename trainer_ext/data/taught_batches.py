"""Batches of a run with a teacher: the model's own, and under ``teacher`` the same rows as the teacher reads them."""

from collections.abc import Sequence
from typing import Any

from trainer_ext.data.batches import JointCollator, Row, prompt_of
from trainer_ext.recipe.stages import Stage, TeacherSpec


def collator_of(
    stages: Sequence[Stage], seed: int, processor: Any, teacher: Any = None, spec: TeacherSpec | None = None
) -> "JointCollator | TaughtCollator":
    """The collator of a run.

    Args:
        teacher: the processor of its teacher, with tokens and an image size of its own; None for one that reads texts
            as they are, or that is a column.
        spec: the recipe's teacher.
    """
    margins = spec.margin_sides() if spec else frozenset()
    own = JointCollator(processor, stages, seed, margins)
    if spec is None or spec.model is None:
        return own
    sized = [stage.model_copy(update={"image_size": None}) for stage in stages]
    kind = JointCollator if teacher is not None else TextCollator
    return TaughtCollator(own, kind(teacher, sized, seed, margins), spec)


class TaughtCollator:
    """The trainer's batch, and under ``teacher`` the rows that it tells something of: of its sides, without margins."""

    def __init__(self, own: JointCollator, teacher: JointCollator, spec: TeacherSpec) -> None:
        self._own, self._teacher, self._spec = own, teacher, spec

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        taught = [row for row in rows if row["key"].side in self._spec.sides]
        if self._spec.kind == "margins":
            taught = [row for row in taught if "margins" not in row]
        return self._own(rows) | {"teacher": self._teacher(taught) if taught else {}}


class TextCollator(JointCollator):
    """Texts as they are, for a teacher with tokens that no other model has.

    ``{"text": {"query": texts, "positive": texts, "negatives": texts, "prompts": {column: prompt}, ...}}``: as the
    stage's augmentation leaves them, and without the source's prompts, which stand beside them.
    """

    def _text(self, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
        prompts = {name: prompt_of(rows[0], name) for name in ("query", "positive", "negatives")}
        bare = super()._text(rows, stage)
        for name, prompt in prompts.items():
            if name in bare:
                bare[name] = [text.removeprefix(prompt) for text in bare[name]]
        return bare | {"prompts": {name: prompt for name, prompt in prompts.items() if prompt}}

    def _tokens(self, columns: dict[str, list[str]], stage: Stage) -> dict[str, Any]:
        return dict(columns)
