"""The tiny training run's data, made once a session."""

from pathlib import Path

import pytest

from tests.trainer_ext.tiny_run import RunFactory, write_data, write_recipe


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny run's sources, model preset, tokenizer and recipe."""
    folder = tmp_path_factory.mktemp("tiny-run")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_data: Path) -> Path:
    """The tiny run's recipe file."""
    return write_recipe(tiny_data)


@pytest.fixture(scope="session")
def make_trainer(tiny_recipe: Path) -> RunFactory:
    """Makes trainers of the tiny run."""
    return RunFactory(tiny_recipe)
