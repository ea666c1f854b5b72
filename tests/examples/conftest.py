"""Running the fine-tuning examples as programs, on the demo's data and a model's folder."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import hub_upload
from trainer_ext.demo_data.cache import prepare

CHECKOUT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture(scope="module")
def tables() -> Path:
    return prepare(os.environ.get("JINA_CLIP_CACHE", CHECKOUT / ".cache" / "tests"), progress=False)


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run an example as a program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def start(name: str, *arguments: object) -> int:
        script = str(CHECKOUT / "examples" / f"{name}.py")
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return start
