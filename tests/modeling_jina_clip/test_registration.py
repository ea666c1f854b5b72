"""``import modeling_jina_clip`` is cheap, and enough for the Auto classes, in whatever order things are imported."""

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
OURS = "import modeling_jina_clip; assert not {'torch', 'PIL', 'numpy'} & (sys.modules.keys() - before)"


def run(golden: Path, *lines: str) -> None:
    program = "\n".join(
        ["import sys", f"sys.path.insert(0, {str(ROOT)!r})", f"folder = {str(golden / 'tiny_model')!r}", *lines]
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_this_package_first(golden: Path) -> None:
    run(golden, "import transformers", "before = {*sys.modules}", OURS, *AUTO.values(), USE)


def test_the_auto_classes_first(golden: Path) -> None:
    run(golden, *AUTO.values(), "before = {*sys.modules}", "import modeling_jina_clip", USE)


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
def test_whoever_loads_the_auto_classes(golden: Path, module: str) -> None:
    """Registration happens in the middle of another import; none may find a module half loaded."""
    run(golden, "import modeling_jina_clip", f"import {module}", *AUTO.values(), USE)
