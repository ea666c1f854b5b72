"""What a teacher adds to a side's loss: its scores of the batch's pairs as a target, or its vectors.

Both take queries and targets, (k, dim) raw vectors of the gathered batch, of the student and of the teacher, and are
means over ``rows``, the part that this process answers for; they want ``Shard.weight`` as a loss does. No gradient
reaches the teacher. Against itself a model has a loss and a gradient of zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer_ext.losses.gather import Shard, gather_ids
from trainer_ext.losses.logits import compute_dtype, inverse_temperature, unit

Vectors = Sequence[Tensor]


def teacher_term(
    kind: str,
    student: Vectors,
    teacher: Vectors,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    shard: Shard,
    tile_size: int | None = None,
) -> Tensor:
    """The term of this ``kind``, whose mean over processes is that of the whole batch.

    ``student`` are gathered vectors, ``teacher`` those of this process.
    """
    known = [gather_ids(column, shard) for column in teacher]
    return TEACHING[kind](student, known, temperature, teacher_temperature, shard.rows, tile_size) * shard.weight


def score_divergence(
    student: Vectors,
    teacher: Vectors,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    rows: slice,
    tile_size: int | None = None,
) -> Tensor:
    """How far the student's choice among the batch's candidates is from the teacher's, in both directions.

        1/2 [ mean_i KL( softmax_j(T_ij / t_T) || softmax_j(S_ij / t) ) + the same with queries and targets exchanged ]

    S and T are the cosines of student and teacher, whose vectors may have other widths. It is the distillation of
    open_clip (``DistillClipLoss``), whose cross-entropies differ from these divergences by a constant. With
    ``tile_size``, strips of that many rows are computed again in the backward pass instead of keeping the matrices.

    >>> x, y = torch.eye(2), torch.ones(2, 2)  # the teacher tells the pairs apart, the student does not
    >>> round(score_divergence((x, y), (x, x), 1.0, 1.0, slice(0, 2)).item(), 4)
    0.1109
    >>> score_divergence((x, y), (x, y), 1.0, 1.0, slice(0, 2)).item()
    0.0
    """
    with torch.autocast(device_type=student[0].device.type, enabled=False):
        dtype = compute_dtype(*student)
        ours, theirs = [unit(x, dtype) for x in student], [unit(x.detach(), dtype) for x in teacher]
        scale = inverse_temperature(temperature, ours[0])
        known = inverse_temperature(teacher_temperature, ours[0]).detach()
        total, count = ours[0].new_zeros(()), rows.stop - rows.start
        size = tile_size or max(count, 1)
        for one, other in ((0, 1), (1, 0)):
            for start in range(rows.start, max(rows.stop, rows.start + 1), size):  # a strip even of no rows: its graph
                strip = slice(start, min(start + size, rows.stop))
                arguments = (ours[one][strip], ours[other], scale, theirs[one][strip], theirs[other], known)
                if tile_size is None:
                    total = total + _divergence(*arguments)
                else:
                    total = total + checkpoint(_divergence, *arguments, use_reentrant=False, preserve_rng_state=False)
        return total / (2 * max(count, 1))


def vector_distance(
    student: Vectors,
    teacher: Vectors,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    rows: slice,
    tile_size: int | None = None,
) -> Tensor:
    """Mean of 1 - cosine between each vector and the teacher's of the same text or picture, from 0 to 2.

    It keeps vectors where they are, so that an index made with the teacher still serves. Temperatures and tiles play
    no part.

    Raises:
        ValueError: vectors of other widths.

    >>> x = torch.eye(2)
    >>> vector_distance((x, x), (x, -x), 1.0, 1.0, slice(0, 2)).item()
    1.0
    """
    widths = student[0].shape[-1], teacher[0].shape[-1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"teacher: its vectors have {widths[1]} dimensions and the model's {widths[0]}, so they have no "
            "cosine; use kind: scores, which compares scores alone"
        )
    with torch.autocast(device_type=student[0].device.type, enabled=False):
        dtype = compute_dtype(*student)
        gaps = [
            (1 - (unit(x[rows], dtype) * unit(y[rows].detach(), dtype)).sum(dim=-1)).sum()
            for x, y in zip(student, teacher, strict=True)
        ]
        return (gaps[0] + gaps[1]) / (2 * max(rows.stop - rows.start, 1))


def _divergence(u: Tensor, v: Tensor, scale: Tensor, w: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Summed KL of the student's rows ``u`` against columns ``v`` from the teacher's ``w`` against ``x``."""
    ours, theirs = ((u @ v.T) * scale).log_softmax(dim=-1), ((w @ x.T) * known).log_softmax(dim=-1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True)


# What a teacher may be asked for, by ``kind``.
TEACHING = {"scores": score_divergence, "vectors": vector_distance}
