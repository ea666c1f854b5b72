"""The processor: texts to token ids and images to pixels in one call."""

from typing import Any

import numpy as np
import transformers
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_jina_clip import OLDEST_TRANSFORMERS, require_version

# AutoProcessor may load this file without the configuration's check.
require_version("transformers", transformers.__version__, OLDEST_TRANSFORMERS)

_IMAGE_ARGUMENTS = frozenset({"size", "allow_urls"})


class JinaCLIPProcessor(ProcessorMixin):
    """A tokenizer and a ``JinaCLIPImageProcessor`` in one object, as returned by ``AutoProcessor``.

    Example::

        processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=224), tokenizer)
        inputs = processor(text=["a red bus"], images=[image], padding=True, return_tensors="pt")
        inputs.keys()  # input_ids, attention_mask, pixel_values
    """

    attributes = ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocess ``text``, ``images`` or both.

        An empty list gives empty tensors: (0, 0) for texts and (0, 3, size, size) for images.

        Flat keyword arguments go to the tokenizer (``padding``, ``truncation``, ``max_length``, ...) or to the image
        processor (``size``, ``allow_urls``), and ``return_tensors`` to both. The nested forms are those of
        ``ProcessorMixin``; sentence-transformers always passes all of them, including audio and video.

        With ``allow_urls=True`` images may be http(s) URLs. The nested forms do not accept it: sentence-transformers
        fills them from a file of the model's repository, which must not be able to switch the network on.
        """
        if "allow_urls" in {**(common_kwargs or {}), **(images_kwargs or {})}:
            raise ValueError("allow_urls is an argument of the call only: processor(images=..., allow_urls=True)")
        if text is None and images is None:
            raise ValueError("JinaCLIPProcessor needs text, images or both; got neither")
        common = dict(common_kwargs or {})
        return_tensors = kwargs.pop("return_tensors", common.pop("return_tensors", None))
        for_images = {key: kwargs.pop(key) for key in _IMAGE_ARGUMENTS & kwargs.keys()}
        data: dict[str, Any] = {}
        if text is not None:
            options = {**common, **kwargs, **(text_kwargs or {})}
            options.setdefault("return_token_type_ids", False)  # every token has type 0
            options.setdefault("return_tensors", return_tensors)
            data |= _no_tokens(options) if _is_empty(text) else self.tokenizer(text, **options)
        if images is not None:
            options = {**for_images, **(images_kwargs or {})}
            options.setdefault("return_tensors", return_tensors)
            data |= self.image_processor(images, **options)
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _is_empty(text: Any) -> bool:
    return isinstance(text, (list, tuple)) and not text


def _no_tokens(options: dict[str, Any]) -> dict[str, Any]:
    """The output for an empty list of texts, which tokenizers do not accept."""
    wanted = {
        "input_ids": True,
        "token_type_ids": options["return_token_type_ids"],
        "attention_mask": options.get("return_attention_mask") is not False,
    }
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    empty: Any = np.empty((0, 0), dtype=np.int64) if options.get("return_tensors") else []
    return dict(BatchFeature(dict.fromkeys(names, empty), tensor_type=options.get("return_tensors")))
