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
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.paired import FIRST_SEED, commit, figures_on, read_tasks, seconds_of, trained
from examples import pretrain_text_tower
from trainer_ext.commands.guard import guarded
from trainer_ext.demo_data import load_table, prepare
from trainer_ext.evaluation.tasks import Task
from trainer_ext.measuring.models import open_model
from trainer_ext.recipe.recipe import load_recipe, recipe_fingerprint
from trainer_ext.run.tokenizer import train_wordpiece, training_texts

ARMS = Path(__file__).with_name("arms.yaml")
ROWS = Path(__file__).parents[2] / "docs" / "study" / "results.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
ALWAYS = ["evaluation=null", "save_strategy=no", "report_to=none"]


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
        if (arm.base is None) == (arm.of is None) or (arm.base is not None and arm.base not in content["bases"]):
            raise ValueError(f"arm {name}: needs one of base ({', '.join(content['bases'])}) and of")
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
        overrides = self.overrides(arm)
        start = arm.start and {**self.asked(self.arms[arm.start.of]), "folder": arm.start.folder}
        data = {name: self.content["data"][name] for name in data_names(overrides)}
        return {"overrides": overrides, "start": start, "data": data}

    def hash_of(self, arm: Arm) -> str:
        """Of ``asked``, of the packaged recipe and of what is measured: equal for runs that should be equal."""
        whole = [recipe_fingerprint(load_recipe(self.content["recipe"])), self.asked(arm), self.content["measured"]]
        return blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=8).hexdigest()

    # --- runs ---
    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of an arm's run, trained now if it is not there, after what it starts from."""
        if arm.of is not None:
            return self.run(self.arms[arm.of], seed)
        overrides = self.overrides(arm)
        for name in data_names(overrides):
            self.make(name)
        start = "" if arm.start is None else str(self.run(self.arms[arm.start.of], seed) / arm.start.folder)
        placed = [text.replace("{data}", str(self.data)).replace("{start}", start) for text in overrides]
        name = f"{arm.name}-{seed}-{self.hash_of(arm)}"
        return trained(self.folder / "runs" / name, self.content["recipe"], [*placed, f"seed={seed}"])

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
        """Train, measure and write down one arm with one seed; None if its row is there already."""
        arm = self.arms[name]
        asked = self.hash_of(arm)
        if any((row["arm"], row["seed"], row["asked"]) == (name, seed, asked) for row in read_rows(self.rows)):
            return None
        run = self.run(arm, seed)
        begin = time.perf_counter()
        encoders = open_model(run / arm.folder)
        figures = {suite: rounded(figures_on(encoders, tasks)) for suite, tasks in self.tasks().items()}
        row = {
            "arm": name,
            "group": arm.group,
            "seed": seed,
            "asked": asked,
            "commit": commit(),
            "seconds": {"training": round(seconds_of(run), 1), "measuring": round(time.perf_counter() - begin, 1)},
            **self.seen(arm, seed),
            **surroundings(),
            "figures": figures,
        }
        append_row(self.rows, row)
        return row

    def seen(self, arm: Arm, seed: int) -> dict[str, int]:
        """Steps, pictures and texts that an arm's model has trained on, what it started from included."""
        if arm.start is not None:
            before = self.arms[arm.start.of]
            counts = self.seen(replace(before, of=before.name, folder=arm.start.folder), seed)
        else:
            counts = {"steps": 0, "pictures": 0, "text_rows": 0}
        stages = json.loads((self.run(arm, seed) / "run.json").read_text())["recipe"]["stages"]
        if (last := re.match(r"stages/(\d+)-", arm.folder)) is not None:
            stages = stages[: int(last[1]) + 1]
        for stage in stages:
            counts["steps"] += stage["steps"]
            for key, side in (("pictures", "image_text"), ("text_rows", "text")):
                counts[key] += stage["steps"] * (stage[side] or {"batch_size": 0})["batch_size"]
        return counts


# --- what arms share ---------------------------------------------------------------------------------------------


def data_names(overrides: Sequence[str]) -> list[str]:
    """The names after ``{data}/``, in their order.

    >>> data_names(["tokenizer={data}/tokenizer", "initialize.text={data}/tower"])
    ['tokenizer', 'tower']
    """
    return list(dict.fromkeys(name for text in overrides for name in re.findall(r"\{data\}/([\w.-]+)", text)))


def make_vocabulary(path: Path, recipe: str, size: int) -> None:
    """A vocabulary of all texts of a recipe."""
    train_wordpiece(training_texts(load_recipe(recipe)), size).save_pretrained(path)


def make_masked_lm(path: Path, recipe: str, steps: int) -> None:
    """A text tower after masked language modelling; its vocabulary is that of ``make_vocabulary``."""
    shutil.rmtree(path, ignore_errors=True)
    pretrain_text_tower.main([recipe, str(path), "--steps", str(steps)])


def make_rows(path: Path, table: str, split: str, share: float) -> None:
    """A share of a table's rows, drawn by a fixed seed."""
    rows = load_table(prepare(), table, split)
    kept = np.sort(np.random.default_rng(FIRST_SEED).permutation(len(rows))[: round(share * len(rows))])
    rows.select(kept).to_parquet(path)


MAKERS: dict[str, Callable[..., None]] = {
    "vocabulary": make_vocabulary,
    "masked_lm": make_masked_lm,
    "rows": make_rows,
}


# --- rows --------------------------------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def processor() -> str:
    """The processor's name, with what decides the speed of its products."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:
        return platform.machine()
    found = {key.strip(): value.strip() for key, value in lines.items()}
    units = [name for name, flag in (("AMX", "amx_tile"), ("AVX-512", "avx512f")) if flag in found.get("flags", "")]
    return " ".join([found.get("model name", platform.machine()), *units[:1]])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, none where there is no file yet.

    Raises:
        ValueError: a line that is no row, such as half of one.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no row of results ({error}). Delete the line.") from error
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One row more, as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures as rows have them."""
    return {name: round(value, 5) for name, value in figures.items()}


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
