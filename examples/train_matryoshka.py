"""What shorter embeddings cost, with and without Matryoshka training: two short runs and a table.

    python examples/train_matryoshka.py outputs/matryoshka --steps 220
    python examples/train_matryoshka.py outputs/mine --recipe my_recipe.yaml --dims 128,32 evaluation=openmoji

Both runs are the first stage of a recipe and differ only in the key ``matryoshka``: one trains the whole embedding
alone, the other its prefixes too. Both are measured at every width. Each run's folder has its own report.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from trainer_ext import load_recipe, train
from trainer_ext.commands.guard import guarded
from trainer_ext.evaluation.markdown import metric_words
from trainer_ext.recipe.checks import embedding_width
from trainer_ext.recipe.reading import find_resource


def first_stage(recipe: str, overrides: Sequence[str], steps: int) -> tuple[list[str], str, int]:
    """Overrides that leave the first stage, with ``steps`` steps; the evaluation suite; the embedding's width."""
    loaded = load_recipe(recipe, overrides)
    if loaded.evaluation is None:
        raise SystemExit(f"{recipe} measures nothing: add evaluation=SUITE, for example evaluation=openmoji")
    stage = loaded.stages[0].model_dump(mode="json") | {"steps": steps, "warmup_steps": 0.1}
    width = embedding_width(find_resource("models", loaded.model))
    return [f"stages={json.dumps([stage])}"], loaded.evaluation.suite, width


def at_width(metrics: dict[str, float], dim: int, full: int) -> dict[str, float]:
    """Each kind of metric at one width, the mean over all tasks that have it, in percent."""
    kinds: dict[str, list[float]] = {}
    for name, value in metrics.items():
        task, _, kind = name.rpartition("/")
        if (task.endswith(f"@{dim}") and dim != full) or ("@" not in task and dim == full):
            kinds.setdefault(metric_words(f"/{kind}")[1], []).append(100 * value)
    return {kind: mean(values) for kind, values in kinds.items()}


def table(runs: dict[str, dict[str, float]], dims: Sequence[int], full: int) -> str:
    """Metrics and widths down, runs across, and what is left of the full width's figure."""
    lines = [f"{'':22}{'width':>6}" + "".join(f"{name:>22}" for name in runs)]
    by_width = {name: {dim: at_width(metrics, dim, full) for dim in dims} for name, metrics in runs.items()}
    for kind in next(iter(by_width.values()))[full]:
        for dim in dims:
            cells = []
            for figures in by_width.values():
                whole = figures[full][kind]
                kept = f"({figures[dim][kind] / whole:.0%})" if whole else ""
                cells.append(f"{figures[dim][kind]:14.1f} {kept:>7}")
            lines.append(f"{kind if dim == full else '':22}{dim:>6}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="a new folder for both runs")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="changes to the recipe, for both runs")
    parser.add_argument("--recipe", default="openmoji", help="a recipe file or a packaged name (default openmoji)")
    parser.add_argument("--steps", type=int, default=220, help="of each run (default 220)")
    parser.add_argument("--dims", default="64,16", help="shorter widths (default 64,16)")
    options = parser.parse_intermixed_args(arguments)

    overrides, suite, full = first_stage(options.recipe, options.overrides, options.steps)
    dims = sorted({int(dim) for dim in options.dims.split(",")} - {full}, reverse=True)
    overrides = [*options.overrides, *overrides, f"evaluation={{suite: {suite}, truncate_dims: {dims}}}"]
    kinds: dict[str, list[str]] = {"with Matryoshka": [f"matryoshka={{dims: {[full, *dims]}}}"], "without": []}
    runs = {}
    for name, more in kinds.items():
        folder = options.output_dir / name.replace(" ", "-").lower()
        print(f"--- {name}: {folder}", flush=True)
        runs[name] = train(options.recipe, folder, overrides=[*overrides, *more]).metrics
    print(f"\nMeans over the tasks of {suite}, in percent; in brackets, of the same run's full width.")
    print(table(runs, [full, *dims], full))


if __name__ == "__main__":
    sys.exit(guarded(main))
