"""Matrix products of a linear layer: as torch does them, and as our towers do them.

The shapes are those of jina-clip-v1. Interleaved; billions of operations a second, median with quartiles.

    python benchmarks/products.py [--rounds 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from modeling_jina_clip.modeling_jina_clip_base import linear_in_onednn

# Rows, inputs, outputs: a batch of texts through its four layers, one of images, and a few rows.
SHAPES = [(1024, 768, 2304), (1024, 768, 768), (1024, 768, 6144), (1024, 3072, 768), (3152, 768, 2048), (64, 768, 768)]
# dtype, and whether the gradients of all three tensors are taken.
CASES = {
    "float32": (torch.float32, False),
    "float32, gradients": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def seconds(product: Product, tensors: list[torch.Tensor], direction: torch.Tensor | None) -> float:
    """One run, with gradients if there is a direction."""
    begin = time.perf_counter()
    with torch.set_grad_enabled(direction is not None):
        output = product(*tensors)
        if direction is not None:
            torch.autograd.grad(output, tensors, direction)
    return time.perf_counter() - begin


def main() -> None:
    """Print one line for each shape and case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(torch.__version__, getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "unknown processor"))
    products = {"torch": F.linear, "ours": linear_in_onednn}
    for rows, inputs, outputs in SHAPES:
        for name, (dtype, gradients) in CASES.items():
            sizes = ((rows, inputs), (outputs, inputs), (outputs,))
            tensors = [torch.randn(size, dtype=dtype, requires_grad=gradients) for size in sizes]
            direction = torch.randn(rows, outputs, dtype=dtype) if gradients else None
            times: dict[str, list[float]] = {way: [] for way in products}
            for _ in range(rounds + 1):  # the first one warms up
                for way, product in products.items():
                    times[way].append(seconds(product, tensors, direction))
            work = 2e-9 * rows * inputs * outputs * (3 if gradients else 1)
            rates = [[work / run for run in runs[1:]] for runs in times.values()]
            speeds = [statistics.quantiles(rate, n=4) if rounds > 1 else rate * 3 for rate in rates]
            columns = " ".join(f"{middle:6.0f} ({low:.0f}-{high:.0f})" for low, middle, high in speeds)
            print(f"{rows} x {inputs} x {outputs} {name:18} {columns}  {speeds[1][1] / speeds[0][1]:.2f}x")


if __name__ == "__main__":
    main()
