"""LoRA (arXiv 2106.09685) on one or both towers, through PEFT.

PEFT puts its layers inside the ``JinaCLIPModel``, so trainer and evaluation work as without. Three forms are saved:

1. a checkpoint has the adapter as PEFT writes it, and the temperature, which is not a layer, so PEFT leaves it out;
2. a model folder has the updates merged into the weights, under the names of a model that never had adapters;
3. the model folder's ``adapter/`` has the adapter again, for ``PeftModel.from_pretrained`` and ``load_adapter``.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modeling_jina_clip import JinaCLIPModel
from trainer_ext.recipe.stages import LoraSpec, Tower

ADAPTER_FOLDER = "adapter"
TEMPERATURE_FILE = "temperature.safetensors"
_NAME = "default"
_BLOCKS: dict[Tower, str] = {
    "text": r"text_model\..*\.layers\.\d+\.",
    "vision": r"vision_model\.blocks\.\d+\.",
}


def adapted_modules(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Names of the linear layers that get adapters: in transformer blocks only, chosen by the last word of their names.

    By default all linear layers of a block: LoRA on attention alone falls behind full fine-tuning (QLoRA, arXiv
    2305.14314, section 4).

    Raises:
        ValueError: a target names no linear layer, or a tower has none that LoRA can adapt.
    """
    names: list[str] = []
    for tower in spec.towers:
        inside = [
            name
            for name, module in model.named_modules()
            if re.match(_BLOCKS[tower], name) and isinstance(module, nn.Linear)
        ]
        if not inside:
            raise ValueError(
                f"lora: the {tower} tower has no plain linear layers (the one of jina-clip-v2 carries adapters of its "
                f"own); leave {tower!r} out of lora.towers"
            )
        words = {name.rpartition(".")[2] for name in inside}
        wanted = set(spec.target_modules.get(tower, words))
        if unknown := sorted(wanted - words):
            raise ValueError(
                f"lora.target_modules.{tower}: no linear layer is called {', '.join(unknown)}; "
                f"there are {', '.join(sorted(words))}"
            )
        names += [name for name in inside if name.rpartition(".")[2] in wanted]
    return names


def add_lora(model: JinaCLIPModel, spec: LoraSpec) -> None:
    """Add adapters to the model and freeze its own weights; untrained adapters do not change its outputs.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: see ``adapted_modules``.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("lora needs PEFT; install it with: pip install '.[peft]'") from error
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=spec.dropout,
        target_modules=adapted_modules(model, spec),
        # With a task, PEFT does not write our class's name, which it could not import elsewhere, into the adapter.
        task_type="FEATURE_EXTRACTION",
    )
    model.add_adapter(config, adapter_name=_NAME)


def has_lora(model: nn.Module) -> bool:
    """Whether ``add_lora`` was called on the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@torch.no_grad()
def merged(model: JinaCLIPModel) -> JinaCLIPModel:
    """The model without adapters: a new one on the CPU with W + alpha / r * B A for each adapted weight.

    The model itself is unchanged: merging in place and unmerging would not restore the same bits.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    inside = tuple(f"{name}.lora_" for name in layers)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith(inside)}
    for name, layer in layers.items():
        for key in [key for key in weights if key.startswith(f"{name}.base_layer.")]:
            value = weights.pop(key)
            if key.endswith(".weight"):
                delta = layer.get_delta_weight(_NAME)  # type: ignore[attr-defined]  # its subclasses have it
                value = value + delta.to(value.dtype)
            weights[key.replace(".base_layer.", ".")] = value
    with torch.device("meta"):
        plain = JinaCLIPModel(model.config)
    plain.load_state_dict({key: value.cpu() for key, value in weights.items()}, assign=True)
    return plain


def save_merged(model: JinaCLIPModel, folder: Path) -> None:
    """Write forms 2 and 3: a whole model folder, and the adapter by itself inside."""
    merged(model).save_pretrained(folder)
    _save_layers(model, folder / ADAPTER_FOLDER)


def save_adapter(model: JinaCLIPModel, folder: Path) -> None:
    """Write form 1: what was trained, bit for bit, in a folder that PEFT can load."""
    _save_layers(model, folder)
    save_file({"logit_scale": model.logit_scale.detach().cpu().clone()}, folder / TEMPERATURE_FILE)


def _save_layers(model: JinaCLIPModel, folder: Path) -> None:
    """The adapter in PEFT's format, its layers sorted: PEFT keeps them in a set, whose order varies by process."""
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


@torch.no_grad()
def load_adapter(model: JinaCLIPModel, folder: Path) -> None:
    """Set the adapters and the temperature to those of a checkpoint.

    Raises:
        ValueError: the checkpoint has other adapters than the model.
    """
    _load_layers(model, folder)
    model.logit_scale.copy_(load_file(folder / TEMPERATURE_FILE)["logit_scale"])


def _load_layers(model: JinaCLIPModel, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    stored = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    stored = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
    result: Any = set_peft_model_state_dict(model, stored, adapter_name=_NAME)
    missing = [key for key in result.missing_keys if ".lora_" in key and f".{_NAME}." in key]
    if result.unexpected_keys or missing:
        names = ", ".join([*result.unexpected_keys, *missing][:3])
        raise ValueError(
            f"{folder} holds other adapters than the recipe asks for ({names}); use the lora section it was made with"
        )


@torch.no_grad()
def merged_from(model: JinaCLIPModel, folder: Path) -> JinaCLIPModel:
    """The model with the adapters of a folder (form 1 or 3) merged into its weights; form 3 has no temperature.

    Args:
        model: the one that the adapters were trained on; it gets them as well.
        folder: has ``adapter_config.json`` and the adapters' weights.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: no LoRA adapters, adapters that are more than W + alpha / r * B A, or of another model.
    """
    try:
        from peft import LoraConfig, PeftConfig
    except ImportError as error:
        raise ImportError("LoRA's adapters need PEFT; install it with: pip install '.[peft]'") from error
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{folder} has no adapter_config.json of PEFT that can be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} holds adapters of kind {config.peft_type}; only those of LoRA can be merged")
    more = [name for name in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, name, None)]
    if more or config.bias != "none":
        raise ValueError(
            f"{folder} holds adapters with {', '.join(more) or f'bias {config.bias!r}'}, which is more than low-rank "
            "changes of weights; merge them by PEFT's merge_and_unload(), and give the folder of the result"
        )
    try:
        model.add_adapter(config, adapter_name=_NAME)
        _load_layers(model, folder)
    except (RuntimeError, OSError, SafetensorError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapters of {folder} do not fit the model that they are put on: {words}") from error
    if (folder / TEMPERATURE_FILE).is_file():
        model.logit_scale.copy_(load_file(folder / TEMPERATURE_FILE)["logit_scale"])
    return merged(model)
