"""``compare``: runs beside each other: what differs between their recipes, their curves, and what is worse."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from trainer_ext.files import refuse_unwritable
from trainer_ext.report.comparison import compare_runs, recipe_rows, verdict
from trainer_ext.report.data import Difference, ReportData
from trainer_ext.report.page import write_report
from trainer_ext.report.words import FigureName, plain

EXAMPLE = """\
example:
  python -m trainer_ext compare outputs/first outputs/second --output_dir outputs/comparison

The last stage of each run is compared with that of the first one; --row names another row of metrics.json, for
example EMA, or a model of `evaluate`. Exit code: 0; 1 if any figure of a later run is worse than the first run's, with
a 95% interval that leaves out 0; 2 where something is wrong with what was given."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(
        prog="python -m trainer_ext compare",
        description="Compare runs: recipes, curves and figures, in the terminal and in one page.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or of figures that evaluate wrote")
    made.add_argument(
        "--output_dir", default="comparison", help="folder of report.html (default: comparison); replaces an older one"
    )
    made.add_argument("--row", metavar="NAME", help="the row of metrics.json to compare (default: the last stage)")
    return made


def work(options: argparse.Namespace) -> int:
    """Print both tables, write the page; 1 if a figure is worse."""
    output = Path(options.output_dir)
    if any(output.resolve() == Path(run).resolve() for run in options.runs):
        raise ValueError(f"--output_dir {output} is one of the runs, whose own report.html would be lost; give another")
    refuse_unwritable(output, "--output_dir")
    data = compare_runs(options.runs, options.row)
    for line in [*_recipe_lines(data), "", *_figure_lines(data)]:
        print(line)
    print(f"\nthe page is {write_report(output, data)}")
    return int(any(verdict(difference) == "worse" for difference in data.differences))


def _recipe_lines(data: ReportData) -> Iterator[str]:
    rows = recipe_rows(data.runs)
    yield from (f"note: {note}" for note in data.notes)
    if not rows:
        yield "the recipes are equal"
    for key, values in rows:
        yield f"{key}: {' -> '.join(plain(value, 60) for value in values)}"


def _figure_lines(data: ReportData) -> Iterator[str]:
    pair = None
    for item in data.differences:
        if (item.first, item.second) != pair:
            pair = (item.first, item.second)
            yield f"{item.second} minus {item.first}:"
        yield f"  {_line(item)}"


def _line(item: Difference) -> str:
    figure = FigureName.of(item.metric)
    interval = "" if item.interval is None else f" ({figure.show_interval(item.interval, sign=True)})"
    words = f" {verdict(item)}" if verdict(item) in ("better", "worse") else ""
    return f"{plain(item.metric, 60):<44}{figure.show(item.value, sign=True):>8}{interval}{words}"
