"""Named sets of tasks: packaged files of tasks (``configuration/evaluation``), which a recipe may name.

``openmoji`` measures on rows of the demo's tables that training never sees. ``split="validation"`` gives the same kinds
of tasks on other rows, to choose settings without looking at the test rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from trainer_ext.demo_data import EmbeddedDataError
from trainer_ext.evaluation.items import is_text
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.tasks import Task
from trainer_ext.measuring.rows import TaskRows
from trainer_ext.measuring.tasks_from_sources import build_tasks, load_task_rows
from trainer_ext.recipe.evaluation import TaskSpec, load_tasks
from trainer_ext.recipe.reading import available_resources
from trainer_ext.recipe.schema import Source

Split = Literal["test", "validation"]
# What a suite's name ends in -> the rows that it measures on.
_ENDINGS: dict[str, str] = {"test": "", "validation": "-validation"}


class Suite(NamedTuple):
    """Tasks, and what they are made of: their keys, and the rows of their sources by name."""

    tasks: list[Task]
    specs: list[TaskSpec]
    rows: dict[str, TaskRows]


def load_suite(name: str, split: Split = "test", folder: Path | str | None = None) -> list[Task]:
    """The tasks of a suite by name, or of a file of tasks.

    Embedded tables come from ``folder``, by default the cache, which is filled if empty.

    Raises:
        ValueError: no such suite or split.

    >>> load_suite("openmoji", "train")
    Traceback (most recent call last):
    ValueError: There is no split 'train' to evaluate on; choose one of: test, validation.
    """
    return open_suite(name, split, folder).tasks


def open_suite(name: str, split: Split = "test", folder: Path | str | None = None) -> Suite:
    """The tasks of ``load_suite``, with what they are made of."""
    if split not in _ENDINGS:
        raise ValueError(f"There is no split {split!r} to evaluate on; choose one of: {', '.join(_ENDINGS)}.")
    suites = [found for found in available_resources("evaluation") if not found.endswith(_ENDINGS["validation"])]
    if name not in suites and not Path(name).is_file():
        raise ValueError(f"There is no evaluation suite {name!r}; choose one of: {', '.join(suites)}.")
    content = load_tasks(name + _ENDINGS[split])
    sources = content.sources if folder is None else [_in_folder(source, Path(folder)) for source in content.sources]
    rows = load_task_rows(content.tasks, sources)
    return Suite(build_tasks(content.tasks, rows, progress=False), content.tasks, rows)


def picture_task(tasks: Sequence[Task]) -> RetrievalTask:
    """The first text -> image task, which is what a contact sheet shows."""
    for task in tasks:
        if isinstance(task, RetrievalTask) and is_text(task.queries[0]) and not is_text(task.candidates[0]):
            return task
    raise ValueError(f"None of the {len(tasks)} tasks searches images: {[task.label for task in tasks]}.")


def _in_folder(source: Source, folder: Path) -> Source:
    """An embedded table as the parquet files of a prepared folder."""
    if source.format != "embedded":
        return source
    table = source.location.partition("/")[2]
    if not (folder / table / f"{source.split}.parquet").is_file():
        there = sorted(f"{found.parent.name}/{found.stem}" for found in folder.glob("*/*.parquet"))
        raise EmbeddedDataError(f"No table {table}/{source.split} in {folder}. There are: {', '.join(there) or 'none'}")
    return source.model_copy(update={"format": "parquet", "location": str(folder / table)})
