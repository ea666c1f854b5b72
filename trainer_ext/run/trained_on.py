"""Rows that are measured on and trained on, too: said once when a run begins, one line a task.

A row is trained on if a training source holds its picture or, for texts, its two texts in one row, whichever is the
query. They are compared as ``holdout`` compares them: pictures by their stored bytes, texts without case and signs.
Only the marks of the measured rows are held; of pictures only those with as many bytes as a measured one are read.

Of a source that streams, ``STREAM_ROWS`` are read, of another one ``MOST_ROWS``: where there are more, that is said.
What lies behind them, and what is only nearly equal or equal on one side, ``python -m trainer_ext check`` finds.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from datasets import Dataset
from tqdm.auto import tqdm

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.holdout import picture_sizes, row_marks, table_marks
from trainer_ext.data.sources import ROW_NUMBER, Rows
from trainer_ext.data.streams import SourceStream
from trainer_ext.measuring.rows import TaskRows, chosen_places
from trainer_ext.recipe.evaluation import TaskSpec

SHOWN = 5
STREAM_ROWS = 2_000
# A million pairs of texts take 15 seconds of a core.
MOST_ROWS = 1_000_000
NO_LIMIT = 2**62


@dataclass(frozen=True)
class Measured:
    """A task and its source, under the name that warnings call it by: ``openmoji/concepts-short`` is of a suite."""

    spec: TaskSpec
    rows: Dataset
    source: str


def measured_sources(specs: Sequence[TaskSpec], rows: Mapping[str, TaskRows], before: str = "") -> list[Measured]:
    """The tasks that have a source; ``before`` begins the names of a suite's sources."""
    return [Measured(spec, rows[spec.source].rows, before + spec.source) for spec in specs if spec.source is not None]


def trained_on_notes(measured: Sequence[Measured], trained: Mapping[str, Rows], progress: bool = True) -> Iterator[str]:
    """One line for each task that measures rows which are trained on: how many, of which sources, and the first ones.

    Then one line for each training source that was not compared as a whole. Nothing is read where nothing is measured.

    Args:
        trained: the tables of all training sources, by name, without what they hold out.
    """
    rows = {one.source: one.rows for one in measured}
    marks = {name: list(row_marks(table)) for name, table in rows.items()}
    wanted = {mark for found in marks.values() for mark in found}
    sizes = {size for table in rows.values() if "image" in table.column_names for size in picture_sizes(table)}
    kinds = {"image" in table.column_names for table in rows.values()}
    places: dict[int | None, set[str]] = {}  # a mark -> the training sources that hold it
    notes = []
    for name, table in trained.items():
        if _has_pictures(table) not in kinds:
            continue
        most = STREAM_ROWS if isinstance(table, SourceStream) else MOST_ROWS
        found = _marks(table, sizes)
        for mark in tqdm(islice(found, most), f"{name}: is it measured?", leave=False, disable=not progress):
            if mark in wanted:
                places.setdefault(mark, set()).add(name)
        if next(found, "end") != "end":
            notes.append(
                f"of source {name!r} the first {most:,} rows were compared with what is measured; all of them by "
                "`python -m trainer_ext check`"
            )
    for one in measured:
        chosen = chosen_places(len(one.rows), one.spec.limit)
        met = [place for place in chosen if marks[one.source][place] in places]
        if met:
            sources = sorted(set().union(*(places[marks[one.source][place]] for place in met)))
            yield f"warning: {_words(one, met, len(chosen), sources)}"
    yield from notes


def _has_pictures(rows: Rows) -> bool:
    return "image" in (rows.source.columns if isinstance(rows, SourceStream) else rows.column_names)


def _marks(rows: Rows, sizes: Container[int]) -> Iterator[int | None]:
    if not isinstance(rows, SourceStream):
        return row_marks(rows, sizes)
    # A reader of its own: the run's lists broken rows when it comes to them.
    apart = SourceStream(rows.source.model_copy(update={"max_broken_rows": NO_LIMIT}), 0, BrokenRows(None))
    return chain.from_iterable(table_marks(table, sizes) for _, table in apart.tables())


def _words(one: Measured, met: Sequence[int], count: int, sources: Sequence[str]) -> str:
    first = list(met[:SHOWN])
    numbers = one.rows[ROW_NUMBER][:] if ROW_NUMBER in one.rows.column_names else range(len(one.rows))
    shown = ", ".join(str(numbers[place]) for place in first) + (", ..." if len(met) > SHOWN else "")
    own = sources == [one.source]
    where = "the same source" if own else f"source {', '.join(map(repr, sources))}"
    cure = (
        "Give the source a holdout, or measure on a file of its own."
        if own
        else "Take them out of the training data; `python -m trainer_ext check` lists them."
    )
    return (
        f"task {one.spec.name!r}: {len(met):,} of {count:,} rows of source {one.source!r} are also trained on, from "
        f"{where} (rows {shown}, from 0): its figures show what was learnt by heart. {cure}"
    )
