"""The objectives against the formulas of the paper, written down again as plain loops in float64."""

import math
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from trainer_ext.losses.cosent import cosent
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.logits import MAX_LOGIT_SCALE, clamp_logit_scale_, clamped_temperature
from trainer_ext.losses.matryoshka import matryoshka
from trainer_ext.losses.pairing import make_links, make_pairing
from trainer_ext.losses.siglip import siglip

K, M, DIM = 7, 3, 5
T = 0.3


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lengths far from 1, so that a forgotten normalisation shows."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (3.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def naive_direction(
    anchors: Tensor, candidates: Tensor, extra: list[Tensor], t: float, true: Tensor, duplicates: str, keep: Tensor
) -> Tensor:
    """mean_i over positives P(i) of -log softmax; ``true`` (k, k) bool with its diagonal, ``keep`` (k, extra) bool."""
    losses = []
    for i in range(len(anchors)):
        positives = [j for j in range(len(candidates)) if true[i, j]] if duplicates == "positive" else [i]
        columns = [j for j in range(len(candidates)) if j in positives or not true[i, j]]
        terms = [torch.exp(cosine(anchors[i], candidates[j]) / t) for j in columns]
        terms += [torch.exp(cosine(anchors[i], x) / t) for m, x in enumerate(extra) if keep[i, m]]
        denominator = torch.stack(terms).sum()
        each = [-torch.log(torch.exp(cosine(anchors[i], candidates[j]) / t) / denominator) for j in positives]
        losses.append(torch.stack(each).mean())
    return torch.stack(losses).mean()


IDS = {
    "none": {},
    "queries": {"query_ids": [0, 1, 0, 2, 3, 0, 4]},
    "targets": {"target_ids": [5, 6, 7, 6, 8, 9, 10]},
    "both": {"query_ids": [0, 1, 0, 2, 3, 0, 4], "target_ids": [5, 6, 7, 6, 8, 9, -1]},
    "declared": {"row_ids": [0, 1, 2, 3, 1, 4, 5], "target_ids": [5, 6, 7, 6, 8, 9, -1]},
    "linked": {"query_ids": [0, 0, 1, 2, 3, 2, 4], "target_ids": [5, 6, 6, 7, 8, 6, 8]},
    "all": {
        "query_ids": [0, 0, 1, 2, 3, 4, 5],
        "target_ids": [5, 6, 6, 7, 8, 9, 7],
        "row_ids": [0, 1, 2, 3, 3, 4, 1],
    },
}


def id_tensors(name: str) -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in IDS[name].items()}


def has(ids: dict[str, Tensor], kind: str, k: int, i: int) -> bool:
    """Row k has the query (or target) of row i."""
    return k == i or any(name in ids and ids[name][k] == ids[name][i] for name in (kind, "row_ids"))


def true_pairs(ids: dict[str, Tensor]) -> Tensor:
    """Target j is true for query i if some row has i's query and j's target."""
    true = torch.zeros(K, K, dtype=torch.bool)
    for i, j, k in product(range(K), repeat=3):
        true[i, j] |= has(ids, "query_ids", k, i) and has(ids, "target_ids", k, j)
    return true


def kept_negatives(ids: dict[str, Tensor], negative_ids: Tensor) -> Tensor:
    """(k, k m) bool: a hard negative is none for a query of which some row says that it is the target."""
    keep = torch.ones(K, negative_ids.numel(), dtype=torch.bool)
    for i, k in product(range(K), repeat=2):
        if has(ids, "query_ids", k, i):
            keep[i] &= ids["target_ids"][k] != negative_ids.flatten()
    return keep


@pytest.mark.parametrize("tile_size", [None, 3, 64])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", IDS)
def test_info_nce_is_the_formula(ids: str, duplicates: str, tile_size: int | None) -> None:
    q, p = vectors(K, DIM), vectors(K, DIM, seed=1)
    tensors = id_tensors(ids)
    true, nothing = true_pairs(tensors), torch.ones(K, 0)
    loss = info_nce(q, p, T, duplicates=duplicates, tile_size=tile_size, **tensors)
    expected = naive_direction(q, p, [], T, true, duplicates, nothing)
    expected = expected + naive_direction(p, q, [], T, true.T, duplicates, nothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    grads, wanted = torch.autograd.grad(loss, (q, p)), torch.autograd.grad(expected, (q, p))
    assert all(w.abs().max() > 1e-3 for w in wanted)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)
    if ids != "none":
        assert abs(loss.item() - info_nce(q, p, T).item()) > 1e-3  # the ids did something


@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", IDS)
def test_info_nce_plus_is_the_formula(ids: str, duplicates: str, tile_size: int | None) -> None:
    q, p, n = vectors(K, DIM), vectors(K, DIM, seed=1), vectors(K, M, DIM)
    tensors = id_tensors(ids)
    keep = torch.ones(K, K * M, dtype=torch.bool)
    negative_ids = {}
    if "target_ids" in tensors:
        negative_ids["negative_ids"] = torch.arange(100, 100 + K * M).view(K, M)
        negative_ids["negative_ids"][2, 1] = 6  # the positive of rows 1 and 3
        keep = kept_negatives(tensors, negative_ids["negative_ids"])
        assert (~keep).sum() >= 2
    true = true_pairs(tensors)
    loss = info_nce_plus(q, p, n, T, duplicates=duplicates, tile_size=tile_size, **tensors, **negative_ids)
    expected = naive_direction(q, p, list(n.flatten(0, 1)), T, true, duplicates, keep)
    expected = expected + naive_direction(p, q, [], T, true.T, duplicates, torch.ones(K, 0))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    grads, wanted = torch.autograd.grad(loss, (q, p, n)), torch.autograd.grad(expected, (q, p, n))
    assert all(w.abs().max() > 1e-3 for w in wanted)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("plus", [False, True])
def test_directions_and_reduction(plus: bool, tile_size: int | None) -> None:
    q, p, n = vectors(K, DIM), vectors(K, DIM, seed=1), vectors(K, M, DIM)
    loss = partial(info_nce_plus, q, p, n, T) if plus else partial(info_nce, q, p, T)
    loss = partial(loss, tile_size=tile_size)
    forward, backward = loss(directions="forward"), loss(directions="backward")
    true = torch.eye(K, dtype=torch.bool)
    keep = torch.ones(K, K * M)
    torch.testing.assert_close(
        forward, naive_direction(q, p, list(n.flatten(0, 1)) if plus else [], T, true, "mask", keep)
    )
    torch.testing.assert_close(backward, naive_direction(p, q, [], T, true, "mask", keep))
    assert abs(forward.item() - backward.item()) > 1e-3
    torch.testing.assert_close(loss(), forward + backward)
    torch.testing.assert_close(loss(reduction="mean"), (forward + backward) / 2)
    torch.testing.assert_close(loss(reduction="mean", directions="forward"), forward)


@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", ["both", "linked", "all"])
@pytest.mark.parametrize("loss", ["info_nce", "info_nce_plus", "siglip"])
def test_shares_of_the_rows_add_up_to_the_whole(loss: str, ids: str, duplicates: str, tile_size: int | None) -> None:
    """Uneven shares, one of them empty, each weighted by its rows: what many processes compute together."""
    q, p, n = vectors(K, DIM), vectors(K, DIM, seed=1), vectors(K, M, DIM)
    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    options = {"temperature": t, "duplicates": duplicates, "tile_size": tile_size, **id_tensors(ids)}
    inputs = (q, p, n, t) if loss == "info_nce_plus" else (q, p, t)
    if loss == "info_nce_plus":
        options["negative_ids"] = torch.randint(0, 12, (K, M), generator=torch.Generator().manual_seed(0))
    function = partial({"info_nce": info_nce, "info_nce_plus": info_nce_plus, "siglip": siglip}[loss], *inputs[:-1])
    whole = function(**options)
    shares = [(0, 4), (4, 4), (4, 5), (5, K)]
    parts = sum((stop - start) / K * function(rows=slice(start, stop), **options) for start, stop in shares)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(whole, inputs)
    assert all(w.abs().max() > 1e-4 for w in wanted)
    torch.testing.assert_close(torch.autograd.grad(parts, inputs), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile_size", [None, 3])
def test_closed_forms(tile_size: int | None) -> None:
    same = torch.ones(K, DIM)
    assert math.isclose(info_nce(same, same, tile_size=tile_size).item(), 2 * math.log(K), rel_tol=1e-6)
    eye = torch.eye(K)
    expected = 2 * math.log(1 + (K - 1) * math.exp(-1 / T))
    assert math.isclose(info_nce(eye, 5 * eye, T, tile_size=tile_size).item(), expected, rel_tol=1e-5)
    away = torch.eye(2 * K)[K:].view(K, 1, 2 * K)  # hard negatives orthogonal to everything
    wide = torch.eye(2 * K)[:K]
    expected = math.log(1 + (2 * K - 1) * math.exp(-1 / T)) + math.log(1 + (K - 1) * math.exp(-1 / T))
    assert math.isclose(info_nce_plus(wide, wide, away, T, tile_size=tile_size).item(), expected, rel_tol=1e-5)
    everyone = torch.zeros(K, dtype=torch.int64)  # every target is true for every query
    loss = info_nce(eye, eye, T, query_ids=everyone, tile_size=tile_size)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    loss = info_nce(same, same, T, query_ids=everyone, duplicates="positive", tile_size=tile_size)
    assert math.isclose(loss.item(), 2 * math.log(K), rel_tol=1e-6)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("plus", [False, True])
def test_the_fixed_temperature_is_the_papers_and_a_tensor_gets_its_gradient(plus: bool, tile_size: int | None) -> None:
    q, p, n = vectors(K, DIM), vectors(K, DIM, seed=1), vectors(K, M, DIM)
    loss = partial(info_nce_plus, q, p, n) if plus else partial(info_nce, q, p)
    assert loss(tile_size=tile_size).item() == pytest.approx(loss(0.05).item(), rel=1e-12)
    assert loss().item() != pytest.approx(loss(0.06).item(), rel=1e-2)
    for shape in ((), (1,)):
        t = torch.full(shape, T, dtype=torch.float64, requires_grad=True)
        loss(t, tile_size=tile_size).backward()
        h = 1e-6
        slope = (loss(T + h) - loss(T - h)).item() / (2 * h)
        assert abs(slope) > 1e-2
        assert t.grad.shape == shape
        assert t.grad.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("tile_size", [None, 16])
@pytest.mark.parametrize("loss", [info_nce, siglip, info_nce_plus])
def test_half_precision_and_autocast_keep_fp32_logits(loss, tile_size: int | None) -> None:
    """bf16 input: the result of the same numbers in fp32, to the last bit; autocast changes nothing."""
    shapes = [(40, 32), (40, 32), (40, 2, 32)][: 3 if loss is info_nce_plus else 2]
    half = [vectors(*shape, seed=s, dtype=torch.bfloat16) for s, shape in enumerate(shapes)]
    full = [x.detach().float().requires_grad_() for x in half]
    expected = loss(*full, 0.02, tile_size=tile_size)
    expected.backward()
    for inputs in (half, full):
        for x in inputs:
            x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = loss(*inputs, 0.02, tile_size=tile_size)
        result.backward()
        assert result.dtype == torch.float32
        assert result.item() == expected.item()
        assert all(x.grad.dtype == x.dtype and x.grad.abs().max() > 0 for x in inputs)


@pytest.mark.parametrize("tile_size", [None, 3])
def test_a_zero_vector_gives_finite_numbers(tile_size: int | None) -> None:
    q, p = vectors(K, DIM), vectors(K, DIM, seed=1)
    with torch.no_grad():
        q[2] = 0.0
        p[4] = 1e-30
    loss = info_nce(q, p, tile_size=tile_size)
    grads = torch.autograd.grad(loss, (q, p))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads)


def test_extreme_temperatures_do_not_overflow() -> None:
    q, p = vectors(K, DIM, dtype=torch.float32), vectors(K, DIM, seed=1, dtype=torch.float32)
    for tile_size in (None, 3):
        hard = info_nce(q, p, 0.001, tile_size=tile_size)
        assert hard.isfinite()
        assert info_nce(q, p, 1e6, tile_size=tile_size).item() == pytest.approx(2 * math.log(K), rel=1e-4)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("duplicates", ["mask", "positive"])
@pytest.mark.parametrize("ids", ["none", "both", "linked", "all"])
def test_siglip_is_the_formula(ids: str, duplicates: str, tile_size: int | None) -> None:
    q, p = vectors(K, DIM), vectors(K, DIM, seed=1)
    t, b = torch.tensor([T, -2.0], dtype=torch.float64, requires_grad=True).unbind()
    tensors = id_tensors(ids)
    true = true_pairs(tensors)
    loss = siglip(q, p, t, b, duplicates=duplicates, tile_size=tile_size, **tensors)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(K):
        for j in range(K):
            positive = i == j or (bool(true[i, j]) and duplicates == "positive")
            if positive or not true[i, j]:
                logit = cosine(q[i], p[j]) / t + b
                expected = expected - torch.log(torch.sigmoid(logit if positive else -logit)) / K
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(expected, (q, p, t, b))
    assert all(w.abs().max() > 1e-3 for w in wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, (q, p, t, b)), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scores", [[3, 1, 2, 5, 0, 4, 6], [1, 1, 2, 2, 0, 5, 0], [2.5] * K])
def test_cosent_is_the_formula(scores: list[float]) -> None:
    a, b = vectors(K, DIM), vectors(K, DIM, seed=1)
    loss = cosent(a, b, torch.tensor(scores), T)
    total = torch.ones((), dtype=torch.float64)
    cosines = [cosine(x, y) for x, y in zip(a, b, strict=True)]
    pairs = [(i, j) for i in range(K) for j in range(K) if scores[i] > scores[j]]
    for i, j in pairs:
        total = total + torch.exp((cosines[j] - cosines[i]) / T)
    torch.testing.assert_close(loss, torch.log(total), rtol=1e-12, atol=1e-15)
    grads = torch.autograd.grad(loss, (a, b))
    if pairs:
        wanted = torch.autograd.grad(torch.log(total), (a, b))
        assert wanted[0].abs().max() > 1e-3
        torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)
    else:
        assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0]])
@pytest.mark.parametrize("loss", [partial(info_nce, tile_size=3), info_nce_plus, siglip])
def test_matryoshka_is_the_sum_over_renormalised_prefixes(loss, weights: list[float] | None) -> None:
    inputs = [vectors(K, DIM), vectors(K, DIM, seed=1)] + ([vectors(K, M, DIM)] if loss is info_nce_plus else [])
    dims = [2, 3, DIM]
    result = matryoshka(loss, *inputs, dims=dims, weights=weights)
    prefixes = [[torch.nn.functional.normalize(x[..., :d], dim=-1) for x in inputs] for d in dims]
    expected = sum(w * loss(*p) for w, p in zip(weights or [1.0, 1.0, 1.0], prefixes, strict=True))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)
    assert result.item() != pytest.approx(loss(*inputs).item(), rel=0.1)
    torch.testing.assert_close(torch.autograd.grad(result, inputs), torch.autograd.grad(expected, inputs))


def test_clamped_temperature_clamps_the_value_and_not_the_gradient() -> None:
    for start, value in ((math.log(1 / 0.07), 0.07), (9.0, 0.01), (-3.0, 1.0), (0.0, 1.0), (MAX_LOGIT_SCALE, 0.01)):
        scale = torch.nn.Parameter(torch.tensor(start))
        t = clamped_temperature(scale)
        t.backward()
        assert t.item() == pytest.approx(value, rel=1e-6)
        assert scale.grad.item() == pytest.approx(-value, rel=1e-6)
    half = clamped_temperature(torch.nn.Parameter(torch.tensor(2.65, dtype=torch.bfloat16)))
    assert half.dtype == torch.float32


def test_clamp_logit_scale_in_place() -> None:
    for start, end in ((9.0, MAX_LOGIT_SCALE), (-1.0, 0.0), (2.5, 2.5)):
        scale = torch.nn.Parameter(torch.tensor(start))
        clamp_logit_scale_(scale)
        assert scale.item() == pytest.approx(end, rel=1e-6)
        assert scale.requires_grad


def test_what_a_third_row_says_is_known() -> None:
    """Rows (image 1, "cat"), (image 1, "animal"), (image 2, "animal"), (image 3, "dog")."""
    ids = {"query_ids": torch.tensor([1, 1, 2, 3]), "target_ids": torch.tensor([1, 2, 2, 3])}
    x = torch.ones(4, DIM)
    pairing = make_pairing(x, x, **ids, duplicates="positive", rows=None)
    whole = slice(0, 4), slice(0, 4)
    true = [[True, True, True, False], [True, True, True, False], [False, True, True, False], [False] * 3 + [True]]
    assert pairing.positives(*whole).tolist() == true
    assert pairing.transposed().positives(*whole).T.tolist() == true
    # "animal" as a hard negative of the first row, "cat" as one of the third
    negatives = torch.tensor([2, 9, 1, 9])
    pairing = make_pairing(x, x, **ids, negative_ids=negatives, duplicates="mask", rows=slice(0, 3))
    left_out = pairing.extra_left_out(slice(0, 3), slice(0, 4)).tolist()
    assert left_out == [[True, False, True, False], [True, False, True, False], [True, False, False, False]]


@pytest.mark.parametrize("blocks", [1, 7, 50])
def test_links_in_blocks(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the matrix is cut, the entries are those of all rows looked at."""
    monkeypatch.setattr("trainer_ext.losses.pairing.LINKS_AT_ONCE", 20)
    generator = torch.Generator().manual_seed(3)
    queries, targets, negatives = (torch.randint(0, 25, (50,), generator=generator) for _ in range(3))
    for columns in (None, negatives):
        links = make_links(queries, targets, columns)
        others = targets if columns is None else columns
        expected = ((queries[:, None] == queries).float() @ (targets[:, None] == others).float()) > 0
        true = (targets[:, None] == others) | ((queries[:, None] == queries) & (columns is None))
        assert 100 < expected.sum() - true.sum() < 2000
        edges = [50 * n // blocks for n in range(blocks + 1)]
        for top, bottom in pairwise(edges):
            for left, right in pairwise(edges):
                links.add_to(true[top:bottom, left:right], slice(top, bottom), slice(left, right))
        assert torch.equal(true, expected)


def test_no_links_where_ids_tell_all() -> None:
    several = torch.tensor([1, 1, 2, 3])
    assert make_links(torch.arange(4), several) is None
    assert make_links(several, torch.arange(4)) is None
    assert make_links(several, several) is None


def test_a_query_learns_only_what_ids_allow() -> None:
    """A masked target gets no push from the query whose duplicate it is; unmasked, it does."""
    q, p = vectors(3, DIM), vectors(3, DIM, seed=1)
    ids = torch.tensor([0, 0, 1])
    masked = info_nce(q[:1].expand(3, -1), p, T, query_ids=ids, rows=slice(0, 1), directions="forward")
    assert torch.autograd.grad(masked, p)[0][1].abs().max() == 0
    plain = info_nce(q[:1].expand(3, -1), p, T, rows=slice(0, 1), directions="forward")
    assert torch.autograd.grad(plain, p)[0][1].abs().max() > 1e-3


Q = torch.ones(4, 3)
BAD_CALLS = {
    "shapes": (lambda: info_nce(Q, torch.ones(5, 3)), r"\(4, 3\).*\(5, 3\)"),
    "not a matrix": (lambda: info_nce(Q[0], Q[0]), r"\(batch, dim\)"),
    "temperature": (lambda: info_nce(Q, Q, 0.0), "temperature 0.0 must be positive"),
    "temperatures": (lambda: info_nce(Q, Q, torch.ones(2)), r"one number.*\(2,\)"),
    "reduction": (lambda: info_nce(Q, Q, reduction="avg"), "reduction 'avg'"),
    "directions": (lambda: info_nce(Q, Q, directions="up"), "directions 'up'"),
    "duplicates": (lambda: info_nce(Q, Q, duplicates="drop"), "duplicates 'drop'"),
    "tile": (lambda: info_nce(Q, Q, tile_size=0), "tile_size 0"),
    "siglip tile": (lambda: siglip(Q, Q, tile_size=0), "tile_size 0"),
    "rows": (lambda: info_nce(Q, Q, rows=slice(2, 5)), r"slice\(2, 5, None\).*4 rows"),
    "open rows": (lambda: info_nce(Q, Q, rows=slice(None, 2)), "slice"),
    "float ids": (lambda: info_nce(Q, Q, query_ids=torch.ones(4)), "query_ids must be int64.*float32"),
    "short ids": (lambda: info_nce(Q, Q, target_ids=torch.arange(3)), r"target_ids.*\(4,\).*\(3,\)"),
    "flat negatives": (lambda: info_nce_plus(Q, Q, torch.ones(8, 3)), r"\(4, m, 3\).*\(8, 3\)"),
    "negative ids": (
        lambda: info_nce_plus(Q, Q, torch.ones(4, 2, 3), target_ids=torch.arange(4), negative_ids=torch.arange(8)),
        r"negative_ids \(8,\) must be \(4, 2\)",
    ),
    "negative ids alone": (
        lambda: info_nce_plus(Q, Q, torch.ones(4, 2, 3), negative_ids=torch.zeros(4, 2, dtype=torch.int64)),
        "give both or neither",
    ),
    "scores": (lambda: cosent(Q, Q, torch.ones(3)), r"scores \(3,\)"),
    "dims": (lambda: matryoshka(info_nce, Q, Q, dims=[4]), r"dims \[4\].*width 3"),
    "weights": (lambda: matryoshka(info_nce, Q, Q, dims=[2], weights=[1.0, 2.0]), "weights"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_says_what_and_why(case: str) -> None:
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()
