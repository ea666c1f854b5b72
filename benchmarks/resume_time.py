"""How long a resume takes from its start to its first batch, deep in a run over a large local source.

Makes a source of text pairs in a temporary folder, reads it once (the cache of ``datasets`` is then there, as after
the first start of a run), and measures in a fresh process: imports, reading and checking the source, planning the run,
skipping to the step as transformers' Trainer does, and the first batch of rows. For comparison, and the cost of
streaming: the same position of a streaming source, with and without the bookmarks of the run before.

    python benchmarks/resume_time.py                                  # 1,000,000 rows, step 50,000
    python benchmarks/resume_time.py --rows 20000 --step 500 --batch_size 32
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS_PER_FILE = 100_000
WAYS = ("counted", "stream, bookmarks", "stream, re-reading")


def write_source(folder: Path, rows: int, format: str) -> None:
    """Numbered pairs of some 100 letters, in files of at most ``ROWS_PER_FILE`` rows."""
    import pyarrow as pa
    import pyarrow.parquet

    for index, begin in enumerate(range(0, rows, ROWS_PER_FILE)):
        numbers = range(begin, min(rows, begin + ROWS_PER_FILE))
        table = pa.table(
            {
                "q": [f"what is the number {n}, and which word comes after it in the list" for n in numbers],
                "a": [f"it is {n}, {n * 7 % 1000} words before the end of the list" for n in numbers],
            }
        )
        if format == "parquet":
            pyarrow.parquet.write_table(table, folder / f"train-{index:03d}.parquet", row_group_size=10_000)
        else:
            with pa.OSFile(str(folder / f"train-{index:03d}.arrow"), "wb") as sink:
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table, max_chunksize=10_000)


def first_batch(folder: Path, options: argparse.Namespace, way: str) -> dict[str, float]:
    """Seconds of each part of a resume, in this process."""
    began = time.perf_counter()
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    from trainer_ext.data.batches import JointDataset
    from trainer_ext.data.plan import JointBatchPlan
    from trainer_ext.data.sources import load_sources, row_count
    from trainer_ext.data.streams import SourceStream
    from trainer_ext.recipe.schema import Side, Source
    from trainer_ext.recipe.stages import Stage

    imported = time.perf_counter()
    columns = {"query": "q", "positive": "a"}
    streaming = way != "counted"
    source = Source(
        name="pairs", task="text-pair", location=str(folder), format=options.format, columns=columns,
        streaming=streaming,
    )  # fmt: skip
    tables = load_sources([source], seed=1)
    if isinstance(tables["pairs"], SourceStream) and way == "stream, bookmarks":
        tables["pairs"].bookmarks = folder / "bookmarks"
    loaded = time.perf_counter()
    side = Side(sources=["pairs"], batch_size=options.batch_size)
    stage = Stage(name="only", steps=options.step + 10, learning_rate=1e-4, max_length=77, text=side)
    plan = JointBatchPlan([stage], [source], {"pairs": row_count(tables["pairs"])}, seed=1)
    loader = DataLoader(JointDataset([source], tables, seed=1), batch_sampler=plan, collate_fn=list)
    rows = next(iter(skip_first_batches(loader, options.step)))
    if rows[0]["key"].step != options.step:
        raise AssertionError(f"the first batch is of step {rows[0]['key'].step}, not {options.step}")
    done = time.perf_counter()
    return {"imports": imported - began, "source": loaded - imported, "first batch": done - loaded, "all": done - began}


def measure(folder: Path, options: argparse.Namespace, way: str) -> dict[str, float]:
    """``first_batch`` in a process of its own."""
    words = [sys.executable, __file__, "--child", str(folder), way]
    words += [f"--{name}={getattr(options, name)}" for name in ("rows", "step", "batch_size", "format")]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": root,
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--format", choices=["parquet", "arrow"], default="parquet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(first_batch(Path(options.child[0]), options, options.child[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder, options.rows, options.format)
        print(f"{options.rows:,} rows ({options.format}), step {options.step:,} of {options.batch_size} rows")
        for way in WAYS:
            print(f"{way}, first start: {measure(folder, options, way)['all']:.2f} s")
        # Interleaved, so that a busy moment of the machine meets all of them.
        figures = [{way: measure(folder, options, way) for way in WAYS} for _ in range(options.repeats)]
        for way in WAYS:
            parts = {part: [figure[way][part] for figure in figures] for part in figures[0][way]}
            shown = ", ".join(f"{part} {statistics.median(values):.2f}" for part, values in parts.items())
            print(f"{way}: {shown} s (all: {min(parts['all']):.2f} to {max(parts['all']):.2f})")


if __name__ == "__main__":
    main()
