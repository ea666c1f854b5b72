"""What a run is asked to do: a YAML file becomes a checked ``Recipe``.

1. ``schema`` and ``stages``: every key and its type; ``LOSS_RULES``, the losses that a recipe may name.
2. ``checks`` and ``start_checks``: what keys must be to each other.
3. ``evaluation``: the tasks to measure, in a recipe or in a file of their own.
4. ``recipe``: ``Recipe`` and ``load_recipe``, fingerprint and differences.
5. ``strict_yaml``: YAML as its author means it; ``reading``: packaged names, source lists, overrides, paths.
6. ``arguments``: which keys are ``TrainingArguments``. Only this file imports torch, and only once a recipe is loaded.
7. ``problems``: the wording of errors, with "did you mean".

    >>> from trainer_ext.recipe import load_recipe
    >>> load_recipe("openmoji", ["stages.0.steps=12"]).stages[0].steps
    12
"""

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

__all__ = ["Recipe", "RecipeError", "Source", "Stage", "load_recipe"]
