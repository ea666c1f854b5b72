"""Label smoothing and hardness against torch's and sentence-transformers' own, and against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.losses.test_info_nce import IDS, K, M, T, id_tensors, kept_negatives, true_pairs, vectors
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.logits import Softmax

DIM = 5


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def by_hand(anchors: Tensor, candidates: Tensor, true: Tensor, keep: Tensor, e: float, a: float, t: Tensor) -> Tensor:
    """One direction, row by row: candidates (k + extra, dim), ``true`` and ``keep`` (k, k + extra) bool."""
    similar, losses = cosines(anchors, candidates), []
    for i, row in enumerate(similar):
        logits = torch.where(true[i], row / t, row / t + a * row.detach())[keep[i]]
        own = (row / t)[true[i]].mean()
        losses.append(logits.logsumexp(0) - (1 - e) * own - e * logits.mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", ["none", "linked", "all"])
@pytest.mark.parametrize(("e", "a"), [(0.3, 0.0), (0.0, 5.0), (0.2, 2.0)])
def test_the_formula_with_negatives(e: float, a: float, ids: str, duplicates: str, tile_size: int | None) -> None:
    q, p, n = vectors(K, DIM), vectors(K, DIM, seed=1), vectors(K, M, DIM, seed=2)
    t, by_t = (torch.tensor(T, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tensors = id_tensors(ids)
    true, eye = true_pairs(tensors), torch.eye(K, dtype=torch.bool)
    keep = torch.ones(K, K * M, dtype=torch.bool)
    more = {}
    if "target_ids" in tensors:
        negative_ids = torch.arange(100, 100 + K * M).reshape(K, M)
        negative_ids[2, 1] = tensors["target_ids"][0]
        keep, more = kept_negatives(tensors, negative_ids), {"negative_ids": negative_ids}
    options = {"duplicates": duplicates, "tile_size": tile_size, "label_smoothing": e, "hardness": a}
    loss = info_nce_plus(q, p, n, t, **tensors, **more, **options)
    positives = true | eye if duplicates == "positive" else eye
    inside = torch.ones_like(true) if duplicates == "positive" else ~true | eye
    none = torch.zeros(K, K * M, dtype=torch.bool)
    forward = by_hand(
        q, torch.cat([p, n.flatten(0, 1)]), torch.cat([positives, none], 1), torch.cat([inside, keep], 1), e, a, by_t
    )
    expected = forward + by_hand(p, q, positives.T, inside.T, e, a, by_t)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, (q, p, n, t))
    wanted = torch.autograd.grad(expected, (q, p, n, by_t))
    assert all(x.abs().max() > 1e-4 for x in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile_size", [None, 3])
def test_smoothing_is_that_of_torch(tile_size: int | None) -> None:
    q, p = vectors(K, DIM), vectors(K, DIM, seed=1)
    logits, labels = cosines(q, p) / T, torch.arange(K)
    expected = sum(F.cross_entropy(x, labels, label_smoothing=0.1) for x in (logits, logits.T))
    torch.testing.assert_close(info_nce(q, p, T, label_smoothing=0.1, tile_size=tile_size), expected)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("negatives", [0, 2])
def test_hardness_is_that_of_sentence_transformers(negatives: int, tile_size: int | None) -> None:
    q, *others = (vectors(K, DIM, seed=seed) for seed in range(2 + negatives))
    theirs = MultipleNegativesRankingLoss(
        torch.nn.Identity(), scale=1 / T, hardness_mode="all_negatives", hardness_strength=4.0
    )
    expected = theirs.compute_loss_from_embeddings([q, *others], None)
    options = {"hardness": 4.0, "tile_size": tile_size, "directions": "forward"}
    if negatives:
        loss = info_nce_plus(q, others[0], torch.stack(others[1:], 1), T, **options)
    else:
        loss = info_nce(q, others[0], T, **options)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(x, [q, *others]) for x in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("tile_size", [None, 2])
def test_closed_forms(tile_size: int | None) -> None:
    """Equal vectors: ln k whatever is smoothed; hardness a makes the k - 1 negatives e^a as likely."""
    x, k = torch.ones(4, 3), torch.tensor(4.0)
    loss = info_nce(x, x, T, label_smoothing=0.5, tile_size=tile_size, directions="forward")
    torch.testing.assert_close(loss, k.log())
    loss = info_nce(x, x, T, hardness=2.0, tile_size=tile_size, directions="forward")
    torch.testing.assert_close(loss, torch.log1p(3 * torch.tensor(2.0).exp()))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    tile_size=st.integers(1, 10),
    e=st.floats(0.0, 0.9),
    a=st.floats(0.0, 9.0),
    ids=st.sampled_from(list(IDS)),
    duplicates=st.sampled_from(["mask", "positive"]),
)
def test_tiles_and_shares_change_nothing(
    rows: int, tile_size: int, e: float, a: float, ids: str, duplicates: str
) -> None:
    q, p = vectors(rows, DIM), vectors(rows, DIM, seed=1)
    tensors = {name: values[:rows] for name, values in id_tensors(ids).items() if rows <= K}
    options = {**tensors, "label_smoothing": e, "hardness": a, "duplicates": duplicates}
    whole = info_nce(q, p, T, **options)
    cut = rows // 2
    parts = [(slice(0, cut), cut / rows), (slice(cut, rows), 1 - cut / rows)]
    shared = sum(w * info_nce(q, p, T, rows=part, tile_size=tile_size, **options) for part, w in parts)
    torch.testing.assert_close(shared, whole, rtol=1e-9, atol=1e-12)
    found, wanted = (torch.autograd.grad(x, (q, p)) for x in (shared, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("options", "words"), [((1.0, 0.0), "label_smoothing 1.0"), ((0.0, -1.0), "hardness -1.0")])
def test_impossible_values_are_refused(options: tuple[float, float], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} must be"):
        Softmax(*options)
