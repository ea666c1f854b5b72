"""Linear and embedding layers that carry the low-rank task adapters of jina-clip-v2.

The published file stores each adapted weight as ``parametrizations.weight.original`` with the factors of all tasks
beside it. The original code builds ``W + scale * B A`` anew at every call, the 250,002-row embedding table included;
here the factors act on the activations, which is the same product in another order and costs next to nothing.
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


class AdaptedEmbedding(nn.Module):
    """``nn.Embedding`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, count: int, width: int) -> None:
        super().__init__()
        self.parametrizations = nn.ModuleDict({"weight": AdaptedWeight((count, width), config, embedding=True)})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.parametrizations["weight"](ids)


def linear_layer(config: JinaCLIPTextConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias, with adapters where the checkpoint has them."""
    return AdaptedLinear(config, inputs, outputs) if config.lora_adaptations else nn.Linear(inputs, outputs)


def embedding_layer(config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> nn.Module:
    """An embedding table, with adapters where the checkpoint has them."""
    if config.lora_adaptations:
        return AdaptedEmbedding(config, count, width)
    return nn.Embedding(count, width, padding_idx=padding_idx)
