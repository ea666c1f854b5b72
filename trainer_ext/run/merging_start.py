"""Models between a run's start and its finished model: ``merge_with_start`` in a recipe (WiSE-FT, arXiv 2109.01903).

Each is a whole folder, ``DIR/merged-0.5``, made of the start's folder and the run's own when training is done. One that
was made of the same weights before, by the run that is now resumed, is left as it is.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.evaluation.report import Report
from trainer_ext.files import read_json
from trainer_ext.merging.arithmetic import Position
from trainer_ext.merging.merge import MERGE_FILE, same_parents, write_merged
from trainer_ext.merging.parents import open_parents, processor_differences
from trainer_ext.recipe.problems import Problem
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.start_checks import merge_start_problems, merged_name
from trainer_ext.run.evaluating import Evaluator

Say = Callable[[str], object]


def start_problems(recipe: Recipe, processor: JinaCLIPProcessor) -> Iterator[Problem]:
    """Why the run could not be merged with its start when it is done: said before its first step."""
    if recipe.merge_with_start is None:
        return
    start = find_resource("models", recipe.model)
    problems = list(merge_start_problems(recipe.merge_with_start, recipe.model, start))
    yield from problems
    if not problems:
        try:
            before = JinaCLIPProcessor.from_pretrained(start)
        except Exception as error:  # a tokenizer that is not there or damaged: libraries have no common class
            words = " ".join(str(error).split())[:200]
            yield "merge_with_start", f"the processor of model {recipe.model!r} cannot be read: {words}"
            return
        for difference in processor_differences(before, processor):
            words = "The run must read texts and pictures as its start does: take tokenizer out"
            yield "merge_with_start", f"the start, {recipe.model!r}, and the run do not fit: {difference}. {words}."


def write_merged_models(folder: Path, recipe: Recipe, say: Say) -> Iterator[tuple[str, Path, bool]]:
    """Make what ``merge_with_start`` asks for, of the finished run in ``folder``.

    Yields:
        each model's name, its folder, and whether it was made now.
    """
    if recipe.merge_with_start is None:
        return
    start, [finished] = open_parents(find_resource("models", recipe.model), [folder], say)
    for share in recipe.merge_with_start:
        name, position = merged_name(share), Position([1.0], share)
        target = folder / name
        is_new = not same_parents(_lineage_of(target), start, [finished], position)
        if is_new:
            write_merged(start, [finished], position, target, say)
            say(f"the model at {share:g} of the way from the start is {target}")
        yield name, target, is_new


def _lineage_of(folder: Path) -> Any:
    try:
        return read_json(folder / MERGE_FILE)
    except (OSError, ValueError):
        return None


def measure_merged_models(folder: Path, recipe: Recipe, report: Report, evaluator: Evaluator, say: Say) -> None:
    """Make them, and give each a row of the report unless it has it already."""
    last = evaluator.figures, evaluator.embeddings  # of the finished model, for the page
    for name, place, is_new in write_merged_models(folder, recipe, say):
        if is_new or name not in {row.name for row in report.rows}:
            model = JinaCLIPModel.from_pretrained(place, attn_implementation=recipe.attn_implementation)
            if evaluator.trainer is not None:
                model.to(evaluator.trainer.args.device)
            evaluator(model.eval(), model.processor)
            report.add_figures(name, evaluator.figures, kind="model")
    evaluator.figures, evaluator.embeddings = last
