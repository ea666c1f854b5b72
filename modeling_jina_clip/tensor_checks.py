"""What a tower can take, said before it is taken: a wrong shape would end deep inside, or in a wrong vector."""

from typing import Any

import torch


def check_token_ids(input_ids: Any, attention_mask: torch.Tensor | None) -> None:
    """Raise unless ids are a tensor (batch, length), and the mask one of the same shape or None.

    Example::

        >>> check_token_ids(torch.tensor([1, 2]), None)
        Traceback (most recent call last):
        ValueError: input_ids of shape (2,) must be (batch, length); a single text is input_ids[None]
    """
    _check_tensor("input_ids", input_ids, "tokenizer(texts, padding=True, return_tensors='pt')")
    if input_ids.ndim != 2:
        cure = "; a single text is input_ids[None]" if input_ids.ndim == 1 else ""
        raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} must be (batch, length){cure}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} must have the shape of input_ids, "
            f"{tuple(input_ids.shape)}; pass the tokenizer's, or none at all"
        )


def check_pixels(pixel_values: Any, channels: int) -> None:
    """Raise unless pixels are a tensor (batch, channels, height, width).

    Example::

        >>> check_pixels(torch.zeros(3, 32, 32), channels=3)
        Traceback (most recent call last):
        ValueError: pixel_values of shape (3, 32, 32) must be (batch, 3, height, width), as image processors make them
    """
    _check_tensor("pixel_values", pixel_values, "image_processor(images, return_tensors='pt')")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"pixel_values of shape {tuple(pixel_values.shape)} must be (batch, {channels}, height, width), as "
            "image processors make them"
        )


def _check_tensor(name: str, value: Any, source: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; unpack it: model(**{source})")
