"""Parameter groups by dimension, and the learning rate of every step against the formulas."""

import math

import pytest
import torch
from torch import nn

from trainer_ext.recipe.schema import Side
from trainer_ext.recipe.stages import Stage
from trainer_ext.training.optimization import (
    decay_parameter_names,
    learning_rate_share,
    peak_learning_rate,
    stage_scheduler,
    stage_share,
)
from trainer_ext.training.stages import stage_at


def make_stage(name: str, steps: int, learning_rate: float, **more: object) -> Stage:
    side = Side(sources=["any"], batch_size=2)
    return Stage(name=name, steps=steps, learning_rate=learning_rate, max_length=8, image_text=side, **more)


STAGES = [
    make_stage("pairs", 6, 1e-3, warmup_steps=2),
    make_stage("long", 1, 5e-4, schedule="constant"),
    make_stage("hard", 4, 2e-3, schedule="linear", warmup_steps=1),
]


@pytest.mark.parametrize(("step", "expected"), [(0, (0, 0)), (5, (0, 5)), (6, (1, 0)), (7, (2, 0)), (10, (2, 3))])
def test_stage_of_a_step(step: int, expected: tuple[int, int]) -> None:
    assert stage_at(STAGES, step) == expected


def test_step_behind_the_last_stage_is_an_error() -> None:
    with pytest.raises(IndexError, match="3 stages end 2 steps before"):
        stage_at(STAGES, 13)


def test_decay_leaves_out_vectors_and_scalars() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(4, 3)
            self.linear = nn.Linear(3, 3)
            self.norm = nn.LayerNorm(3)
            self.logit_scale = nn.Parameter(torch.tensor(2.6))

    assert decay_parameter_names(Model()) == ["embedding.weight", "linear.weight"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_share_rises_to_the_peak_and_ends_above_zero(schedule: str) -> None:
    shares = [stage_share(step, 10, 4, schedule) for step in range(10)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    ends = {"cosine": 0.5 * (1 + math.cos(math.pi * 5 / 6)), "linear": 1 / 6, "constant": 1.0}
    assert shares[-1] == pytest.approx(ends[schedule])


def test_schedule_follows_each_stages_own_peak() -> None:
    assert peak_learning_rate(STAGES) == 2e-3
    share = learning_rate_share(STAGES)
    rates = [2e-3 * share(step) for step in range(11)]
    assert rates[:2] == pytest.approx([5e-4, 1e-3])  # warm-up of the first stage
    assert rates[6] == pytest.approx(5e-4)  # the whole second stage
    assert rates[7:] == pytest.approx([2e-3, 2e-3, 2e-3 * 2 / 3, 2e-3 / 3])
    assert share(11) == share(10)  # a scheduler is stepped once more than the optimizer


def test_scheduler_gives_every_group_the_stages_rates_and_stores_only_its_count() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = torch.optim.AdamW(groups, lr=peak_learning_rate(STAGES))
    scheduler = stage_scheduler(optimizer, STAGES)
    for step in range(11):
        expected = peak_learning_rate(STAGES) * learning_rate_share(STAGES)(step)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, expected])
        optimizer.step()
        scheduler.step()
    assert scheduler.state_dict()["lr_lambdas"] == [None, None]
