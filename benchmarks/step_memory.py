"""Memory of one joint step with a gradient cache, against the effective batch: ``python benchmarks/step_memory.py``.

Each batch size runs in a process of its own: random pictures and texts of full length through the trainer's own step
(embed in chunks, loss in tiles, backward). Reported are the peak resident size above that of the process with model and
batch in place, gradients and one chunk's activations included; and, apart from it, what the batch itself holds on the
host. Embeddings and their gradients are the only part of a step that grows with the batch.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from joint_runs import preset

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.training.embedding import InputEmbedder, chunks_of

TILE = 1024


def peak_mib() -> float:
    """Highest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def batch_of(rows: int, size: int, tokens: int) -> dict[str, dict[str, torch.Tensor]]:
    """Pictures as bytes, and three columns of texts."""
    ids = torch.randint(5, 8000, (3, rows, tokens))
    mask = torch.ones(rows, tokens, dtype=torch.long)
    texts = {
        name: {"input_ids": part, "attention_mask": mask}
        for name, part in zip(("caption", "query", "positive"), ids, strict=True)
    }
    return {"image": {"pixel_values": torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)}, **texts}


def step(model: JinaCLIPModel, parts: Mapping[str, Mapping[str, torch.Tensor]], chunk: int) -> float:
    """Both passes of a joint step."""

    def embed(part: dict[str, torch.Tensor]) -> torch.Tensor:
        return embedder(model, part)

    embedder = InputEmbedder([0.5] * 3, [0.25] * 3, torch.device("cpu"))
    inputs = {name: Chunks(embed, pieces) for name, (pieces, _) in chunks_of(parts, chunk, 16).items()}
    inputs["temperature"] = Chunks(lambda _: clamped_temperature(model.logit_scale), [None])
    vectors = cached_embeddings(inputs)
    loss = info_nce(vectors["image"], vectors["caption"], vectors["temperature"], tile_size=TILE)
    loss = loss + info_nce(vectors["query"], vectors["positive"], tile_size=TILE)
    loss.backward()
    return loss.item()


def measure(options: argparse.Namespace) -> None:
    """Print MiB of the step, MiB of the batch and seconds, for the parent process to read."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = JinaCLIPConfig.from_json_file(preset(options.width, Path(folder)))
    config.vision_config.image_size = options.size
    model = JinaCLIPModel._from_config(config, attn_implementation=options.attention).train()
    parts = batch_of(options.case, options.size, options.tokens)
    held = sum(tensor.nbytes for part in parts.values() for tensor in part.values()) / 2**20
    before, start = peak_mib(), time.perf_counter()
    for _ in range(1 if options.case > 1024 else 2):
        model.zero_grad()
        step(model, parts, options.chunk)
    print(f"{peak_mib() - before:.0f} {held:.0f} {time.perf_counter() - start:.1f}")


def run(options: argparse.Namespace) -> dict[int, tuple[float, float]]:
    """Each batch size in a fresh process; prints the table's rows as they come."""
    print(f"torch {torch.__version__}, width {options.width}, {options.size} px, {options.tokens} tokens, fp32")
    print(f"\n| batch, chunks of {options.chunk} | step, MiB | batch on the host, MiB | embeddings, MiB | seconds |")
    print("|--:|--:|--:|--:|--:|")
    found = {}
    for rows in options.batches:
        command = [sys.executable, __file__, "--case", str(rows)]
        for name in ("width", "size", "tokens", "chunk", "attention"):
            command += [f"--{name}", str(getattr(options, name))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3:]
        mib, held, seconds = map(float, output)
        embeddings = 4 * 2 * 4 * rows * options.width / 2**20  # four parts, values and gradients, fp32
        print(f"| {rows:,} | {mib:,.0f} | {held:,.0f} | {embeddings:,.1f} | {seconds} |", flush=True)
        found[rows] = (mib, held)
    return found


def plot(found: Mapping[int, tuple[float, float]], path: Path) -> None:
    """The curve as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for index, label in enumerate(("step", "batch on the host, as bytes")):
        axes.plot(list(found), [values[index] for values in found.values()], marker="o", label=label)
    axes.set(xscale="log", xlabel="effective batch (rows a side)", ylabel="MiB", ylim=(0, None))
    axes.set_xticks(list(found), [f"{rows:,}" for rows in found])
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Any = None) -> None:
    """The table, and with ``--plot`` the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096, 8192])
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels; patches have 16")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--plot", type=Path, help="write the curve to this PNG file")
    parser.add_argument("--case", type=int, help="one batch size, in this process")
    options = parser.parse_args(arguments)
    if options.case:
        measure(options)
        return
    found = run(options)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
