"""What the benchmarks of the joint step share: a trainer of the demo's data in any width, and timing of whole steps."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext import JinaCLIPTrainer, load_recipe, load_sources, training_arguments
from trainer_ext.demo_data.cache import prepare
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.run.start import initial_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SOURCES = ("openmoji-short", "gcide-headword-definition")
QUIET = ["evaluation=null", "save_strategy=no", "logging_strategy=no", "report_to=none", "disable_tqdm=true"]


def preset(width: int, folder: Path) -> Path:
    """The demo's small model, in another width; heads of 64."""
    values = json.loads(find_resource("models", "openmoji-small").read_text())
    values["projection_dim"] = width
    text, vision = values["text_config"], values["vision_config"]
    text |= {
        "embed_dim": width,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    vision |= {"embed_dim": width, "width": width}
    path = folder / f"width-{width}.json"
    path.write_text(json.dumps(values))
    return path


def joint_recipe(model: Path, rows: int, steps: int, *overrides: str) -> Recipe:
    """One stage of a joint step: ``rows`` pictures with short captions and ``rows`` words with definitions."""
    stage = (
        f"stages=[{{name: joint, steps: {steps}, learning_rate: 1e-4, max_length: 77, "
        f"image_text: {{sources: [{SOURCES[0]}], batch_size: {rows}}}, "
        f"text: {{sources: [{SOURCES[1]}], batch_size: {rows}}}}}]"
    )
    return load_recipe("openmoji", [f"model={model}", stage, *QUIET, *overrides])


def start(recipe: Recipe) -> tuple[JinaCLIPModel, JinaCLIPProcessor, dict[str, Any]]:
    """Fresh towers, their processor and the recipe's rows."""
    prepare()
    tables = load_sources(recipe.used_sources())
    transformers.set_seed(0)
    return *initial_model(recipe, None), tables


def our_trainer(
    recipe: Recipe, folder: Path, model: JinaCLIPModel, processor: JinaCLIPProcessor, tables: dict[str, Any]
) -> JinaCLIPTrainer:
    """The trainer as a user has it."""
    arguments = training_arguments(recipe, folder)
    return JinaCLIPTrainer(model, arguments, recipe=recipe, train_dataset=tables, processing_class=processor)


class StepClock(TrainerCallback):
    """Seconds from the end of a step to the end of the next one: data, both passes, optimizer and all in between."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._end: float | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first step of a run warms up."""
        self._end = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One whole step more."""
        now = time.perf_counter()
        if self._end is not None:
            self.seconds.append(now - self._end)
        self._end = now


def interleave(trainers: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, each trained in turn: whatever else the machine does falls on all."""
    clocks = {name: StepClock() for name in trainers}
    for name, trainer in trainers.items():
        trainer.add_callback(clocks[name])
    for _ in range(rounds):
        for trainer in trainers.values():
            trainer.train()
    return {name: clock.seconds for name, clock in clocks.items()}


def table(times: dict[str, list[float]], pairs: int, title: str) -> None:
    """A markdown table: median with quartiles, pairs per second, and the ratio to the first line."""
    base = statistics.median(next(iter(times.values())))
    print(f"\n{title}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| step | seconds | pairs/s | ratio |\n|---|--:|--:|--:|")
    for name, seconds in times.items():
        low, middle, high = quartiles(seconds)
        print(f"| {name} | {middle:.3f} ({low:.3f}-{high:.3f}) | {pairs / middle:.0f} | {base / middle:.2f} |")


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3


def parameters_of(config: JinaCLIPConfig) -> int:
    """Number of weights of a model, made without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in JinaCLIPModel(config).parameters())
