"""Latency of small work at the shape of jina-clip-v1 (223M parameters, random weights) against onnxruntime.

The peer runs the graphs that ``hub_upload.py build --onnx`` exports of the same weights, with as many threads. Every
round runs each variant once. Prints milliseconds, median with quartiles and the 95th percentile, onnxruntime's median
over ours, and the largest difference of a vector. ``packed`` is ``pack_weights``. Token ids or pixels go in and unit
vectors come out, so no tokenizer takes part. ``--beside`` keeps another process multiplying matrices meanwhile;
``--cpu`` counts this process's own time on all its threads, on a machine whose other work cannot be stopped.

    python benchmarks/query_latency.py [--rounds 15] [--cases "12 tokens" "1 picture"] [--beside] [--graphs FOLDER]
"""

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, pack_weights
from trainer_ext.hub.onnx_export import TEXT, VISION, export_onnx

# Rows x tokens; a picture has 224 x 224 pixels.
CASES = {"12 tokens": (1, 12), "40 tokens": (1, 40), "1 picture": (1, 0), "16 x 36": (16, 36), "4 x 128": (4, 128)}
CASES |= {"1 x 512": (1, 512)}
BUSY = "import torch; torch.set_num_threads({}); a = torch.randn(512, 512)\nwhile True: a @ a"
Inputs = dict[str, torch.Tensor]


def make_model(layers: int) -> JinaCLIPModel:
    """Random weights."""
    torch.manual_seed(0)
    config = JinaCLIPConfig(text_config={"num_hidden_layers": layers}, vision_config={"layers": layers})
    return JinaCLIPModel(config).eval()


def inputs_of(case: str) -> Inputs:
    """Ids without padding, or pixels."""
    rows, tokens = CASES[case]
    generator = torch.Generator().manual_seed(1)
    if not tokens:
        return {"pixel_values": torch.randn(rows, 3, 224, 224, generator=generator)}
    ids = torch.randint(1000, 20000, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def ours(model: JinaCLIPModel) -> Callable[[Inputs], np.ndarray]:
    """Our towers to unit vectors."""

    @torch.inference_mode()
    def run(inputs: Inputs) -> np.ndarray:
        found: Any = (
            model.get_image_features(**inputs) if "pixel_values" in inputs else model.get_text_features(**inputs)
        )
        vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
        return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()

    return run


def peer(folder: Path) -> Callable[[Inputs], np.ndarray]:
    """onnxruntime with torch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sessions = {name: onnxruntime.InferenceSession(folder / name, options) for name in (TEXT, VISION)}

    def run(inputs: Inputs) -> np.ndarray:
        session = sessions[VISION if "pixel_values" in inputs else TEXT]
        return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]

    return run


@contextmanager
def another_process(wanted: bool) -> Iterator[None]:
    """A busy one beside us, on one thread."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY.format(1)]) if wanted else None
    try:
        yield
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()


def compare(
    case: str, variants: dict[str, Callable[[Inputs], np.ndarray]], rounds: int, clock: Callable[[], float]
) -> None:
    """Run all variants in turns and print one line each."""
    inputs = inputs_of(case)
    results = {name: run(inputs) for name, run in variants.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            begin = clock()
            run(inputs)
            times[name].append(1000 * (clock() - begin))
    expected, *_ = results.values()
    first, *_ = (statistics.median(values) for values in times.values())
    print(f"\n{case}: ms, median (quartiles)")
    for name, values in times.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        tail = f"p95 {np.quantile(values, 0.95):.0f}"
        error = np.abs(results[name] - expected).max()
        print(
            f"  {name:14} {middle:7.1f} ({low:.1f}-{high:.1f}), {tail}; {first / middle:.2f}x; difference {error:.0e}"
        )
    sys.stdout.flush()


def main() -> None:
    """Export, then measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--beside", action="store_true", help="another process multiplies matrices meanwhile")
    parser.add_argument("--graphs", type=Path, help="folder that keeps the exported graphs")
    parser.add_argument("--cpu", action="store_true", help="count the time of this process alone")
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.graphs or Path(scratch)
        plain = make_model(options.layers)
        if not (folder / VISION).is_file():
            export_onnx(plain, folder)
        variants = {
            "onnxruntime": peer(folder),
            "fp32": ours(plain),
            "fp32, packed": ours(pack_weights(copy.deepcopy(plain))),
            "bf16": ours(copy.deepcopy(plain).bfloat16()),
            "bf16, packed": ours(pack_weights(copy.deepcopy(plain).bfloat16())),
        }
        print(f"{torch.get_num_threads()} threads{', beside another process' if options.beside else ''}")
        with another_process(options.beside):
            for case in options.cases:
                compare(case, variants, options.rounds, time.process_time if options.cpu else time.perf_counter)


if __name__ == "__main__":
    main()
