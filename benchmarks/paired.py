"""What studies of paired runs share: a run trained once and kept, its figures, and differences with their interval.

``effects.py`` compares keys of a recipe with it, ``examples/study`` the parts of the method.
"""

import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from trainer_ext import train
from trainer_ext.evaluation.items import encode_items
from trainer_ext.evaluation.tasks import Task, figures_of
from trainer_ext.files import write_json
from trainer_ext.locks import held
from trainer_ext.measuring import Encoders, build_tasks, load_task_rows
from trainer_ext.recipe.evaluation import TaskSpec, load_tasks
from trainer_ext.recipe.schema import Source

FIRST_SEED = 42
# Written last into a run's folder, so a folder without it is of a run that was stopped.
DONE = "trained.json"


class Difference(NamedTuple):
    """Mean of paired differences, and half the width of its 95% t interval."""

    mean: float
    half: float


def paired_difference(without: Sequence[float], having: Sequence[float]) -> Difference:
    """The mean of ``having - without`` with its t interval; pairs belong to the same seed.

    >>> paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    Difference(mean=1.0, half=0.0)
    """
    if len(without) < 3:
        raise ValueError(f"{len(without)} pairs are too few for an interval; give at least 3 seeds")
    return interval([b - a for a, b in zip(without, having, strict=True)])


def interval(values: Sequence[float]) -> Difference:
    """The mean of at least two values with its 95% t interval."""
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Difference(statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread)


def trained(folder: Path, recipe: str, overrides: Sequence[str]) -> Path:
    """The folder of a run, trained now if it is not there or was stopped half-way.

    Raises:
        FolderInUseError: another process trains it now.
    """
    if not (folder / DONE).is_file():
        with held(folder, sys.argv, print):  # what another process writes is not what a stopped run has left
            shutil.rmtree(folder, ignore_errors=True)
        begin = time.perf_counter()
        train(recipe, folder, overrides=list(overrides))
        seconds = time.perf_counter() - begin
        write_json(folder / DONE, {"overrides": list(overrides), "seconds": seconds, "commit": commit()})
    elif (made := json.loads((folder / DONE).read_text())["commit"]) != commit():
        print(f"{folder} was trained on commit {made}; delete it if that matters here", file=sys.stderr)
    return folder


def seconds_of(run: Path) -> float:
    """How long a run took, its data included."""
    return json.loads((run / DONE).read_text())["seconds"]


def read_tasks(
    suite: str,
    limit: int,
    names: Collection[str] | None = None,
    own_sources: Sequence[Mapping[str, Any]] = (),
    own_tasks: Sequence[Mapping[str, Any]] = (),
) -> list[Task]:
    """The tasks of a suite, or those of these names, and further ones; each with at most ``limit`` rows."""
    content = load_tasks(suite)
    named = [task for task in content.tasks if names is None or task.name in names]
    chosen = [
        task.model_copy(update={"limit": min(task.limit or limit, limit)})
        for task in (*named, *(TaskSpec(**task) for task in own_tasks))
    ]
    sources = [*content.sources, *(Source(**source) for source in own_sources)]
    return build_tasks(chosen, load_task_rows(chosen, sources), progress=False)


def figures_on(encoders: Encoders, tasks: Sequence[Task]) -> dict[str, float]:
    """The figures of a model on all tasks."""
    items = (item for task in tasks for item in task.items)
    vectors = encode_items(encoders.encode_text, encoders.encode_image, items)
    return {name: figure.value for name, figure in figures_of(vectors, list(tasks)).items()}


def commit() -> str:
    """The commit of the code, or "unknown" outside of a clone."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
