"""The sentence-transformers module: encodes texts, images and lists of both.

Adds two things to the stock module. A list may mix texts and images. A plain string is always a text, so that a text
that looks like a path or a URL is never opened or fetched. Pass images as PIL, array, tensor or ``{"image": ...}``,
where a string is a path or a ``data:image/`` URI; URLs there are fetched only after ``model[0].allow_urls = True``.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from traceback import walk_stack
from typing import Any, NoReturn

import numpy as np
import sentence_transformers
import torch
from PIL.Image import Image

from .configuration_jina_clip import require_version
from .image_processing_jina_clip import brief
from .image_urls import URL_THREADS, fetch_url, is_url
from .processing_jina_clip import MAX_LENGTH

# Checked before the imports below, which older versions do not have.
OLDEST_SENTENCE_TRANSFORMERS = "5.5.1"
require_version("sentence-transformers", sentence_transformers.__version__, OLDEST_SENTENCE_TRANSFORMERS)

from sentence_transformers.base.model import BaseModel as SentenceModel  # noqa: E402
from sentence_transformers.base.modules.transformer import Transformer as StockTransformer  # noqa: E402


class Features(dict[str, Any]):
    """What a batch gives; says so when asked for the vectors of single tokens."""

    def __missing__(self, name: str) -> NoReturn:
        raise ValueError(
            f"this model gives one vector for each input and no {name!r}; those of tokens are "
            "model[0].model.text_model(input_ids, attention_mask).last_hidden_state"
        )


def marked(item: Any) -> dict[str, Any]:
    """One input as ``{"text": ...}`` or ``{"image": ...}``; raises ``ValueError`` for what is neither."""
    item = item.item() if isinstance(item, np.ndarray) and not item.ndim else item
    if isinstance(item, str):
        return {"text": item}
    pixels = torch.is_tensor(item) or (isinstance(item, np.ndarray) and item.dtype.kind in "biuf")
    if isinstance(item, Image) or (pixels and item.ndim in (2, 3)):
        return {"image": item}
    if isinstance(item, dict) and (item.keys() == {"image"} or (item.keys() == {"text"} and type(item["text"]) is str)):
        return item
    found = f"array of shape {tuple(item.shape)}" if pixels else brief(item)
    cure = "list(images) if it holds several" if pixels else "a list of them, and a path or bytes as {'image': ...}"
    raise ValueError(f"cannot embed inputs of kind {found}; pass a text or an image, or {cure}")


class Transformer(StockTransformer):
    """First module of ``SentenceTransformer("...", trust_remote_code=True)``.

    Example::

        model = SentenceTransformer("path/to/folder", trust_remote_code=True)
        model.encode(["a red bus", Image.open("bus.png"), {"image": "cat.png"}])  # (3, dim)
    """

    # Whether to fetch `{"image": "https://..."}`. Only the calling program can set it: it is neither an argument of the
    # constructor nor in `config_keys`, so no file of a repository can switch it on.
    allow_urls: bool = False

    @property
    def modalities(self) -> list[Any]:
        """The kinds of inputs: text and image."""
        # The model asks, too, before this module sees a batch, and calls a mixed one "message", a grey picture "audio",
        # several "video". Those have to come through: `preprocess` below embeds them, or says what is wrong with them.
        gate = any(frame.f_code is SentenceModel.preprocess.__code__ for frame, _ in walk_stack(None))
        return [*self.modality_config, *(["message", "audio", "video"] if gate else [])]

    @property
    def max_seq_length(self) -> int:
        """Tokens after which texts are cut, as by ``encode_text``; set it to embed more of long texts."""
        return self.processor.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.processor.max_length = self.processor.tokenizer.model_max_length = value or MAX_LENGTH

    def preprocess(  # type: ignore[override]  # kwargs holds the arguments that newer versions have
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenize texts and preprocess images; for a mixed list, keep the positions of each kind with its features."""
        inputs = self._without_urls([marked(item) for item in inputs])
        kinds = [next(iter(item)) for item in inputs]
        present = [kind for kind in self.modality_config if kind in kinds]
        if len(present) < 2:
            return super().preprocess(inputs, prompt=prompt, **kwargs)
        features: dict[str, Any] = {}
        for kind in present:
            positions = [position for position, other in enumerate(kinds) if other == kind]
            features |= super().preprocess([inputs[position] for position in positions], prompt=prompt, **kwargs)
            features[f"{kind}_index"] = torch.tensor(positions)
        return {**features, "modality": "mixed"}

    def _without_urls(self, inputs: list[Any]) -> list[Any]:
        """``inputs`` with URLs replaced by the bytes fetched from them, if allowed."""
        found = {i: item["image"] for i, item in enumerate(inputs) if is_url(item.get("image"))}
        if not found:
            return inputs
        if not self.allow_urls:
            raise ValueError(  # without a position: sentence-transformers has sorted the inputs
                f"{next(iter(found.values()))[:100]!r} is a URL, and URLs are not fetched unless you set "
                "model[0].allow_urls = True; or download it and pass the opened image or the path."
            )
        with ThreadPoolExecutor(max_workers=URL_THREADS) as pool:
            fetched = dict(zip(found, pool.map(fetch_url, found.values()), strict=True))
        return [{**item, "image": fetched[i]} if i in fetched else item for i, item in enumerate(inputs)]

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Embed each kind with its tower and restore the order of the inputs."""
        if features.get("modality") != "mixed":
            return self._cut(super().forward(features, **kwargs))
        embeddings, positions = [], []
        for kind in self.modality_config:
            if f"{kind}_index" in features:
                part = super().forward({**features, "modality": kind}, **kwargs)
                embeddings.append(part[self.module_output_name])
                positions.append(features[f"{kind}_index"])
        features[self.module_output_name] = torch.cat(embeddings)[torch.argsort(torch.cat(positions))]
        return self._cut(features)

    def _cut(self, features: dict[str, Any]) -> dict[str, Any]:
        """Keep as many dimensions as the configuration says, before the vectors are normalised, as ``encode_text``."""
        name, dim = self.module_output_name, self.model.config.truncate_dim
        if dim is not None and name in features:
            features[name] = features[name][:, :dim]
        return Features(features)
