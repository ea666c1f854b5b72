"""Where a model came from, so that its tokenizer and image processor are read from the very same place later."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer

from .image_processing_jina_clip import JinaCLIPImageProcessor
from .processing_jina_clip import JinaCLIPProcessor

_PLACE = ("subfolder", "revision", "token", "cache_dir", "local_files_only")


class ModelOrigin:
    """The folder or repository of a model, with the arguments of ``from_pretrained`` that say where in it and how.

    A local folder is kept as an absolute path, a repository's revision as the commit that was loaded. The token stays
    in memory: it is no part of a pickle or of what is printed.

    Example::

        >>> ModelOrigin("somebody/clip", {"revision": "a" * 40, "token": "secret", "dtype": "float16"})
        ModelOrigin('somebody/clip', revision='aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')
    """

    def __init__(self, name: str | Path, options: Mapping[str, Any]) -> None:
        self.name = os.path.abspath(name) if os.path.isdir(name) else str(name)
        self.options = {key: options[key] for key in _PLACE if options.get(key) is not None}
        if not os.path.isdir(self.name) and (commit := self._commit()):
            self.options["revision"] = commit

    def _commit(self) -> str | None:
        """The commit whose configuration lies in the cache, where the model's loading has just put it."""
        file = "/".join(part for part in (self.options.get("subfolder"), "config.json") if part)
        place = {key: self.options.get(key) for key in ("cache_dir", "revision")}
        try:
            found = try_to_load_from_cache(self.name, file, **place)
        except ValueError:  # no name of a repository: a folder that is gone
            return None
        match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", found) if isinstance(found, str) else None
        return match[1] if match else None

    def load_processor(self) -> JinaCLIPProcessor:
        """Read both parts by our own classes, so that no ``auto_map`` of the folder can name code to run."""
        return JinaCLIPProcessor(
            JinaCLIPImageProcessor.from_pretrained(self.name, **self.options),
            AutoTokenizer.from_pretrained(self.name, trust_remote_code=False, **self.options),
        )

    def __deepcopy__(self, memo: dict) -> "ModelOrigin":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": {k: v for k, v in self.options.items() if k != "token"}}

    def __repr__(self) -> str:
        shown = [f"{key}={value!r}" for key, value in self.__getstate__()["options"].items()]
        return f"ModelOrigin({', '.join([repr(self.name), *shown])})"
