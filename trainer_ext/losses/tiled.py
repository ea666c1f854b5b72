"""InfoNCE over a score matrix that is never held whole; called by ``info_nce(..., tile_size=1024)``.

The tiled form walks the matrix in tiles:

    (1) forward: a running log-sum-exp for each row and each column, tile after tile; nothing else is kept.
    (2) backward: every tile is computed again, turned into its slice of the gradient dL/dl, and multiplied at once
        into the gradients of its rows and columns.
    (3) the gradient with respect to a unit vector becomes that of the raw vector: (g - (g.u) u) / norm, by blocks.

Four matrix products where the plain form takes three; the time comes back because the element-wise work stays in
cache. Besides its inputs it holds their gradients in fp32 and a few tiles.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer_ext.losses.logits import EPS, compute_dtype
from trainer_ext.losses.pairing import Pairing


def tiled_contrast(
    rows: Tensor,
    columns: Tensor,
    extra: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    column_term: bool,
    tile_size: int,
) -> Tensor:
    """``info_nce.plain_contrast`` in tiles of ``tile_size`` x ``tile_size`` logits.

    ``rows`` (n, dim), ``columns`` (m, dim), ``extra`` (e, dim) or None, any length and float type; ``scale`` a tensor
    of one element. Gradients reach all four. Not twice differentiable.
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        return _TiledContrast.apply(rows, columns, extra, scale, pairing, column_term, tile_size)


class _Units:
    """Unit vectors of a matrix, one block at a time, so that no normalised copy of the whole is held."""

    def __init__(self, vectors: Tensor, dtype: torch.dtype) -> None:
        self.vectors, self.dtype = vectors, dtype
        self.norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=dtype)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, block: slice) -> Tensor:
        return self.vectors[block].to(self.dtype) / self.norms[block].clamp_min(EPS)

    def tiles(self, size: int) -> Iterator[slice]:
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def raw_gradient(self, unit_gradient: Tensor, block: slice) -> Tensor:
        """Step (3) for one block, in place: the part along the vector does not change its direction, so it goes."""
        unit, norm = self[block], self.norms[block]
        along = (unit_gradient * unit).sum(dim=-1, keepdim=True).masked_fill_(norm < EPS, 0.0)
        return unit_gradient.addcmul_(unit, along, value=-1).div_(norm.clamp_min(EPS))


class _TiledContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        extra: Tensor | None,
        scale: Tensor,
        pairing: Pairing,
        column_term: bool,
        tile_size: int,
    ) -> Tensor:
        dtype = compute_dtype(rows, columns, extra)
        u, v = _Units(rows, dtype), _Units(columns, dtype)
        w = None if extra is None else _Units(extra, dtype)
        row_lse = u.norms.new_full((len(u),), -torch.inf)
        column_lse = v.norms.new_full((len(v),), -torch.inf) if column_term else None
        counts = u.norms.new_zeros(len(u)) if pairing.multi_positive and pairing.ids else None
        column_counts = v.norms.new_zeros(len(v)) if column_term and counts is not None else None
        own = u.norms.new_zeros(len(u))  # logit of the own column, or the mean over all positives of the row
        column_own = v.norms.new_zeros(len(v)) if column_term and counts is not None else own

        for i in u.tiles(tile_size):
            scaled = u[i] * scale
            if counts is None:
                own[i] = (scaled * v[pairing.own(i)]).sum(dim=-1)
            for j in v.tiles(tile_size):
                logits = scaled @ v[j].T  # (1)
                positives = pairing.positives(i, j)
                if positives is not None:
                    assert counts is not None  # positives are the tiles of a pairing with several
                    counts[i] += positives.sum(dim=1)
                    true_logits = torch.where(positives, logits, 0.0)
                    own[i] += true_logits.sum(dim=1)
                    if column_counts is not None:
                        column_counts[j] += positives.sum(dim=0)
                        column_own[j] += true_logits.sum(dim=0)
                _leave_out(logits, pairing.left_out(i, j))
                row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(dim=1))
                if column_lse is not None:
                    column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(dim=0))
            if w is not None:
                for j in w.tiles(tile_size):
                    logits = scaled @ w[j].T
                    _leave_out(logits, pairing.extra_left_out(i, j))
                    row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(dim=1))
        if counts is not None:
            own /= counts
            if column_term:
                column_own /= column_counts

        ctx.save_for_backward(rows, columns, extra, scale, row_lse, column_lse, counts, column_counts)
        ctx.pairing, ctx.tile_size = pairing, tile_size
        total = (row_lse - own).sum() + ((column_lse - column_own).sum() if column_term else 0.0)
        return total / max(len(u), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(device_type=grad.device.type, enabled=False):  # also for a backward() called under it
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of ``_TiledContrast.forward``, None where none is needed."""
    rows, columns, extra, scale, row_lse, column_lse, counts, column_counts = ctx.saved_tensors
    pairing, tile_size, dtype = ctx.pairing, ctx.tile_size, row_lse.dtype
    u, v = _Units(rows, dtype), _Units(columns, dtype)
    terms = 1 if column_lse is None else 2
    grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
    grad_columns = torch.zeros_like(columns, dtype=dtype) if ctx.needs_input_grad[1] else None
    grad_extra = torch.zeros_like(extra, dtype=dtype) if ctx.needs_input_grad[2] else None
    grad_scale = torch.zeros((), dtype=dtype, device=scale.device)
    # dL/d(unit vector) is this factor times the sum of dL/dl over one side, times the unit vectors of the other
    factor = grad.to(dtype) / max(len(u), 1)

    blocks = [(v, grad_columns, pairing.left_out, column_lse)]
    if extra is not None:
        blocks.append((_Units(extra, dtype), grad_extra, pairing.extra_left_out, None))
    for i in u.tiles(tile_size):
        unit = u[i]
        scaled, grad_unit = unit * scale, torch.zeros_like(unit)
        for others, grad_others, left_out, other_lse in blocks:
            for j in others.tiles(tile_size):
                other = others[j]
                logits = _leave_out(scaled @ other.T, left_out(i, j))
                grad_logits = (logits - row_lse[i, None]).exp_()  # (2)
                if other_lse is not None:
                    grad_logits += logits.sub_(other_lse[j]).exp_()
                positives = pairing.positives(i, j) if others is v else None
                if positives is not None:
                    share = 1.0 / counts[i, None]
                    if column_counts is not None:
                        share = share + 1.0 / column_counts[j]
                    grad_logits -= positives * share
                grad_unit.addmm_(grad_logits, other)
                if grad_others is not None:
                    grad_others[j].addmm_(grad_logits.T, unit)
        if counts is None:  # the own column's -1 of each term
            grad_unit.add_(v[pairing.own(i)], alpha=-terms)
            if grad_columns is not None:
                grad_columns[pairing.own(i)].add_(unit, alpha=-terms)
        grad_scale += (grad_unit * unit).sum()  # sum_ij dL/dl_ij (u_i . v_j)
        if grad_rows is not None:
            grad_rows[i] = u.raw_gradient(grad_unit.mul_(scale * factor), i)

    for others, grad_others, *_ in blocks:
        if grad_others is not None:
            for j in others.tiles(tile_size):
                others.raw_gradient(grad_others[j].mul_(scale * factor), j)
    if grad_columns is not None:
        grad_columns = grad_columns.to(columns.dtype)
    if grad_extra is not None:
        grad_extra = grad_extra.to(extra.dtype)
    grad_scale = (grad_scale * factor).to(scale.dtype)
    return grad_rows, grad_columns, grad_extra, grad_scale, None, None, None


def _leave_out(logits: Tensor, entries: Tensor | None) -> Tensor:
    """In place: these entries vanish from every log-sum-exp and get no gradient."""
    return logits if entries is None else logits.masked_fill_(entries, -torch.inf)
