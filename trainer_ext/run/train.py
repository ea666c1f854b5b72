"""One training run, from a recipe to a finished folder. ``train`` reads from top to bottom:

1. the recipe, its arguments and its folder are checked before any data are read;
2. sources and evaluation tasks are read, the main process first;
3. the model and its processor are made, or loaded;
4. the trainer is made, and the folder becomes this run's when the first step is about to be taken;
5. ``JinaCLIPTrainer.train`` takes all steps of all stages;
6. the finished model and the last figures are written.

Under ``torchrun`` or ``accelerate launch`` every process runs this; the main one writes files and messages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.fingerprint import fingerprint
from trainer_ext.data.sources import load_sources, row_count
from trainer_ext.evaluation.baselines import bm25, chance
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.suites import load_suite, picture_task
from trainer_ext.evaluation.tasks import ImageEncoder, Task, TextEncoder, evaluate
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import Recipe, load_recipe, only_stage
from trainer_ext.run.folder import RunFolder
from trainer_ext.run.start import initial_model, training_arguments
from trainer_ext.training.stages import finished_stage
from trainer_ext.training.trainer import JinaCLIPTrainer

BEFORE_TRAINING = "before training"
Say = Callable[[str], object]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, and the figures after the last stage, empty for a recipe without ``evaluation``."""

    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)


class RunData(NamedTuple):
    """What a run reads: training tables by source, the account of their broken rows, and evaluation tasks."""

    tables: dict[str, Dataset | IterableDataset]
    broken: BrokenRows
    tasks: list[Task]


def train(
    recipe: Recipe | str | Path,
    output_dir: str | Path,
    resume: bool = False,
    overrides: Sequence[str] = (),
    only_stage: str | None = None,
    allow_recipe_change: bool = False,
    command: Sequence[str] | None = None,
) -> TrainedRun:
    """Train a model through all stages of a recipe; what ``python -m trainer_ext`` runs.

    Under a launcher it takes down the group of processes when it is done, so call it once in such a program.

    Args:
        recipe: a recipe file, the name of a packaged recipe, or a ``Recipe``.
        output_dir: folder of the run; must be new unless ``resume`` is given.
        resume: go on from the last complete checkpoint.
        overrides: ``dotted.key=value`` items, as on the command line. A ``Recipe`` takes none: it is checked already.
        only_stage: train this stage alone, for example from a model folder.
        allow_recipe_change: resume although the recipe has changed.
        command: recorded in ``run.json`` as the command that started the run; by default the equivalent arguments of
            the command line.

    Raises:
        RecipeError: lists everything that is wrong with the recipe.
        ValueError: the folder holds another run, or data, model and recipe do not fit.

    >>> run = train("openmoji", "outputs/mine", overrides=["stages.0.steps=100"])     # doctest: +SKIP
    >>> run.folder, run.metrics["concepts_short/t2i_r5"]                              # doctest: +SKIP
    (PosixPath('outputs/mine'), 0.25)
    """
    if command is None:
        command = equivalent_command(recipe, output_dir, resume, overrides, only_stage, allow_recipe_change)
    recipe = _checked_recipe(recipe, overrides, only_stage)
    arguments = training_arguments(recipe, output_dir)
    is_main = arguments.process_index == 0
    say: Say = tqdm.write if is_main else _quiet
    folder = RunFolder(output_dir, recipe, command)
    if is_main:
        folder.check(resume, allow_recipe_change)
    with _file_bars_hidden():
        data = _read_data(recipe, arguments)
        checkpoint = folder.last_checkpoint(say) if resume else None
        trainer = _make_trainer(recipe, arguments, data, checkpoint, say)
        setup = setup_of(trainer)
        if is_main and resume:
            folder.check_setup(setup, allow_recipe_change)
        report = start_report(folder, data.tasks) if data.tasks and is_main else None
        trainer.add_callback(StageRecorder(trainer, folder, report))
        # The first callback: a file that another one wrote into an unclaimed folder would block the next attempt.
        trainer.callback_handler.callbacks.insert(0, FolderClaim(folder, setup))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        _finish(trainer, folder, report, data.tasks, say)
    leave_together(trainer)
    return TrainedRun(folder.path, _last_figures(folder.path, recipe) if data.tasks else {})


# --- step 1: the recipe ------------------------------------------------------------------------------------------


def equivalent_command(
    recipe: Recipe | str | Path,
    output_dir: str | Path,
    resume: bool = False,
    overrides: Sequence[str] = (),
    only_stage: str | None = None,
    allow_recipe_change: bool = False,
) -> list[str]:
    """The arguments of the command line that start the same run; a ``Recipe`` stands there by its name.

    >>> equivalent_command("openmoji", "outputs/mine", resume=True, overrides=["seed=1"])
    ['openmoji', '--output_dir', 'outputs/mine', '--resume', 'seed=1']
    """
    words = [recipe.name if isinstance(recipe, Recipe) else str(recipe), "--output_dir", str(output_dir)]
    words += ["--only_stage", only_stage] if only_stage is not None else []
    words += ["--resume"] if resume else []
    words += ["--allow_recipe_change"] if allow_recipe_change else []
    return [*words, *overrides]


def _checked_recipe(recipe: Recipe | str | Path, overrides: Sequence[str], stage: str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise ValueError(
                f"overrides {list(overrides)} change a recipe file, but recipe {recipe.name!r} is loaded and checked "
                "already; give train() the file's path, or load_recipe(path, overrides)"
            )
    else:
        recipe = load_recipe(recipe, overrides)
    return recipe if stage is None else only_stage(recipe, stage)


# --- steps 2 to 4: data, model, trainer --------------------------------------------------------------------------


def _read_data(recipe: Recipe, arguments: JinaCLIPTrainingArguments) -> RunData:
    broken = BrokenRows(None)
    with arguments.main_process_first(desc="reading the data"):
        tables = load_sources(recipe.used_sources(), recipe.seed, broken)
        tasks = load_suite(recipe.evaluation.suite) if recipe.evaluation else []
    return RunData(tables, broken, tasks)


def _make_trainer(
    recipe: Recipe, arguments: JinaCLIPTrainingArguments, data: RunData, checkpoint: Path | None, say: Say
) -> JinaCLIPTrainer:
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    set_seed(recipe.seed)
    model, processor = initial_model(recipe, checkpoint, say)
    model.processor = processor
    # A resumed run has measured the untrained model already.
    arguments.eval_on_start = bool(data.tasks) and checkpoint is None
    trainer = JinaCLIPTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=data.tables,
        processing_class=processor,
        broken_rows=data.broken,
        evaluate_fn=partial(_measure, recipe, data.tasks) if data.tasks else None,
    )
    start = find_resource("models", recipe.model)
    if checkpoint is None and start.is_dir():
        trainer.objective.load(start, strict=False)
    return trainer


def _encoders(model: JinaCLIPModel) -> tuple[TextEncoder, ImageEncoder]:
    """The model's two methods; without an option they return arrays."""
    return cast(TextEncoder, model.encode_text), cast(ImageEncoder, model.encode_image)


def _measure(recipe: Recipe, tasks: Sequence[Task], model: JinaCLIPModel, processor: object) -> dict[str, float]:
    assert recipe.evaluation is not None  # it names the tasks
    dims = recipe.evaluation.truncate_dims
    return evaluate(*_encoders(model), tasks, truncate_dims=dims)


def setup_of(trainer: JinaCLIPTrainer) -> dict[str, Any]:
    """What decides a run's steps beside its recipe: the launcher's part, and the data as they were found.

    The rows of a streaming source are None: they are not counted before they are read.
    """
    is_main = trainer.is_world_process_zero()  # which alone writes and compares; reading the data once is enough
    return {
        "processes": trainer.args.world_size,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "device": trainer.args.device.type,
        "rows": {name: row_count(rows) for name, rows in trainer.train_dataset.items()},
        "content": {name: fingerprint(rows) for name, rows in trainer.train_dataset.items()} if is_main else {},
    }


class FolderClaim(TrainerCallback):
    """Claims the folder for this run when training begins: everything is read and checked by then."""

    def __init__(self, folder: RunFolder, setup: Mapping[str, Any]) -> None:
        self.folder, self.setup = folder, setup

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write ``run.json``."""
        if state.is_world_process_zero:
            self.folder.claim(self.setup)


class StageRecorder(TrainerCallback):
    """Adds a row to the report and saves the whole model at the end of each stage."""

    def __init__(self, trainer: JinaCLIPTrainer, folder: RunFolder, report: Report | None) -> None:
        self.trainer, self.folder, self.report = trainer, folder, report

    def on_evaluate(  # type: ignore[override]  # the trainer gives the metrics by name
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Record step 0 and the last step of each stage; evaluations between them are only logged."""
        stages = self.trainer.recipe.stages
        index = finished_stage(stages, state.global_step)
        if not state.is_world_process_zero or (index is None and state.global_step > 0):
            return
        name = BEFORE_TRAINING if index is None else stages[index].name
        if index is not None:
            tqdm.write(f"stage {name} is kept in {self.folder.save_stage(index, name, self.trainer.save_model)}")
        if self.report is not None:
            self.report.add(name, {key.removeprefix("eval_"): value for key, value in metrics.items()})
            self.report.save()


def start_report(folder: RunFolder, tasks: Sequence[Task]) -> Report:
    """The run's report so far, with the baselines that the model has to beat."""
    report = Report.load(folder.path, tasks)
    report.add("chance", chance(tasks), kind="reference")
    report.add("BM25", bm25(tasks), kind="reference")
    return report


# --- step 6: the results -----------------------------------------------------------------------------------------


def _finish(
    trainer: JinaCLIPTrainer, folder: RunFolder, report: Report | None, tasks: Sequence[Task], say: Say
) -> None:
    """Save the finished model, the averaged one and the report; every process enters, the main one writes."""
    with trainer.whole_model() as whole:
        if trainer.args.process_index > 0:
            return
        folder.save_model(trainer.save_model)
        if trainer.average is not None:
            say(f"the averaged model is {folder.save_average(trainer.save_average)}")
            if report is not None and trainer.evaluate_fn is not None:
                report.add("EMA", trainer.evaluate_fn(trainer.average.model, trainer.processing_class))
        if report is not None:
            report.shares = trainer.source_record.shares()
            whole.to(trainer.args.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
            finish_report(report, whole, tasks)
        say(f"the finished model is {folder.path}")


def finish_report(report: Report, model: JinaCLIPModel, tasks: Sequence[Task]) -> None:
    """Write the last files and show the table."""
    report.save()
    report.save_contact_sheet(*_encoders(model), picture_task(tasks))
    tqdm.write(report.table())


def leave_together(trainer: JinaCLIPTrainer) -> None:
    """Take down the group of processes once all are done; its threads would sometimes outlive the interpreter.

    The others meet in the main process, which is still writing, so all wait for it before they leave.
    """
    trainer.accelerator.wait_for_everyone()
    PartialState().destroy_process_group()


def _last_figures(folder: Path, recipe: Recipe) -> dict[str, float]:
    """The report's row of the last stage, which a resumed run has measured in an earlier process."""
    return {row.name: row.metrics for row in Report.load(folder).rows}.get(recipe.stages[-1].name, {})


def _quiet(words: str) -> None:
    """What processes other than the main one print: nothing."""


@contextmanager
def _file_bars_hidden() -> Iterator[None]:
    """Hide transformers' progress bars of file reading and writing, which would break up the training bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
