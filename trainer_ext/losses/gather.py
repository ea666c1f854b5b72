"""Gather the rows of all processes for the losses, and return each row's gradient to its owner.

On one process everything is the identity, with or without a process group.

**The scaling convention.** Each process r computes a loss L_r over the gathered rows, normally the mean over its own
rows (``losses.info_nce(..., rows=shard.rows)``). The backward pass of ``gather_with_grad`` *sums* a row's gradients
over all processes' losses and sends the sum to the process that owns the row; nothing is divided. Then the gradient of
process r's parameters is that of sum_s L_s through its own rows, and the mean over processes, which DDP and FSDP take,
gives

    1/W sum_r d(sum_s L_s)/d(theta through r's rows)  =  d(mean_s L_s)/d theta

which is the gradient of one process with the whole batch, if mean_s L_s is the whole batch's loss. It is for

* a mean over the own rows, times ``shard.weight`` = own rows * W / all rows (1.0 when all shares are equal);
* a loss that every process computes in full on the gathered rows (``cosent``): all L_s are the same number.

The same holds for parameters of the loss itself, such as the temperature. DDP takes the mean of those that belong to
the model; ``replicated`` takes it of the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Shard:
    """This process's part of a global batch: ``sizes`` are the rows of every process, in rank order.

    >>> shard = Shard(sizes=(4, 4, 2), rank=2)
    >>> shard.rows, shard.total, round(shard.weight, 4)
    (slice(8, 10, None), 10, 0.6)
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def rows(self) -> slice:
        """Where the own rows stand in the global batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.sizes)

    @property
    def weight(self) -> float:
        """Factor for a mean over the own rows, so that the mean over processes is the mean over all rows."""
        return self.sizes[self.rank] * len(self.sizes) / max(self.total, 1)


def shard_of(tensor: Tensor) -> Shard:
    """Exchange the number of rows of each process: one small collective, which all must call.

    >>> shard_of(torch.zeros(3, 8))
    Shard(sizes=(3,), rank=0)
    """
    if _world_size() == 1:
        return Shard((len(tensor),), 0)
    own = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return Shard(tuple(torch.cat(sizes).tolist()), dist.get_rank())


def gather_with_grad(tensor: Tensor, shard: Shard | None = None) -> Tensor:
    """The rows of all processes in rank order, on every process; gradients are summed back to the row's owner.

    Args:
        tensor: (own rows, ...) of any float type. Numbers of rows may differ, all else must agree.
        shard: from ``shard_of``; asked for when missing.

    A collective forward and a collective backward: all processes must call it, and use its result in their loss.

    >>> gather_with_grad(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if _world_size() == 1:
        return tensor
    return _Gather.apply(tensor, shard or shard_of(tensor))


def gather_ids(ids: Tensor, shard: Shard | None = None) -> Tensor:
    """The ids (own rows, ...) of all processes in rank order, or other labels such as scores: without gradient.

    >>> gather_ids(torch.tensor([3, 1]))
    tensor([3, 1])
    """
    return ids if _world_size() == 1 else _all_rows(ids, shard or shard_of(ids))


def sum_over_processes(*values: Tensor) -> tuple[Any, ...]:
    """The sums of scalars over all processes, without gradient, and the number of processes: one small collective.

    >>> sum_over_processes(torch.tensor(2.0), torch.tensor(3.0))
    (tensor(2.), tensor(3.), 1)
    """
    processes = _world_size()
    if processes == 1:
        return (*values, 1)
    total = torch.stack([value.detach() for value in values])
    dist.all_reduce(total)
    return (*total.unbind(), processes)


def replicated(parameter: Tensor) -> Tensor:
    """A parameter of the loss, outside DDP and FSDP: all processes get the mean of its gradients.

    A collective backward, like that of ``gather_with_grad``.

    >>> replicated(torch.tensor(2.0))
    tensor(2.)
    """
    return parameter if _world_size() == 1 else _Replicated.apply(parameter)


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mean = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / _world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return _all_rows(tensor, shard)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)  # all backends have it, and shares may be of unequal size
        return total[ctx.shard.rows], None


def _all_rows(tensor: Tensor, shard: Shard) -> Tensor:
    """All processes must send the same size, so short shares are padded with zero rows, which are cut off again."""
    size = max(shard.sizes)
    own = tensor.new_zeros(size, *tensor.shape[1:])
    own[: len(tensor)] = tensor
    parts = [torch.empty_like(own) for _ in shard.sizes]
    dist.all_gather(parts, own)
    return torch.cat([part[:rows] for part, rows in zip(parts, shard.sizes, strict=True)])


_ALONE = ContextVar("_ALONE", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block nothing is gathered: the losses are those of one process, which may compute them by itself.

    >>> with alone():
    ...     shard_of(torch.zeros(3, 8))
    Shard(sizes=(3,), rank=0)
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _ALONE.get() else 1
