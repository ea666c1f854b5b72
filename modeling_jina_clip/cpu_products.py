"""Matrix products in float32 on a CPU, by the faster of torch's two libraries.

torch hands the product of a linear layer to MKL and a convolution to oneDNN. On an AMD processor with AVX-512 MKL runs
at about half the speed of oneDNN (benchmarks/products.py); on an Intel one it does not. A linear layer is a convolution
with a kernel of one pixel, and a matrix (rows, width) is an image of ``rows`` pixels whose channels lie together. So
the product goes to oneDNN without a copy, with its gradients, through public functions alone.

The layers stay ``torch.nn.Linear``, which quantizers and LoRA look for: a block's forward runs in ``faster_products``,
which sees the products as they are called.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Below so many rows both take about as long.
MIN_ROWS = 32


@cache
def prefers_onednn() -> bool:
    """Whether this machine's float32 products are faster in oneDNN than where torch sends them."""
    # Older versions of torch do not tell what processor they run on; then everything stays as torch has it.
    processor = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    return is_amd and bool(processor.get("avx512_f")) and torch.backends.mkldnn.is_available()


def faster_products(states: torch.Tensor) -> AbstractContextManager:
    """Inside, linear layers in float32 go to the faster library; nothing changes where ``states`` are no such case.

    Enter it inside of what gradient checkpointing repeats, not around: both runs must take the same way.

    Example::

        >>> layer, states = torch.nn.Linear(3, 4), torch.ones(2, 40, 3)
        >>> with faster_products(states):
        ...     layer(states).shape
        torch.Size([2, 40, 4])
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # compiled code chooses its library by itself
        return nullcontext()
    plain = states.device.type == "cpu" and states.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return _LinearByConvolution() if plain and prefers_onednn() else nullcontext()


class _LinearByConvolution(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            func = linear_by_convolution
        return func(*args, **(kwargs or {}))


def linear_by_convolution(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by oneDNN, where that is at least ``MIN_ROWS`` rows in float32.

    Example::

        >>> linear_by_convolution(torch.ones(2, 40, 3), torch.ones(4, 3)).shape
        torch.Size([2, 40, 4])
    """
    if not input.dtype == weight.dtype == torch.float32 or not input.numel() >= MIN_ROWS * input.shape[-1] > 0:
        return F.linear(input, weight, bias)
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # (1, inputs, rows, 1), channels last
    output = F.conv2d(pixels, weight[:, :, None, None], bias)  # (1, outputs, rows, 1)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))
