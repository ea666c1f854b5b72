"""Vectors of a whole corpus with Ray Data: rows of parquet files, samples of tars, or files of a folder.

    python examples/embed_corpus.py MODEL "corpus/*.parquet" --text body --id url --fields title --output_dir vectors
    python examples/embed_corpus.py MODEL photos --output_dir vectors --actors 4 --dtype bfloat16
    python examples/embed_corpus.py MODEL "shards/*.tar" --image jpg --fields txt --output_dir vectors

Writes parquet files of id (a file's path, a sample's key), vector and the fields asked for. A run that was stopped, by
``kill -9`` too, goes on with the rows that are not written: Ray's checkpoint beside the vectors knows their ids, which
must be unique. What cannot be read has no vector but a line in the column ``unreadable`` and in ``_unreadable.jsonl``;
more than ``--max_unreadable`` end the run. Ray runs on this machine, or where RAY_ADDRESS says, with shared paths.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import torch

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.commands.guard import guarded, needed
from trainer_ext.files import refuse_unwritable, write_whole
from trainer_ext.locks import held
from trainer_ext.measuring.readable import PICTURES, vector_column, vectors_or_reasons
from trainer_ext.measuring.vector_folder import begin_folder

HELPERS = 3  # cores for the filter of known ids, reading and writing


class Embedder:
    """What an actor holds: a model, called with tables of rows."""

    def __init__(self, options: argparse.Namespace, threads: int) -> None:
        torch.set_num_threads(threads)
        self.options, self.left_out = options, 0
        self.model = JinaCLIPModel.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.dim = self.model.config.truncate_dim or self.model.config.projection_dim

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Id and fields of the rows, each with its vector, or with why it has none."""
        wanted, encode = self.options.text or self.options.image, self.model.encode_image
        contents = rows[wanted].to_pylist() if wanted in rows.column_names else [None] * len(rows)
        contents = [x.get("bytes") if isinstance(x, dict) else x for x in contents]  # datasets' columns of pictures
        if self.options.text:  # of files, bytes; the model names what is not UTF-8
            encode = self.model.encode_text
            contents = [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x for x in contents]
        encode = partial(encode, batch_size=self.options.batch_size, show_progress_bar=False)
        found = vectors_or_reasons(encode, contents)
        problems = [vector if isinstance(vector, str) else None for vector in found]
        self.left_out += sum(problem is not None for problem in problems)
        refuse_many(self.left_out, self.options.max_unreadable, next(filter(None, problems), ""))
        made = {name: rows[name] for name in [self.options.id, *self.options.fields]}
        made |= {"vector": vector_column(found, self.dim), "unreadable": pa.array(problems, pa.string())}
        return pa.table(made)


def refuse_many(count: int, allowed: int, example: str) -> None:
    if count > allowed:
        raise ValueError(f"{count} rows cannot be read, --max_unreadable allows {allowed}; such as: {example}")


def corpus_of(ray: Any, options: argparse.Namespace) -> Any:
    """The rows, as Ray reads them; ``options`` learn the columns that tars and folders have."""
    paths = sorted(glob(options.corpus))
    if len(paths) == 1 and Path(paths[0]).is_dir():
        options.id, options.text, options.image = "path", options.text and "bytes", None if options.text else "bytes"
        place, endings = str(Path(paths[0]).absolute()), ["txt"] if options.text else list(PICTURES)
        return ray.data.read_binary_files(place, include_paths=True, file_extensions=endings)
    if not paths or not all(path.endswith((".parquet", ".tar")) for path in paths):
        raise ValueError(f"{options.corpus}: no folder, .parquet or .tar files there; quote what has a *")
    if (options.text is None) == (options.image is None):
        raise ValueError("give --text COLUMN or --image COLUMN, one of the two; of tars the ending, such as jpg")
    if paths[0].endswith(".tar"):
        options.id = "__key__"
        return ray.data.read_webdataset(paths, decoder=None)
    wanted, had = [options.id, options.text or options.image, *options.fields], ds.dataset(paths).schema.names
    if missing := [name for name in wanted if name not in had]:
        raise ValueError(f"{options.corpus}: {missing[0]} is none of its columns: {', '.join(had)}")
    return ray.data.read_parquet(paths, columns=wanted)


def threads_of(actors: int, resources: dict[str, float], cores: int) -> int:
    """Threads of each actor. Without room for all, reading would wait for ever for actors that wait for rows."""
    if actors > (room := int(resources.get("GPU", resources["CPU"] - HELPERS))):
        raise ValueError(f"--actors {actors}: there is room for {room}, one a GPU, or a core beside {HELPERS} for Ray")
    return max(1, cores // actors)


def embed(options: argparse.Namespace) -> None:
    """Read, embed, write."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    ray, checkpoints = needed("ray", "ray"), needed("ray.data.checkpoint", "ray")
    folder, start = Path(options.output_dir).absolute(), time.perf_counter()
    cores, is_here = os.cpu_count() or 1, "RAY_ADDRESS" not in os.environ
    own = {"address": "local", "include_dashboard": False, "num_cpus": max(cores, options.actors + HELPERS)}
    with ray.init(**(own if is_here else {}), logging_level="ERROR"):
        rows, resources = corpus_of(ray, options), ray.cluster_resources()
        threads = threads_of(options.actors, resources, cores if is_here else int(resources["CPU"]))
        setup = {name: getattr(options, name) for name in ("corpus", "id", "text", "image", "fields", "dtype")}
        begin_folder(folder, options.model, setup)
        done = checkpoints.CheckpointConfig(options.id, str(folder / "_checkpoint"), delete_checkpoint_on_success=False)
        rows.context.checkpoint_config, rows.context.raise_original_map_exception = done, True
        how = {"batch_size": 8 * options.batch_size, "batch_format": "pyarrow", "num_gpus": int("GPU" in resources)}
        how |= {"compute": ray.data.ActorPoolStrategy(size=options.actors), "fn_constructor_args": [options, threads]}
        rows = rows.repartition(target_num_rows_per_block=options.rows_per_file).map_batches(Embedder, **how)
        try:
            rows.write_parquet(str(folder), mode="append")
        except ValueError as error:  # within a page of Ray's own words
            raise getattr(error, "cause", error) from None
    written, broken = ds.dataset(folder, format="parquet"), ds.field("unreadable").is_valid()
    left_out = written.to_table([options.id, "unreadable"], filter=broken).to_pylist()
    write_whole(folder / "_unreadable.jsonl", "".join(f"{json.dumps(row, default=str)}\n" for row in left_out).encode())
    refuse_many(len(left_out), options.max_unreadable, str(left_out[:1]))
    print(f"{written.count_rows():,} rows, {len(left_out):,} unreadable; {time.perf_counter() - start:.0f} s: {folder}")


def main() -> None:
    """Check what is asked, and embed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("corpus", help='a folder, or "files/*.parquet" or "files/*.tar", in quotes')
    parser.add_argument("--output_dir", required=True, help="folder of the vectors")
    parser.add_argument("--text", metavar="COLUMN", help="the texts to embed; of a folder, its .txt files (any word)")
    parser.add_argument("--image", metavar="COLUMN", help="or the pictures; of a folder the default")
    parser.add_argument("--id", metavar="COLUMN", help="of parquet files: a column of unique values")
    parser.add_argument("--fields", nargs="*", default=[], metavar="COLUMN", help="what to keep beside the vector")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    numbers = {"actors": (1, "models at work"), "batch_size": (32, "rows embedded at once")}
    numbers |= {"rows_per_file": (4096, "rows of an output file"), "max_unreadable": (0, "rows that may be left out")}
    for name, (default, words) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default {default})")
    options = parser.parse_args()
    if min(options.actors, options.batch_size, options.rows_per_file) < 1:
        parser.error("--actors, --batch_size and --rows_per_file must be at least 1")
    refuse_unwritable(options.output_dir, "--output_dir")
    with held(options.output_dir, sys.argv, print):
        embed(options)


if __name__ == "__main__":
    sys.exit(guarded(main))
