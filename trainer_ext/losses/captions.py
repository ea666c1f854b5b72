"""Several captions a picture (DreamLIP, arXiv 2403.17007): a loss for each of their slots; and a short one (Long-CLIP).

With K captions of each of B pictures, T_k the k-th ones,

    L = 1/K sum_k loss(I, T_k)

Each slot is a batch of B pairs by itself: its own denominators, and its own texts that are equal by chance. Captions of
other slots are no candidates, so a picture's own further captions never are its negatives.

A short caption names what is most of a picture, a long one its details. The primary component matching of Long-CLIP
(arXiv 2403.15378, section 3) contrasts short captions S with the main directions of the pictures' unit vectors alone:

    loss(I', S),   I' = (I - mean) V V' + mean

V holds the first principal components of the whole batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer_ext.losses.logits import compute_dtype, unit

# Of a side: its loss, terms beside it with their weights, what is logged.
SideLosses = tuple[Tensor, dict[str, tuple[float, Tensor]], tuple[Tensor, Tensor, Tensor]]
# A batch's ids, gathered vectors of its columns, a teacher's own ones.
Slot = tuple[dict[str, Any], list[Tensor], dict[str, Tensor] | None]


def per_picture(captions: Tensor, pictures: int, count: int) -> Tensor:
    """(pictures, count, ...) of what is flat, picture by picture.

    Raises:
        ValueError: there are not as many.

    >>> per_picture(torch.arange(6), 3, 2).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    if len(captions) != pictures * count:
        raise ValueError(
            f"captions_per_image is {count}, but the batch has {len(captions)} captions for {pictures} pictures: hand "
            "the stages to JointDataset, too"
        )
    return captions.unflatten(0, (pictures, count))


def slots(batch: Mapping[str, Any], vectors: Sequence[Tensor], teacher: Mapping[str, Tensor] | None) -> Iterator[Slot]:
    """The batch once for each slot, with one caption a picture.

    Args:
        batch: of this process; its ``text_ids`` (rows * captions,) are flat.
        vectors: of pictures (B, dim) and captions (B, captions, dim) of all processes.
        teacher: embeddings of this process, ``caption`` flat.
    """
    pictures, captions = vectors
    count = captions.shape[1]
    for place in range(count):
        known = None if teacher is None else {**teacher, "caption": teacher["caption"][place::count]}
        yield {**batch, "text_ids": batch["text_ids"][place::count]}, [pictures, captions[:, place]], known


def mean_of_slots(found: Sequence[SideLosses]) -> SideLosses:
    """The mean of the losses, of each term and of each figure.

    >>> one, two = torch.tensor(1.0), torch.tensor(2.0)
    >>> mean_of_slots([(one, {"alignment": (0.5, one)}, (one,) * 3), (two, {"alignment": (0.5, two)}, (two,) * 3)])[:2]
    (tensor(1.5000), {'alignment': (0.5, tensor(1.5000))})
    """
    losses, terms, measured = zip(*found, strict=True)
    added = {name: (weight, _mean([each[name][1] for each in terms])) for name, (weight, _) in terms[0].items()}
    accuracy, of_pictures, of_captions = (_mean(figures) for figures in zip(*measured, strict=True))
    return _mean(losses), added, (accuracy, of_pictures, of_captions)


def principal_part(vectors: Tensor, components: int) -> Tensor:
    """Unit vectors (B, dim), moved onto the plane of their first principal components; ``I'`` of the module's text.

    The gradient flows to the vectors through their mean and their place, not through V, which comes from a singular
    value decomposition in fp32 (fp64 for fp64 input). A direction in which the vectors do not differ is no component:
    it would be one of rounding errors, and so would its gradient. With all components the vectors stay as they are.

    Raises:
        ValueError: more components than vectors or dimensions.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    >>> torch.equal(principal_part(x, 2).round(decimals=5), x)
    True
    """
    most = min(vectors.shape)
    if not 1 <= components <= most:
        raise ValueError(
            f"{components} principal components of {len(vectors)} vectors of {vectors.shape[1]} dimensions: there are "
            f"at most {most}"
        )
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        units = unit(vectors, compute_dtype(vectors))
        mean = units.mean(dim=0)
        centered = units - mean
        # What is not finite ends the run by its loss, with a better message than the decomposition's.
        triangle = torch.linalg.qr(centered.detach().nan_to_num(), mode="r").R  # the same V, of at most dim rows
        found = torch.linalg.svd(triangle, full_matrices=False)
        basis = found.Vh[:components].T
        if components < vectors.shape[1]:
            basis = basis * (found.S[:components] > torch.finfo(units.dtype).eps * max(vectors.shape))
        return centered @ basis @ basis.T + mean


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
