"""Vectors of earlier layers in the loss: 2D Matryoshka (arXiv 2402.14776), so that the first layers serve alone.

A step compares vectors of the last layer, and those of one earlier layer of each tower (``drawn_layer``):

    L(last) + L(earlier) + t * KL( softmax(e_last / t) || softmax(e_earlier / t) ),  t = 0.3

L is the side's loss with its Matryoshka prefixes and terms; a teacher teaches the last layer alone. The divergence
compares the numbers of each vector; no gradient reaches the last layer through it. It is the mean over all vectors of
the side, as sentence-transformers' ``AdaptiveLayerLoss`` has it.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_ext.losses.gather import shard_of
from trainer_ext.losses.logits import compute_dtype

TEMPERATURE = 0.3  # of the divergence, as in the paper's code
EARLIER = "earlier"  # among a batch's embeddings: those of earlier layers, by column


def drawn_layer(layers: Sequence[int], seed: int, tower: str, step: int) -> int:
    """The earlier layer of a step: any but the last of ``layers``, a pure function of the other arguments.

    So a resumed run, the second pass of the gradient cache and all processes draw the same.

    >>> [drawn_layer([4, 8, 12], 42, "text", step) for step in range(8)]
    [8, 4, 4, 4, 4, 8, 4, 8]
    """
    digest = blake2b(f"{seed}/{tower}/{step}".encode(), digest_size=8).digest()
    return layers[int.from_bytes(digest, "big") % (len(layers) - 1)]


def layer_divergence(last: Tensor, earlier: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean over rows of KL( softmax(last / t) || softmax(earlier / t) ), times t; both (rows, dim).

    No gradient reaches ``last``.

    >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> layer_divergence(x, x).item(), round(layer_divergence(x, y).item(), 4)
    (0.0, 0.9311)
    """
    with torch.autocast(device_type=last.device.type, enabled=False):
        dtype = compute_dtype(last, earlier)
        target = (last.detach().to(dtype) / temperature).log_softmax(dim=-1)
        ours = (earlier.to(dtype) / temperature).log_softmax(dim=-1)
        total = F.kl_div(ours, target, reduction="sum", log_target=True)
        return temperature * total / max(len(last), 1)


def earlier_terms(
    side_loss: Callable[[Mapping[str, Tensor]], tuple[Tensor, Mapping[str, tuple[float, Tensor]], Any]],
    columns: Sequence[str],
    embeddings: Mapping[str, Any],
) -> dict[str, tuple[float, Tensor]]:
    """What earlier layers add to a side, each with its weight: ``earlier``, their loss, and ``divergence``.

    Nothing where ``embeddings`` has no vectors of earlier layers of ``columns``. Of a tower without, the last layer's
    vectors stand on the other side of the loss.

    Args:
        side_loss: the side's loss and its weighted terms, as a function of its columns' embeddings.
        columns: that the side may have.
        embeddings: (rows, dim) of each column of this process, those of earlier layers under ``earlier``.
    """
    known = {name: embeddings[name] for name in columns if name in embeddings}
    earlier = {name: x for name, x in embeddings.get(EARLIER, {}).items() if name in known}
    if not earlier:
        return {}
    loss, added, _ = side_loss(known | earlier)
    last = torch.cat([known[name] for name in earlier])
    divergence = layer_divergence(last, torch.cat(list(earlier.values())))
    # Each of the side's columns has the same number of rows of every row of the batch, so the mean is over all.
    weight = shard_of(known[columns[0]]).weight
    return {
        "earlier": (1.0, sum((weight * value for weight, value in added.values()), loss)),
        "divergence": (1.0, divergence * weight),
    }
