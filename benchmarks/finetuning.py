"""What text pairs preserve: ``examples/finetune_folder.py`` on pictures the demo's model has never seen, some seeds.

    python benchmarks/finetuning.py outputs/openmoji
    python benchmarks/finetuning.py outputs/openmoji --steps 60 --batch_size 32

The pictures are the 428 drawings that the demo keeps out of training, with their long captions; the pairs 2,000
held-out headwords with their definitions. The example holds out a tenth of both again, and tunes with and without
the pairs. Prints the mean over the seeds, and the lowest and the highest figure.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.cache import prepare
from trainer_ext.evaluation.markdown import metric_words
from trainer_ext.evaluation.report import Report

SHOWN = ["evaluation.tasks.pictures.metrics=[r1, r5]", "evaluation.tasks.texts.metrics=[ndcg10, r5]"]
SHOWN += ["evaluation.keep_best=null", "evaluation.every=null"]
EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_folder.py"


def write_table(path: Path, rows: list[list[str]]) -> None:
    """A CSV file; its first row names the columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_data(folder: Path) -> None:
    """Pictures, captions.csv and pairs.csv, laid out as a user's."""
    tables, captions = prepare(), [["file", "caption"]]
    (folder / "pictures").mkdir()
    for split in ("test_concepts", "test_combinations", "validation"):
        for row in load_table(tables, "long_captions", split):
            name = f"{len(captions)}.png"
            row["image"].save(folder / "pictures" / name)
            captions.append([name, row["caption"][0]])
    write_table(folder / "captions.csv", captions)
    pairs = load_table(tables, "headword_definition", "test")
    write_table(folder / "pairs.csv", [["query", "positive"], *([row["query"], row["positive"]] for row in pairs)])


def measure(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Metrics by row of one run of the example."""
    out = folder / f"seed-{seed}"
    files = [options.model, folder / "pictures", folder / "captions.csv", "--texts", folder / "pairs.csv"]
    sizes = ["--steps", options.steps, "--batch_size", options.batch_size, "--seed", seed]
    subprocess.run([sys.executable, EXAMPLE, *map(str, [*files, "--output_dir", out, *sizes]), *SHOWN], check=True)
    rows = figures_of(out / "with-texts")
    rows["with texts"], rows["pictures only"] = rows.pop("tune"), figures_of(out / "pictures-only")["tune"]
    return rows


def figures_of(run: Path) -> dict[str, dict[str, float]]:
    """Metrics by row of one run."""
    return {row.name: row.metrics for row in Report.load(run).rows}


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        runs = [measure(options, Path(name), seed) for seed in options.seeds]
    print(f"\n| task | metric | {' | '.join(runs[0])} |\n|---|---|{'--:|' * len(runs[0])}")
    for metric in runs[0]["before training"]:
        cells = []
        for row in runs[0]:
            figures = [100 * run[row][metric] for run in runs if metric in run[row]]
            if not figures:  # BM25 knows no pictures
                cells.append("-")
                continue
            spread = f" ({min(figures):.1f}-{max(figures):.1f})" if len(set(figures)) > 1 else ""
            cells.append(f"{statistics.mean(figures):.1f}{spread}")
        print(f"| {' | '.join(metric_words(metric))} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
