"""Parameter groups and the learning-rate schedule over stages.

Both are pure functions: of the parameters, and of the global step. Nothing has to be stored for a resume.
"""

import math
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer_ext.recipe import Schedule, Stage


def stage_at(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """(index of the stage, step within it) of the optimizer step ``step``, counted from 0.

    Raises:
        IndexError: the step lies behind the last stage.

    >>> stages = [Stage(name=name, steps=3, learning_rate=1.0, max_length=8) for name in ("pairs", "long")]
    >>> stage_at(stages, 2), stage_at(stages, 3)
    ((0, 2), (1, 0))
    """
    for index, stage in enumerate(stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise IndexError(f"the {len(stages)} stages end {step} steps before the step asked for")


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay acts on: those with at least two dimensions.

    Biases, norms and the logit scale have fewer, and decay would pull the temperature to 1 (arXiv 2405.20204,
    section 3).

    >>> decay_parameter_names(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
    ['0.weight']
    """
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]


def peak_learning_rate(stages: Sequence[Stage]) -> float:
    """The largest peak of all stages: the optimizer's base rate, of which each step takes a share."""
    return max(stage.learning_rate for stage in stages)


def stage_share(step: int, steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """Share of a stage's peak rate at its own step (from 0): linear warm-up, then decay towards 0 at its end.

    The first step already moves (1 / warmup_steps), and the peak is reached at the end of the warm-up.

    >>> [round(stage_share(step, 6, 2, "linear"), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    shapes = {
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": lambda: 1.0 - progress,
        "constant": lambda: 1.0,
    }
    return shapes[schedule]()


def learning_rate_share(stages: Sequence[Stage]) -> Callable[[int], float]:
    """Function of the global step: its learning rate as a share of ``peak_learning_rate(stages)``.

    After the last step it stays at the last step's value (a scheduler asks for one step more than is trained).
    """
    base = peak_learning_rate(stages)
    last = sum(stage.steps for stage in stages) - 1

    def share(step: int) -> float:
        index, inner = stage_at(stages, min(step, last))
        stage = stages[index]
        return stage.learning_rate / base * stage_share(inner, stage.steps, stage.warmup_steps, stage.schedule)

    return share


def stage_scheduler(optimizer: Optimizer, stages: Sequence[Stage]) -> LambdaLR:
    """One scheduler for all stages; ``optimizer`` must have ``peak_learning_rate(stages)`` as its rate."""
    return LambdaLR(optimizer, learning_rate_share(stages))
