"""The page's tables as plain lists: figures by row, cards of the main figures, and verdicts of differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer_ext.report.comparison import verdict
from trainer_ext.report.data import Difference, ReportData, Row
from trainer_ext.report.words import FigureName, plain

# The figure that stands for a task at the top of the page: the first of these that it has.
MAIN = ("r5", "ndcg10", "spearman", "acc1", "auroc", "accuracy", "mrr")
MOST_CARDS = 8


@dataclass(frozen=True)
class Card:
    """A task's main figure, large, with its interval and its change."""

    task: str
    metric: str
    value: str
    unit: str
    interval: str
    change: str
    way: str
    since: str


def measured_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows that are no references."""
    return [row for row in rows if row.kind != "reference"]


def cards(rows: Sequence[Row]) -> list[Card]:
    """The main figures of the newest stage, or of the only model; none where several models stand beside each other."""
    measured = measured_rows(rows)
    stages = [row for row in measured if row.kind == "stage"]
    if not measured or (not stages and len(measured) > 1):
        return []
    newest = stages[-1] if stages else measured[-1]
    before = stages[0] if len(stages) > 1 else next((row for row in rows if row.name == "chance"), None)
    made = []
    for title, names in _groups([newest]).items():
        found = {FigureName.of(name).metric: name for name in names if not _is_detail(name)}
        main = next((found[metric] for metric in MAIN if metric in found), None)
        if main is not None:
            made.append(_card(title, main, newest, before))
    return made[:MOST_CARDS]


def _card(title: str, name: str, row: Row, before: Row | None) -> Card:
    figure, value = FigureName.of(name), row.metrics[name]
    old = None if before is None else before.metrics.get(name)
    change = "" if old is None else figure.show(value - old, sign=True)
    way = "" if old is None else "up" if figure.better * (value - old) > 0 else "down" if value != old else ""
    interval = figure.show_interval(row.intervals[name]) if name in row.intervals else ""
    since = "" if before is None else f"{'over' if before.kind == 'reference' else 'since'} {plain(before.name, 30)}"
    return Card(title, figure.label, figure.show(value), "%" if figure.is_share else "", interval, change, way, since)


def figures(data: ReportData) -> dict[str, Any]:
    """The large table: columns are references, stages, models; lines are figures, grouped by task and direction.

    ``details`` are the groups of widths, precisions, lengths and parts, which a table of their own shows.
    """
    columns = sorted(data.rows, key=lambda row: row.kind != "reference")
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for title, names in _groups(columns).items():
        for detail, groups in found.items():
            lines = [
                {"label": _label(name), "cells": _cells(name, columns)} for name in names if _is_detail(name) == detail
            ]
            if lines:
                groups.append({"title": title, "size": _size(data.sizes, names[0]), "lines": lines})
    intervals = any(row.intervals for row in data.rows)
    return {"columns": columns, "groups": found[False], "details": found[True], "intervals": intervals}


def verdicts(data: ReportData) -> dict[str, list[dict[str, str]]]:
    """Lines of the tables of differences: the ``main`` one, and that of widths, precisions, lengths and parts."""
    found: dict[str, list[Difference]] = {"main": [], "details": []}
    for item in data.differences:
        found["details" if _is_detail(item.metric) else "main"].append(item)
    return {name: _verdict_lines(data, items) for name, items in found.items()} if data.differences else {}


def _verdict_lines(data: ReportData, differences: Sequence[Difference]) -> list[dict[str, str]]:
    """With a heading where two other rows begin."""
    values = {row.name: row.metrics for row in data.rows}
    lines, last = [], None
    for item in differences:
        figure = FigureName.of(item.metric)
        pair = f"{item.second} against {item.first}"
        first, second = (values.get(name, {}).get(item.metric) for name in (item.first, item.second))
        lines.append(
            {
                "heading": plain(pair, 200) if pair != last else "",
                "words": f"{plain(figure.panel, 80)} {_label(item.metric)}",
                "first": "–" if first is None else figure.show(first),
                "second": "–" if second is None else figure.show(second),
                "value": figure.show(item.value, sign=True),
                "interval": "" if item.interval is None else figure.show_interval(item.interval, sign=True),
                "verdict": verdict(item),
            }
        )
        last = pair
    return lines


def _groups(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Task and direction in words -> flat names, in the order of the row that has most figures."""
    fullest_first = sorted((list(row.metrics) for row in rows), key=len, reverse=True)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for names in fullest_first for name in names):
        groups.setdefault(plain(FigureName.of(name).panel, 80), []).append(name)
    return groups


def _is_detail(name: str) -> bool:
    figure = FigureName.of(name)
    return figure.variant is not None or figure.part is not None


def _label(name: str) -> str:
    figure = FigureName.of(name)
    words = [figure.label]
    words += [] if figure.part is None else [plain(figure.part, 60)]
    words += [] if figure.width is None else [f"{figure.width} dimensions"]
    words += [] if figure.precision is None else [plain(figure.precision, 40)]
    return ", ".join(words)


def _cells(name: str, columns: Sequence[Row]) -> list[dict[str, str]]:
    figure = FigureName.of(name)
    values = [row.metrics[name] for row in columns if row.kind != "reference" and name in row.metrics]
    best = max(values, key=lambda value: figure.better * value) if figure.better and len(values) > 1 else None
    cells = []
    for row in columns:
        value = row.metrics.get(name)
        style = "reference" if row.kind == "reference" else "best" if value is not None and value == best else ""
        interval = figure.show_interval(row.intervals[name]) if name in row.intervals else ""
        cells.append({"value": "–" if value is None else figure.show(value), "interval": interval, "style": style})
    return cells


def _size(sizes: dict[str, str], name: str) -> str:
    figure = FigureName.of(name)
    label = f"{figure.task}/{figure.direction}" if figure.direction else figure.task
    return plain(sizes.get(label, ""), 120)
