"""The installed model package: the files that a Hub folder serves, and checkpoints loaded by its own classes.

``HubFolderError`` is the one error of this room: bad input, with its cure.
"""

from functools import cache
from pathlib import Path
from typing import Any

ENTRIES = ("modeling_jina_clip.py", "processing_jina_clip.py", "custom_st.py")  # where loaders start


class HubFolderError(ValueError):
    """A folder or a repository that must not be built, verified or pushed; the message ends with the cure."""


def model_package() -> Any:
    """Return the module ``modeling_jina_clip``.

    Raises:
        HubFolderError: the module, or a library that it needs, is not installed.
    """
    try:
        import modeling_jina_clip
    except ImportError as error:
        raise HubFolderError(f"{error}; run `pip install modeling-jina-clip`") from error
    return modeling_jina_clip


@cache
def remote_code() -> tuple[Path, ...]:
    """The files that loading and encoding need without our package: those that ``ENTRIES`` reach by their imports.

    The rest of the package, such as the conversion of other layouts and the head for pre-training, is not served.
    """
    folder = Path(model_package().__file__).parent  # first, so that a missing library is named with its cure
    from transformers.dynamic_module_utils import get_relative_import_files

    entries = [folder / name for name in ENTRIES]
    reached = {Path(found) for entry in entries for found in get_relative_import_files(entry)}
    return tuple(sorted({*entries, *reached}))


def load_checkpoint(folder: Path) -> tuple[Any, Any]:
    """Load the model and the processor of a checkpoint by the installed package's own classes.

    Raises:
        HubFolderError: weights are missing, damaged, stored as a pickle, or not finite.
    """
    import torch

    package = model_package()
    if not (folder / "config.json").is_file():
        raise HubFolderError(f"{folder} has no config.json; give a folder of the trainer or of save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise HubFolderError(f"{folder} has no *.safetensors, and pickles are not read; save the model again")
    try:
        model = package.JinaCLIPModel.from_pretrained(folder, use_safetensors=True).eval()
        processor = package.JinaCLIPProcessor.from_pretrained(folder)
    except Exception as error:  # what libraries raise for files that are not theirs has no common class
        words = " ".join(str(error).split()) or type(error).__name__
        words = words if len(words) <= 300 else f"{words[:297]}..."
        raise HubFolderError(f"{folder} does not load: {words}; is it complete?") from error
    if bad := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise HubFolderError(f"{folder} has weights that are not finite ({bad[0]}); use an earlier checkpoint")
    return model, processor
