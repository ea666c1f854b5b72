"""A probe: a recipe of one stage, whose losses say where between models the best one lies.

Its sources, sides, losses and text lengths are those of a training step, and its steps and learning rate are the
search's. Dropout is off and the arithmetic is in float32, so that equal runs find equal weights.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.merging.arithmetic import Position
from trainer_ext.merging.parents import Parent, Say
from trainer_ext.merging.search import descend
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.training.switches import unchanged_randomness
from trainer_ext.training.trainer import JinaCLIPTrainer

# What the losses and the reading of rows take from a recipe's training arguments.
_READ = ("text_temperature", "tile_size", "false_negatives", "use_cpu", "gradient_cache_", "dataloader_")
_STAGE_DEFAULTS: dict[str, Any] = {
    "trainable": None,
    "learning_rates": {},
    "layer_decay": 1.0,
    "patch_dropout": None,
    "reset_optimizer": False,
}
_UNUSED = ("initialize", "tokenizer", "evaluation", "lora", "merge_with_start")


def search_position(probe: str | Path, base: Parent, models: list[Parent], position: Position, say: Say) -> Position:
    """Weights and scale found by the losses of a recipe, from ``position`` on.

    Raises:
        RecipeError: the recipe is wrong.
        ValueError: it has more than one stage, does not fit the models, or its learning rate is too high.
    """
    recipe = _as_probe(probe, say)
    with unchanged_randomness(), tempfile.TemporaryDirectory() as folder:
        model = JinaCLIPModel.from_pretrained(
            base.folder, dtype=torch.float32, attn_implementation=recipe.attn_implementation
        )
        trainer = probe_trainer(recipe, model, base, folder)
        [stage] = recipe.stages
        weights = [other.weights for other in models]
        found, losses = descend(model, base.weights, weights, position, losses_of(trainer), stage)
    say(
        f"search: weights {' '.join(f'{weight:.4g}' for weight in found.weights)}, scale {found.scale:.4g} after "
        f"{len(losses)} steps; the loss of the first batch was {losses[0]:.4f}, of the last {losses[-1]:.4f}"
    )
    how = {"recipe": recipe.name, "learning_rate": stage.learning_rate, "schedule": stage.schedule, "losses": losses}
    return replace(found, search=how)


def _as_probe(probe: str | Path, say: Say) -> Recipe:
    """The recipe, without what a search does not read; what is left out is said."""
    recipe = load_recipe(probe)
    if len(recipe.stages) != 1:
        names = ", ".join(stage.name for stage in recipe.stages)
        raise ValueError(f"--search {probe} has {len(recipe.stages)} stages ({names}); a probe has one: leave one in")
    [stage] = recipe.stages
    kept = {name: value for name, value in recipe.training.items() if name.startswith(_READ)}
    unused = [name for name in _UNUSED if getattr(recipe, name) is not None]
    unused += [name for name, value in _STAGE_DEFAULTS.items() if getattr(stage, name) != value]
    unused += sorted(recipe.training.keys() - kept.keys())
    prefixes = recipe.matryoshka
    if prefixes is not None and prefixes.layers is not None:
        prefixes, unused = prefixes.model_copy(update={"layers": None}), [*unused, "matryoshka.layers"]
    if unused:
        say(f"the search takes losses, rows, steps and the learning rate of {probe}; not used: {', '.join(unused)}")
    changes: dict[str, Any] = {"stages": [stage.model_copy(update=_STAGE_DEFAULTS)], "training": kept, "lora": None}
    return recipe.model_copy(update=changes | {"matryoshka": prefixes})


def probe_trainer(recipe: Recipe, model: JinaCLIPModel, base: Parent, folder: str) -> JinaCLIPTrainer:
    """A trainer that computes the probe's losses; it is never told to train. ``folder`` is for what it may write."""
    broken = BrokenRows(None)
    tables, _ = load_with_holdout(recipe.used_sources(), recipe.seed, broken)
    arguments = JinaCLIPTrainingArguments(
        output_dir=folder, seed=recipe.seed, report_to="none", disable_tqdm=True, **recipe.training
    )
    trainer = JinaCLIPTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=tables,
        processing_class=base.processor,
        broken_rows=broken,
    )
    trainer.objective.load(base.folder, strict=False)
    model.eval()
    return trainer


def losses_of(trainer: JinaCLIPTrainer) -> Iterator[Callable[[], Tensor]]:
    """The loss of each step's batch at the model's present weights."""
    for batch in trainer.get_train_dataloader():
        inputs = trainer._prepare_inputs(batch)
        yield partial(_loss, trainer, inputs)


def _loss(trainer: JinaCLIPTrainer, inputs: dict[str, Any]) -> Tensor:
    return cast(Tensor, trainer.compute_loss(trainer.model, inputs))
