"""The tables and drawings of docs/study.md, from the rows that ``run.py`` wrote. Nothing in them is typed.

    python examples/study/tables.py           # into docs/study.md, between its markers, and docs/study/*.svg
    python examples/study/tables.py --print a # one table; --rows FILE for rows elsewhere

A cell has the mean over the seeds in percent, then the mean of the differences to the arm in the column "against" with
half the width of its 95% t interval; both arms have the same seeds there. Bold differences have an interval without 0.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.paired import Difference, interval, paired_difference
from examples.study.rows import ROWS, read_rows
from examples.study.run import ARMS, SEEDLESS, Arm, read_arms
from trainer_ext.commands.guard import guarded

PAGE = Path(__file__).parents[2] / "docs" / "study.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# One difference inside a sentence: arm, the arm it is compared with, column.
CELL = re.compile(r"(<!-- (\w+) - (\w+), ([\w ,]+) -->)(.*?)(<!-- / -->)")
# Column -> suite, figure. Text to image where pictures are searched.
COLUMNS = {
    "concepts": ("test", "concepts_short/t2i_r5"),
    "concepts, long captions": ("test", "concepts_long/t2i_r5"),
    "combinations": ("test", "combinations_short/t2i_r5"),
    "headword": ("test", "headword_definition/ndcg10"),
    "example": ("test", "definition_example/ndcg10"),
    "definition": ("test", "definition_definition/ndcg10"),
    "hard negatives": ("test", "hard_negatives/accuracy"),
}
VALIDATION = {
    "pictures": ("validation", "validation_short/t2i_r5"),
    "pictures, long captions": ("validation", "validation_long/t2i_r5"),
    "headword": ("validation", "validation_headword_definition/ndcg10"),
    "example": ("validation", "validation_definition_example/ndcg10"),
    "definition": ("validation", "validation_definition_definition/ndcg10"),
    "hard negatives": ("validation", "validation_hard_negatives/accuracy"),
}
Row = Mapping[str, Any]
Runs = dict[str, dict[int, Row]]


def runs_of(rows: Sequence[Row]) -> Runs:
    """Rows by arm and seed.

    Raises:
        ValueError: two rows of one arm and seed: the older one is of another recipe.
    """
    runs: Runs = {}
    for row in rows:
        seeds = runs.setdefault(row["arm"], {})
        if row["seed"] in seeds:
            raise ValueError(f"arm {row['arm']}, seed {row['seed']} has two rows. Delete that of the older recipe.")
        seeds[row["seed"]] = row
    return runs


def values(runs: Runs, arm: str, column: tuple[str, str]) -> dict[int, float]:
    """A figure in percent by seed; empty where the arm has not run, or cannot do the task."""
    suite, name = column
    found = {seed: row["figures"][suite].get(name) for seed, row in runs.get(arm, {}).items()}
    return {seed: 100 * value for seed, value in sorted(found.items()) if value is not None}


def difference(runs: Runs, arm: Arm, against: str, column: tuple[str, str]) -> Difference | None:
    """Of an arm's figure to that of another one; None with fewer than three seeds that both have.

    A peer that has no seed is the same for all of the other's.
    """
    own, other = values(runs, arm.name, column), values(runs, against, column)
    if arm.peer in SEEDLESS and own:
        own = dict.fromkeys(other, next(iter(own.values())))
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 3:
        return None
    return paired_difference([other[seed] for seed in seeds], [own[seed] for seed in seeds])


def cell(runs: Runs, arm: Arm, against: str, column: tuple[str, str]) -> str:
    """What a table says of a figure."""
    own = list(values(runs, arm.name, column).values())
    if not own:
        return "-"
    mean = f"{statistics.mean(own):.1f}"
    if against == arm.name:
        return f"{mean} ±{interval(own).half:.1f}" if len(own) > 2 else mean
    found = difference(runs, arm, against, column)
    if found is None:
        return mean
    words = f"{found.mean:+.1f} ±{found.half:.1f}"
    return f"{mean} ({f'**{words}**' if abs(found.mean) > found.half else words})"


def comparison(runs: Runs, pairs: Sequence[tuple[Arm, str]], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """A table with a line for each arm that has run, beside the arm it is compared with."""
    if not any(arm.name in runs for arm, against in pairs if against != arm.name):
        return ["No rows yet."]
    lines = [f"| arm | against | seeds | {' | '.join(columns)} |", f"|---|---|--:|{'--:|' * len(columns)}"]
    for arm, against in pairs:
        if arm.name in runs:
            other = "" if against == arm.name else f"`{against}`"
            cells = [cell(runs, arm, against, column) for column in columns.values()]
            lines.append(f"| `{arm.name}` | {other} | {len(runs[arm.name])} | {' | '.join(cells)} |")
    return lines


def seen(runs: Runs, arms: Mapping[str, Arm]) -> list[str]:
    """What each arm has trained on, and how long it took."""
    lines = ["| arm | steps | pictures | text rows | seconds |", "|---|--:|--:|--:|--:|"]
    for name in filter(runs.__contains__, arms):
        row = next(iter(runs[name].values()))
        seconds = statistics.median(row["seconds"]["training"] for row in runs[name].values())
        cells = [f"{row[key]:,}" for key in ("steps", "pictures", "text_rows")]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {seconds:.0f} |")
    return lines


def machines(rows: Sequence[Row]) -> list[str]:
    """Where the rows come from."""
    found: dict[str, int] = {}
    for row in rows:
        machine, versions = row["machine"], row["versions"]
        words = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread a run"
        words += f"; python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}"
        found[words] = found.get(words, 0) + 1
    return [f"- {number} rows: {words}" for words, number in found.items()]


def missing(runs: Runs, arms: Mapping[str, Arm]) -> list[str]:
    """Arms without three rows."""
    few = [name for name, arm in arms.items() if arm.peer not in SEEDLESS and 0 < len(runs.get(name, {})) < 3]
    none = [name for name in arms if name not in runs]
    sides = (("fewer than three seeds, so no interval", few), ("no rows yet", none))
    return [f"- {words}: {', '.join(f'`{name}`' for name in names)}" for words, names in sides if names] or ["- none"]


def table(name: str, content: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The lines of a table: a group's letter, one of ``comparisons``, validation, seen, machines or missing.

    Raises:
        ValueError: no such table.
    """
    arms, runs = read_arms(content), runs_of(rows)
    if name in content["groups"]:
        own = [arm for arm in arms.values() if arm.group == name]
        others = dict.fromkeys(arm.against for arm in own if arms[arm.against].group != name)
        pairs = [(arms[other], other) for other in others] + [(arm, arm.against) for arm in own]
        return comparison(runs, pairs, COLUMNS)
    if name in content["comparisons"]:
        return comparison(runs, [(arms[arm], against) for arm, against in content["comparisons"][name]], COLUMNS)
    if name == "validation":
        return comparison(runs, [(arm, arm.against) for arm in arms.values()], VALIDATION)
    if name == "seen":
        return seen(runs, arms)
    if name == "machines":
        return machines(rows)
    if name == "missing":
        return missing(runs, arms)
    known = [*content["groups"], *content["comparisons"], "validation", "seen", "machines", "missing"]
    raise ValueError(f"there is no table {name!r}; there are {', '.join(known)}")


def with_tables(page: str, content: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page with its tables, and its differences inside sentences, as the rows have them.

    Raises:
        ValueError: a sentence has a difference of arms without three common seeds.
    """
    arms, runs = read_arms(content), runs_of(rows)

    def said(place: re.Match[str]) -> str:
        found = difference(runs, arms[place[2]], place[3], COLUMNS[place[4]])
        if found is None:
            raise ValueError(f"the page says {place[2]} - {place[3]}, {place[4]}, but there are no three seeds of both")
        return f"{place[1]}{found.mean:+.1f} ±{found.half:.1f}{place[6]}"

    def made(block: re.Match[str]) -> str:
        return "\n".join([block[1].rstrip(), "", *table(block[2], content, rows), "", block[4]])

    return CELL.sub(said, BLOCK.sub(made, page))


# --- drawings ----------------------------------------------------------------------------------------------------
DRAWN = ("concepts", "combinations", "headword", "example")


def draw_differences(runs: Runs, arms: Mapping[str, Arm], path: Path) -> None:
    """Every arm that is compared with ``joint``: the difference and its interval, a panel for each figure."""
    from matplotlib.figure import Figure

    shown = [arm for arm in arms.values() if arm.against == "joint" != arm.name and len(runs.get(arm.name, {})) > 2]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(DRAWN), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, DRAWN, strict=True):
        for place, arm in enumerate(shown):
            if (found := difference(runs, arm, "joint", COLUMNS[column])) is not None:
                panel.errorbar(found.mean, place, xerr=found.half, fmt="o", color="#2b6cb0", capsize=2, markersize=4)
        panel.axvline(0, color="#888888", linewidth=0.8)
        panel.set_title(column, fontsize=10)
        panel.set_yticks(range(len(shown)), [arm.name for arm in shown], fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.supxlabel("points against `joint`, mean of paired differences with its 95% interval", fontsize=9)
    save(figure, path)


def draw_weights(runs: Runs, path: Path) -> None:
    """Text retrieval against picture retrieval, by the weight of the text pairs; the ends have one task alone."""
    from matplotlib.figure import Figure

    line = ["images_only", "text_weight_025", "text_weight_05", "joint", "text_weight_2", "text_weight_4", "texts_only"]
    names = [name for name in line if name in runs]
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    panel = figure.subplots()
    points = [[statistics.mean(values(runs, name, COLUMNS[key]).values()) for key in DRAWN[::2]] for name in names]
    panel.plot(*zip(*points, strict=True), "-o", color="#2b6cb0", markersize=5)
    for name, point in zip(names, points, strict=True):
        panel.annotate(name, point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    panel.set_xlabel("concepts, text to image R@5, percent")
    panel.set_ylabel("headword to definition, nDCG@10, percent")
    panel.grid(alpha=0.3)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """As SVG that is the same for the same rows."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    """Write the page's tables, or print one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=ROWS, help="rows of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose tables are written")
    parser.add_argument("--print", dest="shown", metavar="TABLE", help="print this table and write nothing")
    options = parser.parse_args(arguments)
    content, rows = yaml.safe_load(ARMS.read_text(encoding="utf-8")), read_rows(options.rows)
    if not rows:
        raise ValueError(f"{options.rows} has no rows. Run: python examples/study/run.py joint")
    if options.shown is not None:
        print("\n".join(table(options.shown, content, rows)))
        return
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(with_tables(page, content, rows), encoding="utf-8")
    draw_differences(runs_of(rows), read_arms(content), options.page.parent / "study" / "differences.svg")
    draw_weights(runs_of(rows), options.page.parent / "study" / "weights.svg")


if __name__ == "__main__":
    sys.exit(guarded(main))
