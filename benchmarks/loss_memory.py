"""Memory and time of InfoNCE, plain and tiled: ``python benchmarks/loss_memory.py`` (200 CPU seconds).

Memory: each case runs in a process of its own; reported is how far forward and backward pass push the peak resident
size above that of the process with its inputs in place, gradients of the inputs included. Time: CPU seconds of one
thread, forms interleaved, median of several rounds with the range, so that other work on the machine hardly counts.
"""

import argparse
import functools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer_ext.losses.info_nce import info_nce, info_nce_plus

DIM, TILE = 768, 1024
MEMORY_CASES = [
    ("info_nce", 2048, None),
    ("info_nce", 4096, None),
    ("info_nce", 8192, None),
    ("info_nce", 2048, TILE),
    ("info_nce", 4096, TILE),
    ("info_nce", 8192, TILE),
    ("info_nce", 32768, TILE),
    ("info_nce_plus", 4096, None),
    ("info_nce_plus", 4096, TILE),
]
TIME_CASES = [("info_nce", 4096), ("info_nce with ids", 4096), ("info_nce_plus", 2048)]
ROUNDS = 5


def make(name: str, rows: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The loss and its inputs; three hard negatives a row for the plus form."""
    torch.manual_seed(0)
    shapes = [(rows, DIM), (rows, DIM)] + ([(rows, 3, DIM)] if name == "info_nce_plus" else [])
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    if name == "info_nce_plus":
        return functools.partial(info_nce_plus, *inputs), inputs
    ids = torch.randint(0, 4 * rows, (rows,)) if name == "info_nce with ids" else None
    return functools.partial(info_nce, *inputs, query_ids=ids), inputs


def peak_mib() -> float:
    """Highest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def measure_memory(name: str, rows: int, tile_size: int | None) -> None:
    """Print MiB above the inputs and seconds, for the parent process to read."""
    warm_up, _ = make(name, 8)
    warm_up(tile_size=tile_size).backward()
    loss, _ = make(name, rows)
    before, start = peak_mib(), time.perf_counter()
    loss(tile_size=tile_size).backward()
    print(f"{peak_mib() - before:.0f} {time.perf_counter() - start:.1f}")


def memory_table(most: int) -> None:
    """Each case of at most so many rows in a fresh process."""
    print(f"{'loss':<18} {'rows':>6} {'tile':>6} {'MiB above inputs':>17} {'seconds':>8}")
    for name, rows, tile_size in MEMORY_CASES:
        if rows > most:
            continue
        command = [sys.executable, __file__, "--case", name, str(rows), str(tile_size or 0)]
        mib, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"{name:<18} {rows:>6} {tile_size or '-':>6} {mib:>17} {seconds:>8}", flush=True)


def time_table(most: int) -> None:
    """Plain and tiled in turn, in one process on one thread; at most so many rows."""
    torch.set_num_threads(1)
    print(f"\n{'loss':<18} {'rows':>6} {'plain s':>22} {'tiled s':>22} {'tiled/plain':>12}")
    for name, rows in TIME_CASES:
        if rows > most:
            continue
        loss, inputs = make(name, rows)
        seconds: dict[int | None, list[float]] = {None: [], TILE: []}
        for _ in range(ROUNDS):
            for tile_size, taken in seconds.items():
                for x in inputs:
                    x.grad = None
                start = time.process_time()
                loss(tile_size=tile_size).backward()
                taken.append(time.process_time() - start)
        plain, tiled = (statistics.median(taken) for taken in seconds.values())
        columns = [f"{statistics.median(t):.2f} ({min(t):.2f}-{max(t):.2f})" for t in seconds.values()]
        print(f"{name:<18} {rows:>6} {columns[0]:>22} {columns[1]:>22} {tiled / plain:>12.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, metavar=("LOSS", "ROWS", "TILE"), help="one memory case, in this process")
    parser.add_argument("--most", type=int, default=32768, help="rows of the largest case, for a quick look")
    options = parser.parse_args()
    if case := options.case:
        measure_memory(case[0], int(case[1]), int(case[2]) or None)
    else:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, dim {DIM}, fp32\n")
        memory_table(options.most)
        time_table(options.most)
