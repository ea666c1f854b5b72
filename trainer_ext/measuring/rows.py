"""Rows of a source as the items of a task: the chosen rows, without those whose picture cannot be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.faults import LABEL
from trainer_ext.data.sources import DataError
from trainer_ext.evaluation.items import Item, Picture, Record, record_of
from trainer_ext.measuring.pictures import Pictures
from trainer_ext.measuring.texts import as_item
from trainer_ext.recipe.evaluation import TaskSpec
from trainer_ext.recipe.schema import Source


@dataclass(frozen=True)
class TaskRows:
    """A source as ``columns.with_labels`` made it, its rows to measure on, and all its rows."""

    source: Source
    rows: Dataset
    every: Dataset


def chosen_places(count: int, limit: int | None) -> list[int]:
    """The rows of a task: all, or ``limit`` of them, evenly spaced.

    >>> chosen_places(10, 4)
    [0, 3, 6, 9]
    """
    return np.linspace(0, count - 1, min(limit or count, count)).round().astype(int).tolist()


class Table:
    """All rows of a source, under our names. ``of`` chooses those of a task, with its prompts and instructions."""

    def __init__(
        self, source: Source, rows: Dataset, broken: BrokenRows, known: dict[str, Picture], progress: bool
    ) -> None:
        self.source, self.rows, self.progress = source, rows, progress
        self.reader = Pictures(source, rows, broken, known) if "image" in source.columns else None

    def of(self, spec: TaskSpec) -> "ChosenRows":
        """The rows of a task: ``limit`` of them, evenly spaced, and of those the ones whose picture can be decoded.

        Raises:
            DataError: no row is left, or more pictures cannot be decoded than the source's budget.
        """
        count = len(self.rows)
        places = chosen_places(count, spec.limit)
        pictures: list[Picture] = []
        if self.reader is not None:
            found = self.reader.at(places, self.progress)
            places = [place for place, picture in zip(places, found, strict=True) if picture is not None]
            pictures = [picture for picture in found if picture is not None]
        if not places:
            raise DataError(f"Task {spec.name!r}: source {self.source.name!r} has no row that can be used. Fill it.")
        prompts = self.source.prompts if spec.prompts is None else spec.prompts
        return ChosenRows(self.source, self.rows, places, pictures, prompts, spec.instructions)


@dataclass(frozen=True)
class ChosenRows:
    """The rows of one task, column by column; ``places`` are their numbers among the source's usable rows."""

    source: Source
    rows: Dataset
    places: list[int]
    pictures: list[Picture]
    prompts: dict[str, str] = field(default_factory=dict)
    instructions: dict[str, str] = field(default_factory=dict)

    def values(self, column: str) -> list[Any]:
        """A column under our name, as it is stored."""
        return list(self.rows.select_columns([column])[self.places][column])

    def texts(self, column: str) -> list[str]:
        """A column of one text a row, as items to encode."""
        return [self._item(column, text) for text in self.values(column)]

    def lists(self, column: str) -> list[list[str]]:
        """A column of one text or several a row; negatives are prompted and instructed as right answers are."""
        right = "caption" if self.source.task == "image-text" else "positive"
        named = right if column == "negatives" else column
        values = self.values(column)
        return [[self._item(named, text) for text in ([own] if isinstance(own, str) else own)] for own in values]

    def labels(self, theirs: str | None) -> list[str] | None:
        """A column of classes or splits by its name in the data; None for none."""
        if theirs is None:
            return None
        feature = self.rows.features[LABEL + theirs]
        values = self.values(LABEL + theirs)
        return feature.int2str(values) if isinstance(feature, ClassLabel) else [str(value) for value in values]

    def ids(self) -> list[str | int] | None:
        """What marks rows that show the same thing; None where the source has no id."""
        return self.values("id") if "id" in self.rows.column_names else None

    def candidates(self) -> Sequence[Item]:
        """All that another task may have as further candidates: pictures and captions, or texts that answer."""
        if self.source.task == "image-pair":
            return self.pictures
        if self.source.task == "image-text":
            return [*self.pictures, *(text for texts in self.lists("caption") for text in texts)]
        columns = ["positive", "negatives"] if self.source.task == "triplet" else ["positive"]
        return [text for column in columns for texts in self.lists(column) for text in texts]

    def records(self, weight: float) -> list[Record]:
        """Each row as one entry of an index: its picture with its caption, the first of several."""
        texts = [own[0] for own in self.lists("caption")]
        return [record_of(picture, text, weight) for picture, text in zip(self.pictures, texts, strict=True)]

    def _item(self, column: str, text: str) -> str:
        return as_item(text, self.prompts.get(column, ""), self.instructions.get(column))
