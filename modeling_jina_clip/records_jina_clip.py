"""One vector for a thing with a picture and a text, such as a product. Part of the package only, not served.

CLIPPINGS (arXiv 2304.03464) pools the two: unit(w * picture + (1 - w) * text) of unit vectors. It lies in the
same space, so queries of either kind find it, and an index has one entry for each record, not two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .modeling_jina_clip import JinaCLIPModel


def encode_record(
    model: JinaCLIPModel,
    texts: str | Iterable[str | None],
    images: Any,
    weight: float = 0.5,
    task: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    device: torch.device | str | None = None,
    truncate_dim: int | None = None,
    *,
    allow_urls: bool = False,
) -> np.ndarray:
    """Vectors of records: (n, dim) float32 of unit length, or (dim,) for a single text with a single image.

    Args:
        texts: a text for each record, or None for a record without; a string is a single record's.
        images: an image for each, of any kind that ``encode_image`` takes, or None.
        weight: of the pictures, from 0 (texts alone) to 1; a record with one of the two has that one's vector.
        truncate_dim: keeps the first dimensions of the finished vector and normalises it again, as an index is cut.

    The others are those of ``encode_text`` and ``encode_image``.

    Raises:
        TypeError: another class of model; ``fuse_vectors`` takes the vectors of any.
        ValueError: not as many texts as images, a record with neither, or a weight outside of 0 to 1.

    Example::

        vectors = encode_record(model, ["red shoes", "a lamp"], ["1.png", None])
        model.encode_text("sneakers") @ vectors.T
    """
    if not isinstance(model, JinaCLIPModel):
        raise TypeError(
            f"model is a {type(model).__name__} and must be a JinaCLIPModel; of another one, such as a "
            "SentenceTransformer, give the vectors of texts and of images to fuse_vectors"
        )
    single = isinstance(texts, str)
    words, pictures = ([texts], [images]) if isinstance(texts, str) else (list(texts), list(images))
    weights = _weights(words, pictures, _checked_weight(weight))
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "device": device}
    vectors = np.zeros((2, len(words), model.config.projection_dim), np.float32)
    with_text, with_image = np.flatnonzero(weights < 1), np.flatnonzero(weights > 0)
    whole = {"truncate_dim": model.config.projection_dim, **options}
    if len(with_text):
        given: list[Any] = [words[place] for place in with_text]
        vectors[0, with_text] = model.encode_text(given, task=task, **whole)
    if len(with_image):
        chosen = [pictures[place] for place in with_image]
        vectors[1, with_image] = model.encode_image(chosen, allow_urls=allow_urls, **whole)
    found = _unit(_fused(vectors[0], vectors[1], weights)[:, : model._checked_dim(truncate_dim)])
    return found[0] if single else found


def fuse_vectors(text_vectors: Any, image_vectors: Any, weight: float = 0.5) -> np.ndarray:
    """The same of vectors that are there already, by whatever model and runtime: (n, dim) each, or (dim,) each.

    Args:
        text_vectors: as ``encode`` gives them: arrays or tensors, not necessarily of unit length.
        image_vectors: those of the same records.
        weight: of the pictures, from 0 to 1.

    Raises:
        ValueError: other shapes than each other's, a weight outside of 0 to 1, or two vectors that cancel out.

    >>> fuse_vectors([[1.0, 0.0]], [[0.0, 2.0]], weight=0.5).tolist()
    [[0.707..., 0.707...]]
    """
    texts, images = (np.asarray(_on_cpu(vectors), np.float32) for vectors in (text_vectors, image_vectors))
    if texts.shape != images.shape or texts.ndim not in (1, 2):
        raise ValueError(
            f"text_vectors have shape {texts.shape} and image_vectors {images.shape}; give both as (n, dim), a row for "
            "each record, or as (dim,) of one"
        )
    left, right = (_unit(np.atleast_2d(vectors)) for vectors in (texts, images))
    return _unit(_fused(left, right, np.full(len(left), _checked_weight(weight)))).reshape(texts.shape)


def _on_cpu(vectors: Any) -> Any:
    return vectors.detach().float().cpu().numpy() if torch.is_tensor(vectors) else vectors


def _checked_weight(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight!r} and must be a number from 0 (texts alone) to 1 (pictures alone)")
    return float(weight)


def _weights(texts: Sequence[Any], images: Sequence[Any], weight: float) -> np.ndarray:
    """The weight (n,) of each record's picture: 0 or 1 where there is only one of the two."""
    if len(texts) != len(images):
        raise ValueError(f"{len(texts)} texts and {len(images)} images; give one of each for a record, None for none")
    found = np.full(len(texts), weight)
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text is None and image is None:
            raise ValueError(f"record {place} has neither a text nor an image; leave it out")
        if text is None or image is None:
            found[place] = 1.0 if text is None else 0.0
    return found


def _fused(texts: np.ndarray, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights[:, None] * images + (1 - weights[:, None]) * texts


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (zero := np.flatnonzero(norms < 1e-12)).size:
        raise ValueError(
            f"record {zero[0]}: its vector has length zero; it has no direction to search by. Leave it out"
        )
    return (rows / norms).astype(np.float32)
