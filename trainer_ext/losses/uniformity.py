"""How pairs lie on the sphere: near each other (alignment), and spread out (uniformity), as terms beside a loss.

For unit vectors x_i and y_i of k pairs:

    alignment          mean_i |x_i - y_i|^2
    uniformity         1/2 ( U(x) + U(y) ),   U(x) = log mean_{i<j} exp(-2 |x_i - x_j|^2)
    cross_uniformity   log mean_{i != j} exp(-2 |x_i - y_j|^2)

The first two are those of arXiv 2005.10242, section 4.1; the third spreads one side's vectors against the other's, and
with the first closes the gap between them (arXiv 2405.18570). Entries that the pairing calls true, by equal ids or
links, are left out of the last two.

**Several processes.** A log of a mean does not split into rows, its sum of exponentials does. Each process sums over
its own rows, against all columns; the sums of all processes are added without gradient, and the process's own enters
with its gradient times the number of processes, so that the mean over processes (``losses.gather``) is the gradient
of the log of the whole mean.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer_ext.losses.gather import Shard, sum_over_processes
from trainer_ext.losses.logits import compute_dtype, unit
from trainer_ext.losses.pairing import Pairing, make_pairing


def alignment(x: Tensor, y: Tensor, pairing: Pairing, tile_size: int | None = None) -> Tensor:
    """Mean squared distance of the pairs ``pairing.rows``, from 0 to 4; (k, dim) vectors of any length.

    It splits into rows: like a loss's mean over the own rows, it wants ``Shard.weight``.

    >>> x = torch.eye(3)
    >>> alignment(x, x, Pairing(slice(0, 3))).item(), alignment(x, -x, Pairing(slice(0, 3))).item()
    (0.0, 4.0)
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        dtype = compute_dtype(x, y)
        gap = unit(x[pairing.rows], dtype) - unit(y[pairing.rows], dtype)
        return gap.square().sum() / max(len(gap), 1)


def uniformity(x: Tensor, y: Tensor, pairing: Pairing, tile_size: int | None = None) -> Tensor:
    """Mean of both sides' log mean potential, from -8 to 0; every process has the value of the whole batch.

    >>> x = torch.eye(3)
    >>> round(uniformity(x, x, Pairing(slice(0, 3))).item(), 4)  # orthonormal: exp(-2 * 2)
    -4.0
    """
    return (_log_mean(x, x, pairing, tile_size) + _log_mean(y, y, pairing, tile_size)) / 2


def cross_uniformity(x: Tensor, y: Tensor, pairing: Pairing, tile_size: int | None = None) -> Tensor:
    """Log mean potential between the sides, without pairs; every process has the value of the whole batch.

    >>> x = torch.eye(3)[[0, 0, 0]]
    >>> cross_uniformity(x, -x, Pairing(slice(0, 3))).item()
    -8.0
    """
    return _log_mean(x, y, pairing, tile_size)


def _log_mean(x: Tensor, y: Tensor, pairing: Pairing, tile_size: int | None) -> Tensor:
    """log mean of exp(-2 |x_i - y_j|^2) over entries that are no true pairs; 0 if there are none."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        dtype = compute_dtype(x, y)
        u, v = unit(x[pairing.rows], dtype), unit(y, dtype)
        total, count = u.new_zeros(()), u.new_zeros(())
        size = tile_size or max(len(u), 1)
        for start in range(0, max(len(u), 1), size):  # one strip even of no rows: its graph takes part in the gather
            strip = slice(start, min(start + size, len(u)))
            true = _true(pairing, strip, slice(0, len(v)), u.device)
            if tile_size is None:
                total = total + _potential(u[strip], v, true)
            else:
                part = checkpoint(_potential, u[strip], v, true, use_reentrant=False, preserve_rng_state=False)
                total = total + part
            count = count + (~true).sum()
        whole, entries, processes = sum_over_processes(total.detach(), count)
        whole = torch.where(entries > 0, whole, 1.0)
        return (whole / entries.clamp_min(1.0)).log() + processes * (total - total.detach()) / whole


def _true(pairing: Pairing, rows: slice, columns: slice, device: torch.device) -> Tensor:
    """(rows, columns) bool: pairs, own and other true ones."""
    true = pairing.true(rows, columns)
    if true is None:
        true = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool, device=device)
    true.diagonal(pairing.own_diagonal(rows, columns)).fill_(True)
    return true


def _potential(u: Tensor, v: Tensor, true: Tensor) -> Tensor:
    """Sum of exp(-2 |u_i - v_j|^2) over the entries that are not ``true``, for unit vectors."""
    return (4.0 * (u @ v.T - 1.0)).exp().masked_fill(true, 0.0).sum()


# What a side may add to its loss, by the keys that weigh it (``recipe.schema.TERMS``).
TERMS = {"alignment": alignment, "uniformity": uniformity, "cross_uniformity": cross_uniformity}


def terms_of(
    names: Sequence[str],
    vectors: Sequence[Tensor],
    ids: Mapping[str, Tensor],
    shard: Shard,
    tile_size: int | None,
    on_prefixes: Any,
) -> dict[str, Tensor]:
    """The terms of these names for gathered (queries, targets), to be averaged over processes.

    Args:
        ids: ``query_ids``, ``target_ids`` and ``row_ids`` of ``make_pairing``, as far as there are.
        on_prefixes: ``on_prefixes(term, vectors)`` evaluates it, on each Matryoshka prefix if there are some.
    """
    if not names:
        return {}
    kinds: dict[str, Any] = {kind: ids.get(kind) for kind in ("query_ids", "target_ids", "row_ids")}
    pairing = make_pairing(*vectors, **kinds, duplicates="mask", rows=shard.rows)
    values = {name: on_prefixes(partial(TERMS[name], pairing=pairing, tile_size=tile_size), vectors) for name in names}
    return {name: value * shard.weight if name == "alignment" else value for name, value in values.items()}
