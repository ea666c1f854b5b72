"""What a key of a recipe changes: paired short runs with and without it, on the demo's data.

    python benchmarks/effects.py label_smoothing
    python benchmarks/effects.py label_smoothing hardness --seeds 5 --write docs/effects.md

``benchmarks/effects.yaml`` has the arms: a shortened recipe, the overrides of the run *with* and of the run *without*,
and the figures to compare. Both runs of a pair have the same seed, so the same start, rows and order, and as many
steps. They are measured on test rows, and the differences of the pairs have a 95% t interval over the seeds; at least
three are needed. One run takes one to two minutes on two quiet cores.

Runs are kept in ``--folder`` under their recipe and seed, and taken again by later calls: arms of one recipe share the
runs without. Each says which commit it ran on; delete the folder after a change that matters to them.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from benchmarks.paired import FIRST_SEED, figures_on, paired_difference, read_tasks, seconds_of, trained
from modeling_jina_clip import JinaCLIPModel, shortened
from trainer_ext.evaluation.report import metric_words
from trainer_ext.evaluation.tasks import Task
from trainer_ext.files import write_json
from trainer_ext.measuring.models import Encoders, encoders_of, open_model

ARMS = Path(__file__).with_suffix(".yaml")
ROOT = Path(__file__).parents[1]
HEAD = "| key | figure | without | with | difference, 95% interval | seeds | seconds a run |"


@dataclass(frozen=True)
class Arm:
    """One line of ``effects.yaml``.

    ``recipe`` is one of the file's shortened recipes. ``having`` are overrides of the run with the key, ``without``
    those of the run without it, mostly none. ``figures`` are names as in ``metrics.json``. ``measured`` is the folder
    inside the run with the key that holds the model to measure, such as ``merged-0.5``. ``shortened`` are arguments of
    the function of that name: both runs are measured by the first layers of their models. ``prepare`` are commands that
    make data or a model first, each as arguments of ``python`` in the repository's folder. ``{data}`` in overrides and
    commands is a folder that all runs share, ``{start}`` the model that an arm tunes.
    """

    recipe: str
    having: list[str]
    figures: list[str]
    without: list[str] = field(default_factory=list)
    measured: str = "."
    shortened: dict[str, int] = field(default_factory=dict)
    prepare: list[list[str]] = field(default_factory=list)


class Runs:
    """The runs of all arms: trained once, measured once, kept in ``folder``."""

    def __init__(self, content: Mapping[str, Any], folder: Path, steps: int | None = None) -> None:
        self.recipes, self.measured, self.folder, self.steps = content["recipes"], content["measured"], folder, steps
        self.arms = {name: Arm(**arm) for name, arm in content["arms"].items()}
        self._tasks: list[Task] = []

    @property
    def data(self) -> Path:
        """What arms prepare, shared by all runs of a length, since they may prepare a model that one of them left."""
        return self.folder / ("data" if self.steps is None else f"data-{self.steps}")

    def overrides(self, recipe: str, own: Sequence[str]) -> list[str]:
        """All overrides of a run: the shortened recipe's, its start, and its own."""
        spec = self.recipes[recipe]
        found = ["evaluation=null", "save_strategy=no", "report_to=none", *spec["overrides"]]
        if "start" in spec:
            found += [f"model={self.start(recipe)}", "tokenizer=null"]
        if self.steps is not None:
            found.append(f"stages.0.steps={self.steps}")
        return found + [self._placed(recipe, override) for override in own]

    def start(self, recipe: str) -> str:
        """The folder of the model that a recipe tunes; nothing for one that starts from random weights."""
        start = self.recipes[recipe].get("start")
        return "" if start is None else str(self.run(start, [], FIRST_SEED - 1))

    def run(self, recipe: str, own: Sequence[str], seed: int) -> Path:
        """The folder of a run, trained now if it is not there."""
        overrides = [*self.overrides(recipe, own), f"seed={seed}"]
        base = self.recipes[recipe]["recipe"]
        return trained(self.folder / "runs" / _name_of([base, overrides]), base, overrides)

    def figures(self, model: Path, names: Sequence[str], layers: Mapping[str, int]) -> dict[str, float]:
        """The figures of a model, or of its first layers, on the held-out tasks, kept if ``names`` are among them."""
        cut = "".join(f"_{name}_{number}" for name, number in sorted(layers.items()))
        kept = model / f"effect_figures_{self.measured['limit']}{cut}.json"
        if not kept.is_file() or not set(names) <= json.loads(kept.read_text()).keys():
            encoders = first_layers(model, layers) if layers else open_model(model)
            write_json(kept, figures_on(encoders, self.tasks()))
        return json.loads(kept.read_text())

    def tasks(self) -> list[Task]:
        """The tasks of ``measured``, read once."""
        if not self._tasks:
            measured = self.measured
            own = measured.get("own_sources", []), measured.get("own_tasks", [])
            self._tasks = read_tasks(measured["suite"], measured["limit"], measured["tasks"], *own)
        return self._tasks

    def compare(self, name: str, seeds: Sequence[int]) -> list[str]:
        """The rows of the table for an arm."""
        arm = self.arms[name]
        self._prepare(arm)
        run = partial(self.run, arm.recipe)
        pairs = [(run(arm.without, seed), run(arm.having, seed)) for seed in seeds]
        figures = partial(self.figures, names=arm.figures, layers=arm.shortened)
        without, having = zip(*((figures(a), figures(b / arm.measured)) for a, b in pairs), strict=True)
        seconds = [statistics.median(map(seconds_of, folders)) for folders in zip(*pairs, strict=True)]
        rows = []
        for figure in arm.figures:
            one, other = ([100 * found[figure] for found in runs] for runs in (without, having))
            mean, half = paired_difference(one, other)
            cells = [f"`{name}`", " ".join(metric_words(figure)), *(f"{statistics.mean(x):.1f}" for x in (one, other))]
            cells += [f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})", str(len(seeds))]
            rows.append(f"| {' | '.join([*cells, f'{seconds[0]:.0f}, {seconds[1]:.0f}'])} |")
        return rows

    def _placed(self, recipe: str, text: str) -> str:
        text = text.replace("{data}", str(self.data))
        return text.replace("{start}", self.start(recipe)) if "{start}" in text else text

    def _prepare(self, arm: Arm) -> None:
        """Run an arm's commands once, also where another one has the same; ``{data}/HASH.done`` is written last."""
        done = self.data / f"{_name_of([arm.recipe, arm.prepare])}.done"
        if arm.prepare and not done.is_file():
            self.data.mkdir(parents=True, exist_ok=True)
            for arguments in arm.prepare:
                command = [sys.executable, *(self._placed(arm.recipe, text) for text in arguments)]
                subprocess.run(command, check=True, cwd=ROOT)
            done.touch()


def first_layers(model: Path, layers: Mapping[str, int]) -> Encoders:
    """The encoders of a model's first layers."""
    return encoders_of(shortened(JinaCLIPModel.from_pretrained(model), **layers), str(model))


def _name_of(content: Any) -> str:
    return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def with_rows(page: str, name: str, rows: Sequence[str]) -> str:
    """The page with these rows for an arm, in place of its earlier ones or at the end of its table.

    >>> page = with_rows(f"{HEAD}\\n|---|\\n| `b` | 1 |\\n\\nwords", "a", ["| `a` | 2 |"])
    >>> page.splitlines()[2:]
    ['| `b` | 1 |', '| `a` | 2 |', '', 'words']
    """
    lines = page.splitlines()
    own = [place for place, line in enumerate(lines) if line.startswith(f"| `{name}` |")]
    if HEAD not in lines:
        raise ValueError(f"the page has no table with the head {HEAD}")
    place = own[0] if own else lines.index(HEAD) + 2
    lines = [line for line in lines if not line.startswith(f"| `{name}` |")]
    while not own and place < len(lines) and lines[place].startswith("|"):
        place += 1
    return "\n".join([*lines[:place], *rows, *lines[place:]]) + ("\n" if page.endswith("\n") else "")


def main() -> None:
    """Run the arms asked for and print their rows."""
    content = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=list(content["arms"]), metavar="NAME", help="arms of effects.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs; at least 3 (default)")
    parser.add_argument("--steps", type=int, help="steps of every run; by default the recipe's")
    parser.add_argument("--limit", type=int, help="test rows of each task; by default those of the file")
    parser.add_argument("--folder", type=Path, default=Path("outputs/effects"), help="where runs are kept")
    parser.add_argument("--write", type=Path, help="a page whose table gets the rows")
    options = parser.parse_args()
    if options.seeds < 3:
        parser.error(f"--seeds {options.seeds} are too few for an interval; give at least 3")
    content["measured"]["limit"] = options.limit or content["measured"]["limit"]
    runs = Runs(content, options.folder.absolute(), options.steps)
    for name in options.names:
        rows = runs.compare(name, range(FIRST_SEED, FIRST_SEED + options.seeds))
        print("\n".join([HEAD, "|---|---|--:|--:|--:|--:|--:|", *rows]), flush=True)
        if options.write is not None:
            page = options.write.read_text(encoding="utf-8")
            options.write.write_text(with_rows(page, name, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
