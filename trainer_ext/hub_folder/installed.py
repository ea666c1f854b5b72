"""The installed model package: its remote code, and checkpoints loaded by its own classes."""

from pathlib import Path
from typing import Any

from .errors import HubFolderError


def model_package() -> Any:
    """The module ``modeling_jina_clip``; an error with the cure where it, or a library it needs, is missing."""
    try:
        import modeling_jina_clip
    except ImportError as error:
        raise HubFolderError(f"{error}; run `pip install modeling-jina-clip`") from error
    return modeling_jina_clip


def remote_code() -> list[Path]:
    """The files that a loader without our package needs: all modules of the model package but its face."""
    folder = Path(model_package().__file__).parent
    return [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


def load_checkpoint(folder: Path) -> tuple[Any, Any]:
    """The model, whole and finite, and the processor of a checkpoint, by the installed package's own classes."""
    import torch
    from safetensors import SafetensorError

    package = model_package()
    if not (folder / "config.json").is_file():
        raise HubFolderError(f"{folder} has no config.json; give a folder of the trainer or of save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise HubFolderError(f"{folder} has no *.safetensors, and pickles are not read; save the model again")
    try:
        model = package.JinaCLIPModel.from_pretrained(folder, use_safetensors=True).eval()
        processor = package.JinaCLIPProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HubFolderError(f"{folder} does not load: {str(error).splitlines()[0]}; is it complete?") from error
    if bad := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise HubFolderError(f"{folder} has weights that are not finite ({bad[0]}); use an earlier checkpoint")
    return model, processor
