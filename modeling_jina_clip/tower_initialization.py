"""Start from public towers: JinaBERT for texts, EVA02 for images, as arXiv 2405.20204 (section 3) did.

Reads safetensors only. Which source a file comes from is told by its names (``checkpoint_keys``); position tables and
patch kernels of another size are interpolated; everything else must fit exactly.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from .checkpoint_keys import MASKED_LM_TABLES, TEXT_TABLES, VISION_TABLES, Rule, choose_table, convert
from .vision_positions import resize_position_embedding

# Not in every source: our projections are in none, the LayerNorm inside attention in none of EVA02's MIM models, that
# inside the feed-forward not in the two smallest, the head of a masked language model not in a bare tower. Each of
# these is there as a whole or not at all: a part of one is a broken file.
MAY_STAY_FRESH = [
    re.compile(pattern)
    for pattern in (
        r"(?:text_model\.)?(?:proj|head)\..*",
        r"blocks\.\d+\.attn\.inner_attn_ln\..*",
        r"blocks\.\d+\.mlp\.ffn_ln\..*",
        r"cls\.predictions\..*",
    )
]


@dataclass
class InitializationReport:
    """What became of a checkpoint: parameters set from it, parameters left as initialised, tensors not used."""

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.loaded)} tensors loaded, {len(self.resized)} of them resized"
        return f"{counts}, {len(self.fresh)} left fresh, {len(self.dropped)} of the file not used"


def initialize_text(tower: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set the JinaBERT text tower from ``source``: a safetensors file, a folder of them, or a state dict."""
    return _initialize(tower, _read(source), TEXT_TABLES)


def initialize_vision(tower: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set the EVA02 image tower from ``source``: timm, open_clip, EVA-CLIP or published jina-clip names."""
    return _initialize(tower, _read(source), VISION_TABLES)


def initialize_masked_lm(model: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set a ``JinaCLIPTextForMaskedLM`` as ``initialize_text`` would, and its head where ``source`` has one.

    A head stays fresh as a whole or not at all: a part of one raises ``ValueError``.
    """
    return _initialize(model, _read(source), MASKED_LM_TABLES)


def _initialize(
    tower: nn.Module, weights: Mapping[str, torch.Tensor], tables: dict[str, list[Rule]]
) -> InitializationReport:
    converted, dropped = convert(dict(weights), choose_table(dict(weights), tables))
    parameters = dict(tower.named_parameters())
    report = InitializationReport(dropped=dropped)
    homeless = sorted(converted.keys() - parameters.keys())
    absent = [family for family in MAY_STAY_FRESH if not any(family.fullmatch(name) for name in converted)]
    missing = sorted(
        name for name in parameters.keys() - converted.keys() if not any(family.fullmatch(name) for family in absent)
    )
    if homeless or missing:
        raise ValueError(
            f"the checkpoint does not fit {type(tower).__name__}: without a parameter here: {_some(homeless)}; "
            f"without a tensor there: {_some(missing)}. Compare the number of layers and the sizes in the config."
        )
    fitted = {}
    for name, tensor in converted.items():
        target = parameters[name]
        fitted[name] = _fit(name, tensor, target.shape)
        report.loaded.append(name)
        if fitted[name].shape != tensor.shape:
            report.resized.append(name)
    with torch.no_grad():  # only now: a checkpoint that does not fit changes nothing
        for name, tensor in fitted.items():
            parameters[name].copy_(tensor)
    report.fresh = sorted(parameters.keys() - converted.keys())
    return report


def _fit(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """``tensor`` in ``shape``: the position table and the patch kernel are interpolated, others must have it."""
    if tensor.shape == shape:
        return tensor
    if name == "pos_embed" and tensor.shape[-1] == shape[-1]:
        side = round((shape[1] - 1) ** 0.5)
        return resize_position_embedding(tensor, (side, side))
    if name == "patch_embed.proj.weight" and tensor.shape[:2] == shape[:2]:
        # As EVA did to go from 14 to 16 px patches: bicubic on the kernel itself.
        return F.interpolate(tensor.float(), size=tuple(shape[2:]), mode="bicubic", align_corners=False)
    raise ValueError(f"{name} has shape {tuple(tensor.shape)} in the checkpoint and {tuple(shape)} in the model")


def _read(source: str | Path | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source).expanduser()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise FileNotFoundError(f"no .safetensors file at {str(path)!r}")
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{str(path)!r} is not a safetensors file, and pickles are not read because they can run code; convert it "
            "where you trust it: save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is broken or cut short: {error}; fetch it again") from error
    return weights


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"
