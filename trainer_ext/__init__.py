"""Training of Jina CLIP: recipes, data, losses, the trainer, its evaluation, and the upload to the Hub.

    from trainer_ext import train
    train("openmoji", "outputs/mine", overrides=["stages.0.steps=100"])

A newcomer reads recipe/schema.py, run/train.py, training/trainer.py, losses/joint.py, data/plan.py and
training/stages.py. Names load on first use, so that ``trainer_ext.hub`` needs none of the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_ext.data import load_sources
    from trainer_ext.losses import info_nce, info_nce_plus
    from trainer_ext.merging import merge
    from trainer_ext.recipe import Recipe, load_recipe
    from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
    from trainer_ext.run import TrainedRun, initial_model, training_arguments
    from trainer_ext.run.train import train
    from trainer_ext.training import JinaCLIPTrainer

__all__ = [
    "JinaCLIPTrainer",
    "JinaCLIPTrainingArguments",
    "Recipe",
    "TrainedRun",
    "info_nce",
    "info_nce_plus",
    "initial_model",
    "load_recipe",
    "load_sources",
    "merge",
    "train",
    "training_arguments",
]
_HOMES = {
    "JinaCLIPTrainer": "training",
    "JinaCLIPTrainingArguments": "recipe.arguments",
    "Recipe": "recipe",
    "TrainedRun": "run",
    "info_nce": "losses",
    "info_nce_plus": "losses",
    "initial_model": "run",
    "load_recipe": "recipe",
    "load_sources": "data",
    "merge": "merging",
    "train": "run.train",
    "training_arguments": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
