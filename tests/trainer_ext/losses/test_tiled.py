"""The tiled form against the plain one: values, gradients, and what it never holds."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.matryoshka import matryoshka

DIM, NEGATIVES = 24, 3


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Pairs that resemble each other, as after some training: losses neither at chance nor at zero."""
    generator = torch.Generator().manual_seed(rows)
    draw = partial(torch.randn, generator=generator)
    queries = draw(rows, DIM)
    others = [queries + draw(rows, DIM), queries[:, None] + 2.0 * draw(rows, NEGATIVES, DIM)]
    return [(0.2 * x).to(dtype).requires_grad_() for x in (queries, *others)]


def loss_of(kind: str, tensors: list[Tensor], temperature: Tensor, **options: object) -> Tensor:
    queries, targets, negatives = tensors
    generator = torch.Generator().manual_seed(1)
    ids = {name: torch.randint(0, len(queries), (len(queries),), generator=generator) for name in ("q", "t")}
    with_ids = {"query_ids": ids["q"], "target_ids": ids["t"]}
    if kind == "pairs":
        return info_nce(queries, targets, temperature, **options)
    if kind in ("mask", "positive"):
        return info_nce(queries, targets, temperature, duplicates=kind, **with_ids, **options)
    if kind == "matryoshka":
        return matryoshka(partial(info_nce, temperature=temperature, **options), queries, targets, dims=[5, DIM])
    negative_ids = torch.randint(0, len(queries), negatives.shape[:2], generator=generator)
    return info_nce_plus(queries, targets, negatives, temperature, negative_ids=negative_ids, **with_ids, **options)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "mask", "positive", "plus", "matryoshka"])
@pytest.mark.parametrize(("rows", "tile_size"), [(1, 4), (2, 1), (63, 16), (64, 16), (65, 16), (130, 500), (150, 37)])
def test_equals_the_plain_form(rows: int, tile_size: int, kind: str, share: bool) -> None:
    dtype = torch.float32 if rows > 2 else torch.float64  # one or two pairs leave nothing but rounding in fp32
    part = slice(rows // 3, rows - rows // 4) if share else None
    for t in (0.2, 0.05):
        arguments = [*inputs(rows, dtype), torch.tensor(t, dtype=dtype, requires_grad=True)]
        losses = [loss_of(kind, arguments[:3], arguments[3], tile_size=size, rows=part) for size in (None, tile_size)]
        plain, tiled = (torch.autograd.grad(loss, arguments, allow_unused=True) for loss in losses)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
        # The temperature's gradient is a small difference of sums of logits / t, rounded in either form.
        logits = torch.nn.functional.cosine_similarity(*arguments[:2]).mean().item() / t
        rounding = [0.0, 0.0, 0.0, 1e-6 * logits / t]
        for mine, wanted, more in zip(tiled, plain, rounding, strict=True):
            assert (mine is None) == (wanted is None)
            if wanted is not None:
                assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max().item() + more + 1e-12
                assert wanted.abs().max() > 1e-4 or rows <= 2


@pytest.mark.parametrize("kind", ["pairs", "positive", "plus"])
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    tensors = [x.detach()[:, ..., :5].requires_grad_() for x in inputs(6, torch.float64)]
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(*arguments: Tensor) -> Tensor:
        return loss_of(kind, list(arguments[:3]), arguments[3], tile_size=4)

    assert torch.autograd.gradcheck(loss, (*tensors, temperature))


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "mask", "positive", "plus"])
def test_never_holds_the_matrix(kind: str, share: bool) -> None:
    """Forward and backward: nothing larger than the inputs or a tile; the plain form is the guard."""
    rows, tile_size = 512, 64
    tensors, temperature = inputs(rows), torch.tensor(0.05, requires_grad=True)
    largest = {}
    for size in (tile_size, None):
        with Largest() as mode:
            loss = loss_of(kind, tensors, temperature, tile_size=size, rows=slice(0, 400) if share else None)
            loss.backward()
        largest[size] = mode.elements
    limit = max(x.numel() for x in tensors[: 3 if kind == "plus" else 2])
    assert limit >= tile_size**2
    assert largest[tile_size] == limit < rows * 400 <= largest[None]


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["pairs", "plus"])
def test_frozen_inputs_get_no_gradient_and_change_no_other(kind: str, frozen: int) -> None:
    results = []
    for number in (None, frozen):
        arguments = [*inputs(20), torch.tensor(0.05, requires_grad=True)]
        if number is not None:
            arguments[number].requires_grad_(False)
        loss_of(kind, arguments[:3], arguments[3], tile_size=8).backward()
        results.append([x.grad for x in arguments])
    for number, (free, other) in enumerate(zip(*results, strict=True)):
        if number == frozen:
            assert other is None
        else:
            torch.testing.assert_close(other, free, rtol=0, atol=0)


def test_half_precision_gradients_are_the_rounded_fp32_ones() -> None:
    half = inputs(40, torch.bfloat16)
    full = [x.detach().float().requires_grad_() for x in half]
    for tensors in (half, full):
        loss_of("plus", tensors, torch.tensor(0.05), tile_size=16).backward()
    for mine, wanted in zip(half, full, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad, wanted.grad.bfloat16(), rtol=0, atol=0)


def test_backward_called_under_autocast_stays_fp32() -> None:
    grads = []
    for enabled in (False, True):
        queries, targets, _ = inputs(20)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            info_nce(queries, targets, tile_size=8).backward()
        grads.append(queries.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=0)
    assert grads[0].abs().max() > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["mask", "positive", "plus"])
def test_the_device_does_not_matter(kind: str) -> None:
    on_cpu, on_gpu = (
        inputs(150, torch.float64),
        [x.detach().cuda().requires_grad_() for x in inputs(150, torch.float64)],
    )
    for tensors in (on_cpu, on_gpu):  # ids stay on the CPU: they are moved
        loss_of(kind, tensors, torch.tensor(0.05), tile_size=37).backward()
    for cpu, gpu in zip(on_cpu[: 3 if kind == "plus" else 2], on_gpu, strict=False):
        assert cpu.grad.abs().max() > 1e-4
        torch.testing.assert_close(gpu.grad.cpu(), cpu.grad, rtol=1e-9, atol=1e-12)
