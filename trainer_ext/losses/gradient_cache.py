"""Contrastive batches larger than memory: chunked two-pass embedding (GradCache, arXiv 2101.06983).

A contrastive loss needs all embeddings of the batch at once, but not all activations:

    (1) embed every chunk without a graph, remembering the state of the random numbers before each;
    (2) the caller computes the loss on the embeddings and calls ``backward`` as always; that yields dL/d(embedding);
    (3) embed every chunk again, now with a graph and the same random numbers, and send its rows of that gradient
        through it. Only one chunk's activations are alive at a time.

With ``keep_last`` the last chunk of each input skips (3): its graph is kept from (1), so that one chunk of every input
is alive while the loss is computed.

``cached_embeddings`` returns ordinary tensors and (3) runs inside the caller's ``loss.backward()``. So it fits into
``compute_loss`` of transformers' Trainer: whatever scales the loss afterwards (gradient accumulation, the fp16
gradient scaler, task weights) scales (3) too, since it arrives in dL/d(embedding), and ``gather_with_grad`` works on
the result. The price of running a backward pass inside another: gradients are collected in the parameters' ``.grad``
by ``loss.backward()``; ``torch.autograd.grad(loss, parameters)`` cannot see them.

Works on callables and tensors; it needs no model class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Chunks:
    """Rows to embed: their chunks, in row order, and what turns a chunk into (rows, ...) embeddings.

    Several inputs may share a module. Anything else that the loss takes from the model, such as a trainable
    temperature, is an input with one chunk: ``Chunks(lambda _: clamped_temperature(model.logit_scale), [None])``.
    DDP requires this: every parameter must be part of the synchronised pass.
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
    inputs: Mapping[str, Chunks],
    *,
    no_sync: Callable[[], AbstractContextManager] | None = None,
    keep_last: bool = False,
) -> dict[str, Tensor]:
    """The embeddings of every input, as if embedded in one go, at the memory of one chunk.

    Args:
        inputs: what to embed, by name; embedded in this order, chunk by chunk.
        no_sync: for a model in DDP, its ``no_sync`` method (``accelerator.no_sync`` bound to the model does as
            well): gradients then travel once, with the last chunk of every input, which are embedded together. For
            FSDP2, ``accelerator.no_sync`` too, or nothing; it wants the same number of chunks on every process.
        keep_last: embed the last chunk of each input once instead of twice, at the memory of one chunk of every input;
            the fewer chunks, the more it saves. Without effect under DDP, which prepares in a forward pass for
            the backward pass that synchronises: nothing may come in between.

    Random numbers (dropout, patch dropout) drawn from torch's global generators and the autocast state are replayed,
    so the gradients are those of the same chunks embedded once. A generator of the model's own is not; nor may
    ``embed`` depend on anything else that changes between the passes. Without gradients enabled this is plain
    chunked embedding.

    >>> tower = torch.nn.Linear(3, 2)
    >>> batch = torch.ones(5, 3)
    >>> vectors = cached_embeddings({"query": Chunks(tower, batch.split(2))})["query"]
    >>> vectors.sum().backward()
    >>> tower.weight.grad
    tensor([[5., 5., 5.],
            [5., 5., 5.]])
    """
    if empty := [name for name, item in inputs.items() if len(item.chunks) == 0]:
        raise ValueError(f"nothing to embed for {empty}: leave an input out rather than giving it no chunks.")
    replay = _Replay(inputs, no_sync, keep_last and no_sync is None and torch.is_grad_enabled())
    # A Function whose inputs need no gradient has outputs that need none. This one depends on parameters that it
    # is not given, so it gets an input that needs a gradient.
    anchor = torch.zeros((), requires_grad=True)
    return dict(zip(inputs, _CachedEmbeddings.apply(anchor, replay), strict=True))


class _CachedEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, replay: "_Replay") -> tuple[Tensor, ...]:
        ctx.replay = replay
        return tuple(replay.first_pass())  # gradients are off in here

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.replay.second_pass(grads)
        return None, None


class _Replay:
    """Both passes over the chunks of all inputs, with what must be remembered in between."""

    def __init__(
        self, inputs: Mapping[str, Chunks], no_sync: Callable[[], AbstractContextManager] | None, keeps: bool
    ) -> None:
        self.inputs, self.no_sync, self.keeps = dict(inputs), no_sync, keeps
        self.kept: dict[str, Tensor] = {}  # each input's last embeddings, with their graph
        self.conditions: dict[str, list[_Conditions]] = {}
        self.rows: dict[str, list[int]] = {}

    def first_pass(self) -> Iterator[Tensor]:
        """Step (1)."""
        for name, item in self.inputs.items():
            self.conditions[name], embedded = [], []
            for number, chunk in enumerate(item.chunks):
                if self.keeps and number == len(item.chunks) - 1:
                    self.kept[name] = self._embed_with_graph(name, number)
                    embedded.append(self.kept[name].detach())
                else:
                    self.conditions[name].append(_Conditions.now())
                    embedded.append(item.embed(chunk).detach())
            if len(embedded) > 1 and any(vectors.ndim == 0 for vectors in embedded):
                raise ValueError(f"{name}: an input without rows, such as a temperature, must be a single chunk.")
            self.rows[name] = [len(vectors) if vectors.ndim else 1 for vectors in embedded]
            yield torch.cat(embedded) if len(embedded) > 1 else embedded[0]
        torch.clear_autocast_cache()  # weights cast without a graph would be used again by the second pass

    def second_pass(self, grads: Sequence[Tensor]) -> None:
        """Step (3), one chunk at a time: kept ones first; with ``no_sync`` the last ones together, synchronised."""
        shares = {
            name: grad.split(self.rows[name]) if grad.ndim else (grad,)
            for name, grad in zip(self.inputs, grads, strict=True)
        }
        last = {name: len(share) - 1 for name, share in shares.items()}
        apart = self.keeps or self.no_sync is not None  # the last chunks are handled apart
        for name, embedded in self.kept.items():
            if embedded.requires_grad:
                torch.autograd.backward(embedded, shares[name][-1])
        self.kept.clear()
        for name, share in shares.items():
            for number in range(last[name] if apart else len(share)):
                with nullcontext() if self.no_sync is None else self.no_sync():
                    embedded = self._embed_again(name, number)
                    if not embedded.requires_grad:
                        break  # a frozen tower: its other chunks have nothing to learn either
                    torch.autograd.backward(embedded, share[number])
                del embedded  # before the next chunk's activations come
        if self.no_sync is not None:
            # DDP waits for every parameter once: what each input needs has to be in the one pass that it watches.
            pairs = [(self._embed_again(name, last[name]), share[last[name]]) for name, share in shares.items()]
            pairs = [(embedded, grad) for embedded, grad in pairs if embedded.requires_grad]
            if pairs:
                torch.autograd.backward([embedded for embedded, _ in pairs], [grad for _, grad in pairs])

    def _embed_again(self, name: str, number: int) -> Tensor:
        with self.conditions[name][number].replayed():
            return self._embed_with_graph(name, number)

    def _embed_with_graph(self, name: str, number: int) -> Tensor:
        torch.clear_autocast_cache()  # casts made without a graph, or of another chunk's graph
        with torch.enable_grad():
            embedded = self.inputs[name].embed(self.inputs[name].chunks[number])
        torch.clear_autocast_cache()
        return embedded


@dataclass(frozen=True)
class _Conditions:
    """What a forward pass depends on besides weights and input: torch's random numbers, and autocast."""

    random: tuple[tuple[Any, Tensor], ...]
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls) -> "_Conditions":
        accelerator = _accelerator()
        devices = ["cpu"] if accelerator is None else ["cpu", accelerator]
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
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return None
    device = accelerator.type
    initialized = getattr(torch.get_device_module(device), "is_initialized", lambda: True)
    return device if initialized() else None


def _generator_of(device: str) -> Any:
    """The module whose ``get_rng_state`` and ``set_rng_state`` are about this device's current generator."""
    return torch.random if device == "cpu" else torch.get_device_module(device)
