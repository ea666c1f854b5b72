"""The installed model package: the files that a Hub folder serves, and checkpoints loaded by its own classes.

``HubFolderError`` is the one error of this room: bad input, with its cure.
"""

import stat
from functools import cache
from pathlib import Path
from typing import Any

from trainer_ext.files import words_of

ENTRIES = ("modeling_jina_clip.py", "processing_jina_clip.py", "custom_st.py")  # where loaders start
READ = (".json", ".safetensors", ".md", ".txt", ".model", ".jinja")  # of a checkpoint


class HubFolderError(ValueError):
    """A folder or a repository that must not be built, verified or pushed; the message ends with the cure."""


def one_line(error: Exception) -> str:
    """What went wrong, without the system's error number."""
    return words_of(error) if isinstance(error, OSError) else str(error)


def plain_file(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        HubFolderError: something else has its name: a link, whose target would be published, or a pipe or a device,
            whose reader waits for ever. Links of the Hub's cache lead to the files of the same download, and pass.
    """
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HubFolderError(f"{words_of(error)}; give another folder") from None
    if stat.S_ISLNK(kind):
        download = path.parents[2] if path.parent.parent.name == "snapshots" else None
        if download is not None and path.is_file() and path.resolve().parent == download.resolve() / "blobs":
            return True
        raise HubFolderError(f"{path} is a link, whose target would be published; put the file itself there")
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
        raise HubFolderError(f"{path} is {what} and not a file; move it away, or put the file there")
    return True


def refuse_irregular(checkpoint: Path) -> None:
    """Raise ``HubFolderError`` if a name that is read from a checkpoint belongs to anything but a file."""
    inner = [checkpoint / name for name in ("sources", "additional_chat_templates")]
    for folder in inner:
        if folder.is_symlink():
            raise HubFolderError(f"{folder} is a link, whose target would be published; put the folder itself there")
    for path in sorted(path for folder in (checkpoint, *inner) for path in folder.glob("*")):
        if path.suffix in READ:
            plain_file(path)


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
