"""Jina CLIP: a JinaBERT text tower and an EVA02 image tower in one embedding space (arXiv 2405.20204).

``forward`` returns normalised embeddings of texts, images or both; ``get_text_features`` and ``get_image_features``
return them before normalisation. ``encode_text`` and ``encode_image`` take raw inputs, with the published signatures
and defaults.

Order of this file: where a model was loaded from, batches, the loss and the output, the model.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoTokenizer
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_jina_clip import JinaCLIPConfig
from .image_processing_jina_clip import JinaCLIPImageProcessor, error_at, list_of_images
from .modeling_jina_clip_base import StrictLoadingMixin
from .modeling_jina_clip_text import JinaCLIPTextModel
from .modeling_jina_clip_vision import JinaCLIPVisionModel
from .processing_jina_clip import JinaCLIPProcessor, check_text_options, text_limit, text_windows, tokenize, warn_of_cut

# isort: split
# Of a local folder, transformers 5.5 copies only the files that the model's own file imports.
from .image_urls import fetch_url as fetch_url

logger = logging.get_logger(__name__)

# A batch holds `batch_size` texts of this many tokens; more if they are shorter, fewer if they are longer.
TOKENS_PER_ROW = 128
# On a CPU, 32 rows of this many tokens keep all cores busy, and smaller matrices fit its caches.
TOKENS_PER_ROW_CPU = 32
# Of each model that is encoding: the number of threads, and the mode to return to after the last. Not an attribute of
# the model: a copy or a pickle that is made meanwhile would have it, too.
_ENCODING: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_MODES = threading.Lock()

_PLACE = ("subfolder", "revision", "token", "cache_dir", "local_files_only")


class ModelOrigin:
    """The folder or repository of a model, with the arguments of ``from_pretrained`` that locate it.

    A local folder is kept as an absolute path, the revision of a repository as the commit that was loaded. The token
    stays in memory: it is neither pickled nor printed.
    """

    def __init__(self, name: str | Path, options: Mapping[str, Any]) -> None:
        self.name = os.path.abspath(name) if os.path.isdir(name) else str(name)
        self.options = {key: options[key] for key in _PLACE if options.get(key) is not None}
        if not os.path.isdir(self.name) and (commit := self._commit()):
            self.options["revision"] = commit

    def _commit(self) -> str | None:
        """The commit in the cache to which loading the model has just added its configuration."""
        file = "/".join(part for part in (self.options.get("subfolder"), "config.json") if part)
        place = {key: self.options.get(key) for key in ("cache_dir", "revision")}
        try:
            found = try_to_load_from_cache(self.name, file, **place)
        except ValueError:  # not a repository name: a folder that no longer exists
            return None
        match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", found) if isinstance(found, str) else None
        return match[1] if match else None

    def load_processor(self) -> JinaCLIPProcessor:
        """Load both parts with our own classes, so that no ``auto_map`` of the folder can run other code."""
        config = JinaCLIPConfig.from_pretrained(self.name, **self.options)
        return JinaCLIPProcessor(
            JinaCLIPImageProcessor.from_pretrained(self.name, **self.options),
            # With the configuration at hand, transformers does not warn that it is of no type it knows.
            AutoTokenizer.from_pretrained(self.name, config=config, trust_remote_code=False, **self.options),
        )

    def __deepcopy__(self, memo: dict) -> "ModelOrigin":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": {k: v for k, v in self.options.items() if k != "token"}}

    def __repr__(self) -> str:
        shown = [f"{key}={value!r}" for key, value in self.__getstate__()["options"].items()]
        return f"ModelOrigin({', '.join([repr(self.name), *shown])})"


def prepared_ahead(batches: Sequence[Any], prepare: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each batch with the result of ``prepare``, computed in a thread while the caller uses the previous batch.

    An error in ``prepare`` is raised at its batch.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: Future | None = None
        for batch, following in zip(batches, [*batches[1:], None], strict=False):
            ready = waiting or pool.submit(prepare, batch)
            waiting = None if following is None else pool.submit(prepare, following)
            yield batch, ready.result()


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length, longest first. A group has at most ``budget`` padded tokens, or is a single text.

    With the longest first, an out-of-memory error occurs at once instead of at the end.

    Example::

        >>> token_budget_batches([3, 200, 100, 300], budget=512)
        [[3], [1, 2], [0]]
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # A batch is padded to its first text. A text less than half as long would be mostly padding: start a new batch.
        if batches and (len(batches[-1]) + 1) * longest <= budget and 2 * lengths[index] >= longest:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def _check_whole(name: str, value: Any, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r} must be an integer" + (f" in 1..{most}" if most else ""))
    if value < 1 or (most and value > most):
        raise ValueError(f"{name}={value} must lie in 1..{most}" if most else f"{name}={value} must be at least 1")


def _convert(
    embeddings: Tensor, single: bool, convert_to_numpy: bool, convert_to_tensor: bool
) -> np.ndarray | Tensor | list[Tensor]:
    if single:
        return embeddings[0] if convert_to_tensor or not convert_to_numpy else embeddings[0].numpy()
    if convert_to_tensor:
        return embeddings
    return embeddings.numpy() if convert_to_numpy else list(embeddings)


def contrastive_loss(logits_per_text: Tensor | None) -> Tensor:
    """CLIP's loss (arXiv 2103.00020): mean of the cross-entropies of rows and columns of a square (n, n) matrix."""
    if logits_per_text is None or logits_per_text.shape[0] != logits_per_text.shape[1]:
        shape = None if logits_per_text is None else tuple(logits_per_text.shape)
        raise ValueError(f"return_loss needs as many texts as images, text i for image i; got logits of shape {shape}")
    labels = torch.arange(len(logits_per_text), device=logits_per_text.device)
    logits = logits_per_text.float()
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@dataclass
class JinaCLIPOutput(ModelOutput):
    """Output of ``JinaCLIPModel``; fields of an absent modality are None.

    Args:
        loss: symmetric contrastive loss over the batch, scalar, with ``return_loss=True``.
        logits_per_image: (images, texts) cosine similarity times ``exp(logit_scale)``.
        logits_per_text: its transpose.
        text_embeds: (texts, dim), L2-normalised.
        image_embeds: (images, dim), L2-normalised.
        text_model_output: output of the text tower.
        vision_model_output: output of the image tower.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class JinaCLIPPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base class: loading rules of the composite model. The towers initialise their own weights."""

    config: JinaCLIPConfig
    base_model_prefix = "jina_clip"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # tuples, as in transformers
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "JinaCLIPTextEmbeddings",
        "JinaCLIPTextLayer",
        "JinaCLIPVisionPatchEmbed",
        "JinaCLIPVisionLayer",
    ]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Rotary tables are stored by some published files, in several places; they are computed here.
    _keys_to_ignore_on_load_unexpected = [r"rope\.freqs_(cos|sin)$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, JinaCLIPModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            for part in (module.text_projection, module.visual_projection):
                if isinstance(part, nn.Linear):
                    init.normal_(part.weight, std=part.in_features**-0.5 * self.config.initializer_factor)


class JinaCLIPModel(JinaCLIPPreTrainedModel):
    """Two towers and a trainable logit scale.

    Example::

        model = JinaCLIPModel.from_pretrained("path/to/jina-clip-v1")
        texts = model.encode_text(["a blue cat", "a red bus"])      # (2, 768) float32, L2-normalised
        images = model.encode_image(["cat.png", "bus.png"])         # (2, 768)
        texts @ images.T
    """

    _processor: Any = None
    _origin: ModelOrigin | None = None

    def __init__(self, config: JinaCLIPConfig):
        super().__init__(config)
        self.text_model = JinaCLIPTextModel._from_config(config.text_config)
        self.vision_model = JinaCLIPVisionModel._from_config(config.vision_config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        widths = config.text_config.embed_dim, config.vision_config.embed_dim
        # Only fine-tunes made with the published code have them; the names are its.
        self.text_projection, self.visual_projection = (
            nn.Linear(width, config.projection_dim, bias=False) if config.add_projections else nn.Identity()
            for width in widths
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        """Text vectors (batch, dim), not normalised, from ``input_ids`` (batch, length). Always a tensor.

        Pass the output of a tokenizer by name: ``model.get_text_features(**inputs)``.
        """
        kwargs["return_dict"] = True  # type: ignore[typeddict-unknown-key]  # which they all read
        text = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).pooler_output
        return self.text_projection(text)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        """Image vectors (batch, dim), not normalised, from ``pixel_values`` (batch, 3, height, width). Always a tensor.

        Pass the output of an image processor by name: ``model.get_image_features(**inputs)``.
        """
        kwargs["return_dict"] = True  # type: ignore[typeddict-unknown-key]  # which they all read
        image = self.vision_model(pixel_values=pixel_values, pooled_only=True, **kwargs).pooler_output
        return self.visual_projection(image)

    def merge_task_adapter(self, task: str | None = None) -> Self:
        """Merge jina-clip-v2's low-rank adapter into plain layers, in place; returns the model.

        Merges the adapter of ``task``, by default that of the configuration, and removes the others;
        ``text_config.lora_adaptations`` is then None. In float32 the vectors stay the same to 1e-6; in 16 bits each
        merged weight is rounded once. A model without adapters is left unchanged.

        Needed for tools that look for ``torch.nn.Linear`` and would skip the text tower: 8- and 4-bit quantizers, and
        LoRA of PEFT (``target_modules="all-linear"``). Raises ``ValueError`` for a task without an adapter and for
        weights that ``device_map`` left on disk. Example::

            model = JinaCLIPModel.from_pretrained("path/to/jina-clip-v2").merge_task_adapter()
            model.save_pretrained("jina-clip-v2-merged")  # loads like any other, also with BitsAndBytesConfig
        """
        self.text_model.merge_task_adapter(task)
        self.config.text_config = self.text_model.config
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        pooled_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> JinaCLIPOutput:
        """Embed texts, images or both.

        With both, the output also has the logits of all pairs, and with ``return_loss`` CLIP's loss, for which text i
        belongs to image i. ``pooled_only`` skips what only the image tower's ``last_hidden_state`` needs (see
        ``JinaCLIPVisionModel``). Raises ``ValueError`` without inputs, and for the loss of unequal batches.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("JinaCLIPModel needs input_ids, pixel_values or both; got neither")
        output = JinaCLIPOutput()
        # For the towers; `can_return_tuple` handles the caller's.
        kwargs["return_dict"] = True  # type: ignore[typeddict-unknown-key]  # which they all read
        if input_ids is not None:
            output.text_model_output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            text = cast(Tensor, output.text_model_output.pooler_output)
            output.text_embeds = F.normalize(self.text_projection(text), dim=-1)  # (T, D)
        if pixel_values is not None:
            output.vision_model_output = self.vision_model(pixel_values, pooled_only, **kwargs)
            image = cast(Tensor, output.vision_model_output.pooler_output)
            output.image_embeds = F.normalize(self.visual_projection(image), dim=-1)  # (I, D)
        if output.text_embeds is not None and output.image_embeds is not None:
            cosine = output.text_embeds @ output.image_embeds.to(output.text_embeds.device).T  # (T, I)
            output.logits_per_text = self.logit_scale.exp().to(cosine.device) * cosine
            output.logits_per_image = output.logits_per_text.T
        if return_loss:
            output.loss = contrastive_loss(output.logits_per_text)
        return JinaCLIPOutput(**output)  # a new one, so that its tuple has the order of the fields

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``; the model also keeps the place of its processor."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        if model.config._name_or_path:
            model._origin = ModelOrigin(model.config._name_or_path, kwargs)
        return loaded

    @property
    def processor(self) -> Any:
        """The tokenizer and image processor, loaded on first use from where the model came from.

        That is the same folder or commit, with the same ``subfolder``, ``token``, ``cache_dir`` and
        ``local_files_only``. For a model created in memory set it yourself: ``model.processor = processor``.
        """
        if self._processor is None:
            if not self.config._name_or_path:
                raise ValueError("this model was not loaded from a folder; set model.processor to a JinaCLIPProcessor")
            self._processor = (self._origin or ModelOrigin(self.config._name_or_path, {})).load_processor()
        return self._processor

    @processor.setter
    def processor(self, value: Any) -> None:
        self._processor = value

    @property
    def _execution_device(self) -> torch.device:
        """The device for inputs: that of the weights, or to which accelerate moves offloaded ones (``device_map``)."""
        if self.device.type != "meta":
            return self.device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        single = (part for hook in hooks for part in getattr(hook, "hooks", [hook]))
        devices = (getattr(part, "execution_device", None) for part in single)
        return torch.device(next((device for device in devices if device is not None), "cpu"))

    @torch.no_grad()
    def encode_text(
        self,
        sentences: str | Iterable[str],
        task: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: torch.device | str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        **tokenizer_kwargs: Any,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """Vectors of ``sentences``: (n, dim) float32, or (dim,) for a single string. A string is always a text.

        ``sentences`` is a string or any iterable of strings: list, generator, column of a table, array. Texts are
        encoded sorted by length, in batches of about ``batch_size * 128`` tokens (32 on a CPU), and returned in their
        original order. If the checkpoint has task instructions (v2), that of ``task`` is put before each text.
        ``tokenizer_kwargs`` override padding, truncation and ``max_length`` (512, or the processor's). ``truncate_dim``
        keeps the first dimensions, before normalising. Without numpy and tensor conversion it is a list of tensors.
        """
        single, number, windows = text_windows(sentences)
        dim = self._checked_dim(truncate_dim)
        _check_whole("batch_size", batch_size)
        instruction = self._instruction(task)
        check_text_options(tokenizer_kwargs)
        padding = tokenizer_kwargs.pop("padding", True)
        tokenizer = self.processor.tokenizer
        rows: list[list[int]] = []  # of the window that is being encoded

        # As published: every token with the padding id is ignored, even if the text itself contains "[PAD]". So no mask
        # is passed, unless the tokenizer pads with another token than the model's.
        by_token = tokenizer.pad_token_id == self.config.text_config.pad_token_id

        def prepare(indices: list[int]) -> Mapping[str, Tensor]:
            return tokenizer.pad(
                {"input_ids": [rows[i] for i in indices]},
                padding=padding,
                max_length=(tokenizer_kwargs.get("max_length") or text_limit(self.processor))
                if padding == "max_length"
                else None,
                return_attention_mask=not by_token,
                return_tensors="pt",
            )

        on_cpu = torch.device(device or self._execution_device).type == "cpu"
        budget = batch_size * (TOKENS_PER_ROW_CPU if on_cpu else TOKENS_PER_ROW)
        cut = encoded = 0
        found = [torch.empty(0, self.config.projection_dim, dtype=torch.float32, device="cpu")]
        with self._encoding(device), self._bar(number, show_progress_bar) as bar:
            for window in windows:
                prompted = [instruction + sentence for sentence in window]
                tokens, more = tokenize(self.processor, prompted, tokenizer_kwargs)
                rows, cut, encoded = tokens["input_ids"], cut + more, encoded + len(window)
                batches = token_budget_batches([len(row) for row in rows], budget)
                found.append(self._encode(batches, prepare, self.get_text_features, bar))
        warn_of_cut(self.processor, cut, encoded)
        embeddings = torch.cat(found)
        embeddings = F.normalize(embeddings[:, :dim], dim=-1) if normalize_embeddings else embeddings[:, :dim]
        return _convert(embeddings, single, convert_to_numpy, convert_to_tensor)

    @torch.no_grad()
    def encode_image(
        self,
        images: Any,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: torch.device | str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        *,
        allow_urls: bool = False,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """Vectors of ``images``: (n, dim) float32, or (dim,) for a single image.

        An image is a PIL image, array, tensor, path, bytes, file object or ``data:image/`` URI, and with
        ``allow_urls=True`` an http(s) URL of the public internet (see ``image_urls``). ``images`` is an image or any
        iterable of images; errors name the position. The other arguments are those of ``encode_text``.
        """
        single, images = list_of_images(images)
        dim = self._checked_dim(truncate_dim)
        _check_whole("batch_size", batch_size)
        options = {"allow_urls": True} if allow_urls else {}  # a custom image processor may not have it

        def prepare(indices: list[int]) -> Mapping[str, Tensor]:
            batch = [images[i] for i in indices]
            try:
                return self.processor.image_processor(batch, return_tensors="pt", **options)
            except (ValueError, TypeError, OSError) as error:
                if not hasattr(error, "image_position"):
                    raise
                raise error_at(indices[error.image_position], error.__cause__) from error.__cause__

        batches = [list(range(i, min(i + batch_size, len(images)))) for i in range(0, len(images), batch_size)]
        with self._encoding(device), self._bar(len(images), show_progress_bar) as bar:
            embeddings = self._encode(batches, prepare, self.get_image_features, bar)
        embeddings = F.normalize(embeddings[:, :dim], dim=-1) if normalize_embeddings else embeddings[:, :dim]
        return _convert(embeddings, single, convert_to_numpy, convert_to_tensor)

    def _instruction(self, task: str | None) -> str:
        """The text to put before each input: the instruction of ``task`` or of the checkpoint's default task."""
        config = self.config.text_config
        instructions = config.task_instructions or {}
        task = config.default_instruction_task if task is None else task
        if task is None:
            return ""
        if not instructions:  # v1; as in the published code
            logger.warning_once(f"this checkpoint has no task instructions; task={task!r} is ignored")
            return ""
        if task not in instructions:
            raise ValueError(f"task={task!r} is unknown; this checkpoint has {sorted(instructions)}")
        return instructions[task]

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; while some thread encodes, it takes effect when the last one has finished."""
        with _MODES:
            if self in _ENCODING:
                _ENCODING[self] = (_ENCODING[self][0], mode)
                return self
        return super().train(mode)

    @contextmanager
    def _encoding(self, device: torch.device | str | None) -> Iterator[None]:
        """Inside, the model is in evaluation mode, however many threads are inside; afterwards as it was."""
        if device is not None:
            self.to(device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
        with _MODES:
            threads, mode = _ENCODING.get(self, (0, self.training))
            if not threads:
                super().train(False)
            _ENCODING[self] = (threads + 1, mode)
        try:
            yield
        finally:
            with _MODES:
                threads, mode = _ENCODING.pop(self)
                if threads > 1:
                    _ENCODING[self] = (threads - 1, mode)
                else:
                    super().train(mode)

    def _bar(self, number: int | None, wanted: bool | None) -> tqdm:
        show = logger.getEffectiveLevel() <= logging.INFO if wanted is None else wanted
        return tqdm(desc="Encoding", total=number, disable=not show)

    def _encode(
        self,
        batches: list[list[int]],
        prepare: Callable[[list[int]], Mapping[str, Tensor]],
        features: Callable[..., Tensor],
        bar: tqdm,
    ) -> Tensor:
        """Features of ``batches`` of indices, in input order: (count, dim) float32 on the CPU."""
        target = self._execution_device
        embeddings = torch.empty(sum(map(len, batches)), self.config.projection_dim, dtype=torch.float32, device="cpu")
        with torch.inference_mode():  # the result was made outside: a plain tensor, which a head can be trained on
            for indices, inputs in prepared_ahead(batches, prepare):
                inputs = {name: tensor.to(target) for name, tensor in inputs.items()}
                embeddings[indices] = features(**inputs).float().cpu()
                bar.update(len(indices))
        return embeddings

    def _checked_dim(self, truncate_dim: int | None) -> int | None:
        """The number of dimensions to keep, by default that of the config; None for all."""
        dim = self.config.truncate_dim if truncate_dim is None else truncate_dim
        if dim is not None:
            _check_whole("truncate_dim", dim, self.config.projection_dim)
        return dim
