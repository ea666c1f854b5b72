"""The formula of merging: its ends, its closed form, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer_ext.merging.arithmetic import check_scale, combined, normalized, shares_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
few = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.floats(-100, 100, width=16)


@st.composite
def families(draw: st.DrawFn) -> tuple[Tensor, list[Tensor], list[float]]:
    """A base, models and weights, some of them with different types."""
    size, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    tensors = [
        torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=draw(st.sampled_from(DTYPES)))
        for _ in range(count + 1)
    ]
    raw = draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    return tensors[0], tensors[1:], normalized([weight / math.fsum(raw) for weight in raw], count)


@few
@given(families())
def test_scale_0_is_the_base(family: tuple[Tensor, list[Tensor], list[float]]) -> None:
    base, models, weights = family
    assert torch.equal(combined(base, models, shares_of(weights, 0.0)), base)


@few
@given(families())
def test_scale_1_is_the_one_model(family: tuple[Tensor, list[Tensor], list[float]]) -> None:
    base, models, _ = family
    assert torch.equal(combined(base, models[:1], shares_of([1.0], 1.0)), models[0].to(base.dtype))


@few
@given(families(), st.floats(0, 2))
def test_equal_models_stay_what_they_are(family: tuple[Tensor, list[Tensor], list[float]], scale: float) -> None:
    base, models, weights = family
    assert torch.equal(combined(base, [base] * len(models), shares_of(weights, scale)), base)


@few
@given(families())
def test_a_soup_of_one_model_is_that_model(family: tuple[Tensor, list[Tensor], list[float]]) -> None:
    base, models, weights = family
    same = [models[0].to(base.dtype)] * len(models)
    torch.testing.assert_close(combined(base, same, shares_of(weights, 1.0)), same[0])


@few
@given(families(), st.floats(0, 2))
def test_closed_form(family: tuple[Tensor, list[Tensor], list[float]], scale: float) -> None:
    """Against the formula as it is written, in float64; rounded once to the base's type."""
    base, models, weights = family
    exact = base.double() + scale * sum(w * (m.double() - base.double()) for w, m in zip(weights, models, strict=True))
    found = combined(base, models, shares_of(weights, scale))
    assert found.dtype == base.dtype
    room = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 0.3, torch.bfloat16: 2.0}[base.dtype]
    assert (found.double() - exact).abs().max() <= room


@few
@given(families(), st.floats(0, 1))
def test_between_the_smallest_and_the_largest(family: tuple[Tensor, list[Tensor], list[float]], scale: float) -> None:
    base, models, weights = family
    every = torch.stack([tensor.double() for tensor in (base, *models)])
    found = combined(base.double(), models, shares_of(weights, scale))
    assert (found >= every.amin(0) - 1e-9).all()
    assert (found <= every.amax(0) + 1e-9).all()


@few
@given(families(), st.floats(0, 2), st.randoms(use_true_random=False))
def test_the_order_of_models_does_not_matter(
    family: tuple[Tensor, list[Tensor], list[float]], scale: float, random: object
) -> None:
    base, models, weights = family
    order = list(range(len(models)))
    random.shuffle(order)
    mixed = combined(base.double(), [models[i] for i in order], shares_of([weights[i] for i in order], scale))
    torch.testing.assert_close(mixed, combined(base.double(), models, shares_of(weights, scale)), rtol=0, atol=1e-9)


def test_computed_in_float32_although_stored_in_less() -> None:
    """In bfloat16 the small difference between the models would be lost."""
    base, models = torch.tensor([256.0], dtype=torch.bfloat16), [torch.tensor([1.0]), torch.tensor([1.5])]
    assert combined(base, models, shares_of([0.5, 0.5], 1.0)) == torch.tensor(1.25, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "--weights 0.5: 1 for 2 models after BASE; give one for each"),
        ([0.5, 0.4], "--weights 0.5 0.4 add up to 0.9, not 1"),
        ([1.5, -0.5], "--weights 1.5 -0.5: each must be above 0"),
        ([math.nan, 1.0], "--weights nan 1: each must be above 0"),
    ],
)
def test_weights_that_are_none(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        normalized(weights, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [-0.1, math.inf, math.nan])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(ValueError, match=r"--scale .*: must be 0 \(the base\) or above"):
        check_scale(scale)
