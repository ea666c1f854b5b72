"""Shared by all tests: no network, a predictable number of threads, and the golden vectors."""

import os
from pathlib import Path

# Before any Hugging Face library is imported: whoever reaches for the Hub fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Tiny models gain nothing from more threads, and sums keep one order on every machine.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors: what the original mathematics gives for small random weights."""
    return Path(__file__).parent / "fixtures" / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU say that there is none instead of failing."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
