"""Train a small Jina CLIP on your own pictures and texts, from random weights through the three stages of the paper.

    python examples/train_from_scratch.py pictures/ captions.csv pairs.csv --output_dir outputs/mine
    python examples/train_from_scratch.py pictures/ captions.csv pairs.csv --output_dir outputs/mine --only_write

captions.csv has the columns ``file`` (a path inside the folder), ``caption`` and, if you have them, ``long_caption``;
pairs.csv has ``query`` and ``positive``, texts that belong together. Stage 1 learns from short captions and pairs,
stage 2 from long captions, stage 3 from hard negatives, which BM25 finds among the positives (arXiv 2405.20204, section
4; it needs the extra ``demo``). OUTPUT_DIR gets the data, ``recipe.yaml`` and the run. Edit the recipe and run it again
with ``python -m trainer_ext OUTPUT_DIR/recipe.yaml``; examples/launch_training.py starts it on several GPUs.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas

from trainer_ext import train
from trainer_ext.commands.guard import guarded
from trainer_ext.data.csv_reader import read_header, separator_of
from trainer_ext.data.sources import load_source
from trainer_ext.demo_data.dictionary import Pair
from trainer_ext.demo_data.mining import NEGATIVES, Miner
from trainer_ext.files import refuse_unwritable
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.strict_yaml import write_yaml

STAGES = {"short-captions": (1.0e-3, 32), "long-captions": (4.0e-4, 80), "hard-negatives": (1.5e-4, 80)}


def header(path: Path, *columns: str) -> list[str]:
    """The column names of a CSV file, these among them."""
    if not path.is_file():
        sys.exit(f"{path}: there is no such file.")
    names = read_header(str(path), separator_of(str(path), columns, path.suffix))
    if missing := [name for name in columns if name not in names]:
        sys.exit(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}.")
    return names


def read_table(path: Path, first: str, second: str, blank: int = 0) -> pandas.DataFrame:
    """Two columns of a CSV file, checked as the trainer does it: a row that does not fit is named.

    ``blank`` rows may lack a text; they are left out.
    """
    columns = {"query": first, "positive": second}
    source = Source(name=path.stem, task="text-pair", format="csv", location=str(path), columns=columns)
    rows = load_source(source.model_copy(update={"max_broken_rows": blank}))
    return rows.select_columns([*columns]).to_pandas().rename(columns=columns)


def write_captions(table: pandas.DataFrame, column: str, folder: Path, path: Path) -> None:
    """A row for each picture, with all its captions: one of them is drawn in each epoch."""
    rows = table.groupby("file", sort=False)[column].agg(list).rename("caption").reset_index()
    if lost := [name for name in rows["file"] if not (folder / name).is_file()]:
        sys.exit(f"the captions name {lost[0]!r}, which is not in {folder}.")
    rows["file"] = [str((folder / name).resolve()) for name in rows["file"]]
    rows.to_json(path, orient="records", lines=True)


def mine(pairs: pandas.DataFrame) -> pandas.DataFrame:
    """Pairs with wrong positives that share their words; equal queries share their right answers."""
    rows = [Pair(row["query"], row["positive"], headword=row["query"]) for row in pairs.to_dict("records")]
    triplets = Miner(rows).mine(rows, threads=1)
    if not triplets:
        sys.exit(f"none of the {len(rows)} pairs has {NEGATIVES} hard negatives; more pairs, or longer texts, have.")
    return pandas.DataFrame([vars(row) for row in triplets])[["query", "positive", "negatives"]]


def recipe_of(options: argparse.Namespace, has_long: bool) -> dict[str, Any]:
    """The recipe as it is written: places are relative to its own folder."""
    pictures = {"task": "image-text", "format": "json", "columns": {"image": "file", "caption": "caption"}}
    pairs = {"query": "query", "positive": "positive"}
    sources = [
        {"name": "short", "location": "short_captions.jsonl", **pictures},
        {"name": "long", "location": f"{'long' if has_long else 'short'}_captions.jsonl", **pictures},
        {"name": "pairs", "task": "text-pair", "format": "csv", "location": "pairs.csv", "columns": pairs},
        {"name": "mined", "task": "triplet", "format": "json", "location": "triplets.jsonl"},
    ]
    sources[-1]["columns"] = pairs | {"negatives": "negatives"}
    stages = []
    for (name, (rate, length)), steps in zip(STAGES.items(), options.steps, strict=True):
        images, texts = "short" if name == "short-captions" else "long", {"sources": ["pairs"]}
        if name == "hard-negatives":  # a row holds nine texts
            texts = {"sources": ["mined"], "loss": "info_nce_plus", "batch_size": max(2, options.batch_size // 4)}
        stage = {"name": name, "steps": steps, "learning_rate": rate, "warmup_steps": 0.1, "max_length": length}
        stage["image_text"] = {"sources": [images], "batch_size": options.batch_size}
        stages.append(stage | {"text": {"batch_size": options.batch_size} | texts})
    start = {"name": "from-scratch", "model": options.model, "tokenizer": {"vocab_size": options.vocab_size}}
    rest = {"adam_beta2": 0.98, "adam_epsilon": 1.0e-6, "weight_decay": 0.025, "bf16": True, "logging_steps": 10}
    return start | {"sources": sources, "stages": stages} | rest | {"save_steps": 100, "save_total_limit": 2}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("captions", type=Path, help="CSV with the columns file,caption and perhaps long_caption")
    parser.add_argument("pairs", type=Path, help="CSV with the columns query,positive")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--model", default="openmoji-small", help="a preset: sizes without weights (openmoji-small)")
    parser.add_argument("--vocab_size", type=int, default=8192, help="pieces of the tokenizer that is trained first")
    parser.add_argument("--steps", type=int, nargs=3, default=[220, 50, 25], help="of the stages (220 50 25)")
    parser.add_argument("--batch_size", type=int, default=128, help="pictures, and text pairs, of a step (128)")
    parser.add_argument("--only_write", action="store_true", help="write data and recipe, and do not start")
    options = parser.parse_args(arguments)
    refuse_unwritable(options.output_dir, "--output_dir")
    has_long = "long_caption" in header(options.captions, "file", "caption")
    header(options.pairs, "query", "positive")
    captions = {"caption": read_table(options.captions, "file", "caption")}
    rows = len(captions["caption"])
    if has_long:  # not every picture needs one
        captions["long_caption"] = read_table(options.captions, "file", "long_caption", blank=rows)
    pairs = read_table(options.pairs, "query", "positive")
    triplets = mine(pairs)
    out = options.output_dir
    if out.exists() and any(out.iterdir()):
        parser.error(f"--output_dir {out}: is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for column, table in captions.items():
        name = f"{'long' if column == 'long_caption' else 'short'}_captions.jsonl"
        write_captions(table, column, options.pictures, out / name)
    pairs.to_csv(out / "pairs.csv", index=False)
    triplets.to_json(out / "triplets.jsonl", orient="records", lines=True)
    recipe = out / "recipe.yaml"
    recipe.write_text(write_yaml(recipe_of(options, has_long)), encoding="utf-8")
    print(f"{rows} captions, {len(pairs)} pairs, {len(triplets)} of them with hard negatives: {recipe}")
    if not options.only_write:
        train(recipe, out / "run")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
