"""Training of Jina CLIP: recipes, data, losses, the trainer and its evaluation. Names load on first use."""

import importlib
from typing import Any

_HOMES = {
    "JinaCLIPTrainer": "trainer",
    "JinaCLIPTrainingArguments": "arguments",
    "training_arguments": "arguments",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "load_sources": "data_sources",
    "initial_model": "initial_model",
    "info_nce": "losses",
    "info_nce_plus": "losses",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
