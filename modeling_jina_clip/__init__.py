"""Jina CLIP for Hugging Face: configuration, towers, processor.

Names load on first use, so that importing the package costs nothing. The first use also registers the classes with
``AutoConfig``, ``AutoModel``, ``AutoProcessor`` and ``AutoImageProcessor``, so that a folder of the published
checkpoint loads with this code instead of the remote one; call ``register()`` to do only that.
"""

import importlib
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
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )

    # Under its public name transformers before 5.18 gives a stand-in that demands torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    homes = {name: getattr(importlib.import_module(f"{__name__}.{home}"), name) for name, home in _HOMES.items()}
    for part in ("", "Text", "Vision"):
        config, model = homes[f"JinaCLIP{part}Config"], homes[f"JinaCLIP{part}Model"]
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        # What `save_pretrained` copies beside the weights, so that the folder loads without this package.
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
    config, processor, image_processor = (
        homes[f"JinaCLIP{part}"] for part in ("Config", "Processor", "ImageProcessor")
    )
    masked_lm = homes["JinaCLIPTextForMaskedLM"]
    AutoModelForMaskedLM.register(homes["JinaCLIPTextConfig"], masked_lm, exist_ok=True)
    masked_lm.register_for_auto_class("AutoModelForMaskedLM")
    AutoModelForZeroShotImageClassification.register(config, homes["JinaCLIPModel"], exist_ok=True)
    AutoProcessor.register(config, processor, exist_ok=True)
    AutoImageProcessor.register(config, slow_image_processor_class=image_processor, exist_ok=True)
    processor.register_for_auto_class()
    image_processor.register_for_auto_class()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    globals().update({key: getattr(importlib.import_module(f"{__name__}.{home}"), key) for key, home in _HOMES.items()})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
