"""Parameter groups and the learning-rate schedule over stages.

Pure functions of the parameters and of the global step, so a resume needs nothing stored.

1. The base class makes the optimizer (``optim`` names it) with two groups, with and without weight decay.
2. ``split_groups`` cuts each into parameters of the same peak rate in every stage: a stage may give a part of the model
   a rate of its own, and a tower's layers rates that fall towards its input.
3. One scheduler moves all groups: at each step a group has its peak of that stage times the stage's share.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer_ext.recipe.stages import LayerDecay, Schedule, Stage, Tower
from trainer_ext.training.model_parts import layers_above, part_of, tower_depths, tower_of
from trainer_ext.training.stages import stage_at

# Key of a parameter group that holds its peak rate in each stage.
PEAKS = "stage_peaks"


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


def parameter_peak(stage: Stage, name: str, depths: Mapping[Tower, int]) -> float:
    """The peak rate of a parameter in a stage: its part's own rate or the stage's, with the decay of its layer.

    Args:
        depths: number of transformer blocks of each tower.

    >>> stage = Stage(name="a", steps=1, learning_rate=1.0, max_length=8, learning_rates={"text": 0.5}, layer_decay=0.5)
    >>> names = ["text_model.proj.weight", "text_model.encoder.layers.0.wo.bias", "vision_model.norm.bias"]
    >>> [parameter_peak(stage, name, {"text": 2, "vision": 2}) for name in names]
    [0.5, 0.125, 1.0]
    """
    part = part_of(name)
    tower = tower_of(part)
    rate = stage.learning_rates.get(part, stage.learning_rates.get(tower or part, stage.learning_rate))
    decay = stage.layer_decay
    decay = getattr(decay, tower or "", 1.0) if isinstance(decay, LayerDecay) else decay
    return rate if tower is None else rate * decay ** layers_above(name, depths.get(tower, 0))


def split_groups(optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]], stages: Sequence[Stage]) -> None:
    """Cut the groups of a new optimizer into those of equal peaks in every stage, the fastest first.

    Each group keeps its other settings and gets its peaks. A parameter that a stage freezes has no gradient, so the
    optimizer skips it whatever its rate.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD([*layer.parameters()], lr=1.0)
    >>> named = zip(["text_model.proj.weight", "vision_model.head.bias"], layer.parameters())
    >>> stage = Stage(name="a", steps=1, learning_rate=1.0, max_length=8, learning_rates={"vision": 4.0})
    >>> split_groups(optimizer, named, [stage])
    >>> [(tuple(group["params"][0].shape), group["stage_peaks"]) for group in optimizer.param_groups]
    [((2,), [4.0]), ((2, 2), [1.0])]
    """
    names = {parameter: name for name, parameter in parameters}
    depths = tower_depths(names.values())
    split: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_peaks: dict[tuple[float, ...], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            peaks = tuple(parameter_peak(stage, names[parameter], depths) for stage in stages)
            by_peaks.setdefault(peaks, []).append(parameter)
        split += [{**group, "params": by_peaks[peaks], PEAKS: list(peaks)} for peaks in sorted(by_peaks, reverse=True)]
    optimizer.param_groups[:] = split


def learning_rate_share(stages: Sequence[Stage], peaks: Sequence[float] | None = None) -> Callable[[int], float]:
    """Function of the global step: its learning rate as a share of ``peak_learning_rate(stages)``.

    ``peaks`` are the rates of each stage where they are not the stages' own. After the last step the share stays at the
    last step's value (a scheduler asks for one step more than is trained).
    """
    base = peak_learning_rate(stages)
    peaks = [stage.learning_rate for stage in stages] if peaks is None else peaks
    last = sum(stage.steps for stage in stages) - 1

    def share(step: int) -> float:
        index, inner = stage_at(stages, min(step, last))
        stage = stages[index]
        return peaks[index] / base * stage_share(inner, stage.steps, stage.warmup_steps, stage.schedule)

    return share


def stage_scheduler(optimizer: Optimizer, stages: Sequence[Stage]) -> LambdaLR:
    """One scheduler for all stages; ``optimizer`` must have ``peak_learning_rate(stages)`` as its rate."""
    shares = [learning_rate_share(stages, group.get(PEAKS)) for group in optimizer.param_groups]
    return LambdaLR(optimizer, shares)
