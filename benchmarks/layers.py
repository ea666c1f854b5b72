"""What fewer layers and shorter vectors cost and save: quality against encoding speed, widths x layers.

    python benchmarks/layers.py --plot layers.png
    python benchmarks/layers.py --seeds 42 43 44 --steps 120

Each seed trains the demo's first stage twice, with Matryoshka widths alone and with ``layers`` as well, from the same
start on the same rows. Both models are cut by ``shortened`` to each pair of depths and measured at each width on
held-out rows: the mean of text to image R@5 over drawings of new concepts and new combinations, and nDCG@10 of
definitions by their headwords. Speed is that of ``encode_text`` and ``encode_image`` on this machine, the best of
``--rounds``. Prints the mean over the seeds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paired import read_tasks, trained
from modeling_jina_clip import JinaCLIPModel, shortened
from trainer_ext.evaluation.items import encode_items, is_text, opened
from trainer_ext.evaluation.tasks import Task, figures_of
from trainer_ext.measuring.models import encoders_of

DEPTHS = ((1, 2), (1, 4), (2, 6))  # layers of the text and the image tower; the last pair is the whole model
WIDTHS = (256, 64)
TIMED = 64  # texts and pictures of a round
PICTURES, TEXTS = ("concepts_short/t2i_r5", "combinations_short/t2i_r5"), "headword_definition/ndcg10"
LAYERS = "layers: {text: [1, 2], image: [2, 4, 6]}"
KINDS = {"widths alone": f"dims: {list(WIDTHS)}", "widths and layers": f"dims: {list(WIDTHS)}, {LAYERS}"}


class Measured(NamedTuple):
    """One model at one width: percent, percent, and items encoded in a second."""

    pictures: float
    texts: float
    images_a_second: float
    texts_a_second: float


Point = tuple[str, tuple[int, int], int]  # kind of run, depths, width


def train_run(options: argparse.Namespace, kind: str, seed: int) -> Path:
    """The folder of a run, trained now if it is not there."""
    sides = (
        f"image_text: {{sources: [openmoji-short-concepts], batch_size: {options.batch_size}}}, text: {{sources: "
        f"[gcide-headword-definition, gcide-definition-example], batch_size: {options.batch_size}}}"
    )
    stage = f"name: short, steps: {options.steps}, learning_rate: 1.0e-3, warmup_steps: 0.1, patch_dropout: 0.25"
    changes = ["evaluation=null", "save_strategy=no", "report_to=none", "bf16=false", f"seed={seed}"]
    changes += [f"stages=[{{{stage}, max_length: 32, {sides}}}]", f"matryoshka={{{KINDS[kind]}}}"]
    name = f"{kind.replace(' ', '-')}-{seed}-{options.steps}x{options.batch_size}"
    return trained(options.folder / name, "openmoji", changes)


def speed(encode: Callable[[list[Any]], Any], items: list[Any], rounds: int) -> float:
    """Items a second, of the best round."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        encode(items)
        seconds.append(time.perf_counter() - begin)
    return len(items) / min(seconds)


def measure(model: JinaCLIPModel, tasks: list[Task], rounds: int) -> dict[int, Measured]:
    """Width -> quality and speed. The speed is that of the whole vector: to cut one costs nothing."""
    encoders = encoders_of(model, "short")
    vectors = encode_items(encoders.encode_text, encoders.encode_image, (item for task in tasks for item in task.items))
    items = [item for task in tasks for item in task.items]
    texts = [str(item) for item in items if is_text(item)][:TIMED]
    images = [opened(item) for item in [item for item in items if not is_text(item)][:TIMED]]
    speeds = speed(encoders.encode_image, images, rounds), speed(encoders.encode_text, texts, rounds)
    found = {}
    for width in WIDTHS:
        figures = figures_of(vectors.truncated(width), tasks)
        pictures = statistics.mean(figures[name].value for name in PICTURES)
        found[width] = Measured(100 * pictures, 100 * figures[TEXTS].value, *speeds)
    return found


def all_points(options: argparse.Namespace, seed: int, tasks: list[Task]) -> dict[Point, Measured]:
    """Every kind, depth and width of one seed."""
    found: dict[Point, Measured] = {}
    for kind in KINDS:
        whole = JinaCLIPModel.from_pretrained(train_run(options, kind, seed)).eval()
        for depths in DEPTHS:
            for width, point in measure(shortened(whole, *depths), tasks, options.rounds).items():
                found[kind, depths, width] = point
    return found


def mean_of(runs: list[dict[Point, Measured]]) -> dict[Point, Measured]:
    """The mean quality over the seeds, and the best speed of each pair of depths, of whatever kind and seed."""
    found = {}
    for kind, depths, width in runs[0]:
        same = [point for run in runs for (_, other, _), point in run.items() if other == depths]
        speeds = max(point.images_a_second for point in same), max(point.texts_a_second for point in same)
        quality = [run[kind, depths, width][:2] for run in runs]
        found[kind, depths, width] = Measured(*map(statistics.mean, zip(*quality, strict=True)), *speeds)
    return found


def table(points: dict[Point, Measured]) -> str:
    """Depths and widths down, kinds across."""
    lines = [
        "| text and image layers | width | images/s | texts/s | pictures, R@5: widths alone | with layers | "
        "texts, nDCG@10: widths alone | with layers |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    one, other = KINDS
    for depths in reversed(DEPTHS):
        for width in WIDTHS:
            without, having = points[one, depths, width], points[other, depths, width]
            cells = [f"{depths[0]}, {depths[1]}", str(width)]
            cells += [f"{having.images_a_second:.0f}", f"{having.texts_a_second:.0f}"]
            cells += [f"{x:.1f}" for x in (without.pictures, having.pictures, without.texts, having.texts)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(points: dict[Point, Measured], path: str) -> None:
    """Quality against speed: a line for each width, solid with ``layers``, dashed without."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = {"text to image R@5 (%)": ("pictures", "images"), "headword to definition nDCG@10 (%)": ("texts", "texts")}
    for axes, (words, (quality, items)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for kind, style in zip(KINDS, ("o--", "o-"), strict=True):
            for width, colour in zip(WIDTHS, ("tab:blue", "tab:orange"), strict=True):
                line = [points[kind, depths, width] for depths in DEPTHS]
                x, y = ([getattr(p, name) for p in line] for name in (f"{items}_a_second", quality))
                axes.plot(x, y, style, color=colour, label=f"{width} numbers, {kind}")
        for depths in DEPTHS:
            point = points["widths and layers", depths, WIDTHS[0]]
            place = getattr(point, f"{items}_a_second"), getattr(point, quality)
            axes.annotate(f"{depths[0]}, {depths[1]}", place, textcoords="offset points", xytext=(4, 5), fontsize=8)
        axes.set(xlabel=f"{items} a second", ylabel=words)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--limit", type=int, default=400, help="held-out rows of each task")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--folder", type=Path, default=Path("outputs/layers"), help="where runs are kept")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the curves, too")
    options = parser.parse_args()
    tasks = read_tasks("openmoji", options.limit, {name.partition("/")[0] for name in (*PICTURES, TEXTS)})
    points = mean_of([all_points(options, seed, tasks) for seed in options.seeds])
    print(f"\n{table(points)}\n\n{len(options.seeds)} seeds, {options.steps} steps of {options.batch_size}")
    if options.plot:
        plot(points, options.plot)
        print(f"the curves are {options.plot}")


if __name__ == "__main__":
    main()
