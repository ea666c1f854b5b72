"""One training run, from a recipe to a finished folder. ``train`` reads from top to bottom:

1. the recipe, its arguments and its folder are checked before any data are read;
2. sources and evaluation tasks are read, the main process first;
3. the model and its processor are made, or loaded;
4. the trainer is made, and the folder becomes this run's when the first step is about to be taken;
5. ``JinaCLIPTrainer.train`` takes all steps of all stages;
6. the finished model and the last figures are written.

Under ``torchrun`` or ``accelerate launch`` every process runs this; the main one writes files and messages.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from trainer_ext.data.balance import balances
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.fingerprint import fingerprint
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.data.picture_pairs import pair_notes
from trainer_ext.data.sources import Rows, row_count
from trainer_ext.data.transparency import transparency_notes
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import Task
from trainer_ext.locks import waiting_is_said
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.problems import raise_problems
from trainer_ext.recipe.reading import find_resource, path_of
from trainer_ext.recipe.recipe import Recipe, load_recipe, only_stage
from trainer_ext.report import report_of_run, write_report
from trainer_ext.report.page import PAGE_FILE
from trainer_ext.run.evaluating import (
    Evaluator,
    Say,
    StageRecorder,
    evaluation_tasks,
    finish_report,
    keep_best_problems,
    start_report,
    strategy_problems,
)
from trainer_ext.run.folder import RunFolder
from trainer_ext.run.merging_start import measure_merged_models, start_problems, write_merged_models
from trainer_ext.run.speed import SpeedRecord
from trainer_ext.run.start import as_trained_here, initial_model, model_fingerprint, training_arguments
from trainer_ext.run.watching import WatchCallback, stopped_at
from trainer_ext.training.switches import torch_as_it_comes
from trainer_ext.training.trainer import JinaCLIPTrainer
from trainer_ext.training.validation import validation_problems


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, and the figures after the last stage, empty for a recipe without ``evaluation``."""

    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)


class RunData(NamedTuple):
    """What a run reads: training tables by source, rows held out of them, the account of broken rows, and tasks."""

    tables: dict[str, Rows]
    held: dict[str, Dataset]
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
        ValueError: the folder holds another run or is in use, or data, model and recipe do not fit.

    >>> run = train("openmoji", "outputs/mine", overrides=["stages.0.steps=100"])     # doctest: +SKIP
    >>> run.folder, run.metrics["concepts_short/t2i_r5"]                              # doctest: +SKIP
    (PosixPath('outputs/mine'), 0.25)
    """
    if command is None:
        command = equivalent_command(recipe, output_dir, resume, overrides, only_stage, allow_recipe_change)
    recipe = _checked_recipe(recipe, overrides, only_stage)
    notes: list[str] = []
    arguments = training_arguments(as_trained_here(recipe, notes.append), output_dir)
    is_main = arguments.process_index == 0
    say: Say = tqdm.write if is_main else _quiet
    for note in notes:
        say(note)
    folder = RunFolder(output_dir, recipe, command)
    alone = folder.held(say) if is_main else nullcontext()
    with torch_as_it_comes(), alone, waiting_is_said(say), _file_bars_hidden():
        if is_main:
            folder.check(resume, allow_recipe_change)
        data = _read_data(recipe, arguments, say)
        checkpoint = folder.last_checkpoint(say) if resume else None
        trainer = _make_trainer(recipe, arguments, data, checkpoint, say)
        setup = setup_of(trainer)
        if is_main and resume:
            folder.check_setup(setup, allow_recipe_change)
        report = start_report(folder, data.tasks) if recipe.evaluation is not None and is_main else None
        _watch(trainer, folder, checkpoint)
        trainer.add_callback(StageRecorder(trainer, folder, report))
        # The first callback: a file that another one wrote into an unclaimed folder would block the next attempt.
        trainer.callback_handler.callbacks.insert(0, FolderClaim(folder, setup))
        trainer.add_callback(SpeedRecord(folder.path))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        _finish(trainer, folder, report, say)
    leave_together(trainer)
    return TrainedRun(folder.path, _last_figures(folder.path, recipe) if recipe.evaluation is not None else {})


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
    raise_problems(f"recipe {recipe.name}", list(strategy_problems(recipe)))
    return recipe if stage is None else only_stage(recipe, stage)


# --- steps 2 to 4: data, model, trainer --------------------------------------------------------------------------


def _read_data(recipe: Recipe, arguments: JinaCLIPTrainingArguments, say: Say) -> RunData:
    broken = BrokenRows(None)
    with arguments.main_process_first(desc="reading the data"):
        tables, held = load_with_holdout(recipe.used_sources(), recipe.seed, broken)
        for name, rows in held.items():
            say(f"{name}: {len(rows):,} rows are held out, {row_count(tables[name]):,} are trained on")
        for name, _, words in balances(recipe.used_sources(), tables):
            say(f"{name}: {words}")
        for name, words in pair_notes(recipe.used_sources(), tables):
            say(f"warning: source {name!r}: {words}")
        is_main = arguments.process_index == 0  # comparing once is enough
        tasks = evaluation_tasks(recipe, broken, say, progress=is_main, trained=tables if is_main else None)
    problems = [*validation_problems(recipe, held), *keep_best_problems(recipe.evaluation, tasks)]
    raise_problems(f"recipe {recipe.name}", problems)
    return RunData(tables, held, broken, tasks)


def _make_trainer(
    recipe: Recipe, arguments: JinaCLIPTrainingArguments, data: RunData, checkpoint: Path | None, say: Say
) -> JinaCLIPTrainer:
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    set_seed(recipe.seed)
    model, processor = initial_model(recipe, checkpoint, say)
    model.processor = processor
    raise_problems(f"recipe {recipe.name}", list(start_problems(recipe, processor)))
    if arguments.process_index == 0:
        for note in transparency_notes(recipe.used_sources(), data.tables, processor.image_processor.background):
            say(f"warning: {note}")
    evaluator = None if recipe.evaluation is None else Evaluator(recipe, data.tasks, data.held)
    # A resumed run has measured the untrained model already.
    arguments.eval_on_start = evaluator is not None and checkpoint is None
    trainer = JinaCLIPTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=data.tables,
        processing_class=processor,
        broken_rows=data.broken,
        evaluate_fn=evaluator,
    )
    if evaluator is not None:
        evaluator.attach(trainer)
    start = find_resource("models", recipe.model)
    if checkpoint is None and start.is_dir():
        trainer.objective.load(start, strict=False)
    return trainer


def _watch(trainer: JinaCLIPTrainer, folder: RunFolder, checkpoint: Path | None) -> None:
    """Measure every so many steps, keep the best model, stop early; a run that has stopped so takes no more steps."""
    spec, stages = trainer.recipe.evaluation, trainer.recipe.stages
    if spec is None:
        return
    keep = partial(folder.save_best, trainer.save_model, spec.keep_best)
    trainer.add_callback(WatchCallback(stages, spec.every, spec.keep_best, spec.patience, keep))
    if checkpoint is not None and spec.keep_best is not None and spec.patience is not None:
        history = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
        trainer.args.max_steps = stopped_at(history, spec.keep_best, spec.patience, stages) or trainer.args.max_steps


def setup_of(trainer: JinaCLIPTrainer) -> dict[str, Any]:
    """What decides a run's steps beside its recipe: the launcher's part, and data and models as they were found.

    The rows of a streaming source are None: they are not counted before they are read.
    """
    is_main = trainer.is_world_process_zero()  # which alone writes and compares; reading the data once is enough
    recipe = trainer.recipe
    models = {"start": find_resource("models", recipe.model)}
    if recipe.teacher is not None and recipe.teacher.model is not None:
        models["teacher"] = path_of(recipe.teacher.model)
    return {
        "processes": trainer.args.world_size,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "device": trainer.args.device.type,
        "rows": {name: row_count(rows) for name, rows in trainer.train_dataset.items()},
        "content": {name: fingerprint(rows) for name, rows in trainer.train_dataset.items()} if is_main else {},
        "models": {role: model_fingerprint(place) for role, place in models.items()} if is_main else {},
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


# --- step 6: the results -----------------------------------------------------------------------------------------


def _finish(trainer: JinaCLIPTrainer, folder: RunFolder, report: Report | None, say: Say) -> None:
    """Save the finished model, the averaged one and the report; every process enters, the main one writes."""
    with trainer.whole_model() as whole:
        if trainer.args.process_index > 0:
            return
        folder.save_model(trainer.save_model)
        trainer.save_state()  # the log of all steps, for the report: checkpoints may be gone later
        if trainer.average is not None:
            say(f"the averaged model is {folder.save_average(trainer.save_average)}")
        if report is not None and isinstance(trainer.evaluate_fn, Evaluator):
            report.shares = trainer.source_record.shares()
            whole.to(trainer.args.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
            measure_merged_models(folder.path, trainer.recipe, report, trainer.evaluate_fn, say)
            finish_report(report, trainer.evaluate_fn, whole, trainer.average)
        else:
            for _ in write_merged_models(folder.path, trainer.recipe, say):
                pass
        write_report(folder.path, report_of_run(folder.path))
        say(f"the finished model is {folder.path}; look at {folder.path / PAGE_FILE}")


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
