"""Matryoshka learning: any loss, also on the first dimensions of the embeddings."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor


def matryoshka(
    loss: Callable[..., Tensor],
    *embeddings: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Matryoshka learning (arXiv 2205.13147): ``sum_d weights_d * loss(first d dimensions of every embedding)``.

    ``loss`` must compare by cosine, as every loss of this room does: that is what renormalises the prefixes. Bind
    its other arguments with ``functools.partial``. All ``weights`` are 1 by default.

    >>> import math, torch
    >>> from trainer_ext.losses import info_nce
    >>> x = torch.ones(4, 8)
    >>> round(matryoshka(info_nce, x, x, dims=(8, 4)).item(), 4), round(4 * math.log(4), 4)
    (5.5452, 5.5452)
    """
    weights = [1.0] * len(dims) if weights is None else weights
    if not dims or len(weights) != len(dims):
        raise ValueError(f"dims {list(dims)} and weights {list(weights)} must be lists of one length, not empty.")
    width = min(e.shape[-1] for e in embeddings)
    if min(dims) < 1 or max(dims) > width:
        raise ValueError(f"dims {list(dims)} must lie between 1 and the embedding width {width}.")
    terms = (weight * loss(*(e[..., :dim] for e in embeddings)) for dim, weight in zip(dims, weights, strict=True))
    return cast(Tensor, sum(terms))  # the sum of nothing would be the number 0, but dims has an entry
