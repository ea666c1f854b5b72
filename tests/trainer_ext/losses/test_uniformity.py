"""Alignment and uniformity against their formulas, closed forms, tiles, and one process against two."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.losses.test_info_nce import IDS, K, id_tensors, true_pairs, vectors
from tests.trainer_ext.own_process import in_two_processes, settle
from trainer_ext.losses.gather import gather_ids, gather_with_grad, shard_of
from trainer_ext.losses.pairing import Pairing, make_pairing
from trainer_ext.losses.uniformity import TERMS
from trainer_ext.recipe import schema

DIM = 5


def pairing_of(x: Tensor, y: Tensor, rows: slice | None = None, **ids: Tensor) -> Pairing:
    names = ("query_ids", "target_ids", "row_ids")
    return make_pairing(x, y, **{name: ids.get(name) for name in names}, duplicates="mask", rows=rows)


def potential(x: Tensor, y: Tensor, true: Tensor) -> Tensor:
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    terms = [
        torch.exp(-2 * (x[i] - y[j]).square().sum())
        for i in range(len(x))
        for j in range(len(y))
        if i != j and not true[i, j]
    ]
    return torch.stack(terms).mean().log()


def by_hand(name: str, x: Tensor, y: Tensor, true: Tensor) -> Tensor:
    if name == "alignment":
        return (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1).mean()
    if name == "cross_uniformity":
        return potential(x, y, true)
    return (potential(x, x, true) + potential(y, y, true)) / 2


def test_recipes_know_the_terms() -> None:
    assert tuple(TERMS) == schema.TERMS


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("name", TERMS)
def test_the_formula(name: str, ids: str, tile_size: int | None) -> None:
    x, y, tensors = vectors(K, DIM), vectors(K, DIM, seed=1), id_tensors(ids)
    value = TERMS[name](x, y, pairing_of(x, y, **tensors), tile_size)
    expected = by_hand(name, x, y, true_pairs(tensors))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(one, (x, y), allow_unused=True) for one in (value, expected))
    assert all(one.abs().max() > 1e-4 for one in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_closed_forms(name: str) -> None:
    eye, same, pairing = torch.eye(4), torch.ones(4, 3), Pairing(slice(0, 4))
    assert TERMS[name](eye, eye, pairing).item() == (0.0 if name == "alignment" else pytest.approx(-4.0))
    assert TERMS[name](same, same, pairing).item() == pytest.approx(0.0, abs=1e-6)
    opposite = TERMS[name](same, -same, pairing).item()
    assert opposite == pytest.approx({"alignment": 4.0, "uniformity": 0.0, "cross_uniformity": -8.0}[name], abs=1e-5)


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("name", TERMS)
def test_a_batch_without_other_pairs_is_nothing(name: str, tile_size: int | None) -> None:
    x, y = vectors(3, DIM), vectors(3, DIM, seed=1)
    value = TERMS[name](x, y, pairing_of(x, y, row_ids=torch.zeros(3, dtype=torch.int64)), tile_size)
    value.backward()
    if name != "alignment":
        assert value.item() == 0.0
        assert x.grad.abs().max() == 0.0
    assert x.grad.isfinite().all()


SIZES = (4, 3)  # shares of unequal size


def term_of_rank(name: str, folder: Path, tile_size: int | None) -> None:
    x, y, ids = vectors(K, DIM), vectors(K, DIM, seed=1), id_tensors("all")
    rank = torch.distributed.get_rank()
    rows = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], K)
    own = [part[rows].detach().requires_grad_() for part in (x, y)]
    shard = shard_of(own[0])
    a, b = (gather_with_grad(part, shard) for part in own)
    gathered = {key: gather_ids(value[rows], shard) for key, value in ids.items()}
    value = TERMS[name](a, b, pairing_of(a, b, shard.rows, **gathered), tile_size)
    if name == "alignment":
        value = value * shard.weight
    value.backward()
    torch.save((value.detach(), *(part.grad for part in own)), folder / f"{name}-{rank}.pt")


def all_terms(folder: Path) -> None:
    settle()
    torch.distributed.init_process_group("gloo")
    for name, tile_size in zip(TERMS, (None, 2, None), strict=True):
        term_of_rank(name, folder, tile_size)


@pytest.mark.slow
def test_two_processes_have_the_value_and_gradients_of_one(tmp_path: Path) -> None:
    """The log of the whole mean, not the mean of logs; gradients are averaged over processes, as DDP does it."""
    assert in_two_processes(all_terms, tmp_path) == [0, 0]
    x, y, ids = vectors(K, DIM), vectors(K, DIM, seed=1), id_tensors("all")
    for name, function in TERMS.items():
        value = function(x, y, pairing_of(x, y, **ids))
        wanted = torch.autograd.grad(value, (x, y))
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        if name != "alignment":
            assert parts[0][0] == parts[1][0]
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, value.detach())
        for place, gradient in enumerate(wanted, 1):
            torch.testing.assert_close(torch.cat([part[place] for part in parts]) / 2, gradient)
