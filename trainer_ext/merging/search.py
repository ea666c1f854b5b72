"""Weights and scale by gradient descent on a loss (Self Positioning, arXiv 2410.15035).

The models stay as they are; only a, one number a model, and the scale move. With tau_k = theta_k - theta0:

    theta = theta0 + scale * sum_k weight_k tau_k,    weight = softmax(a)

1. put the model at theta, and get g, the loss's gradient there, by one backward pass;
2. <g, tau_k> for each model, tensor by tensor: more memory than one model with its gradients is not needed;
3. by the chain rule, with c_k = scale * <g, tau_k>:
   dL/da_k = weight_k (c_k - sum_j weight_j c_j)  and  dL/dscale = sum_k weight_k <g, tau_k>;
4. one step of SGD.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trainer_ext.merging.arithmetic import Position, combined, shares_of
from trainer_ext.recipe.stages import Stage
from trainer_ext.training.monitoring import NonFiniteError
from trainer_ext.training.optimization import stage_scheduler

Weights = Mapping[str, Tensor]


def descend(
    model: nn.Module,
    base: Weights,
    models: Sequence[Weights],
    position: Position,
    losses: Iterable[Callable[[], Tensor]],
    stage: Stage,
) -> tuple[Position, list[float]]:
    """Take one step for each of ``losses``.

    Args:
        model: has the tensors of ``base``, in float32; it is left at the last position but one.
        position: where the search begins.
        losses: each gives the loss of ``model`` as it is when called, with its graph.
        stage: its learning rate, warm-up and schedule are those of SGD.

    Returns:
        the position found, and the loss of each step.

    Raises:
        ValueError: the loss is not finite any more.
    """
    logits = torch.tensor([math.log(weight) for weight in position.weights], dtype=torch.float64)
    scale = torch.tensor(position.scale, dtype=torch.float64)
    optimizer = torch.optim.SGD([logits, scale], lr=stage.learning_rate)
    scheduler = stage_scheduler(optimizer, [stage])
    found: list[float] = []
    with tqdm(total=stage.steps, desc="searching", unit="step", disable=None) as bar:
        for loss_of in losses:
            place(model, base, models, shares_of(logits.softmax(0).tolist(), scale.item()))
            model.zero_grad(set_to_none=True)
            try:
                loss = loss_of()
            except NonFiniteError as error:
                loss = torch.tensor(math.nan)
                raise _diverged(len(found), scale.item(), stage) from error
            if not torch.isfinite(loss):
                raise _diverged(len(found), scale.item(), stage)
            loss.backward()
            slopes = inner_products(model, base, models)
            logits.grad, scale.grad = position_gradient(slopes, logits.softmax(0), scale)
            optimizer.step()
            scheduler.step()
            scale.clamp_(min=0.0)
            found.append(loss.item())
            shown = " ".join(f"{weight:.3f}" for weight in logits.softmax(0).tolist())
            bar.set_postfix_str(f"loss {loss.item():.4f}, weights {shown}, scale {scale.item():.3f}")
            bar.update()
    return Position(logits.softmax(0).tolist(), scale.item()), found


@torch.no_grad()
def place(model: nn.Module, base: Weights, models: Sequence[Weights], shares: Sequence[float]) -> None:
    """Give the model the merged weights; ``shares`` are those of base and models."""
    own = model.state_dict(keep_vars=True)
    for name in base:
        value = base[name].to(own[name].dtype)
        if value.is_floating_point():
            value = combined(value, [other[name] for other in models], shares)
        own[name].copy_(value)


@torch.no_grad()
def inner_products(model: nn.Module, base: Weights, models: Sequence[Weights]) -> Tensor:
    """<g, theta_k - theta0> for each model: (models,), float64. A parameter without a gradient counts for nothing."""
    products = torch.zeros(len(models), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient, start = parameter.grad.cpu().double(), base[name].double()
            for number, other in enumerate(models):
                products[number] += (gradient * (other[name].double() - start)).sum()
    return products


def position_gradient(slopes: Tensor, weights: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The chain rule: dL/da (models,) and dL/dscale from ``slopes`` = <g, tau_k>.

    >>> position_gradient(torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor(2.0))
    (tensor([ 0.5000, -0.5000]), tensor(1.5000))
    """
    along = weights @ slopes
    return weights * scale * (slopes - along), along


def _diverged(step: int, scale: float, stage: Stage) -> ValueError:
    return ValueError(
        f"the search's loss is not finite at step {step + 1}, scale {scale:.4g}: lower the learning_rate of stage "
        f"{stage.name!r} ({stage.learning_rate:g})"
    )
