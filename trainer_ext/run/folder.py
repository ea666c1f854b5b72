"""The output folder of a run: its owner, its origin, and the models in it.

DIR/run.json            the recipe, its losses in words, the setup, command, versions and commit of the start
DIR/checkpoint-N/       what a resume needs
DIR/stages/0-NAME/      the whole model as it was at the end of a stage
DIR/best/               the model with the best figure that the recipe's keep_best names; best.json has the figures
DIR/config.json, ...    the finished model; with LoRA also its adapter/
DIR/ema/                the model with averaged weights, if the recipe has ema_decay
DIR/merged-0.5/         the model at half of the way from the start, if the recipe has merge_with_start: [0.5]
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trainer_ext.files import (
    clear_leftovers,
    last_whole_checkpoint,
    partial_path,
    readable_as_the_folder,
    refuse_unwritable,
    whole_folder,
    write_json,
)
from trainer_ext.locks import held
from trainer_ext.recipe.recipe import Recipe, recipe_differences
from trainer_ext.recipe.schema import LOSS_RULES
from trainer_ext.run.hardware import hardware

RUN_FILE = "run.json"
BEST_FILE = "best.json"
_PACKAGES = ("modeling-jina-clip", "torch", "transformers", "accelerate", "tokenizers", "datasets")


class RunFolder:
    """One run's folder: ``check`` it before any work, ``claim`` it right before the first step.

    A failure in between, such as an unreadable source, leaves the folder free for another attempt.

    >>> import tempfile
    >>> from trainer_ext.recipe import load_recipe
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run", load_recipe("openmoji"), command=["openmoji"])
    >>> folder.check()
    >>> folder.claim()
    >>> folder.check()
    Traceback (most recent call last):
    ValueError: .../run already holds a run; go on with it by --resume, or choose another --output_dir
    """

    def __init__(self, path: str | Path, recipe: Recipe, command: Sequence[str]) -> None:
        self.path = Path(path)
        self.recipe = recipe
        self.command = list(command)

    def check(self, resume: bool = False, allow_recipe_change: bool = False) -> None:
        """Check that the run may use the folder.

        Raises:
            ValueError: the folder holds something else, or another run, or this run with another recipe.
        """
        if not (self.path / RUN_FILE).is_file():
            self._refuse_foreign_files()
        elif not resume:
            raise ValueError(
                f"{self.path} already holds a run; go on with it by --resume, or choose another --output_dir"
            )
        elif not allow_recipe_change and (changes := recipe_differences(self._started_with(), self.recipe)):
            raise ValueError(
                f"the recipe is not the one that {self.path} was started with: {'; '.join(changes)}. "
                "Undo the change, or accept it with --allow_recipe_change"
            )

    def held(self, say: Callable[[str], object]) -> AbstractContextManager[None]:
        """Keep other runs out of the folder inside a block; the main process does it for all processes of the run.

        Raises:
            ValueError: the folder cannot be written.
            FolderInUseError: another process holds it.
        """
        refuse_unwritable(self.path, "--output_dir")
        return held(self.path, ["python", "-m", "trainer_ext", *self.command], say)

    def check_setup(self, setup: Mapping[str, Any], allow_change: bool = False) -> None:
        """Check that a resumed run has the same setup: what decides its steps beside the recipe.

        Args:
            setup: names and values; an inner mapping is compared value by value. Names that ``run.json`` of an older
                version does not have are not compared.
            allow_change: accept any change.

        Raises:
            ValueError: lists what has changed.
        """
        changes = [] if allow_change else self._setup_changes(setup)
        if changes:
            raise ValueError(
                f"{self.path} was started with another setup: {'; '.join(changes)}. It would not go on as the same "
                "run: undo the change, or accept it with --allow_recipe_change"
            )

    def claim(self, setup: Mapping[str, Any] | None = None) -> None:
        """Write the run's origin; a resumed run keeps the first one unless its recipe or setup has changed."""
        setup, content = dict(setup or {}), {}
        claimed = (self.path / RUN_FILE).is_file()
        if claimed and self._is_same(setup):
            content = self._read()
            if content.get("setup", {}).items() >= setup.items():
                return
        origin = {
            "recipe": self.recipe.model_dump(mode="json"),
            "command": self.command,
            "versions": installed_versions(),
            "commit": commit_of(Path(__file__).parents[1]),
            "hardware": hardware(),
            "repository": repository_of(Path(__file__).parents[1]),
            "losses": {
                side.loss: LOSS_RULES[side.loss].words for stage in self.recipe.stages for _, side in stage.sides()
            },
        }
        write_json(self.path / RUN_FILE, (content or origin) | {"setup": setup})

    def last_checkpoint(self, say: Callable[[str], object]) -> Path | None:
        """The checkpoint to resume from; None, with a message, if none is complete."""
        checkpoint = last_whole_checkpoint(self.path, say)
        if checkpoint is None:
            say(f"no complete checkpoint in {self.path}: starting from the beginning")
        return checkpoint

    def save_stage(self, index: int, name: str, save: Callable[[str], None]) -> Path:
        """Save the model at the end of a stage, whole or not at all; ``save`` writes it into a folder."""
        target = self.path / "stages" / f"{index}-{name}"
        if target.name != f"{index}-{name}":  # recipes refuse such a name; nothing may be written outside the run
            raise ValueError(f"stage name {name!r} is a path; give a plain name")
        with whole_folder(target) as partial:
            save(str(partial))
        return target

    def save_best(
        self, save: Callable[[str], None], figure: str | None, step: int, figures: Mapping[str, float]
    ) -> Path:
        """Save the best model so far with its figures, whole or not at all, in place of the one before."""
        with whole_folder(self.path / "best") as partial:
            save(str(partial))
            write_json(partial / BEST_FILE, {"step": step, "figure": figure, "figures": dict(figures)})
        return self.path / "best"

    def save_model(self, save: Callable[[str], None]) -> None:
        """Save the finished model into the run's folder itself; ``config.json`` comes last, after all others."""
        partial = partial_path(self.path / "model")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            save(str(partial))
            readable_as_the_folder(partial)
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                if path.is_dir():
                    shutil.rmtree(self.path / path.name, ignore_errors=True)
                os.replace(path, self.path / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        clear_leftovers(self.path)

    def save_average(self, save: Callable[[str], None]) -> Path:
        """Save the model with averaged weights, whole or not at all; ``save`` writes it into a folder."""
        with whole_folder(self.path / "ema") as partial:
            save(str(partial))
        return self.path / "ema"

    def _refuse_foreign_files(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --output_dir")
        foreign = sorted(path.name for path in self.path.glob("*") if not path.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{self.path} holds files that are no run of ours ({', '.join(foreign[:3])}); "
                "choose an empty --output_dir"
            )

    def _started_with(self) -> Recipe:
        return self._readable(lambda: Recipe.model_validate(self._read()["recipe"]))

    def _is_same(self, setup: Mapping[str, Any]) -> bool:
        """Whether ``run.json`` tells of this recipe and setup; one that cannot be read does not."""
        try:
            return not recipe_differences(self._started_with(), self.recipe) and not self._setup_changes(setup)
        except ValueError:
            return False

    def _setup_changes(self, setup: Mapping[str, Any]) -> list[str]:
        """``name: old -> new`` for each changed value that ``run.json`` knows."""
        if not (self.path / RUN_FILE).is_file():
            return []
        old = self._readable(lambda: dict(_flat(self._read().get("setup", {}))))
        changed = {name: value for name, value in _flat(setup) if old.get(name, value) != value}
        for name in [name for name in changed if name.startswith("rows.")]:  # says it all
            changed.pop(f"content.{name.removeprefix('rows.')}", None)
        return [f"{name}: {old[name]} -> {value}" for name, value in changed.items()]

    def _read(self) -> dict[str, Any]:
        return json.loads((self.path / RUN_FILE).read_text())

    def _readable(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.path / RUN_FILE} cannot be read ({reason}), so nothing tells whether this is the same run; if "
                "it is, go on with --allow_recipe_change, which writes it anew, else choose another --output_dir"
            ) from error


def _flat(setup: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in setup.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def installed_versions() -> dict[str, str]:
    """Versions of the packages that affect a run's figures; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


_REMOTE = re.compile(
    r"(?:(?:https?|ssh|git)://(?:[^@/]*@)?|[\w.-]+@)([\w.-]+)(?::\d+(?=/))?[:/]([\w./~-]+?)(?:\.git)?/?"
)


def repository_of(folder: Path) -> str | None:
    """Where the checkout of a folder came from, without any login in the address; None for none, or a local one.

    It is read from the checkout's own configuration: no network.
    """
    command = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    try:
        address = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return public_address(address)


def public_address(address: str) -> str | None:
    """A remote's address as host/owner/repository; None for a path of this machine.

    >>> public_address("https" + "://me:" + "word@example.org/me/clip.git")
    'example.org/me/clip'
    >>> public_address("git@example.org:me/clip.git")
    'example.org/me/clip'
    >>> public_address("/home/me/clip") is None
    True
    """
    found = _REMOTE.fullmatch(address)
    return f"{found[1]}/{found[2]}" if found else None


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout, with "+changes" if it has uncommitted ones; None for an installed package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__main__.py"
        )  # a virtual environment inside another repository is not tracked there
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
