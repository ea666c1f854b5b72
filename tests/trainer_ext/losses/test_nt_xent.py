"""NT-Xent against its formula, sentence-transformers' loss of four directions, and the mean over 2k vectors."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.losses.test_info_nce import vectors
from trainer_ext.losses.matryoshka import matryoshka
from trainer_ext.losses.nt_xent import nt_xent

K, DIM, T = 7, 5, 0.3
# Rows 0, 2 and 5 show the same.
ROW_IDS = torch.tensor([3, 1, 3, 7, 0, 3, 9])


def by_hand(
    a: Tensor, b: Tensor, t: Tensor | float, same: Tensor, duplicates: str = "mask", e: float = 0.0, hard: float = 0.0
) -> Tensor:
    """The formula, vector by vector; ``same`` (k, k) bool with its diagonal: which rows show the same."""
    losses = []
    for anchors, others in ((a, b), (b, a)):
        for i in range(len(a)):
            true = [j for j in range(len(a)) if same[i, j]] if duplicates == "positive" else [i]
            logits, own = [], []
            for j in range(len(a)):
                across, along = (F.cosine_similarity(anchors[i], x[j], dim=0) for x in (others, anchors))
                if j in true:
                    own.append(across / t)
                    logits.append(across / t)
                elif not same[i, j]:
                    logits.append(across / t + hard * across.detach())
                if not same[i, j]:
                    logits.append(along / t + hard * along.detach())
            row = torch.stack(logits)
            losses.append(row.logsumexp(0) - (1 - e) * torch.stack(own).mean() - e * row.mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tile_size", [None, 3, 64])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", [None, ROW_IDS], ids=["no ids", "ids"])
@pytest.mark.parametrize(("e", "hard"), [(0.0, 0.0), (0.3, 0.0), (0.0, 5.0), (0.2, 2.0)])
def test_the_formula(e: float, hard: float, ids: Tensor | None, duplicates: str, tile_size: int | None) -> None:
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    t, by_t = (torch.tensor(T, dtype=torch.float64, requires_grad=True) for _ in range(2))
    same = torch.eye(K, dtype=torch.bool) if ids is None else ids[:, None] == ids
    options = {"row_ids": ids, "duplicates": duplicates, "label_smoothing": e, "hardness": hard}
    loss, expected = nt_xent(a, b, t, tile_size=tile_size, **options), by_hand(a, b, by_t, same, duplicates, e, hard)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found, wanted = torch.autograd.grad(loss, (a, b, t)), torch.autograd.grad(expected, (a, b, by_t))
    assert all(x.abs().max() > 1e-3 for x in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    if ids is not None:
        assert abs(loss.item() - nt_xent(a, b, T, label_smoothing=e, hardness=hard).item()) > 1e-3


@pytest.mark.parametrize("tile_size", [None, 3])
def test_it_is_the_loss_of_sentence_transformers_in_both_orders(tile_size: int | None) -> None:
    """Theirs with two directions is of the first vectors; the second term is theirs with the columns exchanged."""
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    theirs = MultipleNegativesRankingLoss(
        torch.nn.Identity(), scale=1 / T, directions=("query_to_doc", "query_to_query"), partition_mode="joint"
    )
    expected = sum(theirs.compute_loss_from_embeddings(pair, None) for pair in ([a, b], [b, a])) / 2
    loss = nt_xent(a, b, T, tile_size=tile_size)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(expected, (a, b)))


@pytest.mark.parametrize("tile_size", [None, 3])
def test_it_is_the_mean_over_all_vectors_with_their_labels(tile_size: int | None) -> None:
    """Metric learning's form: 2k vectors with labels, one softmax for each pair of one label, averaged over pairs."""
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    both, labels = torch.cat([a, b]), torch.arange(K).repeat(2)
    unit = F.normalize(both, dim=-1)
    logits = unit @ unit.T / T
    terms = []
    for i, label in enumerate(labels):
        for j in (labels == label).nonzero().flatten():
            if i != j:
                negatives = logits[i, labels != label]
                terms.append(torch.cat([logits[i, j].view(1), negatives]).logsumexp(0) - logits[i, j])
    torch.testing.assert_close(nt_xent(a, b, T, tile_size=tile_size), torch.stack(terms).mean())


@pytest.mark.parametrize("tile_size", [None, 3])
def test_closed_forms(tile_size: int | None) -> None:
    same, eye = torch.ones(K, DIM), torch.eye(K)
    assert nt_xent(same, same, tile_size=tile_size).item() == pytest.approx(math.log(2 * K - 1), rel=1e-6)
    expected = math.log(1 + (2 * K - 2) * math.exp(-1 / T))  # pairs agree, all others are orthogonal
    assert nt_xent(eye, 5 * eye, T, tile_size=tile_size).item() == pytest.approx(expected, rel=1e-5)
    one = torch.ones(1, DIM, requires_grad=True)
    alone = nt_xent(one, one, T, tile_size=tile_size)  # one pair has no negatives
    assert alone.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(alone, one)[0]).all()
    everyone = torch.zeros(K, dtype=torch.int64)
    assert nt_xent(eye, eye, T, row_ids=everyone, tile_size=tile_size).item() == pytest.approx(0.0, abs=1e-6)
    hard = nt_xent(same, same, T, hardness=2.0, tile_size=tile_size).item()
    assert hard == pytest.approx(math.log(1 + (2 * K - 2) * math.exp(2.0)), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    tile_size=st.integers(1, 10),
    e=st.floats(0.0, 0.9),
    hard=st.floats(0.0, 9.0),
    ids=st.lists(st.integers(0, 4), min_size=9, max_size=9) | st.none(),
    duplicates=st.sampled_from(["mask", "positive"]),
)
def test_tiles_and_shares_change_nothing(
    rows: int, tile_size: int, e: float, hard: float, ids: list[int] | None, duplicates: str
) -> None:
    a, b = vectors(rows, DIM), vectors(rows, DIM, seed=1)
    row_ids = None if ids is None else torch.tensor(ids[:rows])
    options = {"row_ids": row_ids, "label_smoothing": e, "hardness": hard, "duplicates": duplicates}
    whole, cut = nt_xent(a, b, T, **options), rows // 2
    parts = [(slice(0, cut), cut / rows), (slice(cut, rows), 1 - cut / rows)]
    shared = sum(w * nt_xent(a, b, T, rows=part, tile_size=tile_size, **options) for part, w in parts)
    torch.testing.assert_close(shared, whole, rtol=1e-9, atol=1e-12)
    found, wanted = (torch.autograd.grad(x, (a, b)) for x in (shared, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_exchanging_the_sides_changes_nothing() -> None:
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    torch.testing.assert_close(nt_xent(a, b, T), nt_xent(b, a, T), rtol=1e-12, atol=0)


def test_on_prefixes() -> None:
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    found = matryoshka(partial(nt_xent, temperature=T), a, b, dims=[2, DIM], weights=[0.5, 1.0])
    torch.testing.assert_close(found, 0.5 * nt_xent(a[:, :2], b[:, :2], T) + nt_xent(a, b, T))


def test_what_it_refuses() -> None:
    a = vectors(K, DIM)
    with pytest.raises(ValueError, match=r"must both be \(batch, dim\)"):
        nt_xent(a, a[:3])
    with pytest.raises(ValueError, match="temperature 0 must be positive"):
        nt_xent(a, a, 0)
    with pytest.raises(ValueError, match="row_ids must be int64"):
        nt_xent(a, a, row_ids=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="tile_size 0 must be positive"):
        nt_xent(a, a, tile_size=0)
    with pytest.raises(ValueError, match="duplicates 'keep'"):
        nt_xent(a, a, duplicates="keep")
