"""A run's folder belongs to one run and one recipe, and says where the run came from."""

import json
import subprocess
from pathlib import Path

import pytest

import trainer_ext
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.run.folder import RunFolder, commit_of


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_run_file_tells_recipe_command_and_versions(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", recipe, ["recipe.yaml", "save_steps=2"])
    folder.claim()
    told = json.loads((folder.path / "run.json").read_text())
    assert Recipe.model_validate(told["recipe"]) == recipe
    assert told["command"] == ["recipe.yaml", "save_steps=2"]
    assert {"python", "torch", "transformers"} <= told["versions"].keys()
    assert told["losses"] == {"info_nce": "InfoNCE", "info_nce_plus": "InfoNCE with hard negatives"}
    assert "commit" in told


def test_folder_of_another_run_is_refused_unless_resumed(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path / "run", recipe, ["first"])
    folder.check()
    folder.check()  # not claimed yet: what fails before the first step may be tried again
    folder.claim()
    with pytest.raises(ValueError, match="already holds a run; go on with it by --resume"):
        folder.check()
    again = RunFolder(tmp_path / "run", recipe, ["again"])
    again.check(resume=True)
    again.claim()
    assert json.loads((folder.path / "run.json").read_text())["command"] == ["first"]  # the run's origin stays


def test_folder_with_other_files_is_refused_even_to_resume(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.tex").touch()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"no run of ours \(thesis.tex\)"):
            RunFolder(tmp_path, recipe, []).check(resume=resume)
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex", recipe, []).check()


def test_changed_recipe_is_listed_and_refused_unless_accepted(
    tmp_path: Path, recipe: Recipe, tiny_recipe: Path
) -> None:
    before = RunFolder(tmp_path, recipe, [])
    before.claim()
    changed = load_recipe(tiny_recipe, ["stages.1.steps=9", "stages.2.learning_rate=0.5"])
    after = RunFolder(tmp_path, changed, [])
    with pytest.raises(ValueError, match=r"stages.1.steps: 2 -> 9; stages.2.learning_rate: 0.002 -> 0.5"):
        after.check(resume=True)
    after.check(resume=True, allow_recipe_change=True)
    after.claim()
    after.check(resume=True)  # from now on it is the changed recipe's run
    with pytest.raises(ValueError, match="9 -> 2"):
        before.check(resume=True)


def test_a_changed_setup_is_listed_and_refused_unless_accepted(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path, recipe, ["first"])
    folder.claim({"processes": 2, "rows": {"a": 10, "b": None}})
    folder.check_setup({"processes": 2, "rows": {"a": 10, "b": None}, "new": 1})  # nothing to compare it with
    changed = {"processes": 4, "rows": {"a": 11, "b": None}}
    with pytest.raises(ValueError, match=r"another setup: processes: 2 -> 4; rows.a: 10 -> 11\. .*allow_recipe_change"):
        folder.check_setup(changed)
    folder.check_setup(changed, allow_change=True)
    folder.claim(changed)
    folder.check_setup(changed)


def test_unreadable_run_file_is_one_clear_error(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "run.json").write_text('{"recipe": {"name":')
    with pytest.raises(ValueError, match=r"run.json cannot be read"):
        RunFolder(tmp_path, recipe, []).check(resume=True)


def test_no_checkpoint_is_said(tmp_path: Path, recipe: Recipe) -> None:
    said: list[str] = []
    assert RunFolder(tmp_path, recipe, []).last_checkpoint(said.append) is None
    assert said == [f"no complete checkpoint in {tmp_path}: starting from the beginning"]


def save(folder: str) -> None:
    """Writes two files, as a trainer does."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (Path(folder) / name).touch()


def test_models_land_in_stage_folders_and_in_the_run_itself(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path, recipe, [])
    assert folder.save_stage(0, "pairs", save) == tmp_path / "stages" / "0-pairs"
    folder.save_model(save)
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
        (tmp_path / folder / "__main__.py").touch()
    git("add", "package")
    git("commit", "-q", "-m", "first")
    assert commit_of(tmp_path / "package") == git("rev-parse", "HEAD")
    (tmp_path / "package" / "__main__.py").write_text("changed")
    assert commit_of(tmp_path / "package") == git("rev-parse", "HEAD") + "+changes"
    assert commit_of(tmp_path / "environment") is None


def test_commit_is_asked_of_the_package(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folder that holds ``__main__.py``, the file that git is asked for."""
    asked: list[Path] = []
    monkeypatch.setattr("trainer_ext.run.folder.commit_of", asked.append)
    RunFolder(tmp_path / "run", recipe, []).claim()
    [folder] = asked
    assert folder == Path(trainer_ext.__file__).parent
    assert (folder / "__main__.py").is_file()
