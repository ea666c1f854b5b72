"""Does a step fit? Two real micro-steps of every stage, by the real trainer, in a temporary folder and a process of its
own: its memory is that of the steps alone, and a system that ends it for want of memory does not end the check.

1. Each stage is cut to two steps of one micro-batch: the rows that one process holds at a time.
2. The second of them is timed, from the end of the first: loading its rows, forward, backward, optimizer.
3. Seconds x micro-batches x steps of all stages are the hours of the run, without evaluation and saving.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from trainer_ext.checking.findings import Finding
from trainer_ext.checking.plan_shares import accumulated
from trainer_ext.data.sources import load_sources
from trainer_ext.files import read_json, write_json
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import Side
from trainer_ext.run.failures import explain
from trainer_ext.run.start import as_trained_here, initial_model, training_arguments
from trainer_ext.training.trainer import JinaCLIPTrainer

STEPS = 2
# Share of the memory from which a run is said to be near its end.
TIGHT = 0.9
_CHILD = "import sys; from trainer_ext.checking.fit import take_steps; take_steps(*sys.argv[1:])"
# AdamW's two moments, in the weights' own type.
_MOMENTS = 2


@dataclass(frozen=True)
class Fit:
    """What two micro-steps of each stage took, and what the whole run will take.

    Args:
        seconds: of a whole step of each stage, all its micro-batches.
        hours: of all steps of all stages.
        peak_gb: most memory held at once, on the device, or by the process where that is a CPU.
        memory_gb: what there is of it.
        disk_gb: the finished model, one for each stage, and the checkpoints that are kept, about.
    """

    seconds: dict[str, float]
    hours: float
    device: str
    peak_gb: float
    memory_gb: float
    disk_gb: float

    def as_record(self) -> dict[str, Any]:
        """The figures of the report."""
        return asdict(self)

    def describe(self) -> str:
        """One line."""
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.seconds.items())
        return (
            f"seconds a step: {steps}; {self.hours:.2f} hours for all steps on one {self.device}; at most "
            f"{self.peak_gb:.2f} of {self.memory_gb:.1f} GB of its memory; about {self.disk_gb:.2f} GB of disk"
        )


class StepsFailed(ValueError):
    """The micro-steps did not run; the message says why."""


def micro_recipe(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with two steps of one process's micro-batch in each stage, which keeps and measures nothing.

    >>> from trainer_ext.recipe import load_recipe
    >>> short = micro_recipe(load_recipe("openmoji"), processes=4)
    >>> [(stage.steps, stage.text.batch_size) for stage in short.stages]
    [(2, 32), (2, 32), (2, 8)]
    """
    parts = accumulated(recipe) * processes
    stages = [
        stage.model_copy(
            update={
                "steps": STEPS,
                "warmup_steps": 0,
                **{name: _micro_side(side, side.batch_size // parts) for name, side in stage.sides()},
            }
        )
        for stage in recipe.stages
    ]
    quiet = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True}
    training = {**recipe.training, **quiet, "gradient_accumulation_steps": 1}
    nothing = {"evaluation": None, "image_cache": None}
    return recipe.model_copy(update={"stages": stages, "training": training, **nothing})


def _micro_side(side: Side, rows: int) -> Side:
    """The side with so many rows, and no more principal components."""
    short = side.short_caption
    if short is not None:
        fewer = min(short.principal_components, rows)
        short = short.model_copy(update={"principal_components": fewer})
    return side.model_copy(update={"batch_size": rows, "short_caption": short})


def try_steps(recipe: Recipe, processor: Path | None = None, processes: int = 1) -> Fit:
    """Take the micro-steps in a process of their own.

    Args:
        processor: a folder with the one to use in place of training the recipe's tokenizer again.
        processes: of the run that is meant; its micro-batch is one process's share.

    Raises:
        StepsFailed: with the reason in a line.
    """
    with tempfile.TemporaryDirectory(prefix="jina-clip-check-") as folder:
        asked, answer = Path(folder, "asked.json"), Path(folder, "answer.json")
        short = micro_recipe(recipe, processes)
        write_json(asked, {"recipe": short.model_dump(mode="json"), "processor": processor and str(processor)})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _CHILD, str(asked), str(answer), str(Path(folder, "run"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not answer.is_file():
            raise StepsFailed(_ended(done))
        found = read_json(answer)
    if "error" in found:
        raise StepsFailed(found["error"])
    return _fit(recipe, found)


def _ended(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the system ended it by signal {-done.returncode}: most often memory ran out"
    return next(iter(reversed(done.stderr.strip().splitlines())), f"it ended with code {done.returncode}")


def _fit(recipe: Recipe, found: dict[str, Any]) -> Fit:
    parts = accumulated(recipe)
    seconds = {stage.name: one * parts for stage, one in zip(recipe.stages, found["seconds"], strict=True)}
    total = sum(stage.steps * seconds[stage.name] for stage in recipe.stages)
    model, trained = found["model_bytes"], found["trained_bytes"]
    steps = sum(stage.steps for stage in recipe.stages)
    every = found["save_steps"]  # below 1 it is a share of the steps
    every = max(1, int(every if every >= 1 else every * steps))
    saved = 0 if recipe.training.get("save_strategy") == "no" else steps // every
    kept = min(saved, recipe.training.get("save_total_limit") or saved)
    checkpoint = (trained if recipe.lora else model) + _MOMENTS * trained
    models = 1 + len(recipe.stages) + (recipe.training.get("ema_decay") is not None)
    disk = models * model + kept * checkpoint
    return Fit(seconds, total / 3600, found["device"], found["peak"] / 1e9, found["memory"] / 1e9, disk / 1e9)


def fit_findings(fit: Fit) -> Iterator[Finding]:
    """Whether memory is short."""
    if fit.peak_gb > TIGHT * fit.memory_gb:
        words = f"a step takes {fit.peak_gb:.1f} of {fit.memory_gb:.1f} GB. Set gradient_cache_chunk_size, or halve it."
        yield Finding("warning", "memory", "", words)


def failed_finding(error: StepsFailed) -> Finding:
    """Steps that did not run."""
    words = " ".join(str(error).split())
    short = any(sign in words.lower() for sign in ("out of memory", "memory ran out", "can't allocate memory"))
    cure = " Set gradient_cache_chunk_size, or halve it (docs/memory.md)." if short else ""
    return Finding("error", "step", "", f"a step does not run: {words.rstrip('.')}.{cure}")


# --- the process of its own ----------------------------------------------------------------------------------------


class _Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def take_steps(asked: str, answer: str, folder: str) -> None:
    """Take the steps of the recipe in the file ``asked``, in ``folder``; write what they took to ``answer``."""
    question = read_json(Path(asked))
    try:
        found = _steps(Recipe.model_validate(question["recipe"]), question["processor"], folder)
    except Exception as error:
        found = {"error": explain(error, folder) or f"{type(error).__name__}: {error}"}
    write_json(Path(answer), found)


def _steps(recipe: Recipe, kept: str | None, folder: str) -> dict[str, Any]:
    arguments = training_arguments(as_trained_here(recipe, print), folder)
    tables = load_sources(recipe.used_sources(), recipe.seed)
    set_seed(recipe.seed)
    model, processor = initial_model(recipe, None if kept is None else Path(kept))
    model.processor = processor
    clock = _Clock()
    trainer = JinaCLIPTrainer(
        model=model, args=arguments, recipe=recipe, train_dataset=tables, processing_class=processor, callbacks=[clock]
    )
    trainer.train()
    sizes = [
        (parameter.numel() * parameter.element_size(), parameter.requires_grad) for parameter in model.parameters()
    ]
    peak, memory = _memory(arguments.device)
    return {
        "seconds": [clock.ends[place + 1] - clock.ends[place] for place in range(0, len(clock.ends), STEPS)],
        "device": arguments.device.type,
        "peak": peak,
        "memory": memory,
        "save_steps": arguments.save_steps,
        "model_bytes": sum(size for size, _ in sizes),
        "trained_bytes": sum(size for size, trained in sizes if trained),
    }


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes held at most, and bytes there are: of the card, else of this process and this machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone; getrusage counts what its parent held when it started it
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024, there
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, there
