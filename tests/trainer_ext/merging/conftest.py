"""A family of tiny models."""

from pathlib import Path

import pytest
import torch

from tests.trainer_ext.merging.families import make_folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``a`` and ``b``, and ``halved`` in bfloat16."""
    folder = tmp_path_factory.mktemp("family")
    make_folder(folder / "base")
    for seed, name in enumerate("ab"):
        make_folder(folder / name, seed)
    make_folder(folder / "halved", dtype=torch.bfloat16)
    return folder
