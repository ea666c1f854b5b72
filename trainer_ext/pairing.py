"""Which entries of a score matrix are positives, negatives, or neither: what all losses over pairs share.

Also the few conventions that every loss must keep alike: unit vectors and logits in fp32, the zero vector, the
temperature, and the checks of what was handed in. Knows torch alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Duplicates = Literal["mask", "positive"]

EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their length: a zero vector gives zeros, not NaN."""


@dataclass(frozen=True)
class Pairing:
    """The rows of a score matrix, and which of its entries are what.

    Row i of the matrix is row ``rows.start + i`` of the global batch, and that column is its *own*. ``ids`` holds
    (ids of the rows, ids of the columns) for each kind of id; entry (i, j) is a *true pair* when any kind agrees.
    True pairs besides the own one are left out or, with ``multi_positive``, are positives like it. ``extra_ids`` are
    (ids of the rows, ids of the hard negatives); an extra column that is true for a row is left out for it.
    """

    rows: slice
    ids: tuple[tuple[Tensor, Tensor], ...] = ()
    extra_ids: tuple[Tensor, Tensor] | None = None
    multi_positive: bool = False

    def own(self, rows: slice) -> slice:
        """The own columns of these rows of the matrix."""
        return slice(rows.start + self.rows.start, rows.stop + self.rows.start)

    def positives(self, rows: slice, columns: slice) -> Tensor | None:
        """(rows, columns) bool: the positives of this block; None when only the own columns are."""
        return self._true(rows, columns) if self.ids and self.multi_positive else None

    def left_out(self, rows: slice, columns: slice) -> Tensor | None:
        """(rows, columns) bool: the entries of this block that must not count at all; None when all count."""
        if not self.ids or self.multi_positive:
            return None
        true = self._true(rows, columns)
        true.diagonal(self.rows.start + rows.start - columns.start).fill_(False)
        return true

    def extra_left_out(self, rows: slice, extra: slice) -> Tensor | None:
        """(rows, extra columns) bool: the hard negatives that must not count; None when all count."""
        return None if self.extra_ids is None else self.extra_ids[0][rows, None] == self.extra_ids[1][None, extra]

    def _true(self, rows: slice, columns: slice) -> Tensor:
        true, *others = (row_ids[rows, None] == column_ids[None, columns] for row_ids, column_ids in self.ids)
        for other in others:
            true.logical_or_(other)
        return true


def make_pairing(
    queries: Tensor,
    targets: Tensor,
    *,
    query_ids: Tensor | None,
    target_ids: Tensor | None,
    row_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    duplicates: Duplicates,
    rows: slice | None,
) -> Pairing:
    """Check what a loss was handed and say which entries are what. Ids are moved to the embeddings' device."""
    if queries.ndim != 2 or queries.shape != targets.shape:
        raise ValueError(
            f"queries {tuple(queries.shape)} and targets {tuple(targets.shape)} must both be (batch, dim): "
            "row i of one belongs to row i of the other. Hand over a share of the rows by rows=slice(start, stop)."
        )
    if duplicates not in ("mask", "positive"):
        raise ValueError(f"duplicates {duplicates!r} must be 'mask' or 'positive'.")
    rows = slice(0, len(queries)) if rows is None else rows
    if rows.start is None or rows.stop is None or rows.step not in (None, 1) or not (
        0 <= rows.start <= rows.stop <= len(queries)
    ):  # fmt: skip
        raise ValueError(f"{rows} must be a slice(start, stop) inside the batch of {len(queries)} rows.")
    rows = slice(rows.start, rows.stop)

    def checked(name: str, ids: Tensor, length: int) -> Tensor:
        if ids.dtype != torch.int64 or ids.shape != (length,):
            raise ValueError(
                f"{name} must be int64 of shape ({length},), one id a row; got {ids.dtype} {tuple(ids.shape)}."
            )
        return ids.to(queries.device)

    kinds = {"query_ids": query_ids, "row_ids": row_ids, "target_ids": target_ids}
    all_ids = [checked(name, ids, len(queries)) for name, ids in kinds.items() if ids is not None]
    extra_ids = None
    if negative_ids is not None:
        if target_ids is None:
            raise ValueError("negative_ids are compared with the ids of the positives: give both or neither.")
        extra_ids = (all_ids[-1][rows], checked("negative_ids", negative_ids, len(negative_ids)))
    return Pairing(rows, tuple((ids[rows], ids) for ids in all_ids), extra_ids, duplicates == "positive")


def check_tile_size(tile_size: int | None) -> None:
    """Refuse a tile size that is not positive."""
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"tile_size {tile_size} must be positive, or None for the whole matrix at once.")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp32 for everything but fp64 input: half-precision logits lose the small differences a large batch is about."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def unit(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of length 1."""
    return torch.nn.functional.normalize(vectors.to(dtype), dim=-1, eps=EPS)


def inverse_temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / t as a tensor without dimensions; the gradient flows to a temperature that is a tensor."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, not a tensor of shape {tuple(temperature.shape)}.")
        return 1.0 / temperature.reshape(()).to(like.device, compute_dtype(like))
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive.")
    return torch.tensor(1.0 / temperature, device=like.device, dtype=compute_dtype(like))
