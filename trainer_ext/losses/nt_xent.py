"""NT-Xent, for pairs of the same kind: every other vector of the batch is a candidate, those of one's own side too.

SimCLR's loss (arXiv 2002.05709, equation 1), as SLIP adds it to CLIP's (arXiv 2112.12750, section 3). For k pairs
(a_i, b_i), cosine s and temperature t

    first    mean_i  -log( exp(s(a_i, b_i) / t) / ( sum_j exp(s(a_i, b_j) / t) + sum_{j != i} exp(s(a_i, a_j) / t) ) )
    second   the same with a and b exchanged
    L      = 1/2 (first + second)

which is the mean over all 2k vectors. ``info_nce`` leaves the vectors of one's own side out: among pictures and texts
these are another kind, here they are the nearest wrong answers there are.
"""

from dataclasses import replace

import torch
from torch import Tensor

from trainer_ext.losses.info_nce import plain_contrast
from trainer_ext.losses.logits import Softmax, check_tile_size, inverse_temperature
from trainer_ext.losses.pairing import Duplicates, Pairing, make_pairing
from trainer_ext.losses.tiled import tiled_contrast


def nt_xent(
    queries: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    row_ids: Tensor | None = None,
    duplicates: Duplicates = "mask",
    rows: slice | None = None,
    tile_size: int | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
) -> Tensor:
    """NT-Xent over pairs (``L`` above): row i of ``queries`` belongs to row i of ``targets``.

    Args:
        queries: (k, dim), the vectors a. targets: (k, dim), the vectors b.
        temperature: t, a positive number or a tensor of one element; a tensor gets its gradient.
        row_ids: (k,) int64, equal for pairs that show the same. Of two such rows, the vectors of one side are left out
            of each other's candidates.
        duplicates: what becomes of the vectors of the other side: left out as well ("mask"), or positives like the own
            one ("positive").
        rows: the part of the global batch to answer for; all of it by default.
        tile_size: compute the matrices in tiles of this many rows and columns and never hold them.
        label_smoothing: from 0 to less than 1. hardness: at least 0. See ``info_nce``.

    Identical vectors cannot be told apart, so each one chooses among the other 2k - 1:

    >>> import math
    >>> x = torch.ones(4, 8)
    >>> round(nt_xent(x, x).item(), 4), round(math.log(7), 4)
    (1.9459, 1.9459)
    """
    check_tile_size(tile_size)
    pairing = make_pairing(
        queries, targets, query_ids=None, target_ids=None, row_ids=row_ids, duplicates=duplicates, rows=rows
    )
    own, scale, softmax = pairing.rows, inverse_temperature(temperature, queries), Softmax(label_smoothing, hardness)
    if pairing.ids:
        [same] = pairing.ids  # (own rows, all rows)
    else:
        places = torch.arange(len(queries), device=queries.device)
        same = places[own], places

    def contrast(anchors: Tensor, others: Tensor, pairing: Pairing) -> Tensor:
        # Its own side as extra candidates, without those of the same id: itself, above all.
        pairing = replace(pairing, extra_ids=same)
        if tile_size is None:
            return plain_contrast(anchors[own], others, anchors, scale, pairing, False, softmax)
        return tiled_contrast(anchors[own], others, anchors, scale, pairing, False, softmax, tile_size)

    return (contrast(queries, targets, pairing) + contrast(targets, queries, pairing.transposed())) / 2
