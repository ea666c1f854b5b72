"""The sigmoid loss of SigLIP: every pair is a yes-or-no question of its own, without a softmax over candidates."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer_ext.losses.logits import check_tile_size, compute_dtype, inverse_temperature, unit
from trainer_ext.losses.pairing import Duplicates, Pairing, make_pairing

# The starting bias (arXiv 2303.15343, section 3.2): almost all pairs of a batch are negatives.
BIAS = -10.0
# So far out, the logarithm of a sigmoid is the distance itself or 0, to fp32's last digit.
_FAR = 50.0


def siglip(
    queries: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = BIAS,
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
    With ``tile_size``, strips of that many rows are recomputed in the backward pass instead of keeping the matrix. The
    other arguments are those of ``losses.info_nce``.

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


def siglip_chance(loss: Callable[[float | Tensor], Tensor], temperature: float | Tensor) -> Tensor:
    """The loss for the best score that all pairs have alike: N ln N - (N - 1) ln(N - 1) of N rows, about ln N + 1.

    The bias finds that score within a few steps whatever the vectors are, so the loss at the current bias says little.
    A score far below or above all others costs its distance for each true pair, or for each of the other pairs.

    Args:
        loss: ``siglip`` of vectors that are all the same, as a function of the bias.
        temperature: the one that ``loss`` uses.

    >>> x = torch.ones(4, 2)
    >>> round(siglip_chance(lambda bias: siglip(x, x, 1.0, bias), 1.0).item(), 4)  # 4 ln 4 - 3 ln 3
    2.2493
    """
    true, other = (loss(distance - 1 / temperature) / abs(distance) for distance in (-_FAR, _FAR))
    return torch.special.entr(true) + torch.special.entr(other) - torch.special.entr(true + other)


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
