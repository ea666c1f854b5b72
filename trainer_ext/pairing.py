"""Which entries of a score matrix are positives, negatives, or neither: what all losses over pairs share.

Also the few conventions that every loss must keep alike: unit vectors and logits in fp32, the zero vector, the
temperature, and the checks of what was handed in. Knows torch alone.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Duplicates = Literal["mask", "positive"]

EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their length: a zero vector gives zeros, not NaN."""


LINKS_AT_ONCE = 2**20
"""Entries of a block that are looked up in one go: some tens of MB."""


@dataclass(frozen=True)
class Links:
    """Entries (query i, column j) that are true because of a third row: one with i's query and j's target.

    Three rows (image 1, "cat"), (image 1, "animal"), (image 2, "animal"): the first and the third have no id in common,
    yet the second says that image 1 is an animal. Pairs of classes are held, not entries of the matrix: at most one a
    row of the batch. Only the queries and columns that such a pair concerns are ever looked up.

    ``positions`` are the places of those, in rising order, among the batch's rows and among the columns; ``classes``
    (int64, a tensor for either) their classes; ``pairs`` (int64, a tensor for either) the true pairs of classes.
    """

    positions: tuple[list[int], list[int]]
    classes: tuple[Tensor, Tensor]
    pairs: tuple[Tensor, Tensor]

    def transposed(self) -> "Links":
        """The same entries with rows and columns exchanged."""
        return Links(self.positions[::-1], self.classes[::-1], self.pairs[::-1])

    def add_to(self, true: Tensor, rows: slice, columns: slice) -> None:
        """Mark the entries of this block in ``true``, in place. ``rows`` are those of the batch."""
        if not (columns_of_class := self._sorted(1, columns)):
            return
        size = max(LINKS_AT_ONCE // len(columns_of_class[0]), 1)
        for start in range(rows.start, rows.stop, size):
            strip = slice(start, min(start + size, rows.stop))
            if rows_of_class := self._sorted(0, strip):
                row, column = self._entries(rows_of_class, columns_of_class)
                true[row - rows.start, column - columns.start] = True

    def _sorted(self, side: int, block: slice) -> tuple[Tensor, Tensor] | None:
        """The classes in a block of rows or columns, in rising order, and the place of each; None for none."""
        inside = slice(*(bisect_left(self.positions[side], edge) for edge in (block.start, block.stop)))
        classes, order = self.classes[side][inside].sort(stable=True)
        places = torch.tensor(self.positions[side][inside], device=classes.device)
        return (classes, places[order]) if len(classes) else None

    def _entries(self, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Places of the true entries: of each pair of classes, all its rows with all its columns."""
        (first_row, many_rows), (first_column, many_columns) = (
            (torch.searchsorted(known, pairs), torch.searchsorted(known, pairs, right=True))
            for (known, _), pairs in zip((rows, columns), self.pairs, strict=True)
        )
        many_rows, many_columns = many_rows - first_row, many_columns - first_column
        counts = many_rows * many_columns
        pair = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        number = torch.arange(len(pair), device=counts.device) - (counts.cumsum(0) - counts)[pair]  # within the pair
        return (
            rows[1][first_row[pair] + number // many_columns[pair]],
            columns[1][first_column[pair] + number % many_columns[pair]],
        )


def make_links(queries: Tensor, targets: Tensor, columns: Tensor | None = None) -> Links | None:
    """The links among the pairs of a batch; None when there are none.

    Args:
        queries: (k,) ids of the rows' queries. targets: (k,) ids of their targets.
        columns: ids of what is to be found true, in the name space of ``targets``; the targets themselves by default.

    >>> links = make_links(torch.tensor([1, 1, 2]), torch.tensor([7, 8, 8]))
    >>> true = torch.zeros(3, 3, dtype=torch.bool)
    >>> links.add_to(true, slice(0, 3), slice(0, 3))
    >>> true[0].tolist()  # its own entry is no matter of a link
    [False, True, True]
    """
    # On the CPU: these are a few sorts of small tensors, whose results decide on shapes.
    own, known = queries.cpu(), targets.cpu()
    names, own = own.unique(return_inverse=True)
    if len(names) == len(own):
        return None  # every query stands alone: nobody tells it of other targets
    wanted = known if columns is None else columns.cpu()
    names, both = torch.cat([known, wanted]).unique(return_inverse=True)
    known, wanted, width = both[: len(known)], both[len(known) :], len(names)
    pairs = (own * width + known).unique()
    by_query, by_target = pairs // width, pairs % width
    # A query with one target only learns nothing new, nor does a target with one query only
    useful = by_query.bincount()[by_query] > 1
    useful &= (by_target.bincount()[by_target] > 1) if columns is None else torch.isin(by_target, wanted)
    if not useful.any():
        return None
    rows = torch.isin(own, by_query[useful]).nonzero().flatten()
    places = torch.isin(wanted, by_target[useful]).nonzero().flatten()
    device = queries.device
    classes = own[rows].to(device), wanted[places].to(device)
    true = by_query[useful].to(device), by_target[useful].to(device)
    return Links((rows.tolist(), places.tolist()), classes, true)


@dataclass(frozen=True)
class Pairing:
    """The rows of a score matrix, and which of its entries are what.

    Row i of the matrix is row ``rows.start + i`` of the global batch, and that column is its *own*. ``ids`` holds
    (ids of the rows, ids of the columns) for each kind of id; entry (i, j) is a *true pair* when any kind agrees, or
    when ``links`` say so. True pairs besides the own one are left out or, with ``multi_positive``, are positives like
    it. ``extra_ids`` are (ids of the rows, ids of the hard negatives); an extra column that is true for a row, by them
    or by ``extra_links``, is left out for it.
    """

    rows: slice
    ids: tuple[tuple[Tensor, Tensor], ...] = ()
    links: tuple[Links, ...] = ()
    extra_ids: tuple[Tensor, Tensor] | None = None
    extra_links: tuple[Links, ...] = ()
    multi_positive: bool = False

    def transposed(self) -> "Pairing":
        """For the matrix of targets against queries. It has no extra columns."""
        links = tuple(link.transposed() for link in self.links)
        return replace(self, links=links, extra_ids=None, extra_links=())

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
        if self.extra_ids is None:
            return None
        true = self.extra_ids[0][rows, None] == self.extra_ids[1][None, extra]
        for links in self.extra_links:
            links.add_to(true, self.own(rows), extra)
        return true

    def _true(self, rows: slice, columns: slice) -> Tensor:
        true, *others = (row_ids[rows, None] == column_ids[None, columns] for row_ids, column_ids in self.ids)
        for other in others:
            true.logical_or_(other)
        for links in self.links:
            links.add_to(true, self.own(rows), columns)
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
    ids = {name: checked(name, ids, len(queries)) for name, ids in kinds.items() if ids is not None}
    # Who has i's query and j's target: told by their own ids, or by that of a pair as a whole.
    same_query, same_target = (
        [ids[name] for name in (kind, "row_ids") if name in ids] for kind in ("query_ids", "target_ids")
    )
    links = [make_links(one, other) for one in same_query for other in same_target if one is not other]
    extra_ids, extra_links = None, []
    if negative_ids is not None:
        if target_ids is None:
            raise ValueError("negative_ids are compared with the ids of the positives: give both or neither.")
        negatives = checked("negative_ids", negative_ids, len(negative_ids))
        extra_ids = (ids["target_ids"][rows], negatives)
        extra_links = [make_links(one, ids["target_ids"], negatives) for one in same_query]
    return Pairing(
        rows,
        tuple((own[rows], own) for own in ids.values()),
        tuple(link for link in links if link is not None),
        extra_ids,
        tuple(link for link in extra_links if link is not None),
        duplicates == "positive",
    )


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
