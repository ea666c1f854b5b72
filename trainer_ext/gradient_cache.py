"""Contrastive batches larger than memory: chunked two-pass embedding (GradCache, arXiv 2101.06983).

A contrastive loss needs all embeddings of the batch at once, but not all activations:

    (1) embed every chunk without a graph, remembering the state of the random numbers before each;
    (2) the caller computes the loss on the embeddings and calls ``backward`` as always; that yields dL/d(embedding);
    (3) embed every chunk again, now with a graph and the same random numbers, and send its rows of that gradient
        through it. Only one chunk's activations are alive at a time.

With ``keep_last`` the last chunk of each side is spared (3): its graph is kept from (1), so that one chunk of every
side is alive while the loss is computed.

``cached_embeddings`` returns ordinary tensors and (3) runs inside the caller's ``loss.backward()``. So it fits into
``compute_loss`` of transformers' Trainer: whatever scales the loss afterwards (gradient accumulation, the fp16
gradient scaler, task weights) scales (3) too, since it arrives in dL/d(embedding), and ``gather_with_grad`` works on
the result. The price of running a backward pass inside another: gradients are collected in the parameters' ``.grad``
by ``loss.backward()``; ``torch.autograd.grad(loss, parameters)`` cannot see them.

Knows callables and tensors, not models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True)
class Side:
    """One set of rows to embed: its chunks, in row order, and what turns a chunk into (rows, ...) embeddings.

    Several sides may share a module. Anything else that the loss takes from the model, such as a trainable
    temperature, is a side with one chunk: ``Side(lambda _: clamped_temperature(model.logit_scale), [None])``.
    That is required under DDP, where every parameter must be part of the synchronised pass.
    """

    embed: Callable[[Any], Tensor]
    chunks: Sequence[Any]


def split_rows(batch: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Cut a batch of row-aligned tensors into chunks of ``size`` rows; the last may be shorter.

    >>> [len(chunk["input_ids"]) for chunk in split_rows({"input_ids": torch.zeros(5, 3)}, 2)]
    [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"the chunk size {size} must be positive.")
    lengths = {name: len(tensor) for name, tensor in batch.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the tensors of a batch must have the same number of rows, not {lengths}.")
    rows = next(iter(lengths.values()))
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in range(0, rows, size)]


def cached_embeddings(
    sides: Mapping[str, Side],
    *,
    no_sync: Callable[[], AbstractContextManager] | None = None,
    keep_last: bool = False,
) -> dict[str, Tensor]:
    """The embeddings of every side, as if embedded in one go, at the memory of one chunk.

    Args:
        sides: what to embed, by name; embedded in this order, chunk by chunk.
        no_sync: for a model in DDP, its ``no_sync`` method (``accelerator.no_sync`` bound to the model does as
            well): gradients then travel once, with the last chunk of every side, which are embedded together. For
            FSDP2, ``accelerator.no_sync`` too, or nothing; it wants the same number of chunks on every process.
        keep_last: embed the last chunk of each side once instead of twice, at the memory of one chunk of every side;
            the fewer chunks, the more it saves. Without effect under DDP, which prepares itself in the forward pass
            whose backward pass travels: nothing may come in between.

    Random numbers (dropout, patch dropout) drawn from torch's global generators and the autocast state are replayed,
    so the gradients are those of the same chunks embedded once. A generator of the model's own is not; nor may
    ``embed`` depend on anything else that changes between the passes. Without gradients enabled this is plain
    chunked embedding.

    >>> tower = torch.nn.Linear(3, 2)
    >>> batch = torch.ones(5, 3)
    >>> vectors = cached_embeddings({"query": Side(tower, batch.split(2))})["query"]
    >>> vectors.sum().backward()
    >>> tower.weight.grad
    tensor([[5., 5., 5.],
            [5., 5., 5.]])
    """
    if empty := [name for name, side in sides.items() if len(side.chunks) == 0]:
        raise ValueError(f"nothing to embed for {empty}: leave a side out rather than giving it no chunks.")
    replay = _Replay(sides, no_sync, keep_last and no_sync is None and torch.is_grad_enabled())
    # A Function whose inputs need no gradient has outputs that need none; this one's inputs are the parameters, which
    # it does not know. So it is given something that does.
    anchor = torch.zeros((), requires_grad=True)
    return dict(zip(sides, _CachedEmbeddings.apply(anchor, replay), strict=True))


class _CachedEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, replay: "_Replay") -> tuple[Tensor, ...]:
        ctx.replay = replay
        return tuple(replay.first_pass())  # gradients are off in here

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, None]:
        ctx.replay.second_pass(grads)
        return None, None


class _Replay:
    """Both passes over the chunks of all sides, with what must be remembered in between."""

    def __init__(
        self, sides: Mapping[str, Side], no_sync: Callable[[], AbstractContextManager] | None, keeps: bool
    ) -> None:
        self.sides, self.no_sync, self.keeps = dict(sides), no_sync, keeps
        self.kept: dict[str, Tensor] = {}  # each side's last embeddings, with their graph
        self.conditions: dict[str, list[_Conditions]] = {}
        self.rows: dict[str, list[int]] = {}

    def first_pass(self) -> Iterator[Tensor]:
        """Step (1)."""
        for name, side in self.sides.items():
            self.conditions[name], parts = [], []
            for number, chunk in enumerate(side.chunks):
                if self.keeps and number == len(side.chunks) - 1:
                    self.kept[name] = self._embed_with_graph(name, number)
                    parts.append(self.kept[name].detach())
                else:
                    self.conditions[name].append(_Conditions.now())
                    parts.append(side.embed(chunk).detach())
            if len(parts) > 1 and any(part.ndim == 0 for part in parts):
                raise ValueError(f"{name}: a side without rows, such as a temperature, must be a single chunk.")
            self.rows[name] = [len(part) if part.ndim else 1 for part in parts]
            yield torch.cat(parts) if len(parts) > 1 else parts[0]
        torch.clear_autocast_cache()  # weights cast without a graph would be used again by the second pass

    def second_pass(self, grads: Sequence[Tensor]) -> None:
        """Step (3), one chunk at a time: the kept ones first; with ``no_sync`` all last ones together, synchronised."""
        parts = {
            name: grad.split(self.rows[name]) if grad.ndim else (grad,)
            for name, grad in zip(self.sides, grads, strict=True)
        }
        last = {name: len(part) - 1 for name, part in parts.items()}
        apart = self.keeps or self.no_sync is not None  # the last chunks have a way of their own
        for name, embedded in self.kept.items():
            if embedded.requires_grad:
                torch.autograd.backward(embedded, parts[name][-1])
        self.kept.clear()
        for name, part in parts.items():
            for number in range(last[name] if apart else len(part)):
                with nullcontext() if self.no_sync is None else self.no_sync():
                    embedded = self._embed_again(name, number)
                    if not embedded.requires_grad:
                        break  # a frozen tower: its other chunks have nothing to learn either
                    torch.autograd.backward(embedded, part[number])
                del embedded  # before the next chunk's activations come
        if self.no_sync is not None:
            # DDP waits for every parameter once: what each side needs has to be in the one pass that it watches.
            pairs = [(self._embed_again(name, last[name]), part[last[name]]) for name, part in parts.items()]
            pairs = [(embedded, grad) for embedded, grad in pairs if embedded.requires_grad]
            if pairs:
                torch.autograd.backward(*map(list, zip(*pairs, strict=True)))

    def _embed_again(self, name: str, number: int) -> Tensor:
        with self.conditions[name][number].replayed():
            return self._embed_with_graph(name, number)

    def _embed_with_graph(self, name: str, number: int) -> Tensor:
        torch.clear_autocast_cache()  # casts made without a graph, or of another chunk's graph
        with torch.enable_grad():
            embedded = self.sides[name].embed(self.sides[name].chunks[number])
        torch.clear_autocast_cache()
        return embedded


@dataclass(frozen=True)
class _Conditions:
    """What a forward pass depends on besides weights and input: torch's random numbers, and autocast."""

    random: tuple[tuple[Any, Tensor], ...]
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls) -> "_Conditions":
        devices = ["cpu"] if _accelerator() is None else ["cpu", _accelerator()]
        return cls(
            tuple((_generator_of(device), _generator_of(device).get_rng_state()) for device in devices),
            tuple((device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices),
        )

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the conditions of then; afterwards, the random numbers go on as if nothing had happened."""
        outside = [(module, module.get_rng_state()) for module, _ in self.random]
        with ExitStack() as stack:
            for device, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            for module, state in self.random:
                module.set_rng_state(state)
            try:
                yield
            finally:
                for module, state in outside:
                    module.set_rng_state(state)


def _accelerator() -> str | None:
    """The type of the accelerator in use; None on a machine without, and before its first use."""
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator().type
    initialized = getattr(torch.get_device_module(device), "is_initialized", lambda: True)
    return device if initialized() else None


def _generator_of(device: str) -> Any:
    """The module whose ``get_rng_state`` and ``set_rng_state`` are about this device's current generator."""
    return torch.random if device == "cpu" else torch.get_device_module(device)
