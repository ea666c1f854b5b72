"""The command line: ``python -m trainer_ext RECIPE.yaml --output_dir DIR [--resume] [dotted.key=value ...]``.

One run, one hop a line: recipe, output folder, data, model, trainer, results. Under ``torchrun`` or
``accelerate launch`` all processes run this; the main one writes files and messages.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from trainer_ext.arguments import training_arguments
from trainer_ext.baselines import bm25, chance
from trainer_ext.data_broken import BrokenRows
from trainer_ext.data_mixing import row_count
from trainer_ext.data_sources import load_sources
from trainer_ext.evaluation import Task, evaluate
from trainer_ext.evaluation_suites import load_suite, picture_task
from trainer_ext.failures import explain
from trainer_ext.initial_model import initial_model
from trainer_ext.recipe import Recipe, load_recipe
from trainer_ext.report import Report
from trainer_ext.resources import find_resource
from trainer_ext.run_folder import RunFolder
from trainer_ext.stages import finished_stage
from trainer_ext.trainer import JinaCLIPTrainer
from trainer_ext.tuning import only_stage

BEFORE_TRAINING = "before training"


class FolderClaim(TrainerCallback):
    """Makes the folder this run's when training begins: everything is read and checked by then."""

    def __init__(self, folder: RunFolder, setup: Mapping[str, Any]) -> None:
        self.folder, self.setup = folder, setup

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write ``run.json``."""
        if state.is_world_process_zero:
            self.folder.claim(self.setup)


class StageRecorder(TrainerCallback):
    """At each stage's end adds the report's row and a folder with the whole model."""

    def __init__(self, trainer: JinaCLIPTrainer, folder: RunFolder, report: Report | None) -> None:
        self.trainer, self.folder, self.report = trainer, folder, report

    def on_evaluate(
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


def run(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Train a recipe from its beginning, or from where it was stopped, to the finished folder."""
    recipe = load_recipe(options.recipe, options.overrides)
    if options.only_stage is not None:
        recipe = only_stage(recipe, options.only_stage)
    arguments = training_arguments(recipe, options.output_dir)
    is_main = arguments.process_index == 0
    say = tqdm.write if is_main else _quiet
    folder = RunFolder(options.output_dir, recipe, command)
    if is_main:
        folder.check(options.resume, options.allow_recipe_change)
    broken = BrokenRows(None)
    with arguments.main_process_first(desc="reading the data"):
        tables = load_sources(recipe.used_sources(), recipe.seed, broken)
        tasks = load_suite(recipe.evaluation.suite) if recipe.evaluation else []
    checkpoint = folder.last_checkpoint(say) if options.resume else None
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    set_seed(recipe.seed)
    model, processor = initial_model(recipe, checkpoint, say)
    model.processor = processor
    # A resumed run has measured the untrained model already.
    arguments.eval_on_start = bool(tasks) and checkpoint is None
    trainer = JinaCLIPTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=tables,
        processing_class=processor,
        broken_rows=broken,
        evaluate_fn=partial(_measure, recipe, tasks) if tasks else None,
    )
    setup = setup_of(trainer)
    if is_main and options.resume:
        folder.check_setup(setup, options.allow_recipe_change)
    start = find_resource("models", recipe.model)
    if checkpoint is None and start.is_dir():
        trainer.objective.load(start, strict=False)
    report = start_report(folder, tasks) if tasks and is_main else None
    trainer.add_callback(StageRecorder(trainer, folder, report))
    # First of all: what other callbacks write into a folder that is not claimed would keep the next try out of it.
    trainer.callback_handler.callbacks.insert(0, FolderClaim(folder, setup))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    with trainer.whole_model() as whole:
        if is_main:
            folder.save_model(trainer.save_model)
            if trainer.average is not None:
                say(f"the averaged model is {folder.save_average(trainer.save_average)}")
                if report is not None:
                    report.add("EMA", trainer.evaluate_fn(trainer.average.model, processor))
            if report is not None:
                report.shares = trainer.source_record.shares()
                finish_report(report, whole.to(arguments.device), tasks)
            say(f"the finished model is {folder.path}")
    leave_together(trainer)


def leave_together(trainer: JinaCLIPTrainer) -> None:
    """Take the group of processes down once all are done: its threads would else outlive the interpreter now and then.

    The main process writes while the others wait, and with it goes the place where they meet: nobody may leave early.
    """
    trainer.accelerator.wait_for_everyone()
    PartialState().destroy_process_group()


def setup_of(trainer: JinaCLIPTrainer) -> dict[str, Any]:
    """What decides a run's steps beside its recipe: the launcher's part, and the data as they were found.

    A streaming source has None for its rows, which nobody has counted.
    """
    return {
        "processes": trainer.args.world_size,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "device": trainer.args.device.type,
        "rows": {name: row_count(rows) for name, rows in trainer.train_dataset.items()},
    }


def _measure(recipe: Recipe, tasks: Sequence[Task], model: nn.Module, processor: object) -> dict[str, float]:
    dims = recipe.evaluation.truncate_dims
    return evaluate(model.encode_text, model.encode_image, tasks, truncate_dims=dims)


def start_report(folder: RunFolder, tasks: Sequence[Task]) -> Report:
    """The run's report as far as it goes, with what the model has to beat."""
    report = Report.load(folder.path, tasks)
    report.add("chance", chance(tasks), kind="reference")
    report.add("BM25", bm25(tasks), kind="reference")
    return report


def finish_report(report: Report, model: nn.Module, tasks: Sequence[Task]) -> None:
    """Write the last files and show the table."""
    report.save()
    report.save_contact_sheet(model.encode_text, model.encode_image, picture_task(tasks))
    tqdm.write(report.table())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options and overrides in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_ext", description="Train a Jina CLIP model through all stages of a recipe."
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a packaged one, for example openmoji")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="for example stages.0.steps=12")
    parser.add_argument("--output_dir", required=True, help="folder of this run; must be new unless --resume is given")
    parser.add_argument("--only_stage", metavar="NAME", help="train this stage alone, for example from a model folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    parser.add_argument("--allow_recipe_change", action="store_true", help="resume although the recipe has changed")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 after an error, 130 after Ctrl-C."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(command)
    logging.disable_progress_bar()  # bars of file writing would tear the training bar apart
    try:
        run(options, command)
    except KeyboardInterrupt:
        print(f"error: interrupted. Go on with --resume --output_dir {options.output_dir}", file=sys.stderr)
        return 130
    except Exception as error:
        words = None if options.traceback else explain(error, options.output_dir)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        return 2
    return 0


def _quiet(words: str) -> None:
    """What processes other than the main one say."""


if __name__ == "__main__":
    sys.exit(main())
