"""Rows that are measured on and trained on, too: said once when a run begins, one line a task.

A row is trained on if a training source holds its picture or, for texts, its two texts in one row, whichever is the
query. They are compared as ``holdout`` compares them: pictures by their stored bytes, texts without case and signs.
What is only nearly equal, or equal on one side, ``python -m trainer_ext check`` finds. A source that streams is read
while it trains and is not compared.
"""

from collections.abc import Iterator, Mapping, Sequence

from datasets import Dataset

from trainer_ext.data.holdout import row_marks
from trainer_ext.data.sources import ROW_NUMBER, Rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.measuring.rows import TaskRows, chosen_places
from trainer_ext.recipe.evaluation import TaskSpec

SHOWN = 5


def trained_on_warnings(
    specs: Sequence[TaskSpec], measured: Mapping[str, TaskRows], trained: Mapping[str, Rows]
) -> Iterator[str]:
    """One line for each task that measures rows which are trained on: how many, of which sources, and the first ones.

    Args:
        measured: the sources of the tasks, as ``load_task_rows`` gives them.
        trained: the tables of all training sources, by name, without what they hold out.
    """
    names = {spec.source for spec in specs if spec.source is not None}
    marks = {name: list(row_marks(measured[name].rows)) for name in names}
    wanted = {mark for found in marks.values() for mark in found}
    places: dict[int, set[str]] = {}  # a mark -> the training sources that hold it
    pictures = {"image" in measured[name].rows.column_names for name in names}
    for name, rows in trained.items():
        if isinstance(rows, SourceStream) or ("image" in rows.column_names) not in pictures:
            continue
        for mark in row_marks(rows):
            if mark in wanted:
                places.setdefault(mark, set()).add(name)
    for spec in specs:
        if spec.source is not None:
            rows = measured[spec.source].rows
            chosen = chosen_places(len(rows), spec.limit)
            met = [place for place in chosen if marks[spec.source][place] in places]
            if met:
                sources = sorted(set().union(*(places[marks[spec.source][place]] for place in met)))
                yield _words(spec, rows, met, len(chosen), sources)


def _words(spec: TaskSpec, rows: Dataset, met: Sequence[int], count: int, sources: Sequence[str]) -> str:
    first = list(met[:SHOWN])
    numbers = rows[ROW_NUMBER][:] if ROW_NUMBER in rows.column_names else range(len(rows))
    shown = ", ".join(str(numbers[place]) for place in first) + (", ..." if len(met) > SHOWN else "")
    own = sources == [spec.source]
    where = "the same source" if own else f"source {', '.join(map(repr, sources))}"
    cure = (
        "Give the source a holdout, or measure on a file of its own."
        if own
        else "Take them out of the training data; `python -m trainer_ext check` lists them."
    )
    return (
        f"task {spec.name!r}: {len(met):,} of {count:,} rows of source {spec.source!r} are also trained on, from "
        f"{where} (rows {shown}, from 0): its figures show what was learnt by heart. {cure}"
    )
