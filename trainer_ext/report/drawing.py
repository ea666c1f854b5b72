"""Panels, curves and histograms drawn by matplotlib: as SVG for the page, as PNG for a file.

One set of functions draws both; a ``Theme`` says in which colors. On the page colors are the page's variables, so that
the same drawing is right in light and in dark: matplotlib draws with stand-ins such as ``#0a0b00``, which ``to_svg``
replaces. Texts stay texts: the browser draws them in the page's font, and a reader or a search finds them.
"""

import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from trainer_ext.report.data import Histogram, Series, StageSpan
from trainer_ext.report.panels import Line, Panel
from trainer_ext.report.words import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE_STYLES = (":", "--", "-.")
MARKERS = "osD^vP*X"
# Logged curves: more points than this are drawn faintly, below the mean of their neighbours.
SMOOTH_FROM = 40
MOST_POINTS = 600

# Colors of the page by number: custom properties of page.css. The stand-ins are colors that no one would choose.
VARIABLES = ["--ink", "--pale", "--line", "--band", *(f"--c{number}" for number in range(10))]
_STAND_INS = [f"#0a0b{number:02x}" for number in range(len(VARIABLES))]


@dataclass(frozen=True)
class Theme:
    """Colors of a drawing: text, quiet text, grid, the band behind every other stage, and the series."""

    ink: str
    pale: str
    line: str
    band: str
    series: tuple[str, ...]

    def color(self, number: int) -> str:
        """The color of a series; after the last one they begin anew, with another marker."""
        return self.series[number % len(self.series)]

    def marker(self, number: int) -> str:
        """The marker of a series: colors alone are not enough for everyone, or for a print without them."""
        return MARKERS[number % len(MARKERS)]


PAGE = Theme(_STAND_INS[0], _STAND_INS[1], _STAND_INS[2], _STAND_INS[3], tuple(_STAND_INS[4:]))
PAPER = Theme(
    "#1c2330",
    "#5d6675",
    "#d9dee7",
    "#f3f5f9",
    ("#2f6bde", "#d9622b", "#1f9d6b", "#a44bc4", "#b8860b", "#148fa8", "#d23f6b", "#6c5ce7", "#7a6a58", "#5f8f1f"),
)


@contextmanager
def drawing_rules() -> Iterator[ModuleType]:
    """Matplotlib with the settings of all our drawings; afterwards those of the caller are back.

    ``$`` in a name is a dollar, not a formula. A letter that matplotlib's own font lacks is drawn by the browser's.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    rules = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10}
    rules |= {"font.family": ["DejaVu Sans"], "axes.unicode_minus": False, "axes.formatter.use_mathtext": False}
    with matplotlib.rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield matplotlib


def load_matplotlib() -> ModuleType:
    """Matplotlib, without its windows.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("The report's pictures need matplotlib: pip install '.[train]'.") from error
    return matplotlib


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """The drawing as an ``<svg>`` element of the page; ``name`` keeps its ids apart from those of other drawings.

    Its size and its fonts are left to the page, and its colors become the page's variables. Attributes alone are
    changed: a text that looks like an id or a color stays as it is.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
        attributes = {key.rpartition("}")[2]: _of_page(value, name) for key, value in parent.items()}
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        parent.attrib.clear()
        parent.attrib.update(attributes)
        if parent.tag != "text":
            parent.text = parent.tail = None  # line ends between elements
        else:
            parent.tail = None
    root.attrib.clear()
    root.attrib.update({"viewBox": _view_box(figure), "role": "img", "aria-label": plain(description, 200)})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _of_page(value: str, name: str) -> str:
    """An attribute as the page needs it: own ids, variables for stand-ins, no font, one line."""
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
    value = f"#{name}-{value[1:]}" if re.fullmatch(r"#[a-z_]\w{6,}", value) and value not in _STAND_INS else value
    for stand_in, variable in zip(_STAND_INS, VARIABLES, strict=True):
        value = value.replace(stand_in, f"var({variable})")
    return re.sub(
        r"font: ([\d.]+px)[^;]*|font-family: [^;]*;?", lambda found: f"font-size: {found[1]}" if found[1] else "", value
    ).replace("\n", "")


def _view_box(figure: "Figure") -> str:
    width, height = figure.get_size_inches() * 72
    return f"0 0 {width:g} {height:g}"


# Left, right, bottom and top of a panel, in inches: room for numbers of six digits, two lines of names below.
MARGINS = (0.62, 0.12, 0.62, 0.1)


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure of one panel, in inches; its margins are fixed, since matplotlib's layouts draw everything twice."""
    figure = load_matplotlib().figure.Figure(figsize=(width, height))
    left, right, bottom, top = MARGINS
    inside = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(inside)


# --- panels of figures -----------------------------------------------------------------------------------------------


def draw_panel(axes: "Axes", panel: Panel, labels: Sequence[str], styles: dict[str, str], theme: Theme) -> None:
    """Lines or bars with error bars; ``labels`` gives each metric its color, ``styles`` each reference its dashes."""
    if panel.form == "lines":
        for line in panel.lines:
            _draw_line(axes, line, labels.index(line.label), panel.loose, theme)
    else:
        _draw_bars(axes, panel, labels, theme)
    for line in panel.lines:
        for name, value in line.references.items():
            color = theme.color(labels.index(line.label))
            axes.axhline(value, color=color, linestyle=styles[name], linewidth=1.1, alpha=0.75)
    axes.set_xticks(range(len(panel.places)), [_wrapped(name) for name in panel.places])
    axes.set_xlim(-0.5, max(len(panel.places), 1) - 0.5)
    axes.set_ylim(*panel.bounds())
    _quiet_axes(axes, theme)


def _draw_line(axes: "Axes", line: Line, number: int, loose: int | None, theme: Theme) -> None:
    color, end = theme.color(number), len(line.points) if loose is None else loose
    joined = [point for point in line.points if loose is None or point.x < end]
    alone = [point for point in line.points if loose is not None and point.x >= end]
    axes.plot([p.x for p in joined], [p.value for p in joined], color=color, linewidth=1.8, zorder=3)
    for point in [*joined, *alone]:
        axes.plot(
            [point.x], [point.value], color=color, marker=theme.marker(number), markersize=5, linewidth=0, zorder=4
        )
        _draw_interval(axes, point.x, point.low, point.high, color)


def _draw_bars(axes: "Axes", panel: Panel, labels: Sequence[str], theme: Theme) -> None:
    width = 0.8 / max(len(panel.lines), 1)
    for place, line in enumerate(panel.lines):
        color = theme.color(labels.index(line.label))
        for point in line.points:
            x = point.x + (place - (len(panel.lines) - 1) / 2) * width
            axes.bar([x], [point.value], width=0.88 * width, color=color, alpha=0.8, zorder=3)
            _draw_interval(axes, x, point.low, point.high, theme.ink)


def _draw_interval(axes: "Axes", x: float, low: float | None, high: float | None, color: str) -> None:
    if low is not None and high is not None:
        axes.vlines([x], [low], [high], color=color, linewidth=1.4, alpha=0.9, zorder=5)


def _wrapped(name: str) -> str:
    return textwrap.fill(textwrap.shorten(name, 36, placeholder="…"), 12, break_long_words=True)


def _quiet_axes(axes: "Axes", theme: Theme) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    axes.tick_params(colors=theme.pale, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    axes.patch.set_alpha(0)


# --- what was logged -------------------------------------------------------------------------------------------------


def draw_curves(
    axes: "Axes", curves: Sequence[tuple[int, Series]], stages: Sequence[StageSpan], theme: Theme, smooth: bool = True
) -> None:
    """Logged values over steps, each with the number of its color; every other stage has a band behind it.

    ``smooth``: of a long curve, the means of neighbours are drawn over it.
    """
    for number, stage in enumerate(stages):
        if number % 2:
            axes.axvspan(stage.first - 0.5, stage.last + 0.5, color=theme.band, linewidth=0, zorder=0)
    for color, series in curves:
        steps, values = np.asarray(series.steps, dtype=float), np.asarray(series.values, dtype=float)
        finite = np.isfinite(values)
        steps, values = thinned(steps[finite], values[finite])
        long = smooth and len(values) > SMOOTH_FROM
        marker = theme.marker(color) if len(values) < 15 else None
        axes.plot(
            steps,
            values,
            color=theme.color(color),
            alpha=0.3 if long else 1,
            linewidth=1 if long else 1.8,
            marker=marker,
            markersize=3.5,
        )
        if long:
            axes.plot(steps, smoothed(values), color=theme.color(color), linewidth=1.9)
    if stages:
        axes.set_xlim(min(0.5, stages[0].first - 0.5), stages[-1].last + 0.5)
    _quiet_axes(axes, theme)
    axes.set_xlabel("step", color=theme.pale, fontsize=9)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MOST_POINTS`` points: means of neighbours.

    >>> [len(part) for part in thinned(np.arange(5000.0), np.zeros(5000))]
    [556, 556]
    """
    size = -(-len(values) // MOST_POINTS)
    if size <= 1:
        return steps, values
    starts = np.arange(0, len(values), size)
    counts = np.diff([*starts, len(values)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours on both sides, a twentieth of all values each; fewer at the ends."""
    reach = max(1, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach_here = np.minimum(reach, np.minimum(place, len(values) - 1 - place))
    first, last = place - reach_here, place + reach_here + 1
    return (total[last] - total[first]) / (last - first)


def draw_histograms(axes: "Axes", histograms: Sequence[Histogram], theme: Theme) -> None:
    """Shares of the pairs by cosine, each histogram by itself 100%: true pairs are few beside all others."""
    for number, histogram in enumerate(histograms):
        counts = np.asarray(histogram.counts, dtype=float)
        shares = 100 * counts / max(counts.sum(), 1.0)
        axes.stairs(shares, histogram.edges, color=theme.color(number), linewidth=1.6, zorder=3)
        axes.stairs(shares, histogram.edges, color=theme.color(number), alpha=0.22, fill=True, zorder=2)
    used = [edge for histogram in histograms for edge in _used_edges(histogram)]
    if used:
        room = 0.03 * (max(used) - min(used) or 1.0)
        axes.set_xlim(min(used) - room, max(used) + room)
    axes.set_ylim(bottom=0)
    _quiet_axes(axes, theme)
    axes.set_xlabel("cosine", color=theme.pale, fontsize=9)


def _used_edges(histogram: Histogram) -> tuple[float, ...]:
    filled = np.flatnonzero(np.asarray(histogram.counts))
    return (histogram.edges[filled[0]], histogram.edges[filled[-1] + 1]) if len(filled) else ()
