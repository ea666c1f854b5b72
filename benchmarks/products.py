"""Matrix products of a linear layer, forward and backward: where torch sends them, and as a convolution in oneDNN.

The shapes are those of jina-clip-v1. Interleaved; billions of operations a second, median with quartiles.

    python benchmarks/products.py [--rounds 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from modeling_jina_clip.cpu_products import linear_by_convolution

# Rows, inputs, outputs: a batch of texts through its four layers, one of images, and a few rows.
SHAPES = [(4096, 768, 2304), (4096, 768, 6144), (4096, 3072, 768), (3152, 768, 2048), (256, 768, 768), (64, 768, 768)]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def seconds(product: Product, tensors: list[torch.Tensor], direction: torch.Tensor | None) -> float:
    """One run, with the gradients of all three if there is a direction."""
    begin = time.perf_counter()
    with torch.set_grad_enabled(direction is not None):
        output = product(*tensors)
        if direction is not None:
            torch.autograd.grad(output, tensors, direction)
    return time.perf_counter() - begin


def main() -> None:
    """Print one line for each shape, without and with gradients."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(torch.__version__, getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "unknown processor"))
    products = {"linear": F.linear, "convolution": linear_by_convolution}
    for rows, inputs, outputs in SHAPES:
        tensors = [torch.randn(s, requires_grad=True) for s in ((rows, inputs), (outputs, inputs), (outputs,))]
        for direction in (None, torch.randn(rows, outputs)):
            times: dict[str, list[float]] = {name: [] for name in products}
            for _ in range(rounds + 1):  # the first one warms up
                for name, product in products.items():
                    times[name].append(seconds(product, tensors, direction))
            work = 2e-9 * rows * inputs * outputs * (1 if direction is None else 3)
            rates = [[work / run for run in runs[1:]] for runs in times.values()]
            speeds = [statistics.quantiles(rate, n=4) if rounds > 1 else rate * 3 for rate in rates]
            columns = " ".join(f"{middle:6.0f} ({low:.0f}-{high:.0f})" for low, middle, high in speeds)
            what = "forward" if direction is None else "with gradients"
            print(f"{rows} x {inputs} x {outputs} {what:15} {columns}  {speeds[1][1] / speeds[0][1]:.2f}x")


if __name__ == "__main__":
    main()
