"""Matrix products of linear layers on a CPU, by the faster of the ways that torch has for them.

1. In float32 torch hands the product of a linear layer to MKL, but a convolution to oneDNN. On an AMD processor with
   AVX-512 MKL runs at about half the speed of oneDNN; on an Intel one it does not. A linear layer is a convolution with
   a kernel of one pixel, and a matrix (rows, width) is an image of ``rows`` pixels whose channels lie together. So the
   product goes to oneDNN without a copy, and with its gradients.
2. Without gradients there is an operator of oneDNN that adds the bias inside the product. In bfloat16 torch's own way
   writes the bias into every row of the output beforehand: a few percent of the time, more where the memory is busy.
   The operator is not public (torch.compile uses it on CPUs); where torch does not have it, all stays as it was.

benchmarks/products.py measures both. The layers stay ``torch.nn.Linear``, which quantizers and LoRA look for: a block's
forward runs in ``faster_products``, which sees the products as they are called.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Below so many rows all ways take about as long.
MIN_ROWS = 32


@cache
def prefers_onednn() -> bool:
    """Whether this machine's float32 products are faster in oneDNN than where torch sends them."""
    # Older versions of torch do not tell what processor they run on; then everything stays as torch has it.
    processor = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    return is_amd and bool(processor.get("avx512_f")) and torch.backends.mkldnn.is_available()


@cache
def fused_linear() -> Callable[..., torch.Tensor] | None:
    """The operator of (2), or None where this torch or this machine has none for bfloat16."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return operator if operator is not None and supported is not None and supported() else None


def faster_products(states: torch.Tensor) -> AbstractContextManager:
    """Inside, linear layers take the faster way; nothing changes where ``states`` are no such case.

    Enter it inside of what gradient checkpointing repeats, not around: both runs must take the same way.

    Example::

        >>> layer, states = torch.nn.Linear(3, 4), torch.ones(2, 40, 3)
        >>> with faster_products(states):
        ...     layer(states).shape
        torch.Size([2, 40, 4])
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # compiled code chooses its way by itself
        return nullcontext()
    if states.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return nullcontext()
    half = states.dtype == torch.bfloat16 and not torch.is_grad_enabled() and fused_linear() is not None
    full = states.dtype == torch.float32 and prefers_onednn()
    return _FasterLinear() if half or full else nullcontext()


class _FasterLinear(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            func = linear_in_onednn
        return func(*args, **(kwargs or {}))


def linear_in_onednn(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by oneDNN, for at least ``MIN_ROWS`` rows.

    Example::

        >>> linear_in_onednn(torch.ones(2, 40, 3), torch.ones(4, 3)).shape
        torch.Size([2, 40, 4])
    """
    many = input.numel() >= MIN_ROWS * input.shape[-1] > 0
    if many and input.dtype == weight.dtype and not torch.is_grad_enabled() and fused_linear() is not None:
        return fused_linear()(input.contiguous(), weight, bias, "none", [], "")
    if not many or not input.dtype == weight.dtype == torch.float32:
        return F.linear(input, weight, bias)
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # (1, inputs, rows, 1), channels last
    output = F.conv2d(pixels, weight[:, :, None, None], bias)  # (1, outputs, rows, 1)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))
