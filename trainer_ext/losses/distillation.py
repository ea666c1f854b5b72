"""What a teacher adds to a side's loss: its scores of the batch's pairs as a target, its vectors, or its margins.

``score_divergence`` and ``vector_distance`` take queries and targets, (k, dim) raw vectors of the gathered batch, of
student and teacher, and are means over ``rows``, the part that this process answers for; they want
``Shard.weight`` as a loss does. ``margin_error`` is of this process's rows alone: they do not meet each other. No
gradient reaches the teacher. Against itself a model has a loss and a gradient of zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer_ext.losses.gather import Shard, gather_ids, shard_of
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


class MarginTeacher(Protocol):
    """What ``margin_term`` asks of a recipe's teacher."""

    @property
    def weight(self) -> float:
        """Of the term."""

    @property
    def scale(self) -> float:
        """Divides the margins."""

    def margin_sides(self) -> frozenset[Any]:
        """The sides whose margins it gives."""


def margin_term(
    teacher: MarginTeacher | None,
    name: str,
    columns: Sequence[str],
    batch: Mapping[str, Any],
    embeddings: Mapping[str, Any],
) -> dict[str, tuple[float, Tensor]]:
    """The term of a side whose teacher gives margins, with its weight; its mean over processes is the whole batch's.

    Args:
        columns: the side's queries, targets and negatives, as ``embeddings`` and their ``teacher`` have them.
        batch: the side's; its ``margins`` come before the teacher's vectors. Without both, rows are held out or vectors
            at chance: there is no term, and the loss alone counts.
    """
    if teacher is None or name not in teacher.margin_sides() or not ("margins" in batch or "teacher" in embeddings):
        return {}
    if "margins" in batch:
        margins = batch["margins"]
    else:
        queries, positives, negatives = (embeddings["teacher"][column] for column in columns)
        margins = cosine_margins(queries, positives, negatives)
    queries, positives, negatives = (embeddings[column] for column in columns)
    value = margin_error(queries, positives, negatives, margins / teacher.scale)
    return {"teacher": (teacher.weight, value * shard_of(queries).weight)}


def margin_error(queries: Tensor, positives: Tensor, negatives: Tensor, margins: Tensor) -> Tensor:
    """Mean squared difference between the margins of these vectors and a teacher's.

        mean_im ( s(q_i, p_i) - s(q_i, n_im) - M_im )^2

    It is MarginMSE (arXiv 2010.02666; ``MarginMSELoss`` of sentence-transformers) with s the cosine: what a search
    compares is unit vectors. The library's default is the dot product, the same for a model that normalises. Unlike a
    contrast it knows mistaken negatives: of one that is as good as the right answer the teacher's margin is 0 or below.

    Args:
        queries: (rows, dim). positives: likewise.
        negatives: (rows * m, dim), row by row.
        margins: (rows, m) of the teacher, from -2 to 2 as far as cosines can follow.

    >>> x = torch.eye(2)
    >>> margin_error(x, x, x.flip(0), torch.tensor([[1.0], [0.5]])).item()
    0.125
    """
    found = cosine_margins(queries, positives, negatives)
    return (found - margins.detach().to(found.dtype)).square().sum() / max(found.numel(), 1)


def cosine_margins(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """(rows, m): the cosine of each query and its positive, less those of the query and its negatives.

    >>> x = torch.eye(2)
    >>> cosine_margins(x, 2 * x, torch.cat([x, x])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        dtype = compute_dtype(queries, positives, negatives)
        q, p, n = (unit(vectors, dtype) for vectors in (queries, positives, negatives))
        each = n.unflatten(0, (len(q), -1)) if len(q) else n.reshape(0, 1, n.shape[-1])  # (rows, m, dim)
        return (q * p).sum(dim=-1, keepdim=True) - torch.einsum("rd,rmd->rm", q, each)


def _divergence(u: Tensor, v: Tensor, scale: Tensor, w: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Summed KL of the student's rows ``u`` against columns ``v`` from the teacher's ``w`` against ``x``."""
    ours, theirs = ((u @ v.T) * scale).log_softmax(dim=-1), ((w @ x.T) * known).log_softmax(dim=-1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True)


# What a teacher may be asked for of a batch's pairs, by ``kind``.
TEACHING = {"scores": score_divergence, "vectors": vector_distance}
