"""``report.html``: one file, without scripts, that asks nothing of a network, for screen and paper, in light and dark.

Texts of data (captions, names, paths, reasons) go through Jinja's autoescaping; pictures are data URIs, and are taken
for nothing else (``ReportData`` from a file could hold any address).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer_ext.files import write_whole
from trainer_ext.recipe.strict_yaml import write_yaml
from trainer_ext.report import charts, tables
from trainer_ext.report.comparison import recipe_rows
from trainer_ext.report.data import GalleryEntry, ReportData, Shown, TaskDetails
from trainer_ext.report.panels import panels_of
from trainer_ext.report.words import duration, number, plain

PAGE_FILE = "report.html"
_TEMPLATES = Path(__file__).with_name("template")
_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def write_report(folder: str | Path, data: ReportData) -> Path:
    """Write ``report.html`` into ``folder``, whole or not at all, and return its path.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a picture of the data is no data URI of a picture.
    """
    path = Path(folder) / PAGE_FILE
    write_whole(path, page_of(data).encode("utf-8", "replace"))
    return path


def page_of(data: ReportData) -> str:
    """The page as text. Equal data give equal pages."""
    data = cleaned(data)
    groups = charts.panel_groups(panels_of(data.rows))
    curves = charts.curve_group(data.runs)
    histograms = charts.histogram_group(data.details)
    gallery = [(task, charts.task_words(task)) for task in data.details if task.best or task.worst]
    context: dict[str, Any] = {
        "data": data,
        "subtitle": _subtitle(data),
        "cards": tables.cards(data.rows) if len(data.runs) < 2 else [],
        "recipe_rows": recipe_rows(data.runs) if len(data.runs) > 1 else [],
        "verdicts": tables.verdicts(data),
        "table": tables.figures(data),
        "panel_groups": groups,
        "curve_groups": curves,
        "histograms": histograms,
        "details": [
            {"title": title, "best": task.best, "worst": task.worst, "candidates": task.candidates}
            for task, title in gallery
        ],
        "has_data": any(run.shares or run.broken_rows for run in data.runs),
        "has_run": any(run.recipe or run.versions or run.hardware or run.speed for run in data.runs),
    }
    return _environment().get_template("page.html").render(**context, sections=list(_sections(context)))


def cleaned(data: ReportData) -> ReportData:
    """The same page with texts that any file can hold: one line each, no control characters, not endless.

    Raises:
        ValueError: a picture is no data URI of a picture.
    """
    return replace(
        data,
        title=plain(data.title, 160),
        notes=[plain(note, 600) for note in data.notes],
        rows=[replace(row, name=plain(row.name, 80)) for row in data.rows],
        details=[_clean_details(task) for task in data.details],
        runs=[replace(run, name=plain(run.name, 80), command=plain(run.command, 600)) for run in data.runs],
    )


def _clean_details(task: TaskDetails) -> TaskDetails:
    both = [[_clean_entry(entry) for entry in entries] for entries in (task.best, task.worst)]
    return replace(task, model=plain(task.model, 80), best=both[0], worst=both[1])


def _clean_entry(entry: GalleryEntry) -> GalleryEntry:
    return replace(entry, query=_clean(entry.query), results=[_clean(shown) for shown in entry.results])


def _clean(shown: Shown) -> Shown:
    if shown.image is not None and not _PICTURE.fullmatch(shown.image):
        raise ValueError(f"a picture of the report is {shown.image[:40]!r}; give a data URI of a JPEG, PNG or WebP")
    return shown if shown.text is None else replace(shown, text=plain(shown.text, 400))


def _subtitle(data: ReportData) -> str:
    if len(data.runs) != 1:
        return ""
    run = data.runs[0]
    parts = [f"recipe {plain(str(run.recipe['name']), 80)}"] if run.recipe.get("name") else []
    stages = run.curves.stages
    if stages:
        parts.append(f"{len(stages)} stage{'s' * (len(stages) > 1)}, {stages[-1].last:,} steps")
    seconds = [stage.seconds for stage in run.speed]
    if seconds and None not in seconds:
        parts.append(f"{duration(sum(second for second in seconds if second is not None))} of training")
    return " · ".join(parts)


def _sections(context: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data: ReportData = context["data"]
    if len(data.runs) > 1:
        yield "differences", "recipes"
    if context["verdicts"] and len(data.runs) > 1:
        yield "verdicts", "differences"
    groups: Sequence[charts.PlotGroup] = context["panel_groups"]
    anchors = [(group.anchor, group.title.lower()) for group in groups]
    yield from anchors[: bool(groups and groups[0].anchor == "by-main")]
    if context["table"]["groups"] or context["table"]["details"]:
        yield "figures", "figures"
    if context["verdicts"] and len(data.runs) < 2:
        yield "verdicts", "differences"
    yield from (section for section in anchors if section[0] != "by-main")
    names = {"curve_groups": ("training", "training"), "histograms": ("cosines", "cosines")}
    names |= {"details": ("gallery", "best and worst"), "has_data": ("data", "data"), "has_run": ("run", "the run")}
    yield from (section for key, section in names.items() if context[key])


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # The style sheet is a file of ours, not data.
    made.globals["css"] = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    made.globals |= {"number": number, "duration": duration, "yaml": _as_yaml}
    return made


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    return write_yaml(dict(recipe), width=110)
