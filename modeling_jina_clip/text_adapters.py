"""Linear and embedding layers that carry the low-rank task adapters of jina-clip-v2.

The published file stores each adapted weight as ``parametrizations.weight.original`` with the factors of all tasks
beside it. The original code builds ``W + scale * B A`` anew at every call, the 250,002-row embedding table included;
here the factors act on the activations, which is the same product in another order and costs next to nothing.

``merge_task_adapter`` puts them into plain layers, which is what quantizers and PEFT look for.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_jina_clip import JinaCLIPTextConfig


class LowRankFactors(nn.Module):
    """The two factors of each task's update; called with what the weight is applied to, it gives what they add."""

    def __init__(self, shape: tuple[int, int], config: JinaCLIPTextConfig, embedding: bool) -> None:
        super().__init__()
        rows, columns = shape
        tasks, rank = len(config.lora_adaptations), config.lora_rank
        # Stored as W + B A for linear layers, and as W + A B for embeddings.
        a_shape, b_shape = ((rows, rank), (rank, columns)) if embedding else ((rank, columns), (rows, rank))
        self.lora_A = nn.Parameter(torch.zeros(tasks, *a_shape))
        self.lora_B = nn.Parameter(torch.zeros(tasks, *b_shape))
        self.embedding, self.scale = embedding, config.lora_alpha / rank

    def forward(self, inputs: torch.Tensor, task: int) -> torch.Tensor:
        first, second = self.lora_A[task], self.lora_B[task]
        if self.embedding:
            return (F.embedding(inputs, first) @ second) * self.scale
        return F.linear(F.linear(inputs, first), second) * self.scale


class AdaptedWeight(nn.Module):
    """A weight with low-rank factors for each task; the names are those of the published file.

    It applies the weight itself, and its factors theirs, because accelerate fetches weights that wait on disk or in
    another memory when the module that holds them is called.
    """

    def __init__(self, shape: tuple[int, int], config: JinaCLIPTextConfig, embedding: bool) -> None:
        super().__init__()
        self.original = nn.Parameter(torch.empty(shape))
        self.add_module("0", LowRankFactors(shape, config, embedding))
        self.embedding, self.task = embedding, config.lora_task_index

    @property
    def factors(self) -> LowRankFactors:
        return self.get_submodule("0")

    def merged(self, task: int | None) -> nn.Parameter:
        """The weight with the update of a task added in float32, or of none, in its own type."""
        weight = self.original.detach().float()
        if task is not None:
            first, second = self.factors.lora_A[task].detach().float(), self.factors.lora_B[task].detach().float()
            weight = weight + (first @ second if self.embedding else second @ first) * self.factors.scale
        return nn.Parameter(weight.to(self.original.dtype), requires_grad=self.original.requires_grad)

    def forward(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        plain = F.embedding(inputs, self.original) if self.embedding else F.linear(inputs, self.original, bias)
        return plain if self.task is None else plain + self.factors(inputs, self.task)


class AdaptedLinear(nn.Module):
    """``nn.Linear`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.parametrizations = nn.ModuleDict({"weight": AdaptedWeight((outputs, inputs), config, embedding=False)})
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.parametrizations["weight"](states, self.bias)

    def plain(self, task: int | None) -> nn.Linear:
        """The same layer without adapters."""
        weight = self.parametrizations["weight"].merged(task)
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").train(self.training)
        layer.weight, layer.bias = weight, self.bias
        return layer


class AdaptedEmbedding(nn.Module):
    """``nn.Embedding`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.parametrizations = nn.ModuleDict({"weight": AdaptedWeight((count, width), config, embedding=True)})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.parametrizations["weight"](ids)

    def plain(self, task: int | None) -> nn.Embedding:
        """The same table without adapters."""
        weight = self.parametrizations["weight"].merged(task)
        table = nn.Embedding(*weight.shape, padding_idx=self.padding_idx, device="meta").train(self.training)
        table.weight = weight
        return table


def linear_layer(config: JinaCLIPTextConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias, with adapters where the checkpoint has them."""
    return AdaptedLinear(config, inputs, outputs) if config.lora_adaptations else nn.Linear(inputs, outputs)


def embedding_layer(config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> nn.Module:
    """An embedding table, with adapters where the checkpoint has them."""
    if config.lora_adaptations:
        return AdaptedEmbedding(config, count, width, padding_idx)
    return nn.Embedding(count, width, padding_idx=padding_idx)


def merge_task_adapter(tower: nn.Module, config: JinaCLIPTextConfig, task: str | None = None) -> None:
    """Replace the adapted layers of ``tower`` by plain ones, and take the adapters out of ``config``.

    Raises ``ValueError`` for a task without an adapter, and where weights wait outside the device.
    """
    known = config.lora_adaptations or []
    if task is not None and task not in known:
        raise ValueError(f"task={task!r} has no adapter in this model; it has {known or 'none, or none any more'}")
    index = config.lora_task_index if task is None else known.index(task)
    adapted = [
        (name, part) for name, part in tower.named_modules() if isinstance(part, AdaptedLinear | AdaptedEmbedding)
    ]
    if any(parameter.is_meta for _, part in adapted for parameter in part.parameters()):
        raise ValueError("task adapters can be merged only where the weights are in memory; load without device_map")
    for name, part in adapted:
        parent, _, child = name.rpartition(".")
        setattr(tower.get_submodule(parent), child, part.plain(index))
    config.lora_adaptations = config.default_lora_task = None
