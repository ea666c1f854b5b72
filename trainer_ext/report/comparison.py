"""Runs beside each other: what differs between their recipes, and which figures are better or worse.

``compare_runs`` reads folders and gives the page's data; a figure is *worse* (or *better*) only where the 95% interval
of the paired differences leaves out 0. The pairing needs ``samples.safetensors`` in both folders, and the same data:
figures of tasks that have one name and other rows are not subtracted, and a note says so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer_ext.evaluation.figures import Figure, paired_difference
from trainer_ext.evaluation.report import Report, ReportRow
from trainer_ext.report.data import Difference, ReportData, Row, RunFacts
from trainer_ext.report.folder import facts_of, intervals_of, rows_of
from trainer_ext.report.same_data import other_data, same_data
from trainer_ext.report.words import FigureName

ABSENT = "–"


def compare_runs(folders: Sequence[str | Path], row: str | None = None) -> ReportData:
    """The page of several runs: each one's last stage (or ``row`` of its figures), and how they differ from the first.

    Raises:
        ValueError: fewer than two folders, one given twice, one that is no run or has no figures, or no such row.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError(f"compare needs two runs or more; {len(paths)} given")
    twice = [path for place, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:place]]]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give each run once")
    names = run_names(paths)
    records = [Report.load(path) for path in paths]
    facts = [_named(facts_of(path), name) for path, name in zip(paths, names, strict=True)]
    chosen = [_chosen(record, path, row) for record, path in zip(records, paths, strict=True)]
    rows = [_of_run(item, name) for item, name in zip(chosen, names, strict=True)]
    all_rows = [item for record in reversed(records) for item in rows_of(record)]
    references = {item.name: item for item in all_rows if item.kind == "reference"}
    return ReportData(
        title=f"{' and '.join(names)}: comparison" if len(names) == 2 else f"{', '.join(names)}: comparison",
        rows=[*reversed(references.values()), *rows],
        sizes={label: size for record in reversed(records) for label, size in record.sizes.items()},
        runs=facts,
        differences=[
            difference
            for item, name, record in zip(chosen[1:], names[1:], records[1:], strict=True)
            for difference in differences_between(
                chosen[0], item, names[0], name, partial(same_data, records[0], record)
            )
        ],
        notes=[
            note
            for record, name in zip(records[1:], names[1:], strict=True)
            for note in other_data(records[0], record, names[0], name)
        ],
    )


def run_names(paths: Sequence[Path]) -> list[str]:
    """Names for a table: the last part of each path, or as much of its end as tells the runs apart.

    >>> run_names([Path("a/run"), Path("b/run"), Path("c/other")])
    ['a/run', 'b/run', 'other']
    """
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names.append("/".join(own[-length:]))
    return names


def differences_between(
    first: ReportRow, second: ReportRow, name: str, other: str, same: Callable[[str], bool] = lambda key: True
) -> Iterator[Difference]:
    """``second`` minus ``first`` on every figure that both have, and that is of the ``same`` data in both."""
    ours, theirs = second.figures(), first.figures()
    for key, figure in ours.items():
        if key not in theirs or not same(key):
            continue
        if _number(figure) != _number(theirs[key]):  # of an older version, which has not kept what was measured
            yield Difference(key, name, other, figure.value - theirs[key].value)
            continue
        found = paired_difference(figure, theirs[key])
        interval = None if found.low is None or found.high is None else (found.low, found.high)
        yield Difference(key, name, other, found.value, interval)


def verdict(difference: Difference) -> str:
    """``better``, ``worse``, ``open`` where the interval holds 0; empty without an interval or a direction.

    >>> verdict(Difference("a/r5", "x", "y", -0.1, (-0.2, -0.05))), verdict(Difference("a/r5", "x", "y", 0.1))
    ('worse', '')
    """
    way = FigureName.of(difference.metric).better
    if difference.interval is None or way == 0:
        return ""
    low, high = difference.interval
    if low <= 0 <= high:
        return "open"
    return "better" if way * difference.value > 0 else "worse"


def recipe_rows(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Dotted keys whose values are not the same in all runs, with the values; named items of lists by their names.

    >>> one, two = ({"stages": [{"name": "a", "steps": steps}]} for steps in (10, 20))
    >>> recipe_rows([RunFacts("x", one), RunFacts("y", two)])
    [('stages.a.steps', ['10', '20'])]
    """
    leaves = [dict(_leaves(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for found in leaves for key in found)
    values = ((key, [found.get(key, ABSENT) for found in leaves]) for key in keys)
    return [(key, found) for key, found in values if len(set(found)) > 1]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        items = [(str(item["name"]), {key: part for key, part in item.items() if key != "name"}) for item in value]
    else:
        yield path, "none" if value is None else str(value)
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else key)


def _chosen(record: Report, path: Path, name: str | None) -> ReportRow:
    measured = [row for row in record.rows if row.kind != "reference"]
    if not measured:
        raise ValueError(f"{path} has no metrics.json with figures of a run; compare needs runs with `evaluation`")
    if name is not None:
        found = [row for row in measured if row.name == name]
        if not found:
            raise ValueError(f"{path} has no row {name!r}; it has: {', '.join(row.name for row in measured)}")
        return found[0]
    stages = [row for row in measured if row.kind == "stage"]
    if not stages and len(measured) > 1:
        raise ValueError(
            f"{path} has the figures of several models: {', '.join(row.name for row in measured)}. Name one by --row"
        )
    return (stages or measured)[-1]


def _of_run(row: ReportRow, name: str) -> Row:
    return Row(name, row.metrics, "model", intervals_of(row))


def _number(figure: Figure) -> int | None:
    return None if figure.samples is None else len(figure.samples)


def _named(facts: RunFacts, name: str) -> RunFacts:
    return replace(facts, name=name)
