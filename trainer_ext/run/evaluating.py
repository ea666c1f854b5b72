"""What a run measures while it trains, and what becomes of it: rows of the report, the best model, the last files.

``Evaluator`` measures a model; ``StageRecorder`` keeps figures and models of stages; ``watching.WatchCallback`` decides
when to measure, which model is best and when to stop.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.sources import Rows
from trainer_ext.evaluation.baselines import bm25, chance
from trainer_ext.evaluation.classification import ClassificationTask
from trainer_ext.evaluation.figures import Figure
from trainer_ext.evaluation.items import Embeddings, ImageEncoder, TextEncoder, encode_items, is_text
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.tasks import Task, figure_names, figures_of
from trainer_ext.measuring import build_tasks, load_task_rows
from trainer_ext.measuring.lengths import set_lengths
from trainer_ext.measuring.models import encode_instructed
from trainer_ext.measuring.suites import open_suite, picture_task
from trainer_ext.recipe.evaluation import EvaluationSpec
from trainer_ext.recipe.problems import Problem, nearest
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.report.data import save_details
from trainer_ext.report.gallery import details_of
from trainer_ext.report.pictures import save_contact_sheet, save_metrics_picture
from trainer_ext.run.folder import RunFolder
from trainer_ext.run.trained_on import Measured, measured_sources, trained_on_notes
from trainer_ext.training.ema import WeightAverage
from trainer_ext.training.stages import finished_stage, stage_at
from trainer_ext.training.trainer import JinaCLIPTrainer
from trainer_ext.training.validation import FIGURES, ValidationLoss

BEFORE_TRAINING = "before training"
# Seconds after which metrics.png is drawn again at a stage's end.
REDRAW_AFTER = 60.0
Say = Callable[[str], object]


def evaluation_tasks(
    recipe: Recipe, broken: BrokenRows, say: Say, progress: bool = True, trained: Mapping[str, Rows] | None = None
) -> list[Task]:
    """The tasks of a recipe's ``evaluation``: those of its suite, then those on its own sources.

    Rows of them that are in the tables ``trained``, too, are said with a warning.

    Raises:
        ValueError: a source that cannot be read, a column that is not there, or nothing to measure.
    """
    spec = recipe.evaluation
    if spec is None:
        return []
    tasks: list[Task] = []
    measured: list[Measured] = []
    if spec.suite is not None:
        suite = open_suite(spec.suite)
        tasks += suite.tasks
        measured += measured_sources(suite.specs, suite.rows, f"{Path(spec.suite).stem}/")
    if spec.tasks:
        rows = load_task_rows(spec.tasks, recipe.sources, broken)
        tasks += build_tasks(spec.tasks, rows, broken, say, progress)
        measured += measured_sources(spec.tasks, rows)
    for words in trained_on_notes(measured, trained or {}, progress):
        say(words)
    return tasks


def strategy_problems(recipe: Recipe) -> Iterator[Problem]:
    """``eval_strategy`` without anything to measure; who makes a trainer may give it an ``evaluate_fn`` instead."""
    strategy = IntervalStrategy(recipe.training.get("eval_strategy", "no")).value
    if recipe.evaluation is None and strategy != "no":
        words = "but nothing is measured. Add evaluation: {tasks: [...], every: STEPS}, or take it out."
        yield "eval_strategy", f"is {strategy!r}, {words}"


def keep_best_problems(spec: EvaluationSpec | None, tasks: Sequence[Task]) -> Iterator[Problem]:
    """A figure to keep the best model by that is not measured, or that does not say which model is better."""
    if spec is None or spec.keep_best is None:
        return
    known = figure_names(tasks, spec.truncate_dims, spec.precisions) + list(FIGURES if spec.validation_loss else ())
    if spec.keep_best not in known:
        close = nearest(spec.keep_best, known)
        hint = f" Did you mean {close!r}?" if close else ""
        words = f"{spec.keep_best!r} is no figure of these tasks that models are ranked by.{hint}"
        yield "evaluation.keep_best", f"{words} Choose one of: {', '.join(known) or 'none'}."


class Evaluator:
    """Measures a model on the run's tasks and, if asked, its stage's losses on held-out rows.

    ``attach`` it to the trainer before it is called: the losses are the trainer's, and depend on its step. ``figures``
    and ``embeddings`` are those of the last call, for the report.
    """

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], held: dict[str, Dataset]) -> None:
        assert recipe.evaluation is not None  # or there is nothing to measure
        self.recipe, self.spec, self.tasks, self.held = recipe, recipe.evaluation, tasks, held
        self.trainer: JinaCLIPTrainer | None = None
        self.losses: ValidationLoss | None = None
        self.figures: dict[str, Figure] = {}
        self.embeddings: Embeddings | None = None

    def attach(self, trainer: JinaCLIPTrainer) -> None:
        """Take the objective of the trainer, and its step from now on; texts are measured by length in its tokens."""
        self.trainer = trainer
        set_lengths(self.tasks, trainer.processing_class.tokenizer)
        if self.spec.validation_loss:
            self.losses = ValidationLoss(self.recipe, self.held, trainer.processing_class, trainer.objective)

    def __call__(self, model: JinaCLIPModel, processor: JinaCLIPProcessor) -> dict[str, float]:
        """Flat names to figures."""
        self.figures = self.measure(model)
        if self.losses is not None and self.trainer is not None:
            stage = stage_at(self.recipe.stages, max(0, self.trainer.state.global_step - 1))[0]
            self.figures |= {name: Figure(value) for name, value in self.losses(model, stage).items()}
        return {name: figure.value for name, figure in self.figures.items()}

    def measure(self, model: JinaCLIPModel) -> dict[str, Figure]:
        """The figures of all tasks, with their intervals; none without tasks."""
        if not self.tasks:
            return {}
        self.embeddings = encode_items(*encoders(model), (item for task in self.tasks for item in task.items))
        for task in self.tasks:
            if isinstance(task, ClassificationTask):
                task.logit_scale = float(model.logit_scale.detach())
        return figures_of(self.embeddings, self.tasks, self.spec.truncate_dims, self.spec.precisions)


def encoders(model: JinaCLIPModel) -> tuple[TextEncoder, ImageEncoder]:
    """The model's two methods, texts under their instructions; without an option they return arrays."""
    return partial(encode_instructed, model), cast(ImageEncoder, model.encode_image)


class StageRecorder(TrainerCallback):
    """Adds a row to the report and saves the whole model at the end of each stage."""

    def __init__(self, trainer: JinaCLIPTrainer, folder: RunFolder, report: Report | None) -> None:
        self.trainer, self.folder, self.report = trainer, folder, report
        self.drawn = time.monotonic()

    def on_evaluate(  # type: ignore[override]  # the trainer gives the metrics by name
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Record step 0 and the last step of each stage; evaluations between them are only logged.

        Where training stops early, the last stage ends there.
        """
        stages = self.trainer.recipe.stages
        index = finished_stage(stages, state.global_step)
        if index is None and control.should_training_stop:
            index = len(stages) - 1
        if not state.is_world_process_zero or (index is None and state.global_step > 0):
            return
        name = BEFORE_TRAINING if index is None else stages[index].name
        if index is not None:
            tqdm.write(f"stage {name} is kept in {self.folder.save_stage(index, name, self.trainer.save_model)}")
        if self.report is not None and isinstance(self.trainer.evaluate_fn, Evaluator):
            self.report.add_figures(name, self.trainer.evaluate_fn.figures, kind="stage")
            self.report.save()
            if time.monotonic() - self.drawn > REDRAW_AFTER:  # drawing takes seconds, and the finished run draws it
                save_metrics_picture(self.report)
                self.drawn = time.monotonic()


def start_report(folder: RunFolder, tasks: Sequence[Task]) -> Report:
    """The run's report so far, with the baselines that the model has to beat; BM25 only where it is installed."""
    report = Report.load(folder.path, tasks)
    baselines = {"chance": chance(tasks)}
    try:
        baselines["BM25"] = bm25(tasks)
    except ImportError as error:
        tqdm.write(words := f"BM25 is left out. {error}")
        report.notes = list(dict.fromkeys([*report.notes, words]))
    for name, figures in baselines.items():
        if figures:
            report.add(name, figures, kind="reference")
    return report


def finish_report(
    report: Report, evaluator: Evaluator, model: JinaCLIPModel, average: WeightAverage | None = None
) -> None:
    """Write the last files and show the table."""
    tasks = evaluator.tasks
    if average is not None:
        own = evaluator.embeddings
        report.add_figures("EMA", evaluator.measure(average.model), kind="stage")
        evaluator.embeddings = own
    report.compare_rows(BEFORE_TRAINING, evaluator.recipe.stages[-1].name)
    report.save()
    save_metrics_picture(report)
    if evaluator.embeddings is None:  # a finished run that is resumed has measured nothing in this process
        evaluator.measure(model)
    if evaluator.embeddings is not None:
        save_details(report.folder, details_of(tasks, evaluator.embeddings))
    if any(isinstance(task, RetrievalTask) and not is_text(task.candidates[0]) for task in tasks):
        save_contact_sheet(report.folder, *encoders(model), picture_task(tasks), model=report.folder.name)
    tqdm.write(report.table(report.main_metrics()))
    if report.differences:
        tqdm.write(
            f"what training changed, with the 95% interval of the change per query\n{report.differences_table()}"
        )
