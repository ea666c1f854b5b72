"""Adapt a model to your texts with hard negatives that it mines itself.

    python examples/hard_negatives.py MODEL pairs.csv --output_dir outputs/adapted

MODEL is a folder with the sentence-transformers files, as ``hub_upload.py build`` writes it. pairs.csv has the columns
``query`` and ``positive``; without it, it takes pairs of the demo's dictionary (headword, definition). The model ranks
all positives for each query; the best wrong ones are its negatives. Training is stage 3 of arXiv 2405.20204 by itself:
InfoNCE with hard negatives at a small rate, the image tower locked. Every tenth query is held out and measured. The
mined rows are kept beside the run, in OUTPUT_DIR-triplets.parquet.
"""

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext import train
from trainer_ext.demo_data import load_table, prepare
from trainer_ext.evaluation import Task, evaluate, text_task
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import HardNegativeTask

NEGATIVES = 7  # as many as the paper


def read_pairs(path: Path | None, most: int) -> Dataset:
    """Different queries with one positive each."""
    if path is None:
        table = load_table(prepare(), "headword_definition", "train")
    else:
        table = load_dataset("csv", data_files=str(path), split="train")
    if missing := [name for name in ("query", "positive") if name not in table.column_names]:
        sys.exit(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}.")
    first = {query: row for row, query in reversed(list(enumerate(table["query"])))}
    return table.select_columns(["query", "positive"]).select(sorted(first.values())[:most])


def mine(model: str, pairs: Dataset, margin: float) -> Dataset:
    """Rows of query, positive and its hard negatives: wrong positives that the model ranks high.

    Those that score nearly as high as the right one are left out: many of them are right, too (NV-Retriever, arXiv
    2407.15831, section 4). A query without enough negatives is left out with them.
    """
    mined = mine_hard_negatives(
        pairs,
        SentenceTransformer(model, trust_remote_code=True),
        anchor_column_name="query",
        positive_column_name="positive",
        num_negatives=NEGATIVES,
        relative_margin=margin,
        range_max=100,
        output_format="n-tuple",
        verbose=False,
    )
    names = [f"negative_{number + 1}" for number in range(NEGATIVES)]
    negatives = [list(row) for row in zip(*(mined[name] for name in names), strict=True)]
    return mined.select_columns(["query", "positive"]).add_column("negatives", negatives)


def tasks_of(rows: Dataset) -> list[Task]:
    """Find the positive among all, and prefer it to its own negatives."""
    hard = HardNegativeTask("hard_negatives", rows["query"], rows["positive"], rows["negatives"])
    return [text_task("texts", zip(rows["query"], rows["positive"], strict=True)), hard]


def measure(folder: Path, tasks: list[Task]) -> dict[str, float]:
    """Figures of the model in ``folder`` on the rows held out."""
    model = JinaCLIPModel.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    model.processor = JinaCLIPProcessor.from_pretrained(folder)
    return evaluate(model.encode_text, model.encode_image, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model with its sentence-transformers files")
    parser.add_argument("pairs", type=Path, nargs="?", help="CSV with the columns query,positive")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder for the run")
    parser.add_argument("--rows", type=int, default=5000, help="pairs to mine from at most (default 5000)")
    parser.add_argument("--margin", type=float, default=0.05, help="share that a negative must score lower (0.05)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.output_dir.exists():
        parser.error(f"--output_dir {arguments.output_dir}: is there already; name a new folder")
    rows = mine(arguments.model, read_pairs(arguments.pairs, arguments.rows), arguments.margin)
    if len(rows) < 20:
        sys.exit(f"only {len(rows)} queries have {NEGATIVES} hard negatives; give more pairs or a lower --margin.")
    out = arguments.output_dir
    held_out, triplets = range(0, len(rows), 10), out.with_name(f"{out.name}-triplets.parquet")
    triplets.parent.mkdir(parents=True, exist_ok=True)
    rows.select([row for row in range(len(rows)) if row not in held_out]).to_parquet(triplets)
    tasks = tasks_of(rows.select(held_out))

    report = Report(out, tasks)
    report.add("before", measure(Path(arguments.model), tasks))
    overrides = [f"model={Path(arguments.model).resolve()}", f"sources.mined.location={triplets.resolve()}"]
    overrides += [f"stages.0.steps={arguments.steps}", f"stages.0.text.batch_size={arguments.batch_size}"]
    run = train("hard_negatives", out, overrides=overrides)
    report.add("after", measure(run.folder, tasks))
    report.save()
    print(f"{len(rows)} queries with {NEGATIVES} mined negatives each\n{report.table()}")


if __name__ == "__main__":
    main()
