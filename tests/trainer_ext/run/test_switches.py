"""What other code of the process has switched decides nothing about the weights of a run."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import load_file

from trainer_ext import train


@pytest.fixture(scope="module")
def expected(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = train(tiny_recipe, tmp_path_factory.mktemp("plain") / "run", only_stage="pairs")
    return load_file(run.folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_switches_decide_nothing_about_weights(
    tiny_recipe: Path, tmp_path: Path, expected: dict[str, torch.Tensor], dtype: torch.dtype, monkeypatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    torch.set_default_dtype(dtype)
    try:
        with torch.no_grad(), torch.device("meta"), np.errstate(all="raise"), warnings.catch_warnings():
            run = train(tiny_recipe, tmp_path / "run", only_stage="pairs")
            assert torch.get_default_device().type == "meta"
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    found = load_file(run.folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
