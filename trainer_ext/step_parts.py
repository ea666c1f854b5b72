"""The parts of a joint batch on their way to the model: cut into chunks, moved to the device, pixels normalised.

A batch waits on the host, its pictures as bytes, a quarter of their size as floats. Only the chunk whose turn it is
comes to the device, so a step's memory there does not grow with its batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer_ext.gradient_cache import split_rows
from trainer_ext.objective import embed

# Lengths that tensor cores like; and a compiled tower sees few of them.
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


def chunks_of(part: Mapping[str, Tensor], size: int) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    """A part in chunks of ``size`` rows; texts sorted by length, each chunk cut to its own longest.

    Returns:
        the chunks; and for texts the order (rows,) that puts the chunks' rows back in their place: embeddings of the
        chunks in a row, ``embeddings[order]``. None for pictures, which keep their order.

    >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    >>> chunks, order = chunks_of({"input_ids": mask * 7, "attention_mask": mask}, 2)
    >>> chunks[0]["input_ids"].shape, order.tolist()
    (torch.Size([2, 3]), [2, 0, 1])
    """
    if "attention_mask" not in part:
        return split_rows(part, size), None
    lengths = part["attention_mask"].sum(dim=1)
    order = lengths.argsort(stable=True)
    chunks = split_rows({name: tensor[order] for name, tensor in part.items()}, size)
    longest = [-(-int(chunk["attention_mask"].sum(dim=1).max()) // LENGTH_STEP) * LENGTH_STEP for chunk in chunks]
    cut = [{name: x[:, :width] for name, x in chunk.items()} for chunk, width in zip(chunks, longest, strict=True)]
    return cut, order.argsort()
