"""Linear and embedding layers that carry the low-rank task adapters of jina-clip-v2.

The published file stores each adapted weight as ``parametrizations.weight.original`` with the factors of all tasks
beside it. The original code builds ``W + scale * B A`` anew at every call, the 250,002-row embedding table included;
here the factors act on the activations, which is the same product in another order and costs next to nothing.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_jina_clip import JinaCLIPTextConfig


class AdaptedWeight(nn.Module):
    """A weight with low-rank factors for each task; the names are those of the published file."""

    def __init__(self, shape: tuple[int, int], tasks: int, rank: int, embedding: bool) -> None:
        super().__init__()
        rows, columns = shape
        self.original = nn.Parameter(torch.empty(shape))
        factors = nn.Module()
        # Stored as W + B A for linear layers, and as W + A B for embeddings.
        a_shape, b_shape = ((rows, rank), (rank, columns)) if embedding else ((rank, columns), (rows, rank))
        factors.lora_A = nn.Parameter(torch.zeros(tasks, *a_shape))
        factors.lora_B = nn.Parameter(torch.zeros(tasks, *b_shape))
        self.add_module("0", factors)

    def factors(self, task: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors of one task."""
        module = self.get_submodule("0")
        return module.lora_A[task], module.lora_B[task]


class AdaptedLinear(nn.Module):
    """``nn.Linear`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = AdaptedWeight((outputs, inputs), len(config.lora_adaptations), config.lora_rank, embedding=False)
        self.parametrizations = nn.ModuleDict({"weight": weight})
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.task, self.scale = config.lora_task_index, config.lora_alpha / config.lora_rank

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.parametrizations["weight"]
        output = F.linear(states, weight.original, self.bias)
        if self.task is None:
            return output
        down, up = weight.factors(self.task)
        return output + F.linear(F.linear(states, down), up) * self.scale


class AdaptedEmbedding(nn.Module):
    """``nn.Embedding`` plus the low-rank update of the configured task."""

    def __init__(self, config: JinaCLIPTextConfig, count: int, width: int) -> None:
        super().__init__()
        weight = AdaptedWeight((count, width), len(config.lora_adaptations), config.lora_rank, embedding=True)
        self.parametrizations = nn.ModuleDict({"weight": weight})
        self.task, self.scale = config.lora_task_index, config.lora_alpha / config.lora_rank

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        weight = self.parametrizations["weight"]
        output = F.embedding(ids, weight.original)
        if self.task is None:
            return output
        rows, mix = weight.factors(self.task)
        return output + (F.embedding(ids, rows) @ mix) * self.scale


def linear_layer(config: JinaCLIPTextConfig, inputs: int, outputs: int) -> nn.Module:
    """A linear layer with bias, with adapters where the checkpoint has them."""
    return AdaptedLinear(config, inputs, outputs) if config.lora_adaptations else nn.Linear(inputs, outputs)


def embedding_layer(config: JinaCLIPTextConfig, count: int, width: int, padding_idx: int | None = None) -> nn.Module:
    """An embedding table, with adapters where the checkpoint has them."""
    if config.lora_adaptations:
        return AdaptedEmbedding(config, count, width)
    return nn.Embedding(count, width, padding_idx=padding_idx)
