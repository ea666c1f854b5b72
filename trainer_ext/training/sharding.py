"""Weights, gradients and optimizer state cut over the processes: FSDP2, torch's ``fully_shard`` (arXiv 2304.11277).

1. ``shard_model`` cuts every unit of both towers, blocks and embeddings, and then what is left of each tower, so that
   a step holds one unit's whole weights at a time. The trained temperature is a scalar, which FSDP2 cannot cut: each
   process keeps it whole, as a DTensor like the rest, so that one norm, one clipping and one optimizer step take all
   parameters.
2. FSDP2 averages the gradients over processes, as DDP does (``losses.gather`` has the convention); ``replicated``
   averages the temperature's.
3. Files hold whole tensors: ``whole_copy`` and ``whole_optimizer_state`` gather them on the main process, so any number
   of processes can resume.

All functions but ``is_sharded`` are collective: every process must call them.

The towers are the roots of FSDP2, not the model: the model has nothing else to cut and keeps its class, and a scalar in
the root would need ``ignored_params``, which torch has only since 2.7.
"""

import copy
import warnings
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.losses.gather import replicated


class ShardedModel(nn.Module):
    """Wraps a sharded model in place of DDP: the Trainer does not prepare a model that is wrapped already."""

    def __init__(self, module: JinaCLIPModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def is_sharded(model: JinaCLIPModel) -> bool:
    """Whether ``shard_model`` was called on the model."""
    return isinstance(model.logit_scale, DTensor)


def shard_model(model: JinaCLIPModel, device: torch.device) -> None:
    """Keep this process's share of every weight. Call it before the optimizer is made from the parameters.

    Args:
        model: of the same configuration on all processes; its values become those of the main process.
        device: where this process trains.
    """
    # torch warns, twice in every run, of outputs that are views; nothing here writes into them.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    model.to(device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
    for tensor in chain(model.parameters(), model.buffers()):
        dist.broadcast(tensor.data, src=0)  # as DDP does at its start
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for tower in (model.text_model, model.vision_model):
        units = [module for module in tower.modules() if type(module).__name__ in model._no_split_modules]
        for module in (*units, tower):
            # Of a root as well, which FSDP2 would keep whole until a backward pass: a frozen tower has none.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    scale = model.logit_scale
    # From a local value, not by distribute_tensor, which would take over the GPU's random numbers.
    whole = DTensor.from_local(scale.detach(), mesh, [Replicate()], run_check=False)
    model.logit_scale = nn.Parameter(whole, requires_grad=scale.requires_grad)


def whole_parameter(parameter: Tensor) -> Tensor:
    """A parameter that all processes hold whole, as the plain tensor that the loss reads; sharded or not."""
    return replicated(parameter.to_local()) if isinstance(parameter, DTensor) else parameter


def whole_tensor(tensor: Tensor) -> Tensor:
    """A DTensor gathered from all processes; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(model: JinaCLIPModel) -> JinaCLIPModel | None:
    """An ordinary model with the weights of a sharded one, on the CPU of the main process; None on the others."""
    weights = _collected(model.state_dict())
    if weights is None:
        return None
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights, assign=True)
    return plain.eval()


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any] | None:
    """The state of an optimizer of sharded parameters, as an ordinary one has it, on the main process; or None."""
    state = optimizer.state_dict()
    # Sorted: a parameter's state is made at its first gradient, in no meaningful order.
    collected = {index: _collected(values) for index, values in sorted(state["state"].items())}
    return {**state, "state": collected} if dist.get_rank() == 0 else None


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take this process's share of what ``whole_optimizer_state`` or an ordinary optimizer has saved."""
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    shares = {
        number: {name: _share(name, value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    optimizer.load_state_dict({**state, "state": shares})


def _share(name: str, value: Any, parameter: Tensor) -> Any:
    """A value of a parameter's state cut like the parameter; its step count is left whole."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or name == "step":
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _collected(values: dict[str, Any]) -> dict[str, Any] | None:
    """The values gathered one by one, and kept on the main process's CPU only."""
    main = dist.get_rank() == 0
    collected = {}
    for name, value in values.items():
        whole = whole_tensor(value.detach()) if isinstance(value, Tensor) else value
        if main:
            collected[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return collected if main else None
