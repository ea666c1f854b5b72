"""From a joint batch to embeddings: the model's inputs, cut into chunks, moved to the device, pixels normalised.

A batch stays on the host, its pictures as bytes, a quarter of their size as floats. Each chunk moves to the device when
it is embedded, so a step's memory there does not grow with its batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer_ext.losses.columns import COLUMNS
from trainer_ext.losses.gradient_cache import split_rows


def encoder_inputs(batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The columns of a joint batch, each with the arguments of the model's forward."""
    inputs: dict[str, dict[str, Tensor]] = {}
    if "image_text" in batch:
        side = batch["image_text"]
        inputs["image"] = {"pixel_values": side["pixel_values"]}
        inputs["caption"] = {name: side[name] for name in ("input_ids", "attention_mask")}
        if "negatives" in side:
            inputs["negative_caption"] = side["negatives"]
        if "short_caption" in side:
            inputs["short_caption"] = side["short_caption"]
    if "text" in batch:
        inputs |= {name: batch["text"][name] for name in ("query", "positive", "negatives") if name in batch["text"]}
    if "images" in batch:
        inputs |= {name: batch["images"][name] for name in COLUMNS["images"]}
    return inputs


def embed(model: nn.Module, features: Mapping[str, Tensor]) -> Tensor:
    """One input through the (wrapped) model: (rows, dim)."""
    output = model(**features, pooled_only=True)
    return output.image_embeds if "pixel_values" in features else output.text_embeds


# Chunk widths are multiples of it: fast on tensor cores, and a compiled tower sees few of them.
LENGTH_STEP = 8


class InputEmbedder:
    """Embeds one input, or one chunk of it: to the device, pixels to floats there, through the (wrapped) model.

    Args:
        mean: of each channel, as the image processor has them. std: likewise.
        device: where the model is.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._device = device
        shape = (3, 1, 1)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(shape)
        # A tensor: a GPU would multiply by the rounded 1/255 of a plain number.
        self._white = torch.tensor([255.0], device=device)

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        features = {name: tensor.to(self._device, non_blocking=True) for name, tensor in inputs.items()}
        if "pixel_values" in features:
            features["pixel_values"] = self.normalized(features["pixel_values"])
        return embed(model, features)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, 3, height, width) as float32, bit for bit what ``JinaCLIPImageProcessor`` makes of it."""
        return pixels.to(torch.float32).div_(self._white).sub_(self._mean).div_(self._std)


def chunks_of(
    inputs: Mapping[str, Mapping[str, Tensor]], size: int, patch_size: int, equal_rows: bool = False
) -> dict[str, tuple[list[dict[str, Tensor]], Tensor | None]]:
    """Cut a step's inputs into chunks with a token budget: ``size`` x tokens of the step's longest text.

    Texts are sorted by length and each chunk is cut to its own longest, so chunks of short texts hold more rows. So do
    chunks of pictures with fewer patches than the longest text has tokens. Little padding is embedded, and there are
    few chunks: each one adds its gradients to those of all weights, and the last of an input is embedded once.

    Args:
        inputs: the step's inputs, each with the arguments of the model's forward.
        size: rows of a chunk if all are as long as the longest text; the least number of pictures in one.
        patch_size: side of an image patch in pixels.
        equal_rows: ``size`` rows in every chunk, whatever their lengths, so that processes with the same number of
            rows have the same number of chunks.

    Returns:
        for each input its chunks; and for texts the order (rows,) that undoes the sorting: concatenate the chunks'
        embeddings and take ``embeddings[order]``. None for pictures, which keep their order.

    >>> mask = (torch.arange(24) < torch.tensor([24, 2, 3])[:, None]).long()
    >>> chunks, order = chunks_of({"query": {"input_ids": mask * 7, "attention_mask": mask}}, 1, 16)["query"]
    >>> [tuple(chunk["input_ids"].shape) for chunk in chunks], order.tolist()
    ([(2, 8), (1, 24)], [2, 0, 1])
    """
    texts = [item["attention_mask"] for item in inputs.values() if "attention_mask" in item]
    budget = size * max((mask.shape[1] for mask in texts), default=0)
    return {
        name: _text_chunks(item, size if equal_rows else budget, equal_rows)
        if "attention_mask" in item
        else (split_rows(item, size if equal_rows else _pictures(item, size, patch_size, budget)), None)
        for name, item in inputs.items()
    }


def _pictures(images: Mapping[str, Tensor], size: int, patch_size: int, budget: int) -> int:
    """How many pictures (batch, 3, height, width) fit ``budget`` tokens: patches and the class token."""
    height, width = images["pixel_values"].shape[-2:]
    return max(size, budget // (1 + (height // patch_size) * (width // patch_size)))


def _text_chunks(texts: Mapping[str, Tensor], limit: int, by_rows: bool) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Chunks of at most ``limit`` rows, or of ``limit`` tokens with padding; shortest texts first."""
    lengths = texts["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    steps = -(-lengths[order] // LENGTH_STEP) * LENGTH_STEP
    widths = steps.clamp(max=texts["attention_mask"].shape[1]).tolist()
    chunks, start = [], 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or (end + 1 - start) * (1 if by_rows else widths[end]) > limit:
            rows, width = order[start:end], widths[end - 1]
            chunks.append({name: tensor[rows, :width] for name, tensor in texts.items()})
            start = end
    return chunks, order.argsort()
