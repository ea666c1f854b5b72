"""The sentence-transformers module: encodes texts, images and lists of both.

Adds two things to the stock module. A list may mix texts and images. A plain string is always a text, so that a text
that looks like a path or a URL is never opened or fetched. Pass images as PIL, array, tensor or ``{"image": ...}``,
where a string is a path or a ``data:image/`` URI; URLs there are fetched only after ``model[0].allow_urls = True``.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sentence_transformers
import torch

from .configuration_jina_clip import require_version
from .image_urls import URL_THREADS, fetch_url, is_url

# Checked before the imports below, which older versions do not have.
OLDEST_SENTENCE_TRANSFORMERS = "5.5.1"
require_version("sentence-transformers", sentence_transformers.__version__, OLDEST_SENTENCE_TRANSFORMERS)

from sentence_transformers.base.modality import infer_modality  # noqa: E402
from sentence_transformers.base.modules.transformer import Transformer as StockTransformer  # noqa: E402


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
        # sentence-transformers calls a batch of several kinds "message" and checks that the module supports it.
        return [*self.modality_config, "message"]

    def preprocess(  # type: ignore[override]  # kwargs holds the arguments that newer versions have
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenize texts and preprocess images; for a mixed list, keep the positions of each kind with its features."""
        inputs = self._without_urls([{"text": item} if isinstance(item, str) else item for item in inputs])
        kinds = [infer_modality(item, list(self.modality_config)) for item in inputs]
        unknown = sorted({str(kind) for kind in kinds} - set(self.modality_config))
        if unknown:
            raise ValueError(f"cannot embed inputs of kind {unknown}; pass texts or images, one per item")
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
        found = {
            i: item["image"] for i, item in enumerate(inputs) if isinstance(item, dict) and is_url(item.get("image"))
        }
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
        return features
