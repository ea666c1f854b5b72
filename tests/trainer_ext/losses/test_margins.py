"""Margins against plain loops, sentence-transformers' MarginMSELoss and closed forms; zero against itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.losses.test_info_nce import K, M, vectors
from trainer_ext.losses.distillation import cosine_margins, margin_error, margin_term
from trainer_ext.losses.gather import Shard
from trainer_ext.losses.joint import COLUMNS, NEGATIVES
from trainer_ext.recipe.stages import TeacherSpec

DIM = 5
TEXT = (*COLUMNS["text"], NEGATIVES["text"])


def batch(rows: int = K, m: int = M, dim: int = DIM, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, ...]:
    """Queries and positives (rows, dim), negatives (rows * m, dim)."""
    return tuple(vectors(n, dim, seed=seed + i, dtype=dtype) for i, n in enumerate((rows, rows, rows * m)))


def test_it_is_the_formula_row_by_row() -> None:
    q, p, n = batch()
    margins = vectors(K, M, seed=9)
    found = margin_error(q, p, n, margins)
    terms = []
    for i in range(K):
        for j in range(M):
            own, other = (F.cosine_similarity(q[i], x, dim=0) for x in (p[i], n[i * M + j]))
            terms.append((own - other - margins[i, j].detach()) ** 2)
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    grads, wanted = (torch.autograd.grad(one, (q, p, n), retain_graph=True) for one in (found, expected))
    assert all(one.abs().max() > 1e-3 for one in wanted)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.grad(found, margins, allow_unused=True) == (None,)


@pytest.mark.parametrize("m", [1, M])
def test_it_is_the_loss_of_sentence_transformers(m: int) -> None:
    """Its default compares dot products; with the cosine it is ours, and of unit vectors both are the same."""
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss
    from sentence_transformers.util import pairwise_cos_sim

    q, p, n = (x.detach() for x in batch(m=m, dtype=torch.float32))
    margins = vectors(K, m, seed=9, dtype=torch.float32).detach()
    columns = [q, p, *n.unflatten(0, (K, m)).unbind(1)]
    cosines = MarginMSELoss(None, similarity_fct=pairwise_cos_sim).compute_loss_from_embeddings(columns, margins)
    torch.testing.assert_close(margin_error(q, p, n, margins), cosines)
    unit = [F.normalize(x, dim=-1) for x in columns]
    torch.testing.assert_close(
        margin_error(q, p, n, margins), MarginMSELoss(None).compute_loss_from_embeddings(unit, margins)
    )


def test_closed_forms() -> None:
    """Vectors at known angles: the margin is a difference of cosines, whatever the lengths."""
    q = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    p = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    n = torch.tensor([[-1.0, 0.0], [0.0, 7.0], [1.0, 0.0], [0.0, -1.0]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half + 1, half], [1.0, 2.0]])
    torch.testing.assert_close(cosine_margins(q, p, n), expected)
    assert margin_error(q, p, n, expected).item() == pytest.approx(0.0, abs=1e-12)
    assert margin_error(q, p, n, expected - 0.25).item() == pytest.approx(0.0625)
    assert cosine_margins(q[:0], p[:0], n[:0]).shape[0] == 0
    assert margin_error(q[:0], p[:0], n[:0], expected[:0]).item() == 0.0


def test_half_precision_is_computed_in_full() -> None:
    q, p, n = (x.detach().bfloat16() for x in batch(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_margins(q, p, n)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosine_margins(q.float(), p.float(), n.float()))


def term(batch: dict, embeddings: dict, **spec) -> tuple[float, Tensor]:
    teacher = TeacherSpec(model="teacher", kind="margins", **spec)
    return margin_term(teacher, "text", TEXT, batch, embeddings)["teacher"]


def test_a_model_has_nothing_to_learn_from_itself() -> None:
    own = dict(zip(TEXT, batch(dtype=torch.float32), strict=True))
    _, found = term({}, own | {"teacher": own})
    assert found.item() == pytest.approx(0.0, abs=1e-12)
    assert all(grad.abs().max() < 1e-6 for grad in torch.autograd.grad(found, tuple(own.values())))


def test_columns_come_before_vectors_and_the_scale_divides_both() -> None:
    own, theirs = (dict(zip(TEXT, batch(seed=seed), strict=True)) for seed in (0, 7))
    given = 8 * vectors(K, M, seed=9).detach()
    weight, found = term({}, own | {"teacher": theirs}, scale=4.0, weight=2.5)
    assert weight == 2.5
    torch.testing.assert_close(found, margin_error(*own.values(), cosine_margins(*theirs.values()) / 4))
    assert torch.autograd.grad(found, tuple(theirs.values()), retain_graph=True, allow_unused=True) == (None,) * 3
    for more in ({"teacher": theirs}, {}):
        _, found = term({"margins": given}, own | more, scale=4.0)
        torch.testing.assert_close(found, margin_error(*own.values(), given / 4))
    others = [None, TeacherSpec(kind="margins", sides=["image_text"]), TeacherSpec(model="x", kind="scores")]
    assert [margin_term(one, "text", TEXT, {"margins": given}, own) for one in others] == [{}] * 3
    assert margin_term(TeacherSpec(kind="margins"), "text", TEXT, {}, own) == {}


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), m=st.integers(1, 4), cut=st.integers(0, 9))
def test_shares_add_up_to_the_whole(rows: int, m: int, cut: int) -> None:
    q, p, n = batch(rows, m)
    margins, cut = vectors(rows, m, seed=9).detach(), min(cut, rows)
    whole = margin_error(q, p, n, margins)
    total = torch.zeros((), dtype=torch.float64)
    for rank, part in enumerate((slice(0, cut), slice(cut, rows))):
        share = margin_error(q[part], p[part], n[part.start * m : part.stop * m], margins[part])
        total = total + share * Shard((cut, rows - cut), rank).weight / 2
    assert whole.item() >= 0
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-12)
    grads, wanted = (torch.autograd.grad(one, (q, p, n)) for one in (total, whole))
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)
