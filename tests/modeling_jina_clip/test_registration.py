"""``import modeling_jina_clip`` is cheap and registers with the Auto classes, in whatever order things are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The published auto_map of this folder names another repository, which cannot be reached: only this package serves it.
USE = """
assert type(AutoConfig.from_pretrained(folder)).__module__ == "modeling_jina_clip.configuration_jina_clip"
assert type(AutoImageProcessor.from_pretrained(folder)).__name__ == "JinaCLIPImageProcessor"
assert type(AutoProcessor.from_pretrained(folder)).__name__ == "JinaCLIPProcessor"
assert type(AutoModel.from_pretrained(folder)).__module__ == "modeling_jina_clip.modeling_jina_clip"
"""
AUTO = {
    "AutoConfig": "from transformers import AutoConfig",
    "AutoModel": "from transformers import AutoModel",
    "AutoProcessor": "from transformers import AutoProcessor",
    # The public name is a stand-in that demands torchvision before transformers 5.18.
    "AutoImageProcessor": "from transformers.models.auto.image_processing_auto import AutoImageProcessor",
}
TIMED = """
from time import process_time
from transformers import AutoModel, PreTrainedModel
start, finders = process_time(), list(sys.meta_path)
import modeling_jina_clip
print(process_time() - start)
assert sys.meta_path == finders
"""
MOST_SECONDS = 0.3  # on top of the two names of transformers


def run(golden: Path, *lines: str) -> str:
    program = "\n".join(
        ["import sys", f"sys.path.insert(0, {str(ROOT)!r})", f"folder = {str(golden / 'tiny_model')!r}", *lines]
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_this_package_first(golden: Path) -> None:
    run(golden, "import transformers", "import modeling_jina_clip", *AUTO.values(), USE)


@pytest.mark.slow
def test_the_auto_classes_first(golden: Path) -> None:
    run(golden, *AUTO.values(), "import modeling_jina_clip", USE)


@pytest.mark.slow
def test_the_import_is_cheap_and_leaves_no_import_hook(golden: Path) -> None:
    """Processor time, so that a busy machine does not fail the test; the better of two, since the first may compile."""
    assert min(float(run(golden, TIMED)) for _ in range(2)) < MOST_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("first", [True, False], ids=["ours-first", "ours-last"])
def test_one_auto_class_alone(golden: Path, name: str, first: bool) -> None:
    use = [line for line in USE.splitlines() if f"({name}." in line]
    assert len(use) == 1
    lines = ["import modeling_jina_clip", AUTO[name]]
    run(golden, *(lines if first else reversed(lines)), *use)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        *[
            "transformers.trainer",
            "transformers.pipelines",
            "transformers.modeling_utils",
            "transformers.processing_utils",
        ],
        *["sentence_transformers", "peft", "transformers.image_processing_utils", "transformers.models.auto"],
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["ours-first", "ours-last"])
def test_beside_other_imports(golden: Path, module: str, first: bool) -> None:
    lines = ["import modeling_jina_clip", f"import {module}"]
    run(golden, *(lines if first else reversed(lines)), *AUTO.values(), USE)
