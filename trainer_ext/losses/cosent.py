"""CoSENT: a loss for pairs of texts with scores, of which only the order counts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer_ext.losses.logits import compute_dtype, inverse_temperature, unit


def cosent(first: Tensor, second: Tensor, scores: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    """CoSENT for scored pairs (STS): a pair with a higher score should have the higher cosine.

        ln( 1 + sum over (i, j) with score_i > score_j of exp( (c_j - c_i) / t ) ),   c_i = cosine of pair i

    Args:
        first: (k, dim). second: (k, dim). scores: (k,), on any scale; only their order counts, equal ones are not
            compared. temperature: t, a number or a tensor of one element.

    The double sum is taken over the sorted scores, in k log k steps and without a (k, k) matrix. It does not split
    into rows: with many processes, compute it on the gathered tensors in each of them.

    Source of the formula: kexue.fm/archives/8847.

    >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    >>> round(cosent(x, y, torch.tensor([5.0, 0.0]), temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    if first.ndim != 2 or first.shape != second.shape or scores.shape != first.shape[:1]:
        raise ValueError(
            f"first {tuple(first.shape)} and second {tuple(second.shape)} must both be (batch, dim) "
            f"and scores {tuple(scores.shape)} (batch,)."
        )
    with torch.autocast(device_type=first.device.type, enabled=False):
        dtype = compute_dtype(first, second)
        cosines = (unit(first, dtype) * unit(second, dtype)).sum(dim=-1)
        ordered, order = scores.detach().to(first.device).sort()
        logits = (cosines * inverse_temperature(temperature, cosines))[order]
        # sums[n] = ln sum of exp(logits) over the n lowest scores; -inf for none of them
        sums = F.pad(logits.logcumsumexp(dim=0), (1, 0), value=-torch.inf)
        lower = torch.searchsorted(ordered, ordered)  # how many scores are strictly lower
        terms = (sums[lower] - logits)[lower > 0]
        return F.softplus(terms.logsumexp(dim=0)) if len(terms) else logits.sum() * 0.0
