"""The tables of docs/scaling.md: curves fitted to the study's rows, and what larger runs take, computed.

    python examples/study/scaling.py            # into docs/scaling.md, between its markers
    python examples/study/scaling.py --measure  # measure this machine's decoding of pictures first

Rates of a GPU are calibrated on the one that is known: the paper's 180 hours on 8 H100 for its first stage
(arXiv 2405.20204, table 2). All the rest is arithmetic, with its formula in the page.
"""

import argparse
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.memory_advice import step_gib
from examples.study.rows import ROWS, read_rows, surroundings
from examples.study.run import ARMS
from examples.study.tables import BLOCK, COLUMNS, Runs, runs_of, values
from modeling_jina_clip import JinaCLIPImageProcessor
from trainer_ext.commands.guard import guarded
from trainer_ext.files import write_json

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
MEASURED = ROWS.with_name("decoding.json")

# jina-clip-v1: weights in the blocks of each tower (an embedding table is looked up, not multiplied), and their sizes.
LAYERS, WIDTH = 12, 768
IMAGE_BLOCKS = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 2048)
TEXT_BLOCKS = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 3072)
WEIGHTS = 223e6
COLUMNS_GATHERED = 4  # picture, caption, query, positive
FLOAT = 4  # bytes
PATCHES = 1 + round(0.9 * 14**2)  # at 224 px, without the dropped tenth


class Stage(NamedTuple):
    """Samples of each task, the longest text, texts of a sample (captions included), and the hours of 8 H100."""

    samples: float
    tokens: int
    texts: int
    hours: float = 0.0


# As the paper prints them; a triplet has a query, a positive and 7 negatives beside the caption.
STAGES = {"1": Stage(2e9, 77, 3, 180.0), "2": Stage(12e6, 512, 3, 3.0), "3": Stage(7e6, 512, 10, 4.5)}
CARDS = {"H100 SXM": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}  # makers' dense bf16 TFLOP/s
JPEG, TEXT_BYTES = 20e3, 500.0  # a picture of 256 px, the two texts of a pair


# --- curves ------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """``100 - figure = scale * x ** -power``: what is missing to a perfect figure, in percent points."""

    scale: float
    power: float
    residuals: list[float]  # of the figure, in points, at each x

    def at(self, x: float) -> float:
        """The figure that the curve has at x, in percent."""
        return 100 - self.scale * x**-self.power


def fit(xs: Sequence[float], figures: Sequence[float]) -> Fit:
    """Least squares of the logarithms.

    >>> found = fit([1, 2, 4], [50, 75, 87.5])
    >>> round(found.scale, 6), round(found.power, 6), round(found.at(8), 6)
    (50.0, 1.0, 93.75)
    """
    if len(xs) < 3:
        raise ValueError(f"{len(xs)} points are too few: a curve with two numbers goes through them. Give at least 3")
    power, level = np.polyfit(np.log(xs), np.log(100 - np.asarray(figures, float)), 1)
    found = Fit(float(math.exp(level)), float(-power), [])
    return found._replace(residuals=[figure - found.at(x) for x, figure in zip(xs, figures, strict=True)])


def fits(runs: Runs, arms: Mapping[str, float], unit: str) -> list[str]:
    """A table of fits over arms that differ in one number, each by its mean over the seeds."""
    points = {name: x for name, x in arms.items() if name in runs}
    if len(points) < 3:
        return [f"Not measured yet: {len(points)} of {len(arms)} arms have rows."]
    head = [f"{x:,.0f} {unit}" for x in points.values()]
    lines = [f"| figure | {' | '.join(head)} | power | residuals |", f"|---|{'--:|' * (len(head) + 1)}---|"]
    for title, column in COLUMNS.items():
        means = [statistics.mean(values(runs, name, column).values()) for name in points]
        found = fit(list(points.values()), means)
        residuals = ", ".join(f"{value:+.1f}" for value in found.residuals)
        lines.append(f"| {title} | {' | '.join(f'{m:.1f}' for m in means)} | {found.power:.3f} | {residuals} |")
    return lines


# --- what a run takes --------------------------------------------------------------------------------------------


def forward_gflop(tokens: int, blocks: int) -> float:
    """Of one row through a tower: 2 per weight and token, and 4 * tokens^2 * width a layer for attention.

    >>> round(forward_gflop(77, TEXT_BLOCKS), 1)
    17.7
    """
    return (2 * blocks * tokens + LAYERS * 4 * tokens**2 * WIDTH) / 1e9


def sample_gflop(tokens: int, texts: int = 3) -> float:
    """Of a picture and its step's texts, forward and backward (3 times forward), all texts as long as the limit."""
    return 3 * (forward_gflop(PATCHES, IMAGE_BLOCKS) + texts * forward_gflop(tokens, TEXT_BLOCKS))


def paper_rate() -> float:
    """Samples of each task a second and GPU, from the paper's first stage: evaluation included."""
    return STAGES["1"].samples / (STAGES["1"].hours * 3600 * 8)


def paper_tflops() -> float:
    """What that is in TFLOP/s, if all texts were as long as the limit."""
    return paper_rate() * sample_gflop(STAGES["1"].tokens) / 1e3


def card_hours(stages: Sequence[Stage], peak: float) -> float:
    """Of a card with this peak in TFLOP/s, where it reaches the share of it that the paper's cards reached."""
    work = sum(stage.samples * sample_gflop(stage.tokens, stage.texts) for stage in stages)
    return work / 1e3 / (peak * paper_tflops() / CARDS["H100 SXM"]) / 3600


@dataclass(frozen=True)
class Run:
    """A line of the budget; ``pictures`` are different ones."""

    name: str
    stages: Sequence[Stage]
    pictures: float


def hundredth(stage: Stage) -> Stage:
    """The same with a hundredth of the samples."""
    return stage._replace(samples=stage.samples / 100)


RUNS = (
    Run("fine-tuning, 10,000 pairs, 10 epochs", [Stage(1e5, 77, 3)], 1e4),
    Run("fine-tuning, 1,000,000 pairs, 3 epochs", [Stage(3e6, 77, 3)], 1e6),
    Run("a hundredth of the paper's samples", [hundredth(stage) for stage in STAGES.values()], 4e6),
    Run("the paper's three stages", list(STAGES.values()), 4e8),
)


def budget() -> list[str]:
    """Card-hours and storage of the runs."""
    lines = [f"| run | {' | '.join(CARDS)} | pictures | texts |", f"|---|{'--:|' * (len(CARDS) + 2)}"]
    for run in RUNS:
        hours = " | ".join(f"{_short(card_hours(run.stages, peak))} h" for peak in CARDS.values())
        texts = min(sum(stage.samples for stage in run.stages), run.pictures * 5) * TEXT_BYTES
        lines.append(f"| {run.name} | {hours} | {_bytes(run.pictures * JPEG)} | {_bytes(texts)} |")
    return lines


def check() -> list[str]:
    """The arithmetic against the hours that the paper prints."""
    lines = ["| stage | GFLOP a sample | computed, 8 H100 | printed |", "|---|--:|--:|--:|"]
    for name, stage in STAGES.items():
        computed = card_hours([stage], CARDS["H100 SXM"]) / 8
        gflop = sample_gflop(stage.tokens, stage.texts)
        lines.append(f"| {name} | {gflop:,.0f} | {computed:.1f} h | {stage.hours:g} h |")
    return lines


def network(batch: int = 32768) -> list[str]:
    """What passes a card in a step, and in a second at the paper's rate."""
    lines = [
        "| GPUs | rows a GPU | seconds a step | vectors, GB | gradients, GB | GB a second |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for cards in (8, 64, 512):
        others = (cards - 1) / cards
        seconds = batch / cards / paper_rate()
        vectors = 3 * others * batch * COLUMNS_GATHERED * WIDTH * FLOAT / 1e9
        gradients = 2 * others * WEIGHTS * FLOAT / 1e9
        cells = [f"{batch // cards:,}", f"{seconds:.2f}", f"{vectors:.2f}", f"{gradients:.2f}"]
        lines.append(f"| {cards} | {' | '.join(cells)} | {(vectors + gradients) / seconds:.1f} |")
    return lines


def reading(measured: Mapping[str, Any] | None) -> list[str]:
    """What a GPU asks of the host beside it."""
    rate = paper_rate()
    lines = [
        f"- pictures: {rate:.0f} a second and GPU (from the paper's hours)",
        f"- bytes read by each process: {rate * (JPEG + TEXT_BYTES) / 1e6:.1f} MB a second (computed)",
    ]
    if measured is None:
        return [*lines, "- decoding: not measured yet"]
    decoded = measured["pictures_per_cpu_second"]
    where = measured["machine"]["processor"]
    return [
        *lines,
        f"- decoding, cropping to 224 px and scaling: {decoded:.0f} JPEG pictures of 256 px a second and core "
        f"(measured: {where}, {measured['pictures']} pictures, CPU seconds), so "
        f"{rate / decoded:.1f} cores for each GPU",
    ]


def memory() -> list[str]:
    """docs/memory.md's formula for the first stage on 80 GB, with the activations that page counts."""
    lines = ["| GPUs | rows a GPU | chunk | GiB a card |", "|--:|--:|--:|--:|"]
    for cards, batch in ((8, 32768), (64, 32768), (512, 32768), (512, 262144)):
        chunk = min(256, batch // cards)
        gib = step_gib(int(WEIGHTS), WIDTH, 95.6 * 2**20, chunk, batch)
        lines.append(f"| {cards} | {batch // cards:,} of {batch:,} | {chunk} | {gib:.0f} |")
    return lines


def loss_share() -> list[str]:
    """The loss's own products beside the towers', at growing batches."""
    lines = [
        "| batch | GPUs | TFLOP of the loss, a GPU | TFLOP of the towers, a GPU | share |",
        "|--:|--:|--:|--:|--:|",
    ]
    for batch, cards in ((32768, 8), (32768, 512), (262144, 512), (1048576, 512)):
        # Two sides; a matrix product forward and two backward; each process has its rows against all.
        loss = 2 * 3 * 2 * WIDTH * batch**2 / cards / 1e12
        towers = batch / cards * sample_gflop(77) / 1e3
        lines.append(f"| {batch:,} | {cards} | {loss:.2f} | {towers:,.0f} | {100 * loss / towers:.1f}% |")
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(count: float) -> str:
    return next(
        f"{_short(count / size)} {unit}" for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= size
    )


# --- measured here -----------------------------------------------------------------------------------------------


def decoding(pictures: int = 300) -> dict[str, Any]:
    """Pictures a CPU second from JPEG bytes to 224 px: smooth noise, which is about as large as a photograph."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(10):
        small = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    torch.set_num_threads(1)
    images = JinaCLIPImageProcessor(size=224)
    images.fitted([io.BytesIO(files[0])])
    begin = time.process_time()
    for number in range(pictures):
        images.fitted([io.BytesIO(files[number % len(files)])])
    seconds = time.process_time() - begin
    size = statistics.mean(map(len, files))
    return {"pictures": pictures, "bytes": round(size), "pictures_per_cpu_second": round(pictures / seconds, 1)}


# --- the page ----------------------------------------------------------------------------------------------------


def with_tables(page: str, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with its tables as rows, measurement and formulas have them."""
    runs, curves = runs_of(rows), content["curves"]
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else None
    made: dict[str, Callable[[], list[str]]] = {
        **{name: lambda curve=curve: fits(runs, curve["arms"], curve["unit"]) for name, curve in curves.items()},
        **{"budget": budget, "check": check, "network": network, "memory": memory, "loss": loss_share},
        "reading": lambda: reading(measured),
    }
    return BLOCK.sub(lambda block: "\n".join([block[1].rstrip(), "", *made[block[2]](), "", block[4]]), page)


def main(arguments: list[str] | None = None) -> None:
    """Write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the decoding of pictures here first")
    options = parser.parse_args(arguments)
    if options.measure:
        write_json(MEASURED, decoding() | surroundings())
    content = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_tables(page, content, read_rows(ROWS)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(guarded(main))
