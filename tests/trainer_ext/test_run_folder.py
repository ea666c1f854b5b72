"""A run's folder belongs to one run and one recipe, and says where the run came from."""

import json
import subprocess
from pathlib import Path

import pytest

from trainer_ext.recipe import Recipe, load_recipe
from trainer_ext.run_folder import RunFolder, commit_of


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_run_file_tells_recipe_command_and_versions(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.claim(recipe, ["recipe.yaml", "save_steps=2"])
    told = json.loads((folder.path / "run.json").read_text())
    assert Recipe.model_validate(told["recipe"]) == recipe
    assert told["command"] == ["recipe.yaml", "save_steps=2"]
    assert {"python", "torch", "transformers"} <= told["versions"].keys()
    assert "commit" in told


def test_folder_of_another_run_is_refused_unless_resumed(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe, [])
    with pytest.raises(ValueError, match="already holds a run; go on with it by --resume"):
        folder.claim(recipe, [])
    folder.claim(recipe, ["again"], resume=True)
    assert json.loads((folder.path / "run.json").read_text())["command"] == []  # the run's origin stays


def test_folder_with_other_files_is_refused_even_to_resume(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.tex").touch()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"no run of ours \(thesis.tex\)"):
            RunFolder(tmp_path).claim(recipe, [], resume=resume)
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").claim(recipe, [])


def test_changed_recipe_is_listed_and_refused_unless_accepted(
    tmp_path: Path, recipe: Recipe, tiny_recipe: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe, [])
    changed = load_recipe(tiny_recipe, ["stages.1.steps=9", "stages.2.learning_rate=0.5"])
    with pytest.raises(ValueError, match=r"stages.1.steps: 2 -> 9; stages.2.learning_rate: 0.002 -> 0.5"):
        folder.claim(changed, [], resume=True)
    folder.claim(changed, [], resume=True, allow_recipe_change=True)
    folder.claim(changed, [], resume=True)  # from now on it is the changed recipe's run
    with pytest.raises(ValueError, match="9 -> 2"):
        folder.claim(recipe, [], resume=True)


def test_unreadable_run_file_is_one_clear_error(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "run.json").write_text('{"recipe": {"name":')
    with pytest.raises(ValueError, match=r"run.json cannot be read"):
        RunFolder(tmp_path).claim(recipe, [], resume=True)


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert RunFolder(tmp_path).last_checkpoint(said.append) is None
    assert said == [f"no complete checkpoint in {tmp_path}: starting from the beginning"]


class Part:
    """Saves one file, as a model or a processor does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, save_directory: str) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / self.name).touch()


def test_models_land_in_stage_folders_and_in_the_run_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    parts = [Part("config.json"), Part("tokenizer.json")]
    assert folder.save_stage(0, "pairs", parts) == tmp_path / "stages" / "0-pairs"
    folder.save_model(parts)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.json", "tokenizer.json", "stages/0-pairs/config.json", "stages/0-pairs/tokenizer.json"}
    assert not list(tmp_path.glob(".*"))


def test_commit_of_a_checkout_and_of_an_environment_inside_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    for folder in ("package", "environment"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "recipe.py").touch()
    git("add", "package")
    git("commit", "-q", "-m", "first")
    assert commit_of(tmp_path / "package") == git("rev-parse", "HEAD")
    (tmp_path / "package" / "recipe.py").write_text("changed")
    assert commit_of(tmp_path / "package") == git("rev-parse", "HEAD") + "+changes"
    assert commit_of(tmp_path / "environment") is None
