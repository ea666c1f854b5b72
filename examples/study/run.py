"""The study of docs/study.md: trains paired arms on the demo's data, measures them, and writes one row per run.

    python examples/study/run.py joint images_only --seeds 3
    python examples/study/run.py a --seeds 5                  # a group of arms; `all` for all groups
    python examples/study/tables.py                           # the page's tables, from the rows

``arms.yaml`` says what an arm is. Arms of one seed have the same start, rows and order, so differences are paired. A
row has the arm, the seed, a hash of what was asked for, versions, machine, seconds, and all figures on validation and
test rows. A seed whose row is there is skipped; one that was stopped begins anew. Runs are kept in ``--folder``.
"""

import argparse
import difflib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.paired import FIRST_SEED, commit, figures_on, read_tasks, seconds_of, trained
from examples.study.peers import clip_encoders, minilm, texts_of, train_clip
from examples.study.rows import ROWS, append_row, read_rows, surroundings
from examples.study.shared import MAKERS, data_names
from trainer_ext.commands.guard import guarded
from trainer_ext.evaluation.baselines import bm25
from trainer_ext.evaluation.tasks import Task
from trainer_ext.measuring.models import open_model
from trainer_ext.recipe.recipe import load_recipe, recipe_fingerprint

ARMS = Path(__file__).with_name("arms.yaml")
ALWAYS = ["evaluation=null", "save_strategy=no", "report_to=none"]
SEEDLESS = ("bm25", "minilm")  # nothing of ours is trained: one row


@dataclass(frozen=True)
class Place:
    """The model that an arm's run leaves in ``folder``: its last one, or that of a stage."""

    of: str
    folder: str = "."


@dataclass(frozen=True)
class Arm:
    """An entry of ``arms.yaml``, which explains the keys."""

    name: str
    group: str
    base: str | None = None
    having: list[str] = field(default_factory=list)
    start: Place | None = None
    of: str | None = None
    folder: str = "."
    peer: Literal["bm25", "minilm", "clip"] | None = None
    against: str = "joint"


def read_arms(content: Mapping[str, Any]) -> dict[str, Arm]:
    """The arms by name.

    Raises:
        ValueError: an arm that names a group, a base or another arm that is not there.
    """
    arms = {}
    for name, entry in content["arms"].items():
        start = Place(**entry["start"]) if "start" in entry else None
        arms[name] = arm = Arm(name=name, **{**entry, "start": start})
        if arm.base is None and arm.of is None and arm.peer is None:
            raise ValueError(f"arm {name}: needs one of base, of and peer")
        if arm.base is not None and arm.base not in content["bases"]:
            raise ValueError(f"arm {name}: base {arm.base!r} is not one of {', '.join(content['bases'])}")
        if arm.group not in content["groups"]:
            raise ValueError(f"arm {name}: group {arm.group!r} is not one of {', '.join(content['groups'])}")
    for arm in arms.values():
        for other in filter(None, (arm.against, arm.of, arm.start and arm.start.of)):
            if other not in arms:
                raise ValueError(f"arm {arm.name}: there is no arm {other!r}")
    return arms


class Study:
    """All runs of the study: trained once, measured once, a row for each in ``rows``."""

    def __init__(self, content: Mapping[str, Any], folder: Path, rows: Path, steps: int | None = None) -> None:
        self.content, self.folder, self.rows, self.steps = content, folder, rows, steps
        self.recipe = str(ARMS.parent / content["recipe"])
        self.arms = read_arms(content)
        self._tasks: dict[str, list[Task]] = {}

    # --- what is asked for ---
    def overrides(self, arm: Arm) -> list[str]:
        """An arm's overrides with their placeholders; all stages have ``steps`` steps where the study is shortened."""
        found = [*ALWAYS, *self.content["bases"][arm.base]]
        found += ["model={start}", "tokenizer=null"] if arm.start else []
        found += arm.having
        if self.steps is not None:
            [stages] = [yaml.safe_load(text.partition("=")[2]) for text in found if text.startswith("stages=")]
            found += [f"stages.{stage}.steps={self.steps}" for stage in range(len(stages))]
        return found

    def asked(self, arm: Arm) -> dict[str, Any]:
        """Everything that decides an arm's figures but the seed, without a path of this machine."""
        if arm.of is not None:
            return {**self.asked(self.arms[arm.of]), "folder": arm.folder}
        overrides = [] if arm.base is None else self.overrides(arm)
        start = arm.start and {**self.asked(self.arms[arm.start.of]), "folder": arm.start.folder}
        data = {name: self.content["data"][name] for name in data_names(overrides)}
        peer = {} if arm.peer is None else {"peer": arm.peer}
        return {"overrides": overrides, "start": start, "data": data, **peer}

    def hash_of(self, arm: Arm) -> str:
        """Of ``asked``, of the packaged recipe and of what is measured: equal for runs that should be equal."""
        whole = [recipe_fingerprint(load_recipe(self.recipe)), self.asked(arm), self.content["measured"]]
        return blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=8).hexdigest()

    # --- runs ---
    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of an arm's run, trained now if it is not there, after what it starts from."""
        if arm.of is not None:
            return self.run(self.arms[arm.of], seed)
        overrides = self.overrides(arm)
        start = "" if arm.start is None else str(self.run(self.arms[arm.start.of], seed) / arm.start.folder)
        name = f"{arm.name}-{seed}-{self.hash_of(arm)}"
        return trained(self.folder / "runs" / name, self.recipe, [*self.placed(overrides, start), f"seed={seed}"])

    def placed(self, overrides: Sequence[str], start: str = "") -> list[str]:
        """Overrides with this machine's paths; the data that they name are made now."""
        for name in data_names(overrides):
            self.make(name)
        return [text.replace("{data}", str(self.data)).replace("{start}", start) for text in overrides]

    @property
    def data(self) -> Path:
        """What arms share."""
        return self.folder / "data"

    def make(self, name: str) -> None:
        """Data of the section ``data``, once; a file NAME.done is written last."""
        done = self.data / f"{name}.done"
        if not done.is_file():
            maker, *arguments = self.content["data"][name]
            self.data.mkdir(parents=True, exist_ok=True)
            MAKERS[maker](self.data / name, *arguments)
            done.touch()

    def tasks(self) -> dict[str, list[Task]]:
        """The tasks of each suite, read once."""
        measured = self.content["measured"]
        if not self._tasks:
            self._tasks = {name: read_tasks(suite, measured["limit"]) for name, suite in measured["suites"].items()}
        return self._tasks

    # --- rows ---
    def do(self, name: str, seed: int) -> dict[str, Any] | None:
        """Train, measure and write down one arm with one seed; None if its row is there or would be the same again."""
        arm = self.arms[name]
        asked = self.hash_of(arm)
        there = any((row["arm"], row["seed"], row["asked"]) == (name, seed, asked) for row in read_rows(self.rows))
        if there or (arm.peer in SEEDLESS and seed != FIRST_SEED):
            return None
        training, seen, measure = self.model(arm, seed)
        begin = time.perf_counter()
        figures = {suite: measure(tasks) for suite, tasks in self.tasks().items()}
        row = {
            "arm": name,
            "seed": seed,
            "asked": asked,
            "commit": commit(),
            "seconds": {"training": round(training, 1), "measuring": round(time.perf_counter() - begin, 1)},
            **seen,
            **surroundings(),
            "figures": {
                suite: {key: round(value, 5) for key, value in some.items()} for suite, some in figures.items()
            },
        }
        append_row(self.rows, row)
        return row

    def model(self, arm: Arm, seed: int) -> tuple[float, dict[str, int], Callable[[Sequence[Task]], dict[str, float]]]:
        """An arm's seconds of training, what it has seen, and the function that measures it."""
        if arm.peer == "bm25":
            return 0.0, count([]), bm25
        if arm.peer == "minilm":
            return 0.0, count([]), lambda tasks: figures_on(minilm(), texts_of(tasks))
        if arm.peer == "clip":
            recipe = load_recipe(self.recipe, [*self.placed(self.overrides(arm)), f"seed={seed}"])
            begin = time.perf_counter()
            encoders = clip_encoders(*train_clip(recipe))
            seen = count(recipe.model_dump()["stages"])
            return time.perf_counter() - begin, seen, partial(figures_on, encoders)
        run = self.run(arm, seed)
        return seconds_of(run), self.seen(arm, seed), partial(figures_on, open_model(run / arm.folder))

    def seen(self, arm: Arm, seed: int) -> dict[str, int]:
        """Steps, pictures and texts that an arm's model has trained on, what it started from included."""
        before = count([])
        if arm.start is not None:
            first = self.arms[arm.start.of]
            before = self.seen(replace(first, of=first.name, folder=arm.start.folder), seed)
        stages = json.loads((self.run(arm, seed) / "run.json").read_text())["recipe"]["stages"]
        if (last := re.match(r"stages/(\d+)-", arm.folder)) is not None:
            stages = stages[: int(last[1]) + 1]
        return {key: before[key] + value for key, value in count(stages).items()}


def count(stages: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What stages train on.

    >>> count([{"steps": 3, "image_text": {"batch_size": 4}, "text": None}])
    {'steps': 3, 'pictures': 12, 'text_rows': 0}
    """
    rows = [
        sum(stage["steps"] * (stage[side] or {"batch_size": 0})["batch_size"] for stage in stages)
        for side in ("image_text", "text")
    ]
    return {"steps": sum(stage["steps"] for stage in stages), "pictures": rows[0], "text_rows": rows[1]}


# --- the command -------------------------------------------------------------------------------------------------


def chosen(words: Sequence[str], arms: Mapping[str, Arm]) -> list[str]:
    """The arms that words name: arms, letters of groups, ``all``.

    Raises:
        ValueError: a word that is none of them.
    """
    found: list[str] = []
    for word in words:
        names = [name for name, arm in arms.items() if word in ("all", name, arm.group)]
        if not names:
            near = difflib.get_close_matches(word, arms, 1)
            cure = f"Did you mean {near[0]}?" if near else f"There are {', '.join(arms)}."
            raise ValueError(f"{word!r} is no arm, no group and not `all`. {cure}")
        found += [name for name in names if name not in found]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the arms asked for, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", metavar="ARM", help="arms of arms.yaml, letters of groups, or all")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--steps", type=int, help="steps of every stage, to try the machinery; by default the arm's")
    parser.add_argument("--limit", type=int, help="rows of each task; by default those of arms.yaml")
    parser.add_argument("--folder", type=Path, default=Path("outputs/study"), help="where runs are kept")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file that gets the rows")
    options = parser.parse_args(arguments)
    content = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    content["measured"]["limit"] = options.limit or content["measured"]["limit"]
    study = Study(content, options.folder.absolute(), options.rows, options.steps)
    try:
        names = chosen(options.arms, study.arms)
    except ValueError as error:
        parser.error(str(error))
    for name in names:
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            row = study.do(name, seed)
            words = "its row is there" if row is None else f"{row['seconds']['training']:.0f} s"
            print(f"{name}, seed {seed}: {words}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
