"""Find presets, recipes and source lists by name.

They are data files in ``configuration/``: beside the packages in a checkout, inside ``trainer_ext`` in an installed
wheel (nothing called ``configuration`` may land in site-packages by itself). Everything else asks here, so that a name
means the same file in both.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Kind = Literal["models", "recipes", "sources"]
_WORDS = {"models": "model preset", "recipes": "recipe", "sources": "source list"}
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "models": (".json",),
    "recipes": (".yaml", ".yml"),
    "sources": (".yaml", ".yml"),
}


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None when nothing is close.

    >>> nearest("stepz", ["steps", "seed"])
    'steps'
    >>> nearest("banana", ["steps", "seed"]) is None
    True
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


def configuration_folder() -> Path:
    """The folder with ``models/``, ``recipes/`` and ``sources/``: the installed one, else the checkout's."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configuration", here.parent / "configuration"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"No configuration folder beside or inside {here}: the installation is incomplete. Install the package again."
    )


def available_resources(kind: Kind) -> list[str]:
    """The names that ``find_resource`` knows for ``kind``, sorted.

    >>> "openmoji" in available_resources("recipes")
    True
    """
    folder = configuration_folder() / kind
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.iterdir() if path.suffix in _SUFFIXES[kind])


def find_resource(kind: Kind, name: str | Path) -> Path:
    """Turn a name or a path into the path of a preset ("models"), a recipe or a source list.

    A path that exists wins: a file of that kind, and for "models" also a checkpoint folder that holds a config.json.
    Otherwise ``name`` is looked up in the packaged configuration folder.

    Raises:
        FileNotFoundError: no such path and no such name; lists the names there are and the nearest.

    >>> find_resource("recipes", "openmoji").name
    'openmoji.yaml'
    """
    path = Path(name).expanduser()
    if path.is_file() or (kind == "models" and (path / "config.json").is_file()):
        return path
    if kind == "models" and (path / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds LoRA's adapters without the weights that they change, such as a checkpoint of a run with "
            "lora; start from a folder with the updates merged in: the run's stages/N-NAME, or the finished run's own"
        )
    text = str(name)
    for suffix in _SUFFIXES[kind]:
        candidate = configuration_folder() / kind / (text + suffix)
        # A name is one word: "../x" or an absolute path must not reach files outside the folder.
        if path.name == text and candidate.is_file():
            return candidate
    names = available_resources(kind)
    close = nearest(path.stem, names)
    hint = f" Did you mean {close!r}?" if close else ""
    raise FileNotFoundError(
        f"No {_WORDS[kind]} {text!r}: it is neither an existing file nor one of the packaged names.{hint}"
        f" Packaged {kind}: {', '.join(names) or 'none'}."
    )
