"""The averaged weights against their formula, and to the same bits after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, trained
from trainer_ext.files import damage


class Weights(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.history: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.history.append({name: value.detach().clone() for name, value in model.named_parameters()})


def test_the_average_follows_its_formula(make_trainer: RunFactory, tmp_path: Path) -> None:
    weights = Weights()
    trainer = trained(make_trainer(tmp_path / "ema", "ema_decay=0.8", callbacks=[weights]))
    averaged = dict(trainer.average.model.named_parameters())
    for name, value in averaged.items():
        expected = weights.history[0][name]
        for later in weights.history[1:]:
            expected = 0.8 * expected + 0.2 * later[name]
        torch.testing.assert_close(value, expected, msg=name)
    assert not torch.equal(averaged["vision_model.norm.weight"], weights.history[-1]["vision_model.norm.weight"])


@pytest.mark.slow
def test_training_takes_no_notice_of_the_average(make_trainer: RunFactory, tmp_path: Path) -> None:
    averaged = trained(make_trainer(tmp_path / "ema", "ema_decay=0.8"))
    plain = trained(make_trainer(tmp_path / "plain"))
    assert plain.average is None
    assert_same_weights(averaged.model, plain.model)


@pytest.mark.parametrize("steps", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)])
def test_a_resumed_average_has_the_same_bits(make_trainer: RunFactory, tmp_path: Path, steps: int) -> None:
    overrides = ["ema_decay=0.8", "save_steps=1", "save_total_limit=null"]
    whole = trained(make_trainer(tmp_path / "whole", *overrides))
    checkpoint = tmp_path / "whole" / f"checkpoint-{steps}"
    assert damage(checkpoint) is None
    resumed = trained(make_trainer(tmp_path / "resumed", *overrides), checkpoint)
    assert_same_weights(resumed.average.model, whole.average.model)
    assert torch.equal(resumed.average.averaged.n_averaged, whole.average.averaged.n_averaged)


def test_a_checkpoint_without_an_average_is_refused(make_trainer: RunFactory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no ema.safetensors.*without ema_decay"):
        make_trainer(tmp_path, "ema_decay=0.8").average.load(tmp_path)
