"""Raw inputs to vectors: ``encode_text`` and ``encode_image`` with the published signatures and defaults."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers.utils import logging

from .image_inputs import error_at
from .input_lists import list_of_images, list_of_texts
from .model_origin import ModelOrigin

logger = logging.get_logger(__name__)

# With `batch_size` texts of this many tokens a batch is full; shorter texts come more to a batch, longer ones fewer.
TOKENS_PER_ROW = 128
# On a CPU, where 32 rows of this many tokens saturate the cores, and whose caches like smaller matrices.
TOKENS_PER_ROW_CPU = 32
DEFAULT_MAX_LENGTH = 512


class EncodingMixin:
    """Adds ``encode_text`` and ``encode_image`` to a model with ``get_text_features`` and ``get_image_features``."""

    _processor: Any = None
    _origin: ModelOrigin | None = None

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, and the model remembers where its processor lies."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        if model.config._name_or_path:
            model._origin = ModelOrigin(model.config._name_or_path, kwargs)
        return loaded

    @property
    def processor(self) -> Any:
        """The tokenizer and image processor, read on first use from where the model was loaded from.

        That is the same folder or commit, with the same ``subfolder``, ``token``, ``cache_dir`` and
        ``local_files_only``. Set it by hand on a model that was made in memory: ``model.processor = processor``.
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
        """Where inputs go: to the weights, or where accelerate brings weights that wait on disk (``device_map``)."""
        if self.device.type != "meta":
            return self.device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        single = (part for hook in hooks for part in getattr(hook, "hooks", [hook]))
        devices = (getattr(part, "execution_device", None) for part in single)
        return torch.device(next((device for device in devices if device is not None), "cpu"))

    @torch.inference_mode()
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
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """Vectors of ``sentences``: (n, dim) float32, or (dim,) for a single string. A string is always a text.

        ``sentences`` is one, or anything that gives them one by one: list, generator, column of a table, array.
        Texts run sorted by length in batches of about ``batch_size * 128`` tokens (32 on a CPU) and come back in their
        order.
        ``task`` puts that task's instruction before each text where the checkpoint has instructions (v2).
        ``tokenizer_kwargs`` override padding, truncation and ``max_length=512``. ``truncate_dim`` keeps the first
        dimensions, before normalising. Without numpy and tensor conversion a list of tensors is returned.
        """
        single, sentences = list_of_texts(sentences)
        dim = self._checked_dim(truncate_dim)
        _check_batch_size(batch_size)
        instruction = self._instruction(task)
        options = {"truncation": True, "max_length": DEFAULT_MAX_LENGTH, **tokenizer_kwargs}
        padding = options.pop("padding", True)
        tokenizer = self.processor.tokenizer
        prompted = [instruction + sentence for sentence in sentences]
        rows = tokenizer(prompted, return_token_type_ids=False, **options)["input_ids"] if sentences else []

        # As published: what counts are the tokens that are not the padding's, whoever wrote "[PAD]". So no mask is
        # given, except where the tokenizer pads with another token than the model's.
        by_token = tokenizer.pad_token_id == self.config.text_config.pad_token_id

        def prepare(indices: list[int]) -> Mapping[str, torch.Tensor]:
            return tokenizer.pad(
                {"input_ids": [rows[i] for i in indices]},
                padding=padding,
                max_length=options["max_length"] if padding == "max_length" else None,
                return_attention_mask=not by_token,
                return_tensors="pt",
            )

        on_cpu = torch.device(device or self._execution_device).type == "cpu"
        budget = batch_size * (TOKENS_PER_ROW_CPU if on_cpu else TOKENS_PER_ROW)
        batches = token_budget_batches([len(row) for row in rows], budget)
        embeddings = self._encode(batches, prepare, self.get_text_features, show_progress_bar, device)
        embeddings = F.normalize(embeddings[:, :dim], dim=-1) if normalize_embeddings else embeddings[:, :dim]
        return _convert(embeddings, single, convert_to_numpy, convert_to_tensor)

    @torch.inference_mode()
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
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """Vectors of ``images``: (n, dim) float32, or (dim,) for a single image.

        An image is PIL, numpy, tensor, path, bytes, opened file or ``data:image/`` URI, and with ``allow_urls=True`` an
        http(s) URL of the public internet (see ``image_urls``), which is otherwise refused. ``images`` is one, or
        anything that gives them one by one. Errors name the position in it. The other arguments are those of
        ``encode_text``.
        """
        single, images = list_of_images(images)
        dim = self._checked_dim(truncate_dim)
        _check_batch_size(batch_size)
        options = {"allow_urls": True} if allow_urls else {}  # an image processor set by hand may not know it

        def prepare(indices: list[int]) -> Mapping[str, torch.Tensor]:
            batch = [images[i] for i in indices]
            try:
                return self.processor.image_processor(batch, return_tensors="pt", **options)
            except (ValueError, TypeError, OSError) as error:
                if not hasattr(error, "image_position"):
                    raise
                raise error_at(indices[error.image_position], error.__cause__) from error.__cause__

        batches = [list(range(i, min(i + batch_size, len(images)))) for i in range(0, len(images), batch_size)]
        embeddings = self._encode(batches, prepare, self.get_image_features, show_progress_bar, device)
        embeddings = F.normalize(embeddings[:, :dim], dim=-1) if normalize_embeddings else embeddings[:, :dim]
        return _convert(embeddings, single, convert_to_numpy, convert_to_tensor)

    def _instruction(self, task: str | None) -> str:
        """What stands before each text: the instruction of ``task`` or of the checkpoint's default task."""
        config = self.config.text_config
        instructions = config.task_instructions or {}
        task = config.default_instruction_task if task is None else task
        if task is None:
            return ""
        if not instructions:  # v1, as the published code does
            logger.warning_once(f"this checkpoint has no task instructions; task={task!r} is ignored")
            return ""
        if task not in instructions:
            raise ValueError(f"task={task!r} is unknown; this checkpoint has {sorted(instructions)}")
        return instructions[task]

    def _encode(
        self,
        batches: list[list[int]],
        prepare: Callable[[list[int]], Mapping[str, torch.Tensor]],
        features: Callable[..., torch.Tensor],
        show_progress_bar: bool | None,
        device: torch.device | str | None,
    ) -> torch.Tensor:
        """Features of all ``batches`` of indices in evaluation mode: (count, dim) float32 on the CPU, in order."""
        if device is not None:
            self.to(device)
        target = self._execution_device
        was_training = self.training
        self.eval()
        embeddings = torch.empty(sum(map(len, batches)), self.config.projection_dim)
        show = logger.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        bar = tqdm(prepared_ahead(batches, prepare), "Encoding", len(batches), unit="batch", disable=not show)
        try:
            for indices, inputs in bar:
                inputs = {name: tensor.to(target) for name, tensor in inputs.items()}
                embeddings[indices] = features(**inputs).float().cpu()
        finally:
            self.train(was_training)
        return embeddings

    def _checked_dim(self, truncate_dim: int | None) -> int | None:
        """How many dimensions to keep, by default as many as the config says; None for all."""
        dim = self.config.truncate_dim if truncate_dim is None else truncate_dim
        if dim is None:
            return None
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
            raise TypeError(f"truncate_dim={dim!r} must be an integer in 1..{self.config.projection_dim} or None")
        if not 0 < dim <= self.config.projection_dim:
            raise ValueError(f"truncate_dim={dim} must lie in 1..{self.config.projection_dim}")
        return int(dim)


def prepared_ahead(batches: Sequence[Any], prepare: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Each batch with what ``prepare`` makes of it, made in a thread while the caller works on the batch before.

    An error of ``prepare`` is raised at its batch.

    Example::

        >>> list(prepared_ahead([1, 2, 3], lambda number: number * number))
        [(1, 1), (2, 4), (3, 9)]
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[tuple[Any, Future]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(prepare, batch)))
            if len(waiting) > 1:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length, longest first, each group a single text or within ``budget`` padded tokens.

    Longest first shows an out-of-memory error at once instead of at the end.

    Example::

        >>> token_budget_batches([3, 200, 100, 300], budget=512)
        [[3], [1, 2], [0]]
        >>> token_budget_batches([], budget=512)
        []
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # A batch is as long as its first text. One less than half as long would be mostly padding: start anew.
        fits = batches and (len(batches[-1]) + 1) * longest <= budget and 2 * lengths[index] >= longest
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise TypeError(f"batch_size={batch_size!r} must be an integer, e.g. 32")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")


def _convert(
    embeddings: torch.Tensor, single: bool, convert_to_numpy: bool, convert_to_tensor: bool
) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
    if single:
        return embeddings[0] if convert_to_tensor or not convert_to_numpy else embeddings[0].numpy()
    if convert_to_tensor:
        return embeddings
    return embeddings.numpy() if convert_to_numpy else list(embeddings)
