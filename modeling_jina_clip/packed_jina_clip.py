"""Weights laid out once as a processor's products read them, for a server that answers single queries and pictures.

oneDNN multiplies weights in blocks. Weights as checkpoints hold them are put into that order in every product, which
counts for the few rows of a query; ``pack_weights`` does it once. In bfloat16, on processors with a matrix unit (AMX),
batches gain as well (benchmarks/encode_speed.py measures both).

Packed weights take the place of the plain ones, so a model needs no more memory, and can do nothing but encode: it
cannot be trained, saved, moved, cast or copied, and each of these says so. Not served with a model's folder.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .modeling_jina_clip_base import fused_linear

_Model = TypeVar("_Model", bound=nn.Module)
# Rows that the order of the weights is chosen for; all others work with it, too.
_ROWS = 16
_ADAPTERS = ("lora_A", "parametrizations")


class PackedLinear(nn.Module):
    """``nn.Linear`` of packed weights: (..., inputs) to (..., outputs), in their type, without gradients."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        product = fused_linear(self.dtype)
        assert product is not None  # pack_weights has looked
        self._product: Callable[..., Tensor] = product
        # No parameter and no buffer: such a tensor can be multiplied, and nothing else.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """The product. Raises ``ValueError`` for gradients, tracing, and states of another type."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            raise ValueError(f"packed weights only encode: run it under torch.inference_mode(); {_CURE}")
        if states.dtype != self.dtype:
            raise ValueError(f"packed weights are {self.dtype} and the states {states.dtype}; {_CURE}")
        if not states.numel():
            return states.new_empty(*states.shape[:-1], self.out_features)
        return self._product(states.contiguous(), self._packed, self.bias, "none", [], "")

    def train(self, mode: bool = True) -> "PackedLinear":
        """As a module's own; raises ``ValueError`` for training."""
        if mode:
            raise ValueError(f"packed weights cannot be trained; {_CURE}")
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        probe = fn(torch.empty(0, dtype=self.dtype))
        if (probe.dtype, probe.device.type) != (self.dtype, "cpu"):
            raise ValueError(f"packed weights stay {self.dtype} on the processor; {_CURE}")
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(f"packed weights cannot be saved; {_CURE}")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        raise ValueError(f"packed weights cannot be replaced; {_CURE}")

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(f"packed weights cannot be copied or sent to another process; {_CURE}")


_CURE = "load the model again, and pack it last"


def pack_weights(model: _Model) -> _Model:
    """Pack the weights of all linear layers of a model, in place; returns the model.

    For encoding on a processor, in float32 or bfloat16. Vectors are the same to 1e-5 in float32. A model that is packed
    already is left as it is.

    Args:
        model: a ``JinaCLIPModel``, one of its towers, or a ``SentenceTransformer`` of one, in evaluation mode.

    Raises:
        ValueError: a model in training mode, with adapters, quantised, of another type or elsewhere than on the
            processor; and a machine or a torch without oneDNN's product. Nothing is packed then.

    Example::

        model = pack_weights(JinaCLIPModel.from_pretrained("path/to/jina-clip-v1").eval())
        model.encode_text("a query of a few words")

    >>> from modeling_jina_clip import pack_weights
    >>> pack_weights(nn.Sequential(nn.Linear(4, 2)))
    Traceback (most recent call last):
    ValueError: the model is in training mode, and packed weights cannot be trained; call model.eval() first
    """
    if any(isinstance(part, PackedLinear) for part in model.modules()):
        return model
    if model.training:
        raise ValueError("the model is in training mode, and packed weights cannot be trained; call model.eval() first")
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    _refuse_other_layers(model, [layer for _, _, layer in places])
    packed: dict[nn.Module, PackedLinear] = {}  # a layer may stand in two places
    for parent, name, layer in places:
        if layer not in packed:
            packed[layer] = PackedLinear(layer).eval()
            layer.weight = None  # type: ignore[assignment]  # one layer's weight twice at a time, not the model's
        setattr(parent, name, packed[layer])
    return model


def _refuse_other_layers(model: nn.Module, layers: list[nn.Linear]) -> None:
    adapted = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _ADAPTERS]
    if adapted:
        raise ValueError(f"{adapted[0]} is an adapter; merge it first (merge_task_adapter, or PEFT's merge_and_unload)")
    strange = [layer for layer in layers if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter]
    if not layers or strange or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("packing is for plain linear layers, and this model has none, or quantised ones; load it anew")
    for kind in sorted({(str(layer.weight.dtype), layer.weight.device.type) for layer in layers}):
        if kind not in {("torch.float32", "cpu"), ("torch.bfloat16", "cpu")}:
            words = "packing is for float32 or bfloat16 on the processor, and there are weights of"
            raise ValueError(f"{words} {kind[0]} on {kind[1]}; call model.float().cpu() first")
    missing = [dtype for dtype in {layer.weight.dtype for layer in layers} if fused_linear(dtype) is None]
    if missing or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        raise ValueError("this machine or this torch has no oneDNN product of packed weights; use the model as it is")
