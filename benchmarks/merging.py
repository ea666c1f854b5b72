"""What merging keeps: pictures against texts on the way from a model to its fine-tune on pictures alone (WiSE-FT).

    python benchmarks/merging.py outputs/openmoji --plot merging.png
    python benchmarks/merging.py outputs/start --steps 60 --batch_size 32 --learning_rate 5e-4

Each seed fine-tunes the model on the demo's pictures with long captions, and on no texts, by a recipe with
``merge_with_start``. Measured on held-out rows: text to image R@1 among drawings of new concepts and among those of new
combinations, and R@5 of 1,000 definitions by their headwords. Prints the mean over the seeds, the lowest and the
highest.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from trainer_ext import train
from trainer_ext.evaluation.report import Report
from trainer_ext.recipe.start_checks import merged_name
from trainer_ext.run.evaluating import BEFORE_TRAINING

STAGE = "pictures"
PICTURES = ("concepts/t2i_r1", "combinations/t2i_r1")
TEXTS = "definitions/r5"
SHARES = [0.2, 0.4, 0.6, 0.8]


def tasks(rows: int) -> dict[str, Any]:
    """Sources and tasks of the demo's test rows."""
    long = {"task": "image-text", "format": "embedded", "location": "openmoji/long_captions"}
    columns = {"columns": {"image": "image", "caption": "caption"}}
    words = {"task": "text-pair", "format": "embedded", "location": "openmoji/headword_definition", "split": "test"}
    pairs = {"columns": {"query": "query", "positive": "positive"}}
    picture = {"directions": ["t2i"], "metrics": ["r1"], "limit": rows}
    return {
        "sources": [
            {"name": "concepts", **long, "split": "test_concepts", **columns},
            {"name": "combinations", **long, "split": "test_combinations", **columns},
            {"name": "definitions", **words, **pairs},
        ],
        "tasks": [
            {"name": "concepts", "source": "concepts", **picture},
            {"name": "combinations", "source": "combinations", **picture},
            {"name": "definitions", "source": "definitions", "limit": rows, "metrics": ["r5"]},
        ],
    }


def recipe(options: argparse.Namespace, seed: int, suite: Path) -> dict[str, Any]:
    """The fine-tune: pictures with long captions, no texts."""
    stage = {"name": STAGE, "steps": options.steps, "learning_rate": options.learning_rate, "warmup_steps": 0.1}
    stage |= {"max_length": 80, "patch_dropout": 0.25}
    stage |= {"image_text": {"sources": ["openmoji-long-concepts"], "batch_size": options.batch_size}}
    run = {"name": "pictures-only", "model": str(Path(options.model).absolute()), "sources": ["openmoji"]}
    run |= {"attn_implementation": "eager", "seed": seed, "merge_with_start": SHARES, "stages": [stage]}
    return run | {"evaluation": {"suite": str(suite)}, "weight_decay": 0.025, "save_strategy": "no"}


def measure(options: argparse.Namespace, seed: int, folder: Path) -> dict[float, tuple[float, float]]:
    """Share of the way -> (pictures, texts) in percent, of one seed."""
    suite, file = folder / "tasks.yaml", folder / f"seed-{seed}.yaml"
    suite.write_text(yaml.safe_dump(tasks(options.rows)))
    file.write_text(yaml.safe_dump(recipe(options, seed, suite)))
    train(file, folder / f"seed-{seed}")
    rows = {row.name: row.metrics for row in Report.load(folder / f"seed-{seed}").rows}
    names = {0.0: BEFORE_TRAINING, **{share: merged_name(share) for share in SHARES}, 1.0: STAGE}
    return {
        share: (100 * statistics.mean(rows[name][key] for key in PICTURES), 100 * rows[name][TEXTS])
        for share, name in names.items()
    }


def spread(values: list[float]) -> str:
    """Mean, and the lowest and highest where they differ."""
    ends = f" ({min(values):.1f}-{max(values):.1f})" if len({f"{value:.1f}" for value in values}) > 1 else ""
    return f"{statistics.mean(values):.1f}{ends}"


def plot(runs: dict[int, dict[float, tuple[float, float]]], path: str) -> None:
    """The curve as a picture: a thin line a seed, their mean with the share at each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for seed, points in runs.items():
        pictures, texts = zip(*points.values(), strict=True)
        axes.plot(texts, pictures, lw=0.7, label=f"seed {seed}")
    shares = list(next(iter(runs.values())))
    means = [[statistics.mean(run[share][side] for run in runs.values()) for share in shares] for side in (1, 0)]
    axes.plot(*means, "o-", color="black", label="mean")
    for share, x, y in zip(shares, *means, strict=True):
        axes.annotate(f"{share:g}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="texts, R@5 (%)", ylabel="pictures, text to image R@1 (%)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of a trained model of the demo's kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--rows", type=int, default=1000, help="rows of each task that are measured")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the curve, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs = {seed: measure(options, seed, Path(name)) for seed in options.seeds}
    print("\n| share of the way | pictures, text to image R@1 | texts, R@5 |\n|--:|--:|--:|")
    for share in next(iter(runs.values())):
        pictures, texts = zip(*(run[share] for run in runs.values()), strict=True)
        print(f"| {share:g} | {spread([*pictures])} | {spread([*texts])} |")
    if options.plot:
        plot(runs, options.plot)
        print(f"\nthe curve is {options.plot}")


if __name__ == "__main__":
    main()
