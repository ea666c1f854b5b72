"""Which entries of a score matrix are positives, negatives, or left out: what all losses over pairs share."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Duplicates = Literal["mask", "positive"]

LINKS_AT_ONCE = 2**20
"""Entries of a block that are looked up at once: some tens of MB."""


@dataclass(frozen=True)
class Links:
    """Entries (query i, column j) that are true because of a third row: one with i's query and j's target.

    Three rows (image 1, "cat"), (image 1, "animal"), (image 2, "animal"): the first and the third have no id in common,
    yet the second says that image 1 is an animal. Stored per class, not per matrix entry: at most one pair of classes
    for each row of the batch.

    ``positions``: rows and columns that occur in a pair, in rising order; ``classes`` (int64, one tensor for rows and
    one for columns): their class ids; ``pairs`` (int64, likewise): which (query class, target class) are true.
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
        """The classes in a block of rows or columns, in rising order, and the place of each; None if there are none."""
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
    """The links among the pairs of a batch; None if there are none.

    Args:
        queries: (k,) ids of the rows' queries. targets: (k,) ids of their targets.
        columns: ids of the matrix's columns, in the name space of ``targets``; the targets themselves by default.

    >>> links = make_links(torch.tensor([1, 1, 2]), torch.tensor([7, 8, 8]))
    >>> true = torch.zeros(3, 3, dtype=torch.bool)
    >>> links.add_to(true, slice(0, 3), slice(0, 3))
    >>> true[0].tolist()  # its own entry needs no link
    [False, True, True]
    """
    # On the CPU: these are a few sorts of small tensors, whose results decide on shapes.
    own, known = queries.cpu(), targets.cpu()
    names, own = own.unique(return_inverse=True)
    if len(names) == len(own):
        return None  # all queries differ: no row can link one to another target
    wanted = known if columns is None else columns.cpu()
    names, both = torch.cat([known, wanted]).unique(return_inverse=True)
    known, wanted, width = both[: len(known)], both[len(known) :], len(names)
    pairs = (own * width + known).unique()
    by_query, by_target = pairs // width, pairs % width
    # A query with a single target gains no entry, nor does a target with a single query.
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
    """The rows of a score matrix, and which of its entries are positives, negatives or left out.

    Row i of the matrix is row ``rows.start + i`` of the global batch, and column ``rows.start + i`` is its *own*.
    ``ids`` holds (ids of the rows, ids of the columns) for each kind of id; entry (i, j) is a *true pair* if any kind
    agrees, or by ``links``. True pairs besides the own one are left out or, with ``multi_positive``, are positives like
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

    def own_diagonal(self, rows: slice, columns: slice) -> int:
        """Which diagonal of this block holds the own columns; it may lie outside."""
        return self.rows.start + rows.start - columns.start

    def true(self, rows: slice, columns: slice) -> Tensor | None:
        """(rows, columns) bool: the true pairs of this block; None when only the own columns are."""
        return self._true(rows, columns) if self.ids else None

    def positives(self, rows: slice, columns: slice) -> Tensor | None:
        """(rows, columns) bool: the positives of this block; None when only the own columns are."""
        return self._true(rows, columns) if self.ids and self.multi_positive else None

    def left_out(self, rows: slice, columns: slice) -> Tensor | None:
        """(rows, columns) bool: the entries of this block that must not count at all; None when all count."""
        if not self.ids or self.multi_positive:
            return None
        true = self._true(rows, columns)
        true.diagonal(self.own_diagonal(rows, columns)).fill_(False)
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
    """Check a loss's arguments and classify the entries of its matrix. Ids are moved to the embeddings' device."""
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
