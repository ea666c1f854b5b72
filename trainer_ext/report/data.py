"""What a report shows, as plain data: no models, no arrays, and a JSON file of it reads back equal.

``ReportData`` is one page. It holds the rows of ``metrics.json`` (``Row``), what each run was and did (``RunFacts``),
what each task looks like from near (``TaskDetails``) and how two rows differ (``Difference``). Pictures are data URIs
of small JPEGs, so that a page needs no other file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from trainer_ext.files import write_whole

DETAILS_FILE = "details.json"

# Rows of a run in the order they were measured; models beside each other; what a model has to beat.
Kind = Literal["stage", "model", "reference"]
# A 95% interval: lowest and highest value.
Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """Figures of a stage, a model or a reference, by flat names such as ``shop/t2i_r5``; not all have an interval."""

    name: str
    metrics: dict[str, float]
    kind: Kind = "stage"
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """``second`` minus ``first`` on one figure, with the interval of the paired differences where there is one."""

    metric: str
    first: str
    second: str
    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Histogram:
    """How often a cosine fell into each bin; ``edges`` are one more than ``counts``."""

    label: str
    edges: list[float]
    counts: list[int]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"histogram {self.label!r}: {len(self.edges)} edges for {len(self.counts)} counts")


@dataclass(frozen=True)
class Shown:
    """A query or a result: a text, or a picture as a data URI. A result has its rank (from 1), cosine and a mark."""

    text: str | None = None
    image: str | None = None
    rank: int | None = None
    score: float | None = None
    right: bool = False


@dataclass(frozen=True)
class GalleryEntry:
    """A query, the rank (from 1) of its first right answer, and results: the first ones, and a right one behind."""

    query: Shown
    rank: int
    results: list[Shown]


@dataclass(frozen=True)
class TaskDetails:
    """One task seen from near, for one model: how its cosines lie, and its best and worst queries."""

    task: str
    model: str = ""
    histograms: list[Histogram] = field(default_factory=list)
    best: list[GalleryEntry] = field(default_factory=list)
    worst: list[GalleryEntry] = field(default_factory=list)
    candidates: int = 0


@dataclass(frozen=True)
class Series:
    """One logged figure: values at steps."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class StageSpan:
    """A stage with its first and last step, both counted from 1."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class RunCurves:
    """What a run logged while it trained, by name; names of evaluations begin with ``eval_``."""

    stages: list[StageSpan] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSpeed:
    """Steps, training seconds and pairs a second of a stage; evaluating and saving are not in the seconds."""

    stage: str
    steps: int
    seconds: float | None
    pairs_per_second: float | None


@dataclass(frozen=True)
class BrokenRows:
    """The number of rows of a source that were left out, and the first few: file, row, column, reason."""

    source: str
    count: int
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunFacts:
    """What a run or a measured model was, read, and took. ``shares``: side -> source -> rows and share."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    curves: RunCurves = field(default_factory=RunCurves)
    speed: list[StageSpeed] = field(default_factory=list)
    shares: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    broken_rows: list[BrokenRows] = field(default_factory=list)


@dataclass(frozen=True)
class ReportData:
    """One page. ``sizes``: what each task ranks, in words; ``notes``: lines to say at the top, such as a skipped task.

    >>> data = ReportData("one run", rows=[Row("pairs", {"shop/t2i_r5": 0.5}, intervals={"shop/t2i_r5": (0.4, 0.6)})])
    >>> read_json(to_json(data)) == data
    True
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    sizes: dict[str, str] = field(default_factory=dict)
    details: list[TaskDetails] = field(default_factory=list)
    runs: list[RunFacts] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_PAGE = TypeAdapter(ReportData)
_DETAILS = TypeAdapter(list[TaskDetails])


def to_json(data: ReportData) -> bytes:
    """A page as JSON."""
    return json.dumps(_PAGE.dump_python(data, mode="json"), indent=1).encode() + b"\n"


def read_json(text: bytes) -> ReportData:
    """The page of ``to_json``; raises pydantic's ``ValidationError`` (a ``ValueError``) where it is none."""
    return _PAGE.validate_json(text)


def save_details(folder: Path, details: Sequence[TaskDetails]) -> None:
    """Keep details beside ``metrics.json``, whole or not at all, for a report that is made later from files alone."""
    stored = _DETAILS.dump_python(list(details), mode="json")
    write_whole(Path(folder) / DETAILS_FILE, json.dumps(stored, indent=1).encode() + b"\n")


def load_details(folder: Path) -> list[TaskDetails]:
    """The details kept in ``folder``; none if the file is not there.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(folder) / DETAILS_FILE
    if not path.is_file():
        return []
    try:
        return _DETAILS.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"Cannot read {path} ({place}: {first['msg']}): move it away.") from error
