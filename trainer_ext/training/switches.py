"""Switches and random numbers of the whole process that other code uses decide nothing about a run's weights."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def torch_as_it_comes() -> Iterator[None]:
    """Inside, torch makes float32 tensors on the processor and records gradients; afterwards all is as it was.

    A program that calls ``train`` may have set another default type or device for work of its own, or be inside
    ``no_grad``. What a recipe asks for, such as ``bf16``, is said to the trainer and not by these.

    >>> torch.set_default_dtype(torch.float64)
    >>> with torch_as_it_comes():
    ...     torch.ones(1).dtype
    torch.float32
    >>> torch.ones(1).dtype
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # not without need: it slows every call down
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch as they were, whatever is drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
