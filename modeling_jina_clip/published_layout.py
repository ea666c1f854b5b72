"""Write a model as the published files are: their config schema, their tensor names, for runtimes that know only those.

``save_pretrained`` writes plain fields and this code beside the weights. The published schema instead leaves the sizes
of the text tower to another repository, lists what differs from it in ``hf_model_config_kwargs``, and points to the
published code. Parameter names need no change: ours are the published ones.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.modeling_utils import PreTrainedModel

from .configuration_jina_clip import TEXT_REPOSITORIES, JinaCLIPConfig, JinaCLIPTextConfig, JinaCLIPVisionConfig
from .vision_positions import rope_tables

_CODE = "jinaai/jina-clip-implementation--"
# By position embedding: the repository that holds the sizes, and the switches that the published file sets.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("jinaai/jina-bert-flash-implementation", {"use_flash_attn": False}),
    "rotary": (
        "jinaai/jina-embeddings-v3",
        {
            "use_flash_attn": True,  # where it is installed
            "load_trained_adapters": False,
            "lora_dropout_p": 0.0,
            "lora_main_params_trainable": False,
        },
    ),
}
_TEXT_FIELDS = ("embed_dim", "pooler_type", "proj_type", "proj_bias", "default_lora_task", "default_instruction_task")
# What the published code takes as overrides of the text repository's own configuration.
_OVERRIDES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "rotary_emb_base"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    *("lora_adaptations", "lora_rank", "lora_alpha", "task_instructions"),
)
_VISION_FIELDS = (
    *("embed_dim", "width", "head_width", "layers", "image_size", "patch_size", "mlp_ratio", "patch_dropout"),
    *("qkv_bias", "rope_embeddings", "pt_hw_seq_len", "intp_freq", "naive_swiglu", "subln", "post_norm"),
    *("ls_init_value", "drop_path_rate", "proj_type"),
)
# Constants of the published code that are fields here.
_VISION_CONSTANTS = {"num_channels": 3, "layer_norm_eps": 1e-6}
_MLP = {"alibi": "glu", "rotary": "mlp"}


def published_config(config: JinaCLIPConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The ``config.json`` that the published code and other runtimes expect, for a model of ``dtype``.

    Raises ``ValueError`` for what that schema cannot say. Reading the result gives ``config`` again.

    Example::

        >>> written = published_config(JinaCLIPConfig())
        >>> written["text_config"]["hf_model_name_or_path"], written["text_config"]["hf_model_config_kwargs"]
        ('jinaai/jina-bert-flash-implementation', {'use_flash_attn': False})
    """
    return {
        "add_projections": config.add_projections,
        "architectures": ["JinaCLIPModel"],
        "auto_map": {
            "AutoConfig": _CODE + "configuration_clip.JinaCLIPConfig",
            "AutoModel": _CODE + "modeling_clip.JinaCLIPModel",
        },
        "initializer_factor": config.initializer_factor,
        "logit_scale_init_value": config.logit_scale_init_value,
        "matryoshka_dimensions": config.matryoshka_dimensions,
        "model_type": config.model_type,
        "projection_dim": config.projection_dim,
        "text_config": _text_config(config.text_config),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "truncate_dim": config.truncate_dim,
        "use_text_flash_attn": None,
        "use_vision_xformers": None,
        "vision_config": _vision_config(config.vision_config),
    }


def _text_config(config: JinaCLIPTextConfig) -> dict[str, Any]:
    kind = config.position_embedding_type
    repository, switches = _KINDS[kind]
    if config.mlp_type != _MLP[kind]:
        raise _unsayable("text_config.mlp_type", config.mlp_type, f"{_MLP[kind]!r} with {kind} positions")
    if kind == "rotary" and not config.lora_adaptations:
        raise _unsayable("text_config.lora_adaptations", config.lora_adaptations, "task adapters with rotary positions")
    sizes = {name: getattr(JinaCLIPTextConfig, name) for name in _OVERRIDES} | TEXT_REPOSITORIES.get(repository, {})
    adapters = ("lora_rank", "lora_alpha") if config.lora_adaptations else ()  # in v2's file although never changed
    changed = {n: getattr(config, n) for n in _OVERRIDES if n in adapters or getattr(config, n) != sizes[n]}
    return {
        **{name: getattr(config, name) for name in _TEXT_FIELDS},
        "hf_model_config_kwargs": switches | changed,
        "hf_model_name_or_path": repository,
        "model_type": config.model_type,
        "pad_token_id": None,  # the text repository's
    }


def _vision_config(config: JinaCLIPVisionConfig) -> dict[str, Any]:
    for name, value in _VISION_CONSTANTS.items():
        if getattr(config, name) != value:
            raise _unsayable(f"vision_config.{name}", getattr(config, name), repr(value))
    fields = {name: getattr(config, name) for name in _VISION_FIELDS}
    return {**fields, "fused_layer_norm": False, "model_type": config.model_type, "x_attention": False}


def _unsayable(field: str, value: Any, only: str) -> ValueError:
    return ValueError(
        f"{field}={value!r} cannot be written in the published layout, which knows only {only}; use save_pretrained"
    )


def export_published(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write a ``JinaCLIPModel`` and its processor into a new or empty ``folder``, as the published ones are.

    The tensors are those of the state dict; for the ALiBi kind with the rotary tables that jina-clip-v1's file has too.
    Raises ``FileExistsError`` where the folder holds something, ``ValueError`` for what the schema cannot say.
    """
    folder = Path(folder).expanduser()
    config = published_config(model.config, model.dtype)
    processor = model.processor
    folder.mkdir(parents=True, exist_ok=True)
    if found := next(folder.iterdir(), None):
        raise FileExistsError(f"{str(folder)!r} holds {found.name!r}; give a new or an empty folder")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.text_config.position_embedding_type == "alibi":
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        cosine, sine = rope_tables(model.config.vision_config, (side, side))
        weights |= {"vision_model.rope.freqs_cos": cosine, "vision_model.rope.freqs_sin": sine}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", _image_settings(processor.image_processor))
    processor.tokenizer.save_pretrained(folder)
    tokenizer = folder / "tokenizer_config.json"
    _write(tokenizer, _for_transformers_4(json.loads(tokenizer.read_text(encoding="utf-8"))))
    return folder


def _image_settings(image_processor: Any) -> dict[str, Any]:
    names = ("fill_color", "interpolation", "mean", "resize_mode", "size", "std")
    return {
        "auto_map": {
            "AutoImageProcessor": _CODE + "processing_clip.JinaCLIPImageProcessor",
            "AutoProcessor": _CODE + "processing_clip.JinaCLIPProcessor",
        },
        **{name: getattr(image_processor, name) for name in names},
        "image_processor_type": "JinaCLIPImageProcessor",
        "processor_class": "JinaCLIPProcessor",
    }


def _for_transformers_4(settings: dict[str, Any]) -> dict[str, Any]:
    """Tokenizer settings with the class names and keys that the published code's transformers understands."""
    ours = ("backend", "is_local", "local_files_only", "auto_map", "processor_class")
    settings = {key: value for key, value in settings.items() if key not in ours}
    if settings.get("tokenizer_class") == "TokenizersBackend":  # the same class before it was renamed
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # a dictionary of something else there
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
