"""The schema of what a run's towers start from, and the checks of it that need no model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_ext.recipe_errors import Problem
from trainer_ext.recipe_sources import Strict


class InitializeSpec(Strict):
    """Checkpoints that replace the towers of ``model``: safetensors files, or folders of them, under any public names.

    ``text``: JinaBERT, with or without the head of a masked language model, or a Jina-XLM-RoBERTa; ``vision``: EVA02
    of timm, open_clip or EVA-CLIP.
    """

    text: str | None = None
    vision: str | None = None

    def problems(self, trains_tokenizer: bool) -> Iterator[Problem]:
        """What is wrong with it whatever lies on the disk."""
        if self.text is None and self.vision is None:
            yield "initialize", "names no tower: give it text, vision, or both, or leave it out."
        if self.text is not None and trains_tokenizer:
            reason = f"a tokenizer trained anew does not fit the word embeddings of initialize.text ({self.text})."
            yield "tokenizer", f"{reason} Name the folder of theirs; null takes the one beside them."

    def missing(self) -> Iterator[Problem]:
        """What is not on the disk."""
        for tower, value in self:
            if value is None:
                continue
            path = Path(value).expanduser()
            if path.is_dir() and not any(path.glob("*.safetensors")):
                yield f"initialize.{tower}", f"{value!r} is a folder without a .safetensors file. Pickles are not read."
            elif not path.is_dir() and not (path.is_file() and path.suffix == ".safetensors"):
                found = "is no .safetensors file" if path.is_file() else "does not exist"
                yield f"initialize.{tower}", f"{value!r} {found}. Give a .safetensors file or a folder of them."


def locate_towers(value: Any, folder: Path) -> Any:
    """``initialize`` with paths that exist beside the recipe made absolute. What is no mapping is judged later."""
    if not isinstance(value, dict):
        return value
    return {
        tower: str(folder.absolute() / path) if isinstance(path, str) and (folder / path).exists() else path
        for tower, path in value.items()
    }
