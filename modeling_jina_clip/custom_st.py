"""The sentence-transformers module: texts, images and lists that mix them.

Adds two things to the stock module: a list may hold texts and images at once, and a plain string is always a text, so
that no file is opened and no URL fetched because a text looks like one. An image is given as PIL, array, tensor or
``{"image": ...}``, in which a string is a path or a ``data:image/`` URI. A URL there is fetched only after
``model[0].allow_urls = True``.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules.transformer import Transformer as StockTransformer

from .image_urls import URL_THREADS, fetch_url, is_url


class Transformer(StockTransformer):
    """First module of ``SentenceTransformer("...", trust_remote_code=True)``.

    Example::

        model = SentenceTransformer("path/to/folder", trust_remote_code=True)
        model.encode(["a red bus", Image.open("bus.png"), {"image": "cat.png"}])  # (3, dim)
    """

    # Whether `{"image": "https://..."}` is fetched. Set by the program that holds the model and by nothing else: it is
    # no argument of the constructor and not among `config_keys`, so that no file of a repository can switch it on.
    allow_urls: bool = False

    @property
    def modalities(self) -> list[str]:
        # sentence-transformers calls a batch of several kinds "message" and asks whether the module takes it.
        return [*self.modality_config, "message"]

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenize texts and prepare images; a mixed list keeps the position of each kind beside its features."""
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
        """``inputs`` with the bytes in place of URLs, where those are allowed."""
        found = {
            i: item["image"] for i, item in enumerate(inputs) if isinstance(item, dict) and is_url(item.get("image"))
        }
        if not found:
            return inputs
        if not self.allow_urls:
            raise ValueError(  # without a position: sentence-transformers sorts its inputs before this
                f"{next(iter(found.values()))[:100]!r} is a URL, and URLs are not fetched unless you set "
                "model[0].allow_urls = True; or download it and pass the opened image or the path."
            )
        with ThreadPoolExecutor(max_workers=URL_THREADS) as pool:
            fetched = dict(zip(found, pool.map(fetch_url, found.values()), strict=True))
        return [{**item, "image": fetched[i]} if i in fetched else item for i, item in enumerate(inputs)]

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Embed each kind by its tower and put the rows back in the order of the inputs."""
        if features.get("modality") != "mixed":
            return super().forward(features, **kwargs)
        embeddings, positions = [], []
        for kind in self.modality_config:
            if f"{kind}_index" in features:
                part = super().forward({**features, "modality": kind}, **kwargs)
                embeddings.append(part[self.module_output_name])
                positions.append(features[f"{kind}_index"])
        features[self.module_output_name] = torch.cat(embeddings)[torch.argsort(torch.cat(positions))]
        return features
