"""A run's folder as ``ReportData``: only its files are read, so that the page can be made again at any time.

``run.json``: recipe, versions, hardware; ``metrics.json`` and ``details.json``: figures, and tasks seen from near;
``trainer_state.json`` (of the run, or of its newest checkpoint): curves; ``sources/``: speed, shares and broken rows.
What a folder does not have is left out of the page.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_ext.evaluation.report import PairedDifference, Report, ReportRow
from trainer_ext.files import checkpoints_of, read_json
from trainer_ext.report.data import (
    BrokenRows,
    Difference,
    Interval,
    ReportData,
    Row,
    RunCurves,
    RunFacts,
    Series,
    StageSpan,
    StageSpeed,
    TaskDetails,
    load_details,
)

STATE_FILE = "trainer_state.json"
SPEED_FILE = "sources/speed.csv"
SIDES = ("image_text", "text", "images")
# Broken rows of a source that the page lists.
EXAMPLES = 5
# Entries of the log that are no curves.
_NO_CURVES = {"step", "epoch", "stage", "total_flos", "train_runtime", "train_loss"}


def report_of_run(folder: str | Path) -> ReportData:
    """The page of a run, from its files alone.

    Raises:
        ValueError: the folder is no run, or one of its files cannot be read.
    """
    folder = Path(folder)
    facts = facts_of(folder)
    record = Report.load(folder)
    return ReportData(
        title=facts.name,
        rows=rows_of(record),
        sizes=record.sizes,
        details=load_details(folder),
        runs=[facts],
        differences=differences_of(record),
        notes=notes_of(record),
    )


def report_of_measurement(
    record: Report, details: Sequence[TaskDetails] = (), title: str = "", facts: Sequence[RunFacts] = ()
) -> ReportData:
    """The page of models measured on the same tasks; ``details`` may be of several models, each with its name."""
    models = [row.name for row in record.rows if row.kind != "reference"]
    return ReportData(
        title=title or ", ".join(models),
        rows=rows_of(record),
        sizes=record.sizes,
        details=list(details),
        runs=list(facts),
        differences=differences_of(record),
        notes=notes_of(record),
    )


# --- the record ------------------------------------------------------------------------------------------------------


def rows_of(record: Report) -> list[Row]:
    """The rows of a record, as the pictures and the page take them."""
    return [Row(row.name, row.metrics, row.kind, intervals_of(row)) for row in record.rows]


def differences_of(record: Report) -> list[Difference]:
    """The paired differences that a record holds, one for each figure."""
    return [
        Difference(name, item.first, item.second, value, intervals_of(item).get(name))
        for item in record.differences
        for name, value in item.metrics.items()
    ]


def notes_of(record: Report) -> list[str]:
    """What a record says beside its figures, such as a task that a model skipped."""
    return list(record.notes)


def intervals_of(item: ReportRow | PairedDifference) -> dict[str, Interval]:
    """The intervals of a row or a difference of the record."""
    return {name: (low, high) for name, (low, high) in item.intervals.items()}


# --- the run ---------------------------------------------------------------------------------------------------------


def facts_of(folder: Path) -> RunFacts:
    """What a run was, read, and took.

    Raises:
        ValueError: the folder has no ``run.json`` or ``metrics.json``, or a file of it cannot be read.
    """
    if not any((folder / name).is_file() for name in ("run.json", "metrics.json")):
        raise ValueError(f"{folder} has neither run.json nor metrics.json; give the folder of a run")
    origin = _mapping(folder / "run.json")
    recipe = origin.get("recipe") or {}
    command = origin.get("command") or []
    versions = {str(name): str(version) for name, version in (origin.get("versions") or {}).items()}
    if origin.get("commit"):
        versions["commit"] = str(origin["commit"])
    shares = _mapping(folder / "sources" / "shares.json")
    return RunFacts(
        name=folder.resolve().name,
        recipe=recipe,
        versions=versions,
        hardware={str(name): str(value) for name, value in (origin.get("hardware") or {}).items()},
        setup=origin.get("setup") or {},
        command=" ".join(map(str, command)),
        curves=run_curves(folder, recipe),
        speed=speed_of(folder, recipe),
        shares={side: sources for side, sources in shares.items() if side != "broken_rows"},
        broken_rows=_broken_rows(folder),
    )


def spans_of(recipe: dict[str, Any]) -> list[StageSpan]:
    """First and last step of each stage of a recipe as ``run.json`` holds it.

    >>> spans_of({"stages": [{"name": "a", "steps": 10}, {"name": "b", "steps": 5}]})
    [StageSpan(name='a', first=1, last=10), StageSpan(name='b', first=11, last=15)]
    """
    spans, last = [], 0
    for stage in recipe.get("stages") or []:
        first, last = last + 1, last + int(stage["steps"])
        spans.append(StageSpan(str(stage["name"]), first, last))
    return spans


def run_curves(folder: Path, recipe: dict[str, Any]) -> RunCurves:
    """What the trainer logged, by name, from the run's own state or that of its newest checkpoint."""
    found = [folder / STATE_FILE, *(path / STATE_FILE for path in reversed(checkpoints_of(folder)))]
    state = next((path for path in found if path.is_file()), None)
    history = [] if state is None else _mapping(state).get("log_history") or []
    series: dict[str, Series] = {}
    for entry in history:
        for name, value in entry.items():
            if name not in _NO_CURVES and isinstance(value, int | float) and not name.endswith("_runtime"):
                curve = series.setdefault(name, Series([], []))
                curve.steps.append(int(entry.get("step", 0)))
                curve.values.append(float(value))
    return RunCurves(spans_of(recipe), series)


def pairs_of(stage: dict[str, Any]) -> int:
    """Pairs of one step of a stage, all sides."""
    return sum(int(side["batch_size"]) for name in SIDES if (side := stage.get(name)))


def speed_of(folder: Path, recipe: dict[str, Any]) -> list[StageSpeed]:
    """Seconds and pairs a second of each stage, from the entries of ``sources/speed.csv``.

    An entry stands for the steps since the one before it, in the stage of its last step.
    """
    path = folder / SPEED_FILE
    rates: list[tuple[int, float]] = []
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rates = [(int(row["step"]), float(row["pairs_per_second"])) for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Cannot read {path} ({error}): move it away.") from error
    spans = spans_of(recipe)
    taken: dict[int, tuple[float, int]] = {}
    before = 0
    for step, rate in rates:
        span = next((number for number, span in enumerate(spans) if span.first <= step <= span.last), None)
        if span is not None and rate > 0:
            pairs = (step - max(before, spans[span].first - 1)) * pairs_of(recipe["stages"][span])
            old = taken.get(span, (0.0, 0))
            taken[span] = (old[0] + pairs / rate, old[1] + pairs)
        before = step
    return [
        StageSpeed(
            span.name,
            span.last - span.first + 1,
            taken[number][0] if number in taken else None,
            taken[number][1] / taken[number][0] if number in taken and taken[number][0] else None,
        )
        for number, span in enumerate(spans)
    ]


def _broken_rows(folder: Path) -> list[BrokenRows]:
    """Rows left out by source, with examples; a line that was cut is passed over, as the run itself does."""
    path = next((p for p in (folder / "sources", folder) if (p / "broken_rows.jsonl").is_file()), None)
    rows: dict[str, list[dict[str, Any]]] = {}
    if path is not None:
        for line in (path / "broken_rows.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows.setdefault(str(row["source"]), []).append(row)
            except (ValueError, KeyError, TypeError):
                continue
    return [BrokenRows(source, len(found), found[:EXAMPLES]) for source, found in rows.items()]


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is not there."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read {path} ({error}): it is no whole JSON file.") from error
    if not isinstance(value, dict):
        raise ValueError(f"Cannot read {path}: it holds a {type(value).__name__} instead of an object.")
    return value
