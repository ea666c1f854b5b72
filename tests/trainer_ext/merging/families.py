"""Folders of tiny models that were made from one start."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.trainer_ext.tiny_run import make_model, make_processor


def make_folder(folder: Path, seed: int | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """The tiny model; with a seed a little away from it."""
    model = make_model()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.to(dtype).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(left: Path, right: Path) -> None:
    ours, theirs = weights_of(left), weights_of(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
