"""The search for weights and scale: its gradient, a planted optimum, and a probe's own losses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.merging.families import weights_of
from tests.trainer_ext.tiny_run import deep_preset
from trainer_ext import merge
from trainer_ext.__main__ import main
from trainer_ext.losses import info_nce
from trainer_ext.merging.arithmetic import Position, combined, shares_of
from trainer_ext.merging.parents import open_parents
from trainer_ext.merging.probe import _as_probe, losses_of, probe_trainer
from trainer_ext.merging.search import descend, inner_products, place, position_gradient
from trainer_ext.recipe.stages import Stage

few = settings(max_examples=25, deadline=None, derandomize=True)


class Tower(nn.Module):
    """Two layers and a temperature, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
        self.logit_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        queries, targets = self.layers(left), self.layers(right)
        return info_nce(queries, targets, temperature=torch.exp(-self.logit_scale))


def towers(count: int, seed: int = 0) -> tuple[Tower, list[dict[str, Tensor]]]:
    """A model, and the weights of ``count`` others near each other."""
    torch.manual_seed(seed)
    model = Tower()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    return model, [{name: value + 0.3 * torch.randn_like(value) for name, value in start.items()} for _ in range(count)]


def rows(seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return left, left + 0.1 * torch.randn(6, 5, generator=generator, dtype=torch.float64)


def found_gradient(
    model: nn.Module, base: dict, models: list[dict], logits: Tensor, scale: Tensor, loss: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    weights = logits.softmax(0)
    place(model, base, models, shares_of(weights.tolist(), scale.item()))
    model.zero_grad()
    loss().backward()
    return position_gradient(inner_products(model, base, models), weights, scale)


positions = st.tuples(st.lists(st.floats(-2, 2), min_size=1, max_size=3), st.floats(0.05, 1.5))


@few
@given(positions)
def test_gradient_is_autograds(position: tuple[list[float], float]) -> None:
    """An implementation of its own: autograd through softmax, the formula and ``functional_call``."""
    logits, scale = (torch.tensor(value, dtype=torch.float64) for value in position)
    model, [base, *models] = towers(len(logits) + 1)
    left, right = rows()
    found = found_gradient(model, base, models, logits, scale, lambda: model(left, right))
    a, size = logits.clone().requires_grad_(), scale.clone().requires_grad_()
    weights = a.softmax(0)
    merged = {
        name: base[name] + size * sum(weights[k] * (other[name] - base[name]) for k, other in enumerate(models))
        for name in base
    }
    expected = torch.autograd.grad(functional_call(model, merged, (left, right)), [a, size])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@few
@given(positions)
def test_gradient_by_finite_differences(position: tuple[list[float], float]) -> None:
    logits, scale = (torch.tensor(value, dtype=torch.float64) for value in position)
    model, [base, *models] = towers(len(logits) + 1)
    left, right = rows()

    def loss_at(a: Tensor, size: Tensor) -> float:
        place(model, base, models, shares_of(a.softmax(0).tolist(), size.item()))
        return model(left, right).item()

    found = found_gradient(model, base, models, logits, scale, lambda: model(left, right))
    step = 1e-5
    for k, ours in enumerate(found[0]):
        moved = step * nn.functional.one_hot(torch.tensor(k), len(logits))
        slope = (loss_at(logits + moved, scale) - loss_at(logits - moved, scale)) / (2 * step)
        assert ours.item() == pytest.approx(slope, rel=1e-4, abs=1e-7)
    slope = (loss_at(logits, scale + step) - loss_at(logits, scale - step)) / (2 * step)
    assert found[1].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def search_stage(steps: int, rate: float, **keys: Any) -> Stage:
    return Stage(name="probe", steps=steps, learning_rate=rate, max_length=8, schedule="constant", **keys)


@pytest.mark.parametrize(
    ("weights", "scale"), [([0.7, 0.3], 0.6), ([0.1, 0.9], 1.2), ([0.2, 0.3, 0.5], 0.9), ([1.0], 0.4)]
)
def test_a_planted_optimum_is_found(weights: list[float], scale: float) -> None:
    """The loss is the distance to merged weights; from equal weights and scale 1 the search comes back to them."""
    model, [base, *models] = towers(len(weights) + 1, seed=2)
    planted = {
        name: combined(base[name], [other[name] for other in models], shares_of(weights, scale)) for name in base
    }

    def distance() -> Tensor:
        return sum((value - planted[name]).square().sum() for name, value in model.named_parameters())

    start = Position([1 / len(weights)] * len(weights), 1.0)
    steps = 300
    found, losses = descend(model, base, models, start, [distance] * steps, search_stage(steps, 0.06))
    assert found.scale == pytest.approx(scale, abs=1e-3)
    assert found.weights == pytest.approx(weights, abs=1e-3)
    assert math.fsum(found.weights) == pytest.approx(1.0)
    assert losses[0] > losses[-1] >= 0
    assert losses[-1] < 1e-6


def test_the_scale_does_not_fall_below_0() -> None:
    """Nothing lies behind the base that the models tell of."""
    model, [base, other] = towers(2)

    def away() -> Tensor:
        return sum((value * (other[name] - base[name])).sum() for name, value in model.named_parameters())

    found, _ = descend(model, base, [other], Position([1.0], 0.1), [away] * 3, search_stage(3, 1.0))
    assert found.scale == 0.0


def test_a_rate_that_is_too_high_is_one_line() -> None:
    model, [base, *models] = towers(3)
    left, right = rows()
    losses = [lambda: model(left, right) * math.inf] * 2
    with pytest.raises(ValueError, match=r"not finite at step 1, scale 1: lower the learning_rate of stage 'probe'"):
        descend(model, base, models, Position([0.5, 0.5], 1.0), losses, search_stage(2, 1.0))


# --- a probe -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one stage with both sides, on the tiny data."""
    content = yaml.safe_load(tiny_recipe.read_text())
    content["stages"] = content["stages"][:1]
    content["stages"][0] |= {"steps": 4, "learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}
    content |= {"evaluation": None}
    path = tmp_path_factory.mktemp("probe") / "probe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_probes_own_losses(probe: Path, family: Path, tmp_path: Path) -> None:
    """Joint losses of both sides of the real model, its temperature included: against autograd through the position."""
    base, models = open_parents(family / "base", [family / "a", family / "b"], print)
    recipe = _as_probe(probe, print)
    model = JinaCLIPModel.from_pretrained(base.folder, dtype=torch.float32)
    trainer = probe_trainer(recipe, model, base, str(tmp_path))
    loss_of = next(iter(losses_of(trainer)))
    logits, scale = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    weights = [{**other.weights} for other in models]
    found = found_gradient(model, {**base.weights}, weights, logits, scale, loss_of)
    assert model.logit_scale.grad is not None
    a, size = logits.clone().requires_grad_(), scale.clone().requires_grad_()
    shares = a.softmax(0)
    originals = dict(model.named_parameters())
    merged = {
        name: (base.weights[name].double() + size * sum(
            shares[k] * (other[name].double() - base.weights[name].double()) for k, other in enumerate(weights)
        )).float()
        for name in originals
    }  # fmt: skip
    for name, value in merged.items():  # as functional_call does, but the loss takes the model as it is
        owner, _, last = name.rpartition(".")
        del model.get_submodule(owner)._parameters[last]
        setattr(model.get_submodule(owner), last, value)
    expected = torch.autograd.grad(loss_of(), [a, size])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)
    assert found[0].abs().max() > 1e-4


def test_the_command_searches_and_says_what_it_found(
    probe: Path, family: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(family / name) for name in ("base", "a", "b")]
    for name in ("m", "n"):
        assert main(["merge", *words, "--search", str(probe), "--output_dir", str(tmp_path / name)]) == 0
    printed = capfd.readouterr().out
    assert "search: weights 0." in printed
    assert "not used: tokenizer" in printed
    record = json.loads((tmp_path / "m" / "merge.json").read_text())
    found = [model["weight"] for model in record["models"]]
    assert found != [0.5, 0.5]
    assert record["scale"] != 1.0
    assert record["search"]["recipe"] == "tiny"
    assert len(record["search"]["losses"]) == 4
    again = merge(family / "base", [family / "a", family / "b"], tmp_path / "o", found, record["scale"])
    for folder in (tmp_path / "n", again):
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "m" / "model.safetensors").read_bytes()


def test_a_probe_leaves_earlier_layers_out_and_says_so(probe: Path, tmp_path: Path) -> None:
    """Which one is drawn depends on the step, and a search has none."""
    tree = yaml.safe_load(probe.read_text()) | {"model": str(deep_preset(tmp_path))}
    tree["matryoshka"] = {"dims": [16, 4], "layers": [2, 4]}
    (tmp_path / "layers.yaml").write_text(yaml.safe_dump(tree))
    said: list[str] = []
    prefixes = _as_probe(tmp_path / "layers.yaml", said.append).matryoshka
    assert prefixes is not None
    assert (prefixes.dims, prefixes.layers) == ([16, 4], None)
    assert said[0].endswith(", matryoshka.layers")


def test_a_search_begins_where_it_is_told_to(probe: Path, family: Path, tmp_path: Path) -> None:
    still = yaml.safe_load(probe.read_text())
    still["stages"][0] |= {"learning_rate": 1e-12}
    (tmp_path / "still.yaml").write_text(yaml.safe_dump(still))
    models = [family / "a", family / "b"]
    folder = merge(family / "base", models, tmp_path / "m", [0.8, 0.2], 0.3, probe=tmp_path / "still.yaml")
    plain = merge(family / "base", models, tmp_path / "n", [0.8, 0.2], 0.3)
    for name, value in weights_of(plain).items():
        torch.testing.assert_close(weights_of(folder)[name], value, rtol=0, atol=1e-6)


def test_switches_of_torch_decide_nothing(probe: Path, family: Path, tmp_path: Path) -> None:
    plain = merge(family / "base", [family / "a", family / "b"], tmp_path / "m", probe=probe)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            other = merge(family / "base", [family / "a", family / "b"], tmp_path / "n", probe=probe)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (other / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("openmoji", "--search openmoji has 3 stages (short-captions, long-captions, hard-negatives); a probe has one"),
        ("nothing.yaml", "No recipe 'nothing.yaml'"),
    ],
)
def test_what_is_no_probe_is_one_line(
    recipe: str, message: str, family: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", str(family / "base"), str(family / "a"), "--search", recipe, "--output_dir", str(tmp_path / "m")]
    assert main(words) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert message in line
    assert not (tmp_path / "m").exists()
