"""Adapt a model to your texts with hard negatives that it mines itself, and measure what that is worth.

    python examples/hard_negatives.py MODEL pairs.csv --output_dir outputs/adapted

MODEL is a folder with the sentence-transformers files, as ``hub_upload.py build`` writes it. pairs.csv has the columns
``query`` and ``positive``; without it, it takes pairs of the demo's dictionary. A tenth of the pairs is held out, with
all that share a text with it. The model mines negatives among the other pairs, and trains on them by the packaged
recipe ``hard_negatives``: stage 3 of arXiv 2405.20204 by itself, the image tower locked. Before and after, all held-out
queries are searched among all positives, those of training too. What was mined is kept in ``--cache``: another try
mines nothing again.
"""

import argparse
import json
import sys
from pathlib import Path

from trainer_ext import load_recipe, train
from trainer_ext.commands import run_command
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.mining import MiningSettings, mine, read_pairs
from trainer_ext.mining.table import words_of, write_table

DEMO = ["sources.pairs.format=embedded", "sources.pairs.split=validation"]
DEMO += ["sources.pairs.location=openmoji/headword_definition"]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("model", type=Path, help="folder of a model with its sentence-transformers files")
    found.add_argument("pairs", type=Path, nargs="?", help="CSV with the columns query,positive")
    found.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="of the recipe, e.g. seed=1")
    found.add_argument("--output_dir", type=Path, required=True, help="a new folder for the run")
    found.add_argument("--max_broken_rows", type=int, default=0, help="rows of the CSV that may be left out (0)")
    found.add_argument("--margin", type=float, default=0.05, help="share that a negative must score lower (0.05)")
    found.add_argument("--max_length", type=int, default=128, help="tokens of a text, mined and trained (128)")
    found.add_argument("--cache", type=Path, help="folder of what was mined (mining-cache beside --output_dir)")
    found.add_argument("--steps", type=int, default=50)
    found.add_argument("--batch_size", type=int, default=32)
    return found


def work(options: argparse.Namespace) -> int:
    out, length = options.output_dir, options.max_length
    if out.exists():
        raise ValueError(f"--output_dir {out}: is there already; name a new folder")
    triplets = out.with_name(f"{out.name}-triplets.parquet")
    paths = {"model": options.model, "sources.mined.location": triplets}
    paths |= {"sources.pairs.location": options.pairs} if options.pairs else {}
    keys = [f"{key}={json.dumps(str(path.resolve()), ensure_ascii=False)}" for key, path in paths.items()]
    keys += [] if options.pairs else DEMO
    keys += [f"sources.pairs.max_broken_rows={options.max_broken_rows}", f"stages.0.steps={options.steps}"]
    keys += [f"stages.0.text.batch_size={options.batch_size}", f"stages.0.max_length={length}", *options.overrides]
    recipe = load_recipe("hard_negatives", keys)
    [source] = [source for source in recipe.sources if source.name == "pairs"]
    cache = options.cache or out.parent / "mining-cache"
    settings = MiningSettings(str(options.model), relative_margin=options.margin, max_length=length, cache=cache)
    mined = mine(read_pairs(source, BrokenRows(None)), settings)
    written = write_table(mined, triplets)
    print(*words_of(mined, written), sep="\n")
    if written < options.batch_size:
        raise ValueError(f"{written} rows are fewer than a batch of {options.batch_size}: more pairs, or less --margin")
    train("hard_negatives", out, overrides=keys)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(__name__, sys.argv[1:]))
