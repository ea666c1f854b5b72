"""What is drawn of a report's rows: panels of points with error bars, before any library draws them.

``panels_of`` decides the form by what the rows are:

1. stages of a run follow each other: a line over the stages, one panel per task and direction;
2. models, and a single stage, are alternatives: bars, grouped by model;
3. widths (``task@64``) are a line over the widths, a panel per task, of the newest row, and another one for each
   precision that the widths have (``task@64@int8``);
4. lengths of text (``task[up to 77 tokens]``) are a line as well;
5. precisions (``task@int8``) and other parts of a task (``task[de]``) are bars again, of the newest row.

A color stands for one metric in all panels, so that one legend serves them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trainer_ext.report.data import Row
from trainer_ext.report.words import FigureName, plain

Group = Literal["main", "width", "precision", "length", "part"]

# Panels of parts of a task and their precisions show so many groups; the table has them all.
MOST_GROUPS = 12
FULL = "all"
LENGTH = re.compile(r"(up to|over) ([\d,]+) tokens")


@dataclass(frozen=True)
class Point:
    """A value in percent over a place on the x axis, with its interval where it has one."""

    x: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Line:
    """One metric of a panel; ``references`` holds values of chance and the like, by name."""

    label: str
    points: list[Point] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)


@dataclass
class Panel:
    """``places`` are the words below the x axis. In a panel of lines, places from ``loose`` on stand by themselves."""

    title: str
    form: Literal["lines", "bars"]
    places: list[str]
    lines: list[Line]
    loose: int | None = None
    group: Group = "main"

    @property
    def heading(self) -> str:
        """The title, with what the places are."""
        return self.title if self.group == "main" else f"{self.title}, by {self.group}"

    def bounds(self) -> tuple[float, float]:
        """The range of the y axis: it fits what is drawn, stays within 0 and 100 if that does, and bars start at 0."""
        points = [point for line in self.lines for point in line.points]
        values = [value for line in self.lines for value in line.references.values()]
        values += [value for p in points for value in (p.value, p.low, p.high) if value is not None]
        if not values:
            return 0.0, 1.0
        low, high = min(values), max(values)
        if self.form == "bars":
            low, high = min(low, 0.0), max(high, 0.0)
        room = max(0.08 * (high - low), 0.5)
        bottom = low if self.form == "bars" and low >= 0 else low - room
        return (max(bottom, 0.0) if low >= 0 else bottom), (min(high + room, 101.0) if high <= 100 else high + room)


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """All panels of the rows, in the order of their figures. Figures that are no shares are left to the table.

    >>> rows = [Row("before", {"a/r5": 0.1}), Row("after", {"a/r5": 0.4}), Row("chance", {"a/r5": 0.05}, "reference")]
    >>> [panel] = panels_of(rows)
    >>> panel.title, panel.form, panel.places, [point.value for point in panel.lines[0].points]
    ('a', 'lines', ['before', 'after'], [10.0, 40.0])
    """
    measured = _ordered(rows)
    references = [row for row in rows if row.kind == "reference"]
    groups = _groups(rows)
    panels = []
    for title, names in groups.items():
        plainly = [name for name in names if FigureName.of(name).variant is None and FigureName.of(name).part is None]
        if plainly:
            panels.append(_main_panel(title, plainly, measured, references))
        for row in _newest(measured):
            of_row = f"{title}: {plain(row.name, 40)}" if len(_newest(measured)) > 1 else title
            panels += _variant_panels(of_row, names, row)
    return [panel for panel in panels if any(line.points for line in panel.lines)]


def labels_of(panels: Sequence[Panel]) -> list[str]:
    """Every metric that is drawn, in order: the entries of the one legend, and the colors' numbers."""
    return list(dict.fromkeys(line.label for panel in panels for line in panel.lines))


def references_of(panels: Sequence[Panel]) -> list[str]:
    """Every reference that is drawn, in order."""
    return list(dict.fromkeys(name for panel in panels for line in panel.lines for name in line.references))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Stages as they were measured, then models."""
    return sorted((row for row in rows if row.kind != "reference"), key=lambda row: row.kind != "stage")


def _newest(measured: Sequence[Row]) -> list[Row]:
    """The rows that widths and parts are shown of: the last stage, or every model where no stage is."""
    stages = [row for row in measured if row.kind == "stage"]
    return stages[-1:] if stages else list(measured)


def _groups(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Task and direction in words -> flat names of its shares, in the order of the row that has most figures."""
    fullest_first = sorted((list(row.metrics) for row in rows), key=len, reverse=True)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for names in fullest_first for name in names):
        figure = FigureName.of(name)
        if figure.is_share:
            groups.setdefault(plain(figure.panel, 80), []).append(name)
    return groups


def _point(row: Row, name: str, x: int) -> Point:
    low, high = row.intervals.get(name, (None, None))
    return Point(x, 100 * row.metrics[name], *(None if edge is None else 100 * edge for edge in (low, high)))


def _main_panel(title: str, names: list[str], measured: Sequence[Row], references: Sequence[Row]) -> Panel:
    rows = [row for row in measured if any(name in row.metrics for name in names)]
    stages = sum(row.kind == "stage" for row in rows)
    lines = []
    for name in names:
        line = Line(FigureName.of(name).label)
        line.points = [_point(row, name, x) for x, row in enumerate(rows) if name in row.metrics]
        line.references = {row.name: 100 * row.metrics[name] for row in references if name in row.metrics}
        lines.append(line)
    places = [plain(row.name, 60) for row in rows]
    if stages > 1:
        return Panel(title, "lines", places, lines, loose=stages)
    return Panel(title, "bars", places, lines)


def _variant_panels(title: str, names: list[str], row: Row) -> Iterator[Panel]:
    """Widths, precisions and parts of one task, of one row."""
    found = {name: FigureName.of(name) for name in names if name in row.metrics}
    whole = {name: figure for name, figure in found.items() if figure.part is None}
    precisions = list(dict.fromkeys(figure.precision for figure in whole.values() if figure.precision))
    parts = list(dict.fromkeys(f.part for f in found.values() if f.part is not None and f.variant is None))
    lengths = sorted((part for part in parts if LENGTH.fullmatch(part)), key=_tokens)
    of_part = {name: f.part for name, f in found.items() if f.part is not None and f.variant is None}
    for precision in (None, *precisions):
        coded = {name: figure for name, figure in whole.items() if figure.precision == precision}
        if widths := sorted({figure.width for figure in coded.values() if figure.width is not None}):
            keys = {name: FULL if figure.width is None else str(figure.width) for name, figure in coded.items()}
            words = title if precision is None else f"{title}, {plain(precision, 40)}"
            yield _by(words, "width", [*map(str, widths), FULL], keys, found, row)
    if precisions:
        keys = {name: figure.precision or FULL for name, figure in whole.items() if figure.width is None}
        yield _by(title, "precision", [FULL, *precisions][:MOST_GROUPS], keys, found, row)
    if lengths:
        yield _by(title, "length", lengths, of_part, found, row)
    if rest := [part for part in parts if part not in lengths]:
        yield _by(title, "part", rest[:MOST_GROUPS], of_part, found, row)


def _tokens(part: str) -> tuple[int, bool]:
    found = LENGTH.fullmatch(part)
    assert found is not None  # the caller has looked
    return int(found[2].replace(",", "")), found[1] == "over"


def _by(
    title: str,
    group: Group,
    places: list[str],
    keys: dict[str, str],
    found: dict[str, FigureName],
    row: Row,
) -> Panel:
    """A panel whose places are variants or parts: ``keys`` says which place a figure belongs to."""
    lines: dict[str, Line] = {}
    for name, place in keys.items():
        if place in places:
            line = lines.setdefault(found[name].label, Line(found[name].label))
            line.points.append(_point(row, name, places.index(place)))
    for line in lines.values():
        line.points.sort(key=lambda point: point.x)
    form: Literal["lines", "bars"] = "lines" if group in ("width", "length") else "bars"
    return Panel(title, form, [plain(place, 40) for place in places], list(lines.values()), group=group)
