"""InfoNCE, the paper's loss, with and without hard negatives: embeddings in, one scalar out.

Both functions take raw (not normalised) vectors and compare them by cosine; lengths, products and logits are computed
in fp32 (fp64 for fp64 input), also under autocast and for half-precision input.

The formulas are those of arXiv 2405.20204, section 3: for k pairs (q_i, p_i), cosine s and temperature t

    forward   mean_i  -log( exp(s(q_i, p_i) / t) / sum_j exp(s(q_i, p_j) / t) )
    backward  the same with q and p exchanged
    L_nce  =  forward + backward

``info_nce_plus`` puts all hard negatives of the whole batch into the forward denominator.

**Several processes.** Pass the *gathered* tensors of all processes and ``rows``, the slice of the global batch that
this process answers for: it then computes its own queries against all targets and its own targets against all
queries, and no process holds the whole matrix. The result is the mean over the own rows
(``gather.Shard`` has the slice, and the weight for shares of unequal size).

**True pairs that are not own pairs.** ``query_ids`` and ``target_ids`` (int64, one per row) say what is the same:
target j is true for query i if some row of the batch has i's query and j's target. This includes equal query ids (two
captions of one image), equal target ids (one text twice), and pairs that a third row links;
``row_ids`` declare two pairs to be the same, query and target. Such an entry never counts as a negative; ``duplicates``
says whether it is left out ("mask") or shares the role of the positive ("positive": mean over all positives of -log
softmax).

**A softer target, harder negatives.** With l_ij the logits s / t of a row's candidates j, own_i that of its positive
and mean_j over the candidates that are not left out, a row of either direction is

    LSE_j l_ij - (1 - e) own_i - e mean_j l_ij            e = label_smoothing, as in torch's cross_entropy
    l_ij := s_ij / t + a stopgrad(s_ij) for negatives     a = hardness (arXiv 2503.04812, equation 5)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trainer_ext.losses.logits import Softmax, check_tile_size, compute_dtype, inverse_temperature, unit
from trainer_ext.losses.pairing import Duplicates, Pairing, make_pairing
from trainer_ext.losses.tiled import tiled_contrast

Reduction = Literal["sum", "mean"]
Directions = Literal["both", "forward", "backward"]


def info_nce(
    queries: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    reduction: Reduction = "sum",
    directions: Directions = "both",
    query_ids: Tensor | None = None,
    target_ids: Tensor | None = None,
    row_ids: Tensor | None = None,
    duplicates: Duplicates = "mask",
    rows: slice | None = None,
    tile_size: int | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
) -> Tensor:
    """InfoNCE over pairs (``L_nce`` above): row i of ``queries`` belongs to row i of ``targets``.

    Args:
        queries: (k, dim). targets: (k, dim).
        temperature: t, a positive number or a tensor of one element; a tensor gets its gradient.
        reduction: the "sum" of both directions, as the paper prints it, or their "mean", as CLIP has it.
        directions: "both", or one of "forward" (query to target) and "backward" alone.
        query_ids: (k,) int64, equal for equal queries. target_ids: (k,) int64, equal for equal targets. row_ids: (k,)
            int64, equal for pairs that were declared to mean the same.
        duplicates: what becomes of true pairs that are not own pairs, see the top of the file.
        rows: the part of the global batch to answer for; all of it by default.
        tile_size: compute the matrix in tiles of this many rows and columns and never hold it. Same value and
            gradients; memory grows with k instead of k squared.
        label_smoothing: e, from 0 to less than 1. hardness: a, at least 0. See the top of the file.

    Identical vectors cannot be told apart, so each direction costs ln k:

    >>> import math
    >>> x = torch.ones(4, 8)
    >>> round(info_nce(x, x).item(), 4), round(2 * math.log(4), 4)
    (2.7726, 2.7726)
    """
    pairing = make_pairing(
        queries,
        targets,
        query_ids=query_ids,
        target_ids=target_ids,
        row_ids=row_ids,
        duplicates=duplicates,
        rows=rows,
    )
    softmax = Softmax(label_smoothing, hardness)
    return _softmax_loss(queries, targets, None, temperature, pairing, reduction, directions, tile_size, softmax)


def info_nce_plus(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    reduction: Reduction = "sum",
    directions: Directions = "both",
    query_ids: Tensor | None = None,
    target_ids: Tensor | None = None,
    row_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    duplicates: Duplicates = "mask",
    rows: slice | None = None,
    tile_size: int | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
) -> Tensor:
    """InfoNCE with m hard negatives for each query (``L_nce+``).

        forward   mean_i -log( exp(s(q_i, p_i)/t) / ( sum_j exp(s(q_i, p_j)/t) + sum_jm exp(s(q_i, n_jm)/t) ) )
        backward  positives against the k queries only, as in ``info_nce``

    Args:
        queries: (k, dim). positives: (k, dim). negatives: (k, m, dim).
        target_ids: (k,) int64, ids of the positives. negative_ids: (k, m) int64, from the same name space: a hard
            negative equal to a positive of this query, its own or that of another row, is left out for that query,
            whatever ``duplicates`` says.

    The other arguments are those of ``info_nce``. With identical vectors the forward direction chooses among
    k + k m candidates and the backward direction among k:

    >>> import math
    >>> x, n = torch.ones(4, 8), torch.ones(4, 7, 8)
    >>> round(info_nce_plus(x, x, n).item(), 4), round(math.log(32) + math.log(4), 4)
    (4.852, 4.852)
    """
    if negatives.ndim != 3 or len(negatives) != len(queries) or negatives.shape[-1] != queries.shape[-1]:
        raise ValueError(
            f"negatives must be (batch, negatives, dim) = ({len(queries)}, m, {queries.shape[-1]}), "
            f"not {tuple(negatives.shape)}: unflatten the rows of the negatives before calling."
        )
    if negative_ids is not None:
        if negative_ids.shape != negatives.shape[:2]:
            raise ValueError(f"negative_ids {tuple(negative_ids.shape)} must be {tuple(negatives.shape[:2])}.")
        negative_ids = negative_ids.flatten()
    pairing = make_pairing(
        queries,
        positives,
        query_ids=query_ids,
        target_ids=target_ids,
        row_ids=row_ids,
        negative_ids=negative_ids,
        duplicates=duplicates,
        rows=rows,
    )
    extra = negatives.flatten(0, 1)
    softmax = Softmax(label_smoothing, hardness)
    return _softmax_loss(queries, positives, extra, temperature, pairing, reduction, directions, tile_size, softmax)


def _softmax_loss(
    queries: Tensor,
    targets: Tensor,
    extra: Tensor | None,
    temperature: float | Tensor,
    pairing: Pairing,
    reduction: Reduction,
    directions: Directions,
    tile_size: int | None,
    softmax: Softmax,
) -> Tensor:
    """The directions asked for. One matrix serves both when all rows are ours; a share needs two rectangles."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction {reduction!r} must be 'sum' or 'mean'.")
    check_tile_size(tile_size)
    scale = inverse_temperature(temperature, queries)

    def contrast(
        rows: Tensor, columns: Tensor, pairing: Pairing, extra: Tensor | None = None, column_term: bool = False
    ) -> Tensor:
        if tile_size is None:
            return plain_contrast(rows, columns, extra, scale, pairing, column_term, softmax)
        return tiled_contrast(rows, columns, extra, scale, pairing, column_term, softmax, tile_size)

    own = pairing.rows
    if directions == "forward":
        return contrast(queries[own], targets, pairing, extra)
    if directions == "backward":
        return contrast(targets[own], queries, pairing.transposed())
    if directions != "both":
        raise ValueError(f"directions {directions!r} must be 'both', 'forward' or 'backward'.")
    if own == slice(0, len(queries)):
        total = contrast(queries, targets, pairing, extra, column_term=True)
    else:
        total = contrast(queries[own], targets, pairing, extra)
        total = total + contrast(targets[own], queries, pairing.transposed())
    return total / 2 if reduction == "mean" else total


def plain_contrast(
    rows: Tensor,
    columns: Tensor,
    extra: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    column_term: bool,
    softmax: Softmax,
) -> Tensor:
    """One contrast of n rows with m columns and e extra columns, matrix held, gradients left to autograd.

        row term     mean_i ( LSE_j l_ij - own_i )    j over columns and extra columns, l_ij = scale * cosine
        column term  mean_j ( LSE_i l_ij - own_j )    added if asked, for rows and columns that are the same pairs

    ``own`` is the logit of the own column, or the mean over all positives. ``softmax`` changes both terms alike.
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        dtype = compute_dtype(rows, columns, extra)
        u, v = unit(rows, dtype) * scale, unit(columns, dtype)
        block = slice(0, len(rows)), slice(0, len(columns))
        logits = u @ v.T
        positives = pairing.positives(*block)
        if positives is None:
            row_own = column_own = (u * v[pairing.own(block[0])]).sum(dim=-1)
        else:
            true_logits = torch.where(positives, logits, 0.0)
            row_own = true_logits.sum(dim=1) / positives.sum(dim=1)
            column_own = true_logits.sum(dim=0) / positives.sum(dim=0)
        logits = softmax.harder(logits, scale, positives, pairing.own_diagonal(*block))
        parts = [_without(logits, pairing.left_out(*block))]
        share = 1.0 - softmax.label_smoothing
        total = -share * row_own.sum()
        if column_term:
            total = total + (_candidates(parts, 0, softmax) - share * column_own).sum()
        if extra is not None:
            logits = softmax.harder(u @ unit(extra, dtype).T, scale, None, None)
            parts.append(_without(logits, pairing.extra_left_out(block[0], slice(0, len(extra)))))
        return (total + _candidates(parts, 1, softmax).sum()) / max(len(rows), 1)


# Logits, -inf where they are left out, and which entries those are.
_Part = tuple[Tensor, Tensor | None]


def _without(logits: Tensor, entries: Tensor | None) -> _Part:
    return (logits if entries is None else logits.masked_fill(entries, -torch.inf)), entries


def _candidates(parts: Sequence[_Part], dim: int, softmax: Softmax) -> Tensor:
    """LSE - e mean over the candidates of each row (``dim`` 1) or column (0)."""
    lse = parts[0][0].logsumexp(dim=dim)
    for logits, _ in parts[1:]:
        lse = torch.logaddexp(lse, logits.logsumexp(dim=dim))
    if not softmax.label_smoothing:
        return lse
    total, count = torch.zeros_like(lse), torch.zeros_like(lse)
    for logits, out in parts:
        total = total + (logits if out is None else logits.masked_fill(out, 0.0)).sum(dim=dim)
        count += logits.shape[dim] if out is None else (~out).sum(dim=dim)
    return lse - softmax.label_smoothing * total / count
