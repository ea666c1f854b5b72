"""The formula of merging, one tensor at a time: theta0 + scale * sum_k weight_k (theta_k - theta0).

With one model it is WiSE-FT (arXiv 2109.01903), with scale 1 a model soup (arXiv 2203.05482).
``shares`` are the coefficients of theta0, theta_1, ..., which add up to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Position:
    """Where the merged model lies: the models' weights, which add up to 1, and the scale; and how it was found."""

    weights: list[float]
    scale: float
    search: dict[str, Any] = field(default_factory=dict)


def normalized(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of ``count`` models that add up to 1: equal ones without ``weights``.

    Raises:
        ValueError: not one for each model, one that is not above 0, or a sum other than 1.

    >>> normalized(None, 2), normalized([0.6, 0.4], 2)
    ([0.5, 0.5], [0.6, 0.4])
    """
    if weights is None:
        return [1.0 / count] * count
    shown = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != count:
        raise ValueError(f"--weights {shown}: {len(weights)} for {count} models after BASE; give one for each")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"--weights {shown}: each must be above 0; leave out a model that counts for nothing")
    if not math.isclose(sum(weights), 1.0, rel_tol=0, abs_tol=1e-3):
        raise ValueError(
            f"--weights {shown} add up to {sum(weights):g}, not 1; divide each by it, and say with --scale how far "
            "from BASE the merged model shall be"
        )
    return [weight / math.fsum(weights) for weight in weights]


def check_scale(scale: float) -> float:
    """The scale, if it is one: 0 is the base, 1 the mean of the models.

    Raises:
        ValueError: below 0, infinite or not a number.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"--scale {scale:g}: must be 0 (the base) or above; 1 is the mean of the models, no base")
    return scale


def shares_of(weights: Sequence[float], scale: float) -> list[float]:
    """The coefficients of base and models.

    >>> shares_of([0.6, 0.4], 0.5)
    [0.5, 0.3, 0.2]
    """
    return [1.0 - scale, *(scale * weight for weight in weights)]


def combined(base: Tensor, models: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """One merged tensor, of the base's type; computed in float32, or in float64 where the base is.

    The one with the largest share is the point from which the others are added, so nothing is rounded where one share
    is 1 or where all tensors are the same.

    >>> combined(torch.zeros(2), [torch.ones(2)], shares_of([1.0], 0.25))
    tensor([0.2500, 0.2500])
    """
    dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
    parts = [base, *models]
    nearest = max(range(len(parts)), key=lambda place: shares[place])
    origin = parts[nearest].to(dtype)
    total = origin
    for place, (part, share) in enumerate(zip(parts, shares, strict=True)):
        if place != nearest and share:
            total = total + share * (part.to(dtype) - origin)
    return total.to(base.dtype)
