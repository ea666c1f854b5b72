"""What a step costs outside the towers, the loss and the optimizer: ``python benchmarks/trainer_overhead.py``.

Clocks stand around the towers' calls and the backward pass (loss included: both passes of the gradient cache run in
there), and around the optimizer's step with the clipping before it. The rest of a step is overhead: reading rows,
decoding and fitting pictures, tokenizing, chunks and normalising pixels, callbacks, logging. Data can be made ahead by
loader workers; ``--workers`` says by how many. Medians over whole steps, from the end of one to the end of the next.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from joint_runs import StepClock, joint_recipe, our_trainer, preset, quartiles, start


class Clocks:
    """Seconds spent inside wrapped calls, by name; a wrapped call inside another one counts once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with a clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin
                self._inside = False

        return timed


class Shares(StepClock):
    """Whole steps, and how much of each the clocks have seen."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__()
        self.clocks = clocks
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One step more."""
        counted = len(self.seconds)
        super().on_step_end(*args, **kwargs)
        if len(self.seconds) > counted:
            self.steps.append(dict(self.clocks.seconds))
        self.clocks.seconds.clear()


def main() -> None:
    """Train some steps and print the shares of their time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = joint_recipe(
            preset(options.width, Path(folder)), options.rows, options.steps, f"bf16={options.bf16}".lower(),
            f"gradient_cache_chunk_size={options.chunk}", f"dataloader_num_workers={options.workers}",
            "logging_strategy=steps", "logging_steps=10",
        )  # fmt: skip
        trainer = our_trainer(recipe, Path(folder) / "out", *start(recipe))
        clocks = Clocks()
        shares = Shares(clocks)
        trainer.add_callback(shares)
        model = trainer.model
        model.forward = clocks.around("towers, forward", model.forward)
        trainer.objective.forward = clocks.around("loss, forward", getattr(trainer.objective, "forward", None))
        trainer.accelerator.backward = clocks.around("loss and towers, backward", trainer.accelerator.backward)
        trainer._clip_grad_norm = clocks.around("optimizer", trainer._clip_grad_norm)
        make = trainer.create_optimizer

        def create_optimizer(*args: Any) -> torch.optim.Optimizer:
            optimizer = make(*args)
            optimizer.step = clocks.around("optimizer", optimizer.step)
            return optimizer

        trainer.create_optimizer = create_optimizer
        trainer.train()
    report(shares, options)


def report(shares: Shares, options: argparse.Namespace) -> None:
    """A markdown table; the last line is what nothing else accounts for."""
    names = list(shares.steps[0])
    low, whole, high = quartiles(shares.seconds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, width {options.width}, ", end="")
    print(f"{options.rows} + {options.rows} pairs, chunks of {options.chunk}, {options.workers} loader worker(s)\n")
    print(f"| part | seconds | share |\n|---|--:|--:|\n| a step | {whole:.3f} ({low:.3f}-{high:.3f}) | 100.0% |")
    for name in names:
        middle = statistics.median(step[name] for step in shares.steps)
        print(f"| {name} | {middle:.3f} | {middle / whole:.1%} |")
    rests = [seconds - sum(step.values()) for seconds, step in zip(shares.seconds, shares.steps, strict=True)]
    rest = statistics.median(rests)
    print(f"| all else: the trainer's overhead | {rest:.3f} | {rest / whole:.1%} |")


if __name__ == "__main__":
    main()
