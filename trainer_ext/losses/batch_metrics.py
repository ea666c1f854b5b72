"""What is logged of a batch beside its losses: accuracies and mean cosines, never a whole score matrix at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of the score matrix that an accuracy looks at in one go: 64 MB of fp32 against 32,768 targets.
ACCURACY_BLOCK = 512


@torch.no_grad()
def in_batch_accuracy(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
    """Share of the queries in ``rows`` whose own candidate (of the same index) has the highest cosine.

    >>> in_batch_accuracy(torch.eye(3), torch.eye(3)[[0, 2, 1]], slice(0, 3))
    tensor(0.3333)
    """
    candidates = F.normalize(candidates.float(), dim=-1)
    own = torch.arange(rows.start, rows.stop, device=queries.device)
    right = [(queries[block].float() @ candidates.T).argmax(dim=-1) == block for block in own.split(ACCURACY_BLOCK)]
    return torch.cat(right).float().mean()


@torch.no_grad()
def order_accuracy(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Of all comparisons of two pairs with different scores, the share in which the higher one has the higher cosine.

    >>> x, y = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # cosines 1, 0.7, 0
    >>> order_accuracy(x, y, torch.tensor([2.0, 3.0, 1.0]))
    tensor(0.6667)
    """
    cosines = F.cosine_similarity(first.float(), second.float(), dim=-1)
    right = compared = cosines.new_zeros((), dtype=torch.int64)
    for block in torch.arange(len(scores), device=scores.device).split(ACCURACY_BLOCK):
        higher = scores[block, None] > scores
        compared = compared + higher.sum()
        right = right + (higher & (cosines[block, None] > cosines)).sum()
    return right / compared.clamp_min(1)


@torch.no_grad()
def mean_cosine(vectors: Tensor) -> Tensor:
    """Mean cosine between different rows of (rows, dim): near 1 when an embedding has collapsed.

    From the length of the rows' sum, which costs one pass: |sum_i u_i|^2 = rows + sum over i != j of cos(i, j).

    >>> mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    tensor(0.3333)
    """
    rows = len(vectors)
    length = F.normalize(vectors.float(), dim=-1).sum(dim=0).square().sum()
    return (length - rows) / max(rows * (rows - 1), 1)
