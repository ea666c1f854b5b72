"""The teacher's terms against F.kl_div and plain loops, in strips and in shares; zero against itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.losses.test_info_nce import K, vectors
from trainer_ext.losses.distillation import score_divergence, vector_distance

DIM, T, OTHER_T = 5, 0.3, 0.2


def logits(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / t


@pytest.mark.parametrize("tile_size", [None, 3])
def test_scores_are_the_formula(tile_size: int | None) -> None:
    """The teacher has another width; the temperature gets its gradient, the teacher none."""
    x, y, a, b = (vectors(K, dim, seed=seed) for seed, dim in enumerate((DIM, DIM, 3, 3)))
    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    value = score_divergence((x, y), (a, b), t, OTHER_T, slice(0, K), tile_size)
    expected = torch.zeros((), dtype=torch.float64)
    for own, known in ((logits(x, y, t), logits(a, b, OTHER_T)), (logits(y, x, t), logits(b, a, OTHER_T))):
        for i in range(K):
            p = known[i].softmax(0).detach()
            expected = expected + (p * (p.log() - own[i].log_softmax(0))).sum() / (2 * K)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(one, (x, y, t), retain_graph=True) for one in (value, expected))
    assert all(one.abs().max() > 1e-3 for one in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.grad(value, (a, b), allow_unused=True) == (None, None)


def test_vectors_are_the_formula() -> None:
    x, y, a, b = (vectors(K, DIM, seed=seed) for seed in range(4))
    value = vector_distance((x, y), (a, b), T, T, slice(0, K))
    expected = 1 - (F.cosine_similarity(x, a).mean() + F.cosine_similarity(y, b).mean()) / 2
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad(one, (x, y)) for one in (value, expected))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match=r"its vectors have 3 dimensions and the model's 5.* use kind: scores"):
        vector_distance((x, y), (a[:, :3], b[:, :3]), T, T, slice(0, K))


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("term", [score_divergence, vector_distance])
def test_a_model_has_nothing_to_learn_from_itself(term, tile_size: int | None) -> None:
    x, y = vectors(K, DIM, dtype=torch.float32), vectors(K, DIM, seed=1, dtype=torch.float32)
    value = term((x, y), (x, y), T, T, slice(0, K), tile_size)
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    assert all(grad.abs().max() < 1e-7 for grad in torch.autograd.grad(value, (x, y)))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), cut=st.integers(0, 9), tile_size=st.none() | st.integers(1, 10))
@pytest.mark.parametrize("term", [score_divergence, vector_distance])
def test_shares_add_up_to_the_whole(term, rows: int, cut: int, tile_size: int | None) -> None:
    x, y, a, b = (vectors(rows, DIM, seed=seed) for seed in range(4))
    cut = min(cut, rows)
    whole = term((x, y), (a, b), T, OTHER_T, slice(0, rows))
    shares = [(slice(0, cut), cut / rows), (slice(cut, rows), 1 - cut / rows)]
    total = sum(weight * term((x, y), (a, b), T, OTHER_T, part, tile_size) for part, weight in shares)
    assert whole.item() >= 0
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-12)
    found, wanted = (torch.autograd.grad(one, (x, y)) for one in (total, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
