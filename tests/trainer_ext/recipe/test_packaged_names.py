"""Presets, recipes and source lists are found by name, in a checkout and in an installed wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_ext.recipe.reading import available_resources, configuration_folder, find_resource

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("kind", "name"), [("models", "openmoji-small"), ("recipes", "openmoji"), ("sources", "openmoji")]
)
def test_names_are_found_in_the_checkout(kind: str, name: str) -> None:
    path = find_resource(kind, name)
    assert path.is_file()
    assert path.parent == ROOT / "configuration" / kind
    assert name in available_resources(kind)


def test_existing_path_wins_over_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openmoji").write_text("mine")
    assert find_resource("recipes", "openmoji").read_text() == "mine"


def test_folder_is_a_model_only_with_a_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No model preset"):
        find_resource("models", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_resource("models", tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="No recipe"):
        find_resource("recipes", tmp_path)


def test_unknown_name_lists_names_and_the_nearest() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_resource("recipes", "openmojy")
    assert "'openmojy'" in str(caught.value)
    assert "Did you mean 'openmoji'?" in str(caught.value)
    assert ", ".join(available_resources("recipes")) in str(caught.value)


def test_name_reaches_no_file_outside_its_folder() -> None:
    assert (configuration_folder() / "recipes" / "../sources/openmoji.yaml").is_file()
    with pytest.raises(FileNotFoundError):
        find_resource("recipes", "../sources/openmoji")


def test_installed_package_finds_its_own_configuration(tmp_path: Path) -> None:
    """The layout of the wheel: values inside trainer_ext, and no checkout anywhere near."""
    package = tmp_path / "site" / "trainer_ext"
    # The whole package, or an editable install further down the path would win.
    shutil.copytree(ROOT / "trainer_ext", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configuration", package / "configuration")
    script = "from trainer_ext.recipe.reading import find_resource; print(find_resource('recipes', 'openmoji'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == package / "configuration" / "recipes" / "openmoji.yaml"
