"""Read and write weights in other layouts. Part of the package only: a served folder does not need it to encode.

**In.** ``initialize_towers`` starts from public towers, JinaBERT for texts and EVA02 for images (arXiv 2405.20204,
section 3). The source of a file is recognised by its parameter names, and each source has a table from its names to
ours. A table is a list of rules, tried in order against the whole name. A name without a rule is an error; names that
have no counterpart here have a rule that drops them. Position tables and patch kernels of another size are
interpolated, all other shapes must match. Only safetensors are read.

**Out.** ``save_published`` writes the published config schema and tensor names, for runtimes that support only those.
That schema takes the sizes of the text tower from another repository, lists the differences in
``hf_model_config_kwargs``, and points to the published code. Our parameter names are already the published ones.

Order of this file: rules and their tables, conversion, initialisation of towers, the published layout.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_jina_clip import TEXT_REPOSITORIES, JinaCLIPConfig, JinaCLIPTextConfig, JinaCLIPVisionConfig
from .modeling_jina_clip_vision import resize_position_embedding, rope_tables

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Rule:
    """What to do with tensors whose name matches ``pattern``.

    ``targets``: with one name the tensor is copied, with several it is split along the rows, with none it is dropped.
    ``part``: the tensor is stacked as this one of three under its target, along the rows.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    part: int | None = None


def _fused(pattern: str, target: str) -> list[Rule]:
    """Rules that stack separate query, key and value layers; ``{}`` in the pattern stands for their names."""
    return [Rule(pattern.format(name), (target,), part) for part, name in enumerate(("query", "key", "value"))]


_TEXT = r"(?:text_model\.transformer\.|transformer\.|bert\.|model\.)?"  # wrappers of heads and composites
_VISION = r"(?:visual\.trunk\.|vision_model\.|visual\.)?"
_LAYER = r"encoder\.layers?\.(\d+)\."
_SCALES = r"logit_(?:scale|bias)"
# Names that a whole CLIP file has beside the requested tower. They never match that tower's own names.
_PROJECTIONS = r"(?:text|visual)_projection\..*"  # of the whole model: they belong to its pair of towers
_VISION_SIDE = rf"(?:visual|vision_model)\..*|{_SCALES}|{_PROJECTIONS}"
_TEXT_PROJECTION = r"(?:text_model\.)?proj\.((?:[02]\.)?(?:weight|bias))"  # of the tower itself
_TEXT_SIDE = (
    r"(?:text|text_model|textual|token_embedding|ln_final|transformer\.resblocks)\..*"
    rf"|positional_embedding|text_projection|attn_mask|{_SCALES}|{_PROJECTIONS}"
)

# JinaBERT (arXiv 2310.19923) with the names of BERT, with or without a masked-language-model head.
JINA_BERT = [
    Rule(
        _TEXT + r"embeddings\.(word_embeddings|token_type_embeddings)\.weight", (r"transformer.embeddings.\1.weight",)
    ),
    Rule(_TEXT + r"(?:embeddings\.LayerNorm|emb_ln)\.(weight|bias)", (r"transformer.emb_ln.\1",)),
    *_fused(_TEXT + _LAYER + r"attention\.self\.{}\.(weight|bias)", r"transformer.encoder.layers.\1.mixer.Wqkv.\2"),
    Rule(
        _TEXT + _LAYER + r"(?:attention\.output\.dense|mixer\.out_proj)\.(weight|bias)",
        (r"transformer.encoder.layers.\1.mixer.out_proj.\2",),
    ),
    Rule(
        _TEXT + _LAYER + r"(?:attention\.output\.LayerNorm|norm1)\.(weight|bias)",
        (r"transformer.encoder.layers.\1.norm1.\2",),
    ),
    Rule(
        _TEXT + _LAYER + r"(?:mlp\.layernorm|norm2)\.(weight|bias)",
        (r"transformer.encoder.layers.\1.norm2.\2",),
    ),
    Rule(_TEXT + _LAYER + r"mlp\.(gated_layers|wo)\.(weight|bias)", (r"transformer.encoder.layers.\1.mlp.\2.\3",)),
    Rule(_TEXT + _LAYER + r"mixer\.Wqkv\.(weight|bias)", (r"transformer.encoder.layers.\1.mixer.Wqkv.\2",)),
    Rule(_TEXT_PROJECTION, (r"proj.\1",)),
    Rule(_TEXT + r"(?:pooler|cls|lm_head|classifier)\..*"),
    Rule(_TEXT + r"(?:embeddings\.position_ids|encoder\.alibi|.*\.alibi.*)"),
    Rule(_VISION_SIDE),
]

# Jina-XLM-RoBERTa with the names of jina-clip-v2 and jina-embeddings-v3, which are ours; with or without adapters.
JINA_XLM_ROBERTA = [
    Rule(
        r"(?:(?:text_model\.)?transformer\.)?roberta\.((?:embeddings|emb_ln|encoder)\..*)", (r"transformer.roberta.\1",)
    ),
    Rule(_TEXT_PROJECTION, (r"proj.\1",)),
    Rule(r"(?:(?:text_model\.)?transformer\.)?roberta\.pooler\..*|(?:cls|lm_head)\..*"),
    Rule(_VISION_SIDE),
]


def _with_head(table: list[Rule], transformer: str) -> list[Rule]:
    """A tower's table for ``JinaCLIPTextForMaskedLM``, which keeps the head.

    Some files store the weights shared with the word embeddings under both names.
    """
    head = r"cls\.predictions\."
    return [
        Rule(head + r"transform\.dense\.(weight|bias)", (r"cls.predictions.transform.dense.\1",)),
        Rule(
            head + r"transform\.(?:LayerNorm|layer_norm)\.(weight|bias)",
            (r"cls.predictions.transform.LayerNorm.\1",),
        ),
        Rule(head + r"(?:decoder\.)?bias", (r"cls.predictions.decoder.bias",)),
        Rule(head + r"decoder\.weight", (rf"text_model.{transformer}.embeddings.word_embeddings.weight",)),
        *(replace(rule, targets=tuple("text_model." + target for target in rule.targets)) for rule in table),
    ]


_BLOCK = _VISION + r"blocks\.(\d+)\."

# EVA02 with the names of EVA-CLIP (arXiv 2303.15389), also used by the published jina-clip files.
EVA_CLIP = [
    Rule(_VISION + r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias))", (r"\1",)),
    Rule(_BLOCK + r"(norm[12]\.(?:weight|bias))", (r"blocks.\1.\2",)),
    Rule(_BLOCK + r"(attn\.(?:[qkv]_proj\.weight|[qv]_bias|inner_attn_ln\..*|proj\..*))", (r"blocks.\1.\2",)),
    Rule(_BLOCK + r"(mlp\.(?:w[123]|ffn_ln)\.(?:weight|bias))", (r"blocks.\1.\2",)),
    # The smallest models have no LayerNorm here and store neighbouring layers as one.
    Rule(_BLOCK + r"attn\.qkv\.weight", tuple(rf"blocks.\1.attn.{name}_proj.weight" for name in "qkv")),
    Rule(_BLOCK + r"mlp\.w12\.(weight|bias)", tuple(rf"blocks.\1.mlp.{name}.\2" for name in ("w1", "w2"))),
    Rule(_VISION + r"norm\.(weight|bias)", (r"norm.\1",)),
    Rule(_VISION + r"(?:head|fc_norm|mask_token|lm_head).*"),
    Rule(r".*rope\.freqs_(?:cos|sin)"),
    Rule(_TEXT_SIDE),
]

# EVA02 with the names of timm's `eva02_*`, alone or as the trunk of an open_clip model.
TIMM_EVA02 = [
    Rule(_VISION + r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias))", (r"\1",)),
    Rule(_BLOCK + r"(norm[12]\.(?:weight|bias))", (r"blocks.\1.\2",)),
    Rule(
        _BLOCK + r"attn\.qkv\.weight",
        tuple(rf"blocks.\1.attn.{name}_proj.weight" for name in "qkv"),
    ),
    Rule(_BLOCK + r"attn\.([qkv])_proj\.weight", (r"blocks.\1.attn.\2_proj.weight",)),
    Rule(_BLOCK + r"attn\.(?:([qv])_proj\.bias|([qv])_bias)", (r"blocks.\1.attn.\2\3_bias",)),
    Rule(_BLOCK + r"attn\.k_bias"),  # a buffer of zeros: keys have no bias
    Rule(_BLOCK + r"attn\.norm\.(weight|bias)", (r"blocks.\1.attn.inner_attn_ln.\2",)),
    Rule(_BLOCK + r"attn\.proj\.(weight|bias)", (r"blocks.\1.attn.proj.\2",)),
    Rule(_BLOCK + r"mlp\.fc1_g\.(weight|bias)", (r"blocks.\1.mlp.w1.\2",)),
    Rule(_BLOCK + r"mlp\.fc1_x\.(weight|bias)", (r"blocks.\1.mlp.w2.\2",)),
    # The two smallest models store both as one, gate first.
    Rule(_BLOCK + r"mlp\.fc1\.(weight|bias)", tuple(rf"blocks.\1.mlp.{name}.\2" for name in ("w1", "w2"))),
    Rule(_BLOCK + r"mlp\.norm\.(weight|bias)", (r"blocks.\1.mlp.ffn_ln.\2",)),
    Rule(_BLOCK + r"mlp\.fc2\.(weight|bias)", (r"blocks.\1.mlp.w3.\2",)),
    # The MIM models normalise the mean of all patches and call it fc_norm, the CLIP ones the class token.
    Rule(_VISION + r"(?:fc_)?norm\.(weight|bias)", (r"norm.\1",)),
    Rule(_VISION + r"(?:head|mask_token|rope).*"),
    Rule(_TEXT_SIDE),
]

TEXT_TABLES = {"JinaBERT": JINA_BERT, "Jina-XLM-RoBERTa": JINA_XLM_ROBERTA}
MASKED_LM_TABLES = {
    "JinaBERT": _with_head(JINA_BERT, "transformer"),
    "Jina-XLM-RoBERTa": _with_head(JINA_XLM_ROBERTA, "transformer.roberta"),
}
VISION_TABLES = {"EVA-CLIP": EVA_CLIP, "timm": TIMM_EVA02}


def convert(weights: dict[str, torch.Tensor], table: list[Rule]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename, stack and split ``weights`` by ``table``. Returns tensors by our names, and the names that were dropped.

    Raises ``ValueError`` for names without a rule, for two different tensors with one target, and for incomplete
    fused layers.

    Example::

        >>> names, dropped = convert({"bert.emb_ln.bias": torch.zeros(2), "cls.x": torch.zeros(1)}, JINA_BERT)
        >>> list(names), dropped
        (['transformer.emb_ln.bias'], ['cls.x'])
    """
    converted: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    dropped, unknown = [], []
    for name, tensor in weights.items():
        found = next(((rule, match) for rule in table if (match := re.fullmatch(rule.pattern, name))), None)
        if found is None:
            unknown.append(name)
            continue
        rule, match = found
        targets = [match.expand(target) for target in rule.targets]
        if not targets:
            dropped.append(name)
        elif rule.part is not None:
            parts.setdefault(targets[0], {})[rule.part] = tensor
        else:
            pieces = tensor.chunk(len(targets)) if len(targets) > 1 else (tensor,)
            for target, piece in zip(targets, pieces, strict=True):
                if target in converted and not torch.equal(converted[target], piece):
                    raise ValueError(
                        f"two tensors of the checkpoint become {target!r} and differ, the second is {name!r}"
                    )
                converted[target] = piece
    incomplete = [target for target, found in parts.items() if len(found) != 3]
    if unknown or incomplete:
        raise ValueError(
            f"the checkpoint has {len(unknown)} tensors without a rule: {', '.join(sorted(unknown)[:8]) or 'none'}"
            + (f"; incomplete query, key and value for {', '.join(sorted(incomplete)[:4])}" if incomplete else "")
        )
    converted |= {target: torch.cat([found[i] for i in range(3)]) for target, found in parts.items()}
    return converted, dropped


def choose_table(weights: dict[str, torch.Tensor], tables: dict[str, list[Rule]]) -> list[Rule]:
    """The table that has a rule for every name of ``weights`` and keeps most of them.

    Raises ``ValueError`` with the unknown names of the closest table.
    """
    best: tuple[int, list[Rule]] | None = None
    nearest: tuple[int, str] | None = None
    for source, table in tables.items():
        rules = [next((rule for rule in table if re.fullmatch(rule.pattern, name)), None) for name in weights]
        unknown = [name for name, rule in zip(weights, rules, strict=True) if rule is None]
        kept = sum(1 for rule in rules if rule is not None and rule.targets)
        if not unknown and kept and (best is None or kept > best[0]):
            best = (kept, table)
        if nearest is None or len(unknown) < nearest[0]:
            nearest = (len(unknown), f"{source} ({len(unknown)} unknown names: {', '.join(sorted(unknown)[:6])})")
    if best is None:
        raise ValueError(f"the checkpoint's names fit no known source; nearest is {nearest[1] if nearest else 'none'}")
    return best[1]


# Parameters that some sources lack: no source has our projections, EVA02's MIM models have no LayerNorm inside
# attention, the two smallest none inside the feed-forward, and a bare tower has no masked-LM head. Each family must be
# complete or absent; a partial one means a broken file.
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
    """Parameters set from a checkpoint, parameters left as initialised, and tensors that were not used."""

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.loaded)} tensors loaded, {len(self.resized)} of them resized"
        return f"{counts}, {len(self.fresh)} left fresh, {len(self.dropped)} of the file not used"


def initialize_towers(
    model: PreTrainedModel,
    text: str | Path | Mapping[str, torch.Tensor] | None = None,
    vision: str | Path | Mapping[str, torch.Tensor] | None = None,
) -> dict[str, InitializationReport]:
    """Set one or both towers of a ``JinaCLIPModel`` from public checkpoints; returns a report for each.

    Each source is a safetensors file, a folder of them, or a state dict: JinaBERT for ``text``; EVA02 of timm,
    open_clip or EVA-CLIP for ``vision``. Raises ``ValueError`` for a tensor without a parameter or the reverse.
    Example::

        model = JinaCLIPModel(JinaCLIPConfig())
        reports = initialize_towers(model, text="jina-bert-v2-base", vision="eva02_base_patch14.safetensors")
        print(reports["text"])
    """
    reports = {}
    if text is not None:
        reports["text"] = initialize_text(model.get_submodule("text_model"), text)
    if vision is not None:
        reports["vision"] = initialize_vision(model.get_submodule("vision_model"), vision)
    return reports


def initialize_text(tower: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set the JinaBERT text tower from ``source``: a safetensors file, a folder of them, or a state dict."""
    return _initialize(tower, _read(source), TEXT_TABLES)


def initialize_vision(tower: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set the EVA02 image tower from ``source``: timm, open_clip, EVA-CLIP or published jina-clip names."""
    return _initialize(tower, _read(source), VISION_TABLES)


def initialize_masked_lm(model: nn.Module, source: str | Path | Mapping[str, torch.Tensor]) -> InitializationReport:
    """Set the tower of a ``JinaCLIPTextForMaskedLM`` as ``initialize_text`` does, and its head if ``source`` has one.

    Raises ``ValueError`` for an incomplete head.
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
    with torch.no_grad():  # only after all checks: a checkpoint that does not fit changes nothing
        for name, tensor in fitted.items():
            parameters[name].copy_(tensor)
    report.fresh = sorted(parameters.keys() - converted.keys())
    return report


def _fit(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """``tensor`` in ``shape``: the position table and the patch kernel are interpolated, others must match."""
    if tensor.shape == shape:
        return tensor
    if name == "pos_embed" and tensor.shape[-1] == shape[-1]:
        side = round((shape[1] - 1) ** 0.5)
        return resize_position_embedding(tensor, (side, side))
    if name == "patch_embed.proj.weight" and tensor.shape[:2] == shape[:2]:
        # Bicubic on the kernel itself, as EVA did to go from 14 to 16 px patches.
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


_CODE = "jinaai/jina-clip-implementation--"
# By position embedding: the repository with the sizes, and the switches that the published file sets.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("jinaai/jina-bert-flash-implementation", {"use_flash_attn": False}),
    "rotary": (
        "jinaai/jina-embeddings-v3",
        {
            "use_flash_attn": True,  # if installed
            "load_trained_adapters": False,
            "lora_dropout_p": 0.0,
            "lora_main_params_trainable": False,
        },
    ),
}
_TEXT_FIELDS = ("embed_dim", "pooler_type", "proj_type", "proj_bias", "default_lora_task", "default_instruction_task")
# Fields that the published code overrides in the text repository's configuration.
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
# Constants in the published code, fields here.
_VISION_CONSTANTS = {"num_channels": 3, "layer_norm_eps": 1e-6}
_MLP = {"alibi": "glu", "rotary": "mlp"}


def published_config(config: JinaCLIPConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The ``config.json`` that the published code and other runtimes expect, for a model of ``dtype``.

    Raises ``ValueError`` for values that the schema cannot express. Reading the result gives ``config`` again.

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
    adapters = ("lora_rank", "lora_alpha") if config.lora_adaptations else ()  # v2's file has them, though unchanged
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
        f"{field}={value!r} cannot be written in the published layout, which allows only {only}; use save_pretrained"
    )


def save_published(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write a ``JinaCLIPModel`` and its processor to a new or empty ``folder`` in the published layout.

    For runtimes that support only the original code and names; use ``save_pretrained`` for everything else. The tensors
    are those of the state dict, with ALiBi positions also the image tower's rotary tables, as in jina-clip-v1's file.
    Raises ``FileExistsError`` if the folder is not empty, ``ValueError`` for values that the schema cannot express.
    Example::

        model = JinaCLIPModel.from_pretrained("outputs/mine")
        save_published(model, "outputs/for-other-runtimes")
    """
    folder = Path(folder).expanduser()
    config = published_config(cast(JinaCLIPConfig, model.config), model.dtype)
    processor: Any = model.processor
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
    names: tuple[str, ...] = ("fill_color", "interpolation", "mean", "resize_mode", "size", "std")
    if getattr(image_processor, "background", None) is not None:
        # Kept for this code. The published code ignores it: transparent pictures have other vectors there.
        names += ("background",)
        logger.warning(
            "background=%r is not known to the published code, which drops transparency", image_processor.background
        )
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
    """Tokenizer settings with the class names and keys of the transformers version that the published code uses."""
    ours = ("backend", "is_local", "local_files_only", "auto_map", "processor_class")
    settings = {key: value for key, value in settings.items() if key not in ours}
    if settings.get("tokenizer_class") == "TokenizersBackend":  # its former name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 expects a dictionary there
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
