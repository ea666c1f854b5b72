"""Named sets of tasks. ``openmoji`` measures on rows of the demo's tables that training never sees.

A recipe names its suite under ``evaluation``. ``split="validation"`` gives the same kinds of tasks on other rows, to
choose settings without looking at the test rows.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from trainer_ext.demo_data import load_table, prepare
from trainer_ext.evaluation.tasks import HardNegativeTask, RetrievalTask, Task, image_text_tasks, text_task

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["test", "validation"]

# Rows of a text task at most: more candidates take longer and do not rank models better.
TEXT_ROWS = 1000
# Each row has nine texts to encode.
HARD_NEGATIVE_ROWS = 300

# Task name -> table and split of pictures.
PICTURE_TASKS: dict[Split, dict[str, tuple[str, str]]] = {
    "test": {
        "concepts_short": ("short_captions", "test_concepts"),
        "concepts_long": ("long_captions", "test_concepts"),
        "combinations_short": ("short_captions", "test_combinations"),
        "combinations_long": ("long_captions", "test_combinations"),
    },
    "validation": {
        "validation_short": ("short_captions", "validation"),
        "validation_long": ("long_captions", "validation"),
    },
}
TEXT_TASKS = ("headword_definition", "definition_example", "definition_definition")


def load_suite(name: str, split: Split = "test", folder: Path | str | None = None) -> list[Task]:
    """The tasks of a suite by name, from prepared tables in ``folder``, by default the cache, which is filled if empty.

    Raises:
        ValueError: no such suite or split.

    >>> load_suite("openmoji", "train")
    Traceback (most recent call last):
    ValueError: There is no split 'train' to evaluate on; choose one of: test, validation.
    """
    if name not in SUITES:
        raise ValueError(f"There is no evaluation suite {name!r}; choose one of: {', '.join(SUITES)}.")
    if split not in PICTURE_TASKS:
        raise ValueError(f"There is no split {split!r} to evaluate on; choose one of: {', '.join(PICTURE_TASKS)}.")
    return SUITES[name](Path(folder) if folder is not None else prepare(), split)


def openmoji(folder: Path, split: Split) -> list[Task]:
    """Drawings and dictionary texts of ``folder``, whose tables ``trainer_ext.demo_data`` describes.

    Task names on validation begin with ``validation_``, so logs do not mix the two.
    """
    pictures = _Pictures()
    tasks: list[Task] = []
    for name, (table, part) in PICTURE_TASKS[split].items():
        rows = load_table(folder, table, part)
        tasks += image_text_tasks(name, pictures.of(rows), rows["caption"])
    prefix = "" if split == "test" else f"{split}_"
    for table in TEXT_TASKS:
        rows = _spread(load_table(folder, table, split), TEXT_ROWS)
        tasks.append(text_task(prefix + table, zip(rows["query"], rows["positive"], strict=True)))
    rows = _spread(load_table(folder, "triplets", split), HARD_NEGATIVE_ROWS)
    tasks.append(HardNegativeTask(f"{prefix}hard_negatives", rows["query"], rows["positive"], rows["negatives"]))
    return tasks


SUITES: dict[str, Callable[[Path, Split], list[Task]]] = {"openmoji": openmoji}


def picture_task(tasks: Sequence[Task]) -> RetrievalTask:
    """The first text -> image task, which is what a contact sheet shows."""
    for task in tasks:
        if isinstance(task, RetrievalTask) and isinstance(task.candidates[0], Image.Image):
            return task
    raise ValueError(f"None of the {len(tasks)} tasks searches images: {[task.label for task in tasks]}.")


class _Pictures:
    """Decodes each picture once: the tables of short and long captions hold the same ones."""

    def __init__(self) -> None:
        self.decoded: dict[bytes, Image.Image] = {}

    def of(self, rows: "Dataset") -> list[Image.Image]:
        from datasets import Image as ImageFeature

        stored = [cell["bytes"] for cell in rows.cast_column("image", ImageFeature(decode=False))["image"]]
        for content in stored:
            if content not in self.decoded:
                self.decoded[content] = Image.open(io.BytesIO(content))
                self.decoded[content].load()
        return [self.decoded[content] for content in stored]


def _spread(rows: "Dataset", most: int) -> "Dataset":
    """``most`` evenly spaced rows, or all: the same ones every time, from every part of the table."""
    return rows.select(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
