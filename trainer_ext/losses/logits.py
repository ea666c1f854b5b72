"""What all losses share: unit vectors and logits in fp32, the temperature, checks of arguments."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their length: a zero vector gives zeros, not NaN."""


def check_tile_size(tile_size: int | None) -> None:
    """Refuse a tile size that is not positive."""
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"tile_size {tile_size} must be positive, or None for the whole matrix at once.")


@dataclass(frozen=True)
class Softmax:
    """What a softmax over candidates does besides the paper's formula; the defaults do nothing.

    ``label_smoothing``: the share of the target that all candidates have alike. ``hardness``: the factor of the cosines
    that are added to the logits of negatives, without gradient. ``info_nce`` has the formulas.

    >>> Softmax(label_smoothing=1.0)
    Traceback (most recent call last):
    ValueError: label_smoothing 1.0 must be at least 0 and less than 1.
    """

    label_smoothing: float = 0.0
    hardness: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} must be at least 0 and less than 1.")
        if not 0 <= self.hardness < math.inf:
            raise ValueError(f"hardness {self.hardness} must be a number of at least 0.")

    def harder(self, logits: Tensor, scale: Tensor, positives: Tensor | None, own: int | None) -> Tensor:
        """Logits (rows, columns) with those of negatives raised.

        Args:
            logits: scale times the cosines.
            positives: (rows, columns) bool; None if only the ``own``-th diagonal holds positives, and with None for
                that, too, nothing does.
        """
        if not self.hardness:
            return logits
        added = logits.detach() * (self.hardness / scale.detach())
        if positives is not None:
            added.masked_fill_(positives, 0.0)
        elif own is not None:
            added.diagonal(own).zero_()
        return logits + added


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp32 for everything but fp64 input: half precision loses small differences between logits."""
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


MAX_LOGIT_SCALE = math.log(100.0)
"""Upper end of the trainable logit scale: temperature 0.01."""


def clamped_temperature(logit_scale: Tensor) -> Tensor:
    """The temperature exp(-clamp(logit_scale, 0, ln 100)) of a trainable logit scale: from 1 down to 0.01.

    The value is clamped, its gradient is not: a scale that a step moved over the edge still gets the loss's gradient
    and can come back. ``clamp_logit_scale_`` after each step keeps the parameter itself inside.

    >>> [round(t, 4) for t in clamped_temperature(torch.tensor([2.6593, 9.0, -1.0])).tolist()]
    [0.07, 0.01, 1.0]
    """
    scale = logit_scale.to(compute_dtype(logit_scale))
    inside = scale.detach().clamp(0.0, MAX_LOGIT_SCALE)
    return torch.exp(-(inside + (scale - scale.detach())))


def clamp_logit_scale_(logit_scale: Tensor) -> None:
    """Put the parameter back into [0, ln 100], in place; call it after each optimiser step.

    >>> scale = torch.nn.Parameter(torch.tensor(9.0))
    >>> clamp_logit_scale_(scale)
    >>> round(scale.item(), 4)
    4.6052
    """
    with torch.no_grad():
        logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
