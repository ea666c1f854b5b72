"""What must not be in a published folder: pickles, secrets, and references to code of somebody else."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hub_upload import HubFolderError, build, verify
from tests.hub_checkpoint import TOKEN, finished_run


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("hub") / "tiny-clip")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the built folder that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "tiny-clip"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.bin", b"1234"),
        ("model.pt", b"1234"),
        ("data.json", pickle.dumps({"a": 1})),
        ("notes.txt", b"PK\x03\x04" + bytes(20)),
    ],
)
def test_pickles_are_refused_whatever_their_name(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(HubFolderError, match=f"{name} is a pickle or an archive"):
        verify(folder)


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "ghp_" + "a1B2" * 9,
        "AKIA" + "ABCDEFGH12345678",
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        "https://me:hunter22" + "@example.org/x",
        '{"api_key": "' + "q" * 20 + '"}',
        "sk-" + "proj-" + "x9" * 20,
    ],
    ids=lambda secret: secret[:8],
)
def test_secrets_are_refused_without_repeating_them(folder: Path, secret: str) -> None:
    (folder / "README.md").write_text(f"first line\n{secret}\n")
    with pytest.raises(HubFolderError, match=r"README.md, line 2, seems to hold a secret") as caught:
        verify(folder)
    assert secret not in str(caught.value)


def test_secret_in_the_header_of_weights_is_found(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / "more.safetensors", metadata={"author": TOKEN})
    with pytest.raises(HubFolderError, match=r"more.safetensors, line 1"):
        verify(folder)
