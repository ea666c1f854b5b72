"""Seconds and memory of `check` on many rows: ``python benchmarks/check_rows.py`` (docs/check.md).

It writes a source of text pairs, reads it as `check` does (without the two steps of training), stored and streaming,
and another one of small pictures. Each source is read in a process of its own, so that its peak is its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

_WRITE_AT_ONCE = 10_000


def texts(count: int, words: int, generator: np.random.Generator) -> list[str]:
    """Random sentences of words as frequent as in a language."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    vocabulary = ["".join(generator.choice(letters, size)) for size in generator.integers(2, 10, 20_000)]
    places = np.minimum(generator.zipf(1.2, (count, words)) - 1, len(vocabulary) - 1)
    return [" ".join(vocabulary[place] for place in row) for row in places]


def tables(kind: str, rows: int) -> Iterator[pa.Table]:
    """Blocks of rows: pairs of a question of 8 words and an answer of 20, or JPEGs of 224 x 224 and captions."""
    generator = np.random.default_rng(0)
    for begin in range(0, rows, _WRITE_AT_ONCE):
        count = min(_WRITE_AT_ONCE, rows - begin)
        if kind == "texts":
            yield pa.table({"query": texts(count, 8, generator), "positive": texts(count, 20, generator)})
            continue
        stored = []
        for patches in generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(patches).resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG")
            stored.append({"bytes": file.getvalue(), "path": None})
        yield pa.table({"image": stored, "caption": texts(count, 12, generator)})


def write(folder: Path, kind: str, rows: int, streaming: bool) -> Path:
    """A source and a recipe that reads it; the source is kept for the next recipe."""
    file = folder / f"{kind}.parquet"
    if not file.is_file():
        writer = None
        for table in tables(kind, rows):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    columns = ("query", "positive") if kind == "texts" else ("image", "caption")
    source = {
        "name": kind,
        "task": "text-pair" if kind == "texts" else "image-text",
        "format": "parquet",
        "location": str(file),
        "columns": {name: name for name in columns},
        "streaming": streaming,
    }
    side = {("text" if kind == "texts" else "image_text"): {"sources": [kind], "batch_size": 32, "sampling_alpha": 0}}
    stage = {"name": "only", "steps": 100, "learning_rate": 1e-3, "max_length": 32, **side}
    recipe = folder / f"{kind}{'-streaming' if streaming else ''}.yaml"
    content = {"name": kind, "model": "openmoji-small", "tokenizer": str(folder / "tokenizer"), "sources": [source]}
    recipe.write_text(yaml.safe_dump({**content, "stages": [stage]}))
    return recipe


def measured(recipe: Path) -> None:
    """Check a recipe and print seconds, seconds of this process's CPU time, peak memory and findings as JSON."""
    from trainer_ext.checking.check import check
    from trainer_ext.recipe.recipe import load_recipe

    begin, cpu = time.perf_counter(), time.process_time()
    checked = check(load_recipe(recipe), steps=False, say=lambda words: None)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    [record] = checked.sources.values()
    figures = {
        "rows": record["rows"],
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
        "peak_gb": int(peak.split()[1]) * 1024 / 1e9,
        "findings": sum(checked.log.counts.values()),
    }
    print(json.dumps(figures))


def main() -> None:
    """Print a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="pairs of texts")
    parser.add_argument("--pictures", type=int, default=10_000, help="pictures with a caption; 0 for none")
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)  # of the processes that this one starts
    options = parser.parse_args()
    if options.recipe is not None:
        return measured(options.recipe)
    from trainer_ext.run.tokenizer import train_wordpiece

    with tempfile.TemporaryDirectory() as folder:
        train_wordpiece(texts(5000, 12, np.random.default_rng(1)), 4000).save_pretrained(Path(folder, "tokenizer"))
        print("| source | rows | seconds | of CPU | peak GB | findings |\n|---|--:|--:|--:|--:|--:|")
        for kind, rows in (("texts", options.rows), ("pictures", options.pictures)):
            for streaming in (False, True) if rows else ():
                recipe = write(Path(folder), kind, rows, streaming)
                command = [sys.executable, __file__, "--recipe", str(recipe)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                name = f"{kind}, {'streaming' if streaming else 'stored'}"
                cells = f"{found['rows']:,} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['peak_gb']:.2f}"
                print(f"| {name} | {cells} | {found['findings']:,} |", flush=True)


if __name__ == "__main__":
    main()
