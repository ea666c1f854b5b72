"""Jina CLIP for Hugging Face: configuration, towers, processor, and weights in other layouts.

Importing the package registers its classes with the Auto classes of transformers, so that folders of published
checkpoints load with this code instead of remote code:

    import modeling_jina_clip
    from transformers import AutoModel

    model = AutoModel.from_pretrained("path/to/jina-clip-v1")
"""

from transformers.models.auto.configuration_auto import AutoConfig

# Under its public name transformers before 5.18 gives a stand-in that demands torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForZeroShotImageClassification,
)
from transformers.models.auto.processing_auto import AutoProcessor

from .checkpoints_jina_clip import initialize_towers, save_published
from .configuration_jina_clip import JinaCLIPConfig, JinaCLIPTextConfig, JinaCLIPVisionConfig
from .image_processing_jina_clip import JinaCLIPImageProcessor, open_image, to_rgb
from .layers_jina_clip import shortened, with_earlier_layers
from .modeling_jina_clip import JinaCLIPModel, JinaCLIPOutput, JinaCLIPPreTrainedModel
from .modeling_jina_clip_masked_lm import JinaCLIPTextForMaskedLM
from .modeling_jina_clip_text import JinaCLIPTextModel
from .modeling_jina_clip_vision import JinaCLIPVisionModel
from .packed_jina_clip import pack_weights
from .processing_jina_clip import JinaCLIPProcessor
from .records_jina_clip import encode_record, fuse_vectors

__version__ = "0.1.0"

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
    "encode_record",
    "fuse_vectors",
    "initialize_towers",
    "open_image",
    "pack_weights",
    "register",
    "save_published",
    "shortened",
    "to_rgb",
    "with_earlier_layers",
]


def register() -> None:
    """Register this package's classes with the Auto classes of transformers; called when the package is imported.

    ``register_for_auto_class`` makes ``save_pretrained`` copy the code of a class beside the weights, so that the
    folder loads without this package. The masked-LM head is for training and is not copied.
    """
    models = (
        (JinaCLIPConfig, JinaCLIPModel),
        (JinaCLIPTextConfig, JinaCLIPTextModel),
        (JinaCLIPVisionConfig, JinaCLIPVisionModel),
    )
    for config, model in models:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class()
        AutoModel.register(config, model, exist_ok=True)
        model.register_for_auto_class("AutoModel")
    AutoModelForMaskedLM.register(JinaCLIPTextConfig, JinaCLIPTextForMaskedLM, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(JinaCLIPConfig, JinaCLIPModel, exist_ok=True)
    AutoImageProcessor.register(JinaCLIPConfig, slow_image_processor_class=JinaCLIPImageProcessor, exist_ok=True)
    JinaCLIPImageProcessor.register_for_auto_class()
    AutoProcessor.register(JinaCLIPConfig, JinaCLIPProcessor, exist_ok=True)
    JinaCLIPProcessor.register_for_auto_class()


register()
