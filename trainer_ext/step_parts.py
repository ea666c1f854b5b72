"""The parts of a joint batch on their way to the model: cut into chunks, moved to the device, pixels normalised.

A batch waits on the host, its pictures as bytes, a quarter of their size as floats. Only the chunk whose turn it is
comes to the device, so a step's memory there does not grow with its batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer_ext.gradient_cache import split_rows
from trainer_ext.objective import embed

# Chunks are as wide as a multiple of it: tensor cores like that, and a compiled tower sees few widths.
LENGTH_STEP = 8


class PartEmbedder:
    """Embeds one part, or one chunk of it: to the device, pixels to floats there, through the (wrapped) model.

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

    def __call__(self, model: nn.Module, part: Mapping[str, Tensor]) -> Tensor:
        features = {name: tensor.to(self._device, non_blocking=True) for name, tensor in part.items()}
        if "pixel_values" in features:
            features["pixel_values"] = self.normalized(features["pixel_values"])
        return embed(model, features)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, 3, height, width) as float32, bit for bit what ``JinaCLIPImageProcessor`` makes of it."""
        return pixels.to(torch.float32).div_(self._white).sub_(self._mean).div_(self._std)


def chunks_of(
    parts: Mapping[str, Mapping[str, Tensor]], size: int, patch_size: int, equal_rows: bool = False
) -> dict[str, tuple[list[dict[str, Tensor]], Tensor | None]]:
    """The parts of a step in chunks of as many tokens as ``size`` rows of its longest text, or ``size`` pictures.

    Texts are sorted by length, and each chunk is cut to its own longest; of short texts a chunk takes more rows, and
    so it does of pictures whose patches are fewer than the longest text's tokens. So little padding is embedded, and a
    step has few chunks: each one adds its gradients to those of all weights, and the last of a part is embedded once.

    Args:
        parts: the step's parts, each with the arguments of the model's forward.
        size: rows of a chunk where all are as long as the longest text; at least so many pictures.
        patch_size: side of an image patch in pixels.
        equal_rows: ``size`` rows in every chunk, whatever their lengths, so that processes with as many rows have as
            many chunks.

    Returns:
        for each part its chunks; and for texts the order (rows,) that puts the chunks' rows back in their place:
        embeddings of the chunks in a row, ``embeddings[order]``. None for pictures, which keep their order.

    >>> mask = (torch.arange(24) < torch.tensor([24, 2, 3])[:, None]).long()
    >>> chunks, order = chunks_of({"query": {"input_ids": mask * 7, "attention_mask": mask}}, 1, 16)["query"]
    >>> [tuple(chunk["input_ids"].shape) for chunk in chunks], order.tolist()
    ([(2, 8), (1, 24)], [2, 0, 1])
    """
    texts = [part["attention_mask"] for part in parts.values() if "attention_mask" in part]
    budget = size * max((mask.shape[1] for mask in texts), default=0)
    return {
        name: _text_chunks(part, size if equal_rows else budget, equal_rows)
        if "attention_mask" in part
        else (split_rows(part, size if equal_rows else _pictures(part, size, patch_size, budget)), None)
        for name, part in parts.items()
    }


def _pictures(part: Mapping[str, Tensor], size: int, patch_size: int, budget: int) -> int:
    """How many pictures (batch, 3, height, width) ``budget`` tokens are: their patches and the class token each."""
    height, width = part["pixel_values"].shape[-2:]
    return max(size, budget // (1 + (height // patch_size) * (width // patch_size)))


def _text_chunks(part: Mapping[str, Tensor], limit: int, by_rows: bool) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Chunks of at most ``limit`` rows, or of as many tokens with padding; shortest texts first."""
    lengths = part["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    steps = -(-lengths[order] // LENGTH_STEP) * LENGTH_STEP
    widths = steps.clamp(max=part["attention_mask"].shape[1]).tolist()
    chunks, start = [], 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or (end + 1 - start) * (1 if by_rows else widths[end]) > limit:
            rows, width = order[start:end], widths[end - 1]
            chunks.append({name: tensor[rows, :width] for name, tensor in part.items()})
            start = end
    return chunks, order.argsort()
