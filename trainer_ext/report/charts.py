"""The page's drawings: groups of small charts under one legend each, as SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from trainer_ext.report.data import RunFacts, Series, TaskDetails
from trainer_ext.report.drawing import (
    PAGE,
    REFERENCE_STYLES,
    draw_curves,
    draw_histograms,
    draw_panel,
    drawing_rules,
    new_figure,
    to_svg,
)
from trainer_ext.report.panels import Group, Panel, labels_of, references_of
from trainer_ext.report.words import FigureName, plain

# Inches of one chart; the page scales it to its column.
WIDTH, HEIGHT = 3.7, 2.4
COLORS = 10
_DASHES = {":": "2 3", "--": "7 4", "-.": "7 3 2 3"}

GROUPS: dict[Group, tuple[str, str]] = {
    "main": ("By stage and model", "Lines join stages, which follow each other; bars stand for alternatives."),
    "width": ("By width", "The same vectors cut to their first components; “all” is the whole vector."),
    "precision": ("By precision", "The same vectors in fewer bits."),
    "length": ("By length of text", "Queries of each band of lengths, in tokens, by themselves."),
    "part": ("By part", "Queries of each part of a task by themselves."),
}
# How logged names begin -> one chart each, in this order: title, factor, whether it jumps from step to step.
CURVES = {
    "loss": ("loss", 1.0, True),
    "accuracy_": ("accuracy in the batch, percent", 100.0, True),
    "temperature": ("temperature", 1.0, False),
    "learning_rate": ("learning rate", 1.0, False),
    "grad_norm": ("norm of the gradient", 1.0, True),
    "similarity_": ("mean cosine of different rows", 1.0, True),
}
# Title, whether it is smoothed, and curves by their names in the legend.
Chart = tuple[str, bool, list[tuple[str, Series]]]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend; ``color`` is a CSS value."""

    label: str
    color: str
    dash: str = ""


@dataclass(frozen=True)
class Plot:
    """A chart with its caption; the SVG is safe as it is: matplotlib and the XML writer escape texts."""

    title: str
    svg: Markup


@dataclass
class PlotGroup:
    """Charts under one legend, with the words above them."""

    anchor: str
    title: str = ""
    note: str = ""
    legend: list[LegendEntry] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def color_of(number: int) -> str:
    """The page's color of a series."""
    return f"var(--c{number % COLORS})"


def panel_groups(panels: Sequence[Panel]) -> list[PlotGroup]:
    """The panels of figures, by what they show."""
    labels, references = labels_of(panels), references_of(panels)
    styles = {name: REFERENCE_STYLES[place % len(REFERENCE_STYLES)] for place, name in enumerate(references)}
    groups = []
    for kind, (title, note) in GROUPS.items():
        chosen = [panel for panel in panels if panel.group == kind]
        group = PlotGroup(f"by-{kind}", title, f"Percent. {note} Whiskers are 95% intervals.")
        used, named = labels_of(chosen), references_of(chosen)
        group.legend = [LegendEntry(label, color_of(labels.index(label))) for label in used]
        group.legend += [LegendEntry(plain(name, 60), "var(--pale)", _DASHES[styles[name]]) for name in named]
        for number, panel in enumerate(chosen):
            with drawing_rules():
                figure, axes = new_figure(WIDTH, HEIGHT)
                draw_panel(axes, panel, labels, styles, PAGE)
                words = ", ".join(line.label for line in panel.lines)
                svg = to_svg(figure, f"{kind}{number}", f"{panel.heading}: {words}")
            group.plots.append(Plot(panel.title, Markup(svg)))
        if group.plots:
            groups.append(group)
    return groups


def curve_group(runs: Sequence[RunFacts]) -> PlotGroup | None:
    """What was logged. One run: a chart per kind of figure, a color per figure; several: a color per run."""
    charts = list(_charts(runs))
    if not charts:
        return None
    group = PlotGroup("training")
    single = len(runs) == 1
    names = list(dict.fromkeys(label for _, _, curves in charts for label, _ in curves))
    numbers = {name: number for number, name in enumerate(names)}
    shared = {label for _, _, curves in charts for label, _ in curves if len(curves) > 1 or not single}
    group.legend = [LegendEntry(label, color_of(number)) for label, number in numbers.items() if label in shared]
    for number, (title, smooth, curves) in enumerate(charts):
        with drawing_rules():
            figure, axes = new_figure(WIDTH, HEIGHT)
            stages = runs[0].curves.stages if single or _same_stages(runs) else []
            draw_curves(axes, [(numbers[label], series) for label, series in curves], stages, PAGE, smooth)
            svg = to_svg(figure, f"curve{number}", f"{title} over steps: {', '.join(label for label, _ in curves)}")
        group.plots.append(Plot(title, Markup(svg)))
    return group


def _same_stages(runs: Sequence[RunFacts]) -> bool:
    return all(run.curves.stages == runs[0].curves.stages for run in runs)


def _charts(runs: Sequence[RunFacts]) -> Iterator[Chart]:
    """Every chart of what was logged."""
    names = list(dict.fromkeys(name for run in runs for name in run.curves.series))
    for start, (title, factor, smooth) in CURVES.items():
        chosen = [name for name in names if name.startswith(start)]
        if len(runs) == 1:
            curves = [(_curve_words(name), _scaled(runs[0].curves.series[name], factor)) for name in chosen]
            if curves:
                yield title, smooth, curves
        else:
            for name in chosen:
                words = f"{title}: {_curve_words(name)}" if len(chosen) > 1 else title
                yield words, smooth, _of_runs(runs, name, factor)
    measured = [name for name in names if name.startswith("eval_") and "/" in name]
    for name in measured if len(runs) > 1 else ():
        figure = FigureName.of(name.removeprefix("eval_"))
        curves = _of_runs(runs, name, 100.0 if figure.is_share else 1.0)
        if figure.variant is None and figure.part is None and any(len(series.steps) > 1 for _, series in curves):
            yield f"{figure.panel}: {figure.label}", False, curves
    if len(runs) == 1:
        yield from _evaluations(runs[0], measured)


def _evaluations(run: RunFacts, measured: Sequence[str]) -> Iterator[Chart]:
    """Figures measured while it trained, where that is more often than at the ends of stages."""
    panels: dict[str, list[tuple[str, Series]]] = {}
    for name in measured:
        figure, series = FigureName.of(name.removeprefix("eval_")), run.curves.series[name]
        often = len(set(series.steps)) > len(run.curves.stages) + 1
        if figure.is_share and figure.variant is None and figure.part is None and often:
            panels.setdefault(figure.panel, []).append((figure.label, _scaled(series, 100.0)))
    for title, curves in panels.items():
        yield f"{title}, percent", False, curves


def _of_runs(runs: Sequence[RunFacts], name: str, factor: float) -> list[tuple[str, Series]]:
    return [(run.name, _scaled(run.curves.series[name], factor)) for run in runs if name in run.curves.series]


def _scaled(series: Series, factor: float) -> Series:
    return series if factor == 1.0 else Series(series.steps, [factor * value for value in series.values])


def _curve_words(name: str) -> str:
    """A logged name as a legend has it: figures of one side share a color in all charts.

    >>> [_curve_words(name) for name in ("loss", "loss_image_text", "accuracy_text", "similarity_image")]
    ['all sides', 'image and text', 'text', 'image']
    """
    for start in ("loss_", "accuracy_", "similarity_"):
        if name.startswith(start):
            return name.removeprefix(start).replace("_", " and ")
    return "all sides" if name == "loss" else name.replace("_", " ")


def histogram_group(details: Sequence[TaskDetails]) -> PlotGroup | None:
    """Cosines of true and other pairs of each task (and model)."""
    chosen = [task for task in details if task.histograms]
    if not chosen:
        return None
    group = PlotGroup("cosines")
    group.legend = [LegendEntry(item.label, color_of(number)) for number, item in enumerate(chosen[0].histograms)]
    for number, task in enumerate(chosen):
        with drawing_rules():
            figure, axes = new_figure(WIDTH, 2.0)
            draw_histograms(axes, task.histograms, PAGE)
            svg = to_svg(figure, f"cosines{number}", f"histogram of cosines, {task_words(task)}")
        group.plots.append(Plot(task_words(task), Markup(svg)))
    return group


def task_words(task: TaskDetails) -> str:
    """A task's label in words, with the model where there are several.

    >>> task_words(TaskDetails("shop/t2i", "mine"))
    'shop, text to image: mine'
    """
    words = FigureName.of(f"{task.task}_x" if "/" in task.task else f"{task.task}/x").panel
    return f"{words}: {task.model}" if task.model else words
