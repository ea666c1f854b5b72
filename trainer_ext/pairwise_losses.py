"""Losses that ask about pairs one by one, not about a row of candidates: sigmoid loss and CoSENT.

Reached through ``losses``. Knows torch alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer_ext.pairing import (
    Duplicates,
    Pairing,
    check_tile_size,
    compute_dtype,
    inverse_temperature,
    make_pairing,
    unit,
)


def siglip(
    queries: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    *,
    query_ids: Tensor | None = None,
    target_ids: Tensor | None = None,
    row_ids: Tensor | None = None,
    duplicates: Duplicates = "mask",
    rows: slice | None = None,
    tile_size: int | None = None,
) -> Tensor:
    """Pairwise sigmoid loss (arXiv 2303.15343): every entry of the matrix is its own yes-or-no question.

        -1/k sum_i sum_j log sigmoid( z_ij (s(q_i, p_j) / t + b) ),   z_ij = 1 for true pairs, else -1

    ``bias`` b and ``temperature`` t are numbers or tensors of one element, that paper's starting values by default.
    ``tile_size`` computes strips of so many rows again in the backward pass instead of keeping the matrix. The other
    arguments are those of ``losses.info_nce``.

    >>> x = torch.eye(2)
    >>> round(siglip(x, x, temperature=1.0, bias=0.0).item(), 4)  # ln(1 + 1/e) + ln 2
    1.0064
    """
    check_tile_size(tile_size)
    pairing = make_pairing(
        queries,
        targets,
        query_ids=query_ids,
        target_ids=target_ids,
        row_ids=row_ids,
        duplicates=duplicates,
        rows=rows,
    )
    with torch.autocast(device_type=queries.device.type, enabled=False):
        dtype = compute_dtype(queries, targets)
        u, v = unit(queries[pairing.rows], dtype), unit(targets, dtype)
        scale = inverse_temperature(temperature, u)
        total = u.new_zeros(())
        size = tile_size or max(len(u), 1)
        for start in range(0, max(len(u), 1), size):  # one strip even of no rows: its graph takes part in the gather
            strip = slice(start, min(start + size, len(u)))
            arguments = (u[strip], v, scale, bias, pairing, strip)
            if tile_size is None:
                total = total + _sigmoid_strip(*arguments)
            else:
                total = total + checkpoint(_sigmoid_strip, *arguments, use_reentrant=False, preserve_rng_state=False)
        return total / max(len(u), 1)


def _sigmoid_strip(u: Tensor, v: Tensor, scale: Tensor, bias: float | Tensor, pairing: Pairing, strip: slice) -> Tensor:
    """The summed sigmoid loss of some rows against all columns."""
    columns = slice(0, len(v))
    logits = (u * scale) @ v.T + bias
    positives = pairing.positives(strip, columns)
    if positives is None:
        positives = torch.zeros_like(logits, dtype=torch.bool)
        positives[:, pairing.own(strip)].fill_diagonal_(True)
    losses = F.softplus(torch.where(positives, -logits, logits))
    left_out = pairing.left_out(strip, columns)
    return losses.sum() if left_out is None else losses.masked_fill(left_out, 0.0).sum()


def cosent(first: Tensor, second: Tensor, scores: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    """CoSENT for scored pairs (STS): a pair with a higher score should have the higher cosine.

        ln( 1 + sum over (i, j) with score_i > score_j of exp( (c_j - c_i) / t ) ),   c_i = cosine of pair i

    Args:
        first: (k, dim). second: (k, dim). scores: (k,), on any scale; only their order counts, equal ones are not
            compared. temperature: t, a number or a tensor of one element.

    The double sum is taken over the sorted scores, in k log k steps and without a (k, k) matrix. It does not split
    into rows: with many processes, compute it on the gathered tensors in each of them.

    Source of the formula: kexue.fm/archives/8847.

    >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    >>> round(cosent(x, y, torch.tensor([5.0, 0.0]), temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    if first.ndim != 2 or first.shape != second.shape or scores.shape != first.shape[:1]:
        raise ValueError(
            f"first {tuple(first.shape)} and second {tuple(second.shape)} must both be (batch, dim) "
            f"and scores {tuple(scores.shape)} (batch,)."
        )
    with torch.autocast(device_type=first.device.type, enabled=False):
        dtype = compute_dtype(first, second)
        cosines = (unit(first, dtype) * unit(second, dtype)).sum(dim=-1)
        ordered, order = scores.detach().to(first.device).sort()
        logits = (cosines * inverse_temperature(temperature, cosines))[order]
        # sums[n] = ln sum of exp(logits) over the n lowest scores; -inf for none of them
        sums = F.pad(logits.logcumsumexp(dim=0), (1, 0), value=-torch.inf)
        lower = torch.searchsorted(ordered, ordered)  # how many scores are strictly lower
        terms = (sums[lower] - logits)[lower > 0]
        return F.softplus(terms.logsumexp(dim=0)) if len(terms) else logits.sum() * 0.0
