"""Jina CLIP for Hugging Face: configuration, towers, processor.

Names load on first use, so that importing the package costs nothing. ``AutoConfig``, ``AutoModel``, ``AutoProcessor``
and ``AutoImageProcessor`` learn of the classes when transformers loads them, before or after this package, so that a
folder of the published checkpoint loads with this code instead of the remote one. ``register()`` does it at once.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_jina_clip import JinaCLIPConfig, JinaCLIPTextConfig, JinaCLIPVisionConfig
    from .image_processing_jina_clip import JinaCLIPImageProcessor
    from .modeling_jina_clip import JinaCLIPModel, JinaCLIPOutput, JinaCLIPPreTrainedModel
    from .modeling_jina_clip_masked_lm import JinaCLIPTextForMaskedLM
    from .modeling_jina_clip_text import JinaCLIPTextModel
    from .modeling_jina_clip_vision import JinaCLIPVisionModel
    from .processing_jina_clip import JinaCLIPProcessor

__version__ = "0.1.0"

_HOMES = {
    "JinaCLIPConfig": "configuration_jina_clip",
    "JinaCLIPTextConfig": "configuration_jina_clip",
    "JinaCLIPVisionConfig": "configuration_jina_clip",
    "JinaCLIPImageProcessor": "image_processing_jina_clip",
    "JinaCLIPModel": "modeling_jina_clip",
    "JinaCLIPOutput": "modeling_jina_clip",
    "JinaCLIPPreTrainedModel": "modeling_jina_clip",
    "JinaCLIPTextForMaskedLM": "modeling_jina_clip_masked_lm",
    "JinaCLIPTextModel": "modeling_jina_clip_text",
    "JinaCLIPVisionModel": "modeling_jina_clip_vision",
    "JinaCLIPProcessor": "processing_jina_clip",
}
__all__ = [
    "JinaCLIPConfig",
    "JinaCLIPImageProcessor",
    "JinaCLIPModel",
    "JinaCLIPOutput",
    "JinaCLIPPreTrainedModel",
    "JinaCLIPProcessor",
    "JinaCLIPTextConfig",
    "JinaCLIPTextForMaskedLM",
    "JinaCLIPTextModel",
    "JinaCLIPVisionConfig",
    "JinaCLIPVisionModel",
    "register",
]


def register() -> None:
    """Make the Auto classes of transformers build this package's classes for ``model_type`` "jina_clip"."""
    for name, part in _REGISTRATIONS.items():
        importlib.import_module(name)
        part()


def _home(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def _register_configurations() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    for part in ("", "Text", "Vision"):
        config = _home(f"JinaCLIP{part}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        # What `save_pretrained` copies beside the weights, so that the folder loads without this package.
        config.register_for_auto_class()


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForZeroShotImageClassification,
    )

    for part in ("", "Text", "Vision"):
        AutoModel.register(_home(f"JinaCLIP{part}Config"), _home(f"JinaCLIP{part}Model"), exist_ok=True)
        _home(f"JinaCLIP{part}Model").register_for_auto_class("AutoModel")
    AutoModelForMaskedLM.register(_home("JinaCLIPTextConfig"), _home("JinaCLIPTextForMaskedLM"), exist_ok=True)
    _home("JinaCLIPTextForMaskedLM").register_for_auto_class("AutoModelForMaskedLM")
    AutoModelForZeroShotImageClassification.register(_home("JinaCLIPConfig"), _home("JinaCLIPModel"), exist_ok=True)


def _register_image_processor() -> None:
    # Under its public name transformers before 5.18 gives a stand-in that demands torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processor = _home("JinaCLIPImageProcessor")
    AutoImageProcessor.register(_home("JinaCLIPConfig"), slow_image_processor_class=processor, exist_ok=True)
    processor.register_for_auto_class()


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    AutoProcessor.register(_home("JinaCLIPConfig"), _home("JinaCLIPProcessor"), exist_ok=True)
    _home("JinaCLIPProcessor").register_for_auto_class()


# Each part needs its own module of transformers only: the others may be in the middle of their import by then.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _AfterImport:
    """A finder that lets the import system find these modules as always, and registers when they have run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        register_part = _REGISTRATIONS.get(name)
        spec = PathFinder.find_spec(name, path, target) if register_part else None
        if register_part is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: Any) -> None:
            run(module)
            register_part()

        spec.loader.exec_module = run_and_register
        return spec


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    globals().update({key: _home(key) for key in _HOMES})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)


sys.meta_path.insert(0, _AfterImport())
for _name in _REGISTRATIONS.keys() & sys.modules.keys():  # loaded before this package
    _REGISTRATIONS[_name]()
