"""Any model as two encoders: ours, a run's folder, or any model that sentence-transformers loads.

A Jina CLIP is told by ``model_type`` in its config.json and always loaded with the code of this package, whatever code
lies in its folder. All others are loaded by sentence-transformers; code of theirs runs only if the caller trusts it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PreTrainedConfig

from modeling_jina_clip import JinaCLIPModel, __version__
from trainer_ext.evaluation.items import ImageEncoder, TextEncoder
from trainer_ext.measuring.texts import Instructed
from trainer_ext.recipe.start_checks import OURS
from trainer_ext.sentence_files import refuse_own_code

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# What a folder of a run has beside, or before, its finished model.
_ADAPTER, _CHECKPOINTS = "adapter_config.json", "checkpoint-*"


@dataclass(frozen=True)
class Encoders:
    """A model as it is measured.

    ``encode_text`` and ``encode_image`` give (n, dimension) float arrays; ``encode_image`` is None for a model of texts
    alone. Texts may be ``Instructed``. ``logit_scale`` is the logarithm of the factor of cosines, as CLIP stores it;
    None where the model has none. ``fingerprint`` is equal for models that give equal vectors.
    """

    name: str
    encode_text: TextEncoder
    encode_image: ImageEncoder | None
    dimension: int
    tokenizer: Any | None
    logit_scale: float | None
    fingerprint: str

    def named(self, name: str) -> "Encoders":
        """The same model under another name, as a table has it."""
        return replace(self, name=name)


def open_model(
    name: str | Path, device: str | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> Encoders:
    """Load a model of any kind.

    Args:
        name: a folder, a run's folder, or a name on the Hub.
        device: ``cpu``, ``cuda``, ``cuda:1``; the first GPU where there is one, without it.
        batch_size: rows encoded at once.
        trust_remote_code: run code that comes with a model that is not ours.

    Raises:
        ValueError: no model there, or one that cannot be loaded.
    """
    where = str(name)
    refuse_no_model(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_no_device(device)
    folder = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else where
    try:
        if _model_type(folder) == OURS:
            return encoders_of(JinaCLIPModel.from_pretrained(folder).to(device), where, batch_size)
        return _of_sentence_transformer(_peer(folder, device, trust_remote_code), where, batch_size)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        words = " ".join(str(error).split())
        cure = " If you trust its code, pass --trust_remote_code." if "trust_remote_code" in words else ""
        place = "cannot be loaded" if Path(folder).is_dir() else "is no folder here, and is not had from the Hub"
        raise ValueError(f"Model {where!r} {place}: {words}{cure}") from error


def encode_instructed(model: JinaCLIPModel, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """(texts, dim) vectors of a Jina CLIP, each text under the instruction that it asks for."""

    def under(instruction: str | None, some: list[str]) -> np.ndarray:
        return cast(np.ndarray, model.encode_text(some, task=instruction, batch_size=batch_size))

    return by_instruction(texts, under)


def encoders_of(model: JinaCLIPModel, name: str, batch_size: int = 32) -> Encoders:
    """A Jina CLIP that is in memory."""

    def encode_image(images: list[Image.Image]) -> np.ndarray:
        return cast(np.ndarray, model.encode_image(images, batch_size=batch_size))

    processor = model.processor
    parts = [model.config.to_json_string(), repr(processor.image_processor.to_dict()), _words_of(processor.tokenizer)]
    return Encoders(
        name=name,
        encode_text=lambda texts: encode_instructed(model, texts, batch_size),
        encode_image=encode_image,
        dimension=model.config.truncate_dim or model.config.projection_dim,
        tokenizer=processor.tokenizer,
        logit_scale=float(model.logit_scale.detach()),
        fingerprint=_fingerprint(model, parts),
    )


def by_instruction(texts: Sequence[str], encode: Callable[[str | None, list[str]], np.ndarray]) -> np.ndarray:
    """Encode texts group by group, each under its own instruction (None: without), in their order."""
    order = sorted(range(len(texts)), key=lambda place: instruction_of(texts[place]) or "")
    rows: np.ndarray | None = None
    for instruction, group in groupby(order, key=lambda place: instruction_of(texts[place])):
        places = list(group)
        vectors = np.asarray(encode(instruction, [str(texts[place]) for place in places]))
        rows = np.empty((len(texts), vectors.shape[1]), vectors.dtype) if rows is None else rows
        rows[places] = vectors
    assert rows is not None  # nobody encodes no texts
    return rows


def instruction_of(text: str) -> str | None:
    """The instruction that a text asks for."""
    return text.instruction if isinstance(text, Instructed) else None


# --- peers ---------------------------------------------------------------------------------------------------------


def _peer(folder: str, device: str, trust_remote_code: bool) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    if not trust_remote_code:
        refuse_own_code(Path(folder))
    return SentenceTransformer(folder, device=device, trust_remote_code=trust_remote_code)


def _of_sentence_transformer(model: "SentenceTransformer", name: str, batch_size: int) -> Encoders:
    def encode(instruction: str | None, some: list[str]) -> np.ndarray:
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        if instruction == "query":
            return model.encode_query(some, **options)
        if instruction == "document":
            return model.encode_document(some, **options)
        return model.encode(some, prompt_name=instruction, **options)

    def encode_image(images: list[Image.Image]) -> np.ndarray:
        return np.asarray(model.encode(cast(Any, images), batch_size=batch_size, show_progress_bar=False))

    scale = next((value for key, value in model.named_parameters() if key.endswith("logit_scale")), None)
    settings = [repr(module) for module in model.modules() if not list(module.children())]
    parts = [
        str(model),
        "".join(settings),
        _words_of(model.tokenizer),
        json.dumps([model.prompts, model.default_prompt_name, model.truncate_dim, model.max_seq_length]),
    ]
    return Encoders(
        name=name,
        encode_text=lambda texts: by_instruction(texts, encode),
        encode_image=encode_image if "image" in model.modalities else None,
        dimension=_dimension(model),
        tokenizer=model.tokenizer if hasattr(model.tokenizer, "backend_tokenizer") else None,
        logit_scale=None if scale is None or scale.numel() != 1 else float(scale.detach()),
        fingerprint=_fingerprint(model, parts),
    )


def _dimension(model: "SentenceTransformer") -> int:
    """Called by its new name where there is one: the old name warns."""
    method = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(method() or 0)


# --- fingerprints --------------------------------------------------------------------------------------------------


def _fingerprint(model: torch.nn.Module, parts: Sequence[str]) -> str:
    """A hash of the weights and of all else that decides vectors, the versions of the libraries included."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (__version__, transformers.__version__, *parts):
        digest.update(text.encode() + b"\0")
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def _bytes_of(value: torch.Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _words_of(tokenizer: Any) -> str:
    """What a tokenizer makes of texts."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return repr(tokenizer) if fast is None else fast.to_str() + repr(tokenizer.model_max_length)


# --- what is refused -----------------------------------------------------------------------------------------------


def _model_type(folder: str) -> str | None:
    """``model_type`` of a config.json; None where there is none, as in a sentence-transformers folder of modules."""
    try:
        return PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    except (OSError, ValueError):
        return None


def refuse_no_model(name: str | Path) -> None:
    """Refuse a folder that holds no model; whether the Hub has a name is seen when it is opened.

    Raises:
        ValueError: what is missing, and what to give in its place.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"Model {str(folder)!r} is a file. Give the folder of a model, or its Hub name.")
    if not folder.is_dir():
        if os.sep in str(folder).removeprefix("./") and not _is_repository(str(folder)):
            raise ValueError(f"Model {str(folder)!r}: there is no such folder. Give a model's folder, or its Hub name.")
        return
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return
    if (folder / _ADAPTER).is_file():
        raise ValueError(
            f"Model {str(folder)!r} holds LoRA's adapters without the weights that they change. Give the finished "
            "run's own folder, or one of its stages/N-NAME, where they are merged."
        )
    checkpoints = sorted(folder.glob(_CHECKPOINTS), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        raise ValueError(
            f"Model {str(folder)!r} is a run that has not finished. Give one of its checkpoints, such as "
            f"{checkpoints[-1]}, or one of its stages/N-NAME."
        )
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ValueError(f"Model {str(folder)!r} has no config.json or modules.json; it holds: {inside}.")


def _is_repository(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def _refuse_no_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {first} Use cpu, or a device that this machine has.") from error
