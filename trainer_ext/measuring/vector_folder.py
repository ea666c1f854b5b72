"""What all vectors of a folder have in common, noted beside them: a run that goes on must be the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_ext.files import file_hash, read_json, write_json

SETUP = "_setup.json"  # Arrow and Ray skip names that begin with "_"


def begin_folder(folder: Path, model: str, setup: Mapping[str, Any]) -> None:
    """Note how the vectors of a new folder are made, or compare with what a folder that is gone on with notes.

    Args:
        folder: of the vectors; made where it is not there.
        model: a folder, known by the hashes of its weights and settings, or a Hub name.
        setup: what decides what the vectors are, beside the model.

    Raises:
        ValueError: the folder holds something else, or vectors of another setup; the difference is named.
    """
    weights = sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*.json")])
    whole = {**setup, "model": {path.name: file_hash(path) for path in weights} or model}
    if (folder / SETUP).is_file():
        old = read_json(folder / SETUP)
        if changed := [name for name in whole if old.get(name) != whole[name]]:
            raise ValueError(f"--output_dir {folder} holds vectors of another {changed[0]}; give another folder")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} holds something else; give an empty folder")
    write_json(folder / SETUP, whole)
