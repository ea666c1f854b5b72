"""InfoNCE over a score matrix that is never held whole; called by ``info_nce(..., tile_size=1024)``.

The tiled form walks the matrix in tiles:

    (1) forward: a running log-sum-exp for each row and each column, tile after tile, with label smoothing also the sum
        of its logits; nothing else is kept.
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

from trainer_ext.losses.logits import EPS, Softmax, compute_dtype
from trainer_ext.losses.pairing import Pairing


def tiled_contrast(
    rows: Tensor,
    columns: Tensor,
    extra: Tensor | None,
    scale: Tensor,
    pairing: Pairing,
    column_term: bool,
    softmax: Softmax,
    tile_size: int,
) -> Tensor:
    """``info_nce.plain_contrast`` in tiles of ``tile_size`` x ``tile_size`` logits.

    ``rows`` (n, dim), ``columns`` (m, dim), ``extra`` (e, dim) or None, any length and float type; ``scale`` a tensor
    of one element. Gradients reach all four. Not twice differentiable.
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        return _TiledContrast.apply(rows, columns, extra, scale, pairing, column_term, softmax, tile_size)


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


class _Candidates:
    """What is kept of the logits of each row or column: a running log-sum-exp; when smoothed, sum and number too."""

    def __init__(self, of: _Units, softmax: Softmax) -> None:
        self.smoothing = softmax.label_smoothing
        self.lse = of.norms.new_full((len(of),), -torch.inf)
        self.sum, self.count = (of.norms.new_zeros(len(of) if self.smoothing else 0) for _ in range(2))

    def add(self, block: slice, logits: Tensor, left_out: Tensor | None, dim: int) -> None:
        """Count a tile's logits, summed over ``dim``, for the rows or columns ``block``."""
        if self.smoothing:
            self.sum[block] += (logits if left_out is None else logits.masked_fill(left_out, 0.0)).sum(dim=dim)
            self.count[block] += logits.shape[dim] if left_out is None else (~left_out).sum(dim=dim)
        kept = logits if left_out is None else logits.masked_fill(left_out, -torch.inf)
        self.lse[block] = torch.logaddexp(self.lse[block], kept.logsumexp(dim=dim))

    def terms(self, own: Tensor) -> Tensor:
        """The sum over all rows or columns of LSE - (1 - e) own - e mean."""
        if not self.smoothing:
            return (self.lse - own).sum()
        return (self.lse - (1.0 - self.smoothing) * own - self.smoothing * self.sum / self.count).sum()

    def even_share(self, block: slice) -> Tensor:
        """What the target gives each candidate of these rows or columns."""
        return self.smoothing / self.count[block]


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
        softmax: Softmax,
        tile_size: int,
    ) -> Tensor:
        dtype = compute_dtype(rows, columns, extra)
        u, v = _Units(rows, dtype), _Units(columns, dtype)
        w = None if extra is None else _Units(extra, dtype)
        of_rows = _Candidates(u, softmax)
        of_columns = _Candidates(v, softmax) if column_term else None
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
                logits = softmax.harder(logits, scale, positives, pairing.own_diagonal(i, j))
                left_out = pairing.left_out(i, j)
                of_rows.add(i, logits, left_out, dim=1)
                if of_columns is not None:
                    of_columns.add(j, logits, left_out, dim=0)
            if w is not None:
                for j in w.tiles(tile_size):
                    logits = softmax.harder(scaled @ w[j].T, scale, None, None)
                    of_rows.add(i, logits, pairing.extra_left_out(i, j), dim=1)
        if counts is not None:
            own /= counts
            if column_term:
                column_own /= column_counts

        ctx.save_for_backward(rows, columns, extra, scale, counts, column_counts)
        ctx.of_rows, ctx.of_columns = of_rows, of_columns
        ctx.pairing, ctx.softmax, ctx.tile_size = pairing, softmax, tile_size
        total = of_rows.terms(own) + (0.0 if of_columns is None else of_columns.terms(column_own))
        return total / max(len(u), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(device_type=grad.device.type, enabled=False):  # also for a backward() called under it
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of ``_TiledContrast.forward``, None where none is needed."""
    rows, columns, extra, scale, counts, column_counts = ctx.saved_tensors
    of_rows, of_columns = ctx.of_rows, ctx.of_columns
    pairing, softmax, tile_size = ctx.pairing, ctx.softmax, ctx.tile_size
    dtype = of_rows.lse.dtype
    u, v = _Units(rows, dtype), _Units(columns, dtype)
    own_share = 1.0 - softmax.label_smoothing  # of a term's target that is its own column's, or its positives'
    terms = 1 if of_columns is None else 2
    grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
    grad_columns = torch.zeros_like(columns, dtype=dtype) if ctx.needs_input_grad[1] else None
    grad_extra = torch.zeros_like(extra, dtype=dtype) if ctx.needs_input_grad[2] else None
    grad_scale = torch.zeros((), dtype=dtype, device=scale.device)
    # dL/d(unit vector) is this factor times the sum of dL/dl over one side, times the unit vectors of the other
    factor = grad.to(dtype) / max(len(u), 1)

    blocks = [(v, grad_columns, pairing.left_out, of_columns)]
    if extra is not None:
        blocks.append((_Units(extra, dtype), grad_extra, pairing.extra_left_out, None))
    for i in u.tiles(tile_size):
        unit = u[i]
        scaled, grad_unit = unit * scale, torch.zeros_like(unit)
        for others, grad_others, left_out, of_others in blocks:
            for j in others.tiles(tile_size):
                other = others[j]
                positives = pairing.positives(i, j) if others is v else None
                own_diagonal = pairing.own_diagonal(i, j) if others is v else None
                logits = softmax.harder(scaled @ other.T, scale, positives, own_diagonal)
                out = left_out(i, j)
                logits = _leave_out(logits, out)
                grad_logits = (logits - of_rows.lse[i, None]).exp_()  # (2)
                if of_others is not None:
                    grad_logits += logits.sub_(of_others.lse[j]).exp_()
                if positives is not None:
                    share = 1.0 / counts[i, None]
                    if column_counts is not None:
                        share = share + 1.0 / column_counts[j]
                    grad_logits -= positives * (own_share * share)
                if softmax.label_smoothing:
                    even = of_rows.even_share(i)[:, None]
                    if of_others is not None:
                        even = even + of_others.even_share(j)
                    grad_logits -= even if out is None else even * ~out
                grad_unit.addmm_(grad_logits, other)
                if grad_others is not None:
                    grad_others[j].addmm_(grad_logits.T, unit)
        if counts is None:  # the own column's -1 of each term
            grad_unit.add_(v[pairing.own(i)], alpha=-terms * own_share)
            if grad_columns is not None:
                grad_columns[pairing.own(i)].add_(unit, alpha=-terms * own_share)
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
    return grad_rows, grad_columns, grad_extra, grad_scale, None, None, None, None


def _leave_out(logits: Tensor, entries: Tensor | None) -> Tensor:
    """In place: these entries vanish from every log-sum-exp and get no gradient."""
    return logits if entries is None else logits.masked_fill_(entries, -torch.inf)
