"""Configuration of Jina CLIP: the schema of every ``config.json`` and every model preset.

Reads the configs of the published checkpoints (``jinaai/jina-clip-v1``, arXiv 2405.20204) unchanged. These do not store
the sizes of the text tower: they come from the repository named in ``hf_model_name_or_path``, overridden by
``hf_model_config_kwargs``. Here they are plain fields, filled from both when a config is loaded.
"""

import math
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from transformers.configuration_utils import PretrainedConfig

OLDEST_TRANSFORMERS = "5.5"


def require_version(library: str, installed: str, oldest: str) -> None:
    """Raise ``ImportError`` if a library is too old for this code.

    Example::

        >>> require_version("transformers", "4.57.6", "5.5")
        Traceback (most recent call last):
        ImportError: this model needs transformers>=5.5, but 4.57.6 is installed; upgrade it, or convert the folder ...
    """
    if Version(installed).release < Version(oldest).release:
        raise ImportError(
            f"this model needs {library}>={oldest}, but {installed} is installed; upgrade it, or convert the folder "
            "with save_published of the package modeling-jina-clip, which writes the layout that older runtimes read"
        )


# Remote code loads this file first. Older versions would fail below, inside `strict`, without naming the cause.
require_version("transformers", transformers.__version__, OLDEST_TRANSFORMERS)

from huggingface_hub.dataclasses import strict  # noqa: E402

# Keys of `hf_model_config_kwargs` that are not architecture fields: they choose a kernel or a way of loading in the
# original code, and do not change results.
_RUNTIME_SWITCHES = frozenset(
    (
        *("fused_bias_fc", "fused_mlp", "load_trained_adapters", "lora_dropout_p"),
        *("lora_main_params_trainable", "trust_remote_code", "use_flash_attn", "use_xentropy"),
    )
)

# Sizes of the text repositories named in published configs; those of jina-clip-v1 are the defaults of the fields.
_XLM_ROBERTA = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "mlp_type": "mlp",
    "position_embedding_type": "rotary",
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
TEXT_REPOSITORIES: dict[str | None, dict[str, Any]] = {
    "jinaai/jina-embeddings-v3": _XLM_ROBERTA,
    "jinaai/xlm-roberta-flash-implementation": _XLM_ROBERTA,
}


def _unknown_value(owner: str, field: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{owner}.{field}={value!r} is not supported; use {allowed}.")


def _check_numbers(config: PretrainedConfig, sizes: tuple[str, ...], rates: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless every size is at least 1, no tower absurdly deep, and every rate in [0, 1)."""
    for field in sizes:
        most = 1000 if field in ("layers", "num_hidden_layers") else 2**31  # deeper ones would fill the memory first
        if not 1 <= getattr(config, field) <= most:
            allowed = f"1 or more, at most {most:,}"
            raise _unknown_value(config.base_config_key, field, getattr(config, field), allowed)
    for field in rates:
        if not 0 <= getattr(config, field) < 1:
            raise _unknown_value(config.base_config_key, field, getattr(config, field), "a value in [0, 1)")
    if not 0 < config.layer_norm_eps < 1:
        raise _unknown_value(config.base_config_key, "layer_norm_eps", config.layer_norm_eps, "e.g. 1e-6")


@strict
class JinaCLIPTextConfig(PretrainedConfig):
    """Configuration of the text tower (defaults: JinaBERT as in jina-clip-v1, arXiv 2405.20204, section 3).

    The output has ``embed_dim`` dimensions. The published models have no projection, so ``embed_dim`` must equal
    ``hidden_size`` unless ``proj_type="linear"``.

    Example::

        >>> config = JinaCLIPTextConfig(embed_dim=64, hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
        >>> config.hidden_size // config.num_attention_heads
        16
    """

    model_type = "jina_clip_text"
    base_config_key = "text_config"

    embed_dim: int = 768
    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    mlp_type: str = "glu"
    position_embedding_type: str = "alibi"
    max_position_embeddings: int = 8192
    type_vocab_size: int = 2
    layer_norm_eps: float | int = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float | int = 0.02
    pooler_type: str | None = "mean_pooler"
    proj_type: str | None = None
    proj_bias: bool = False
    if TYPE_CHECKING:
        pad_token_id: int  # after __post_init__
    else:
        pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    rotary_emb_base: float | int = 20000.0
    lora_adaptations: list[str] | None = None
    lora_rank: int = 4
    lora_alpha: float | int = 1
    default_lora_task: str | None = None
    default_instruction_task: str | None = None
    task_instructions: dict | None = None
    hf_model_name_or_path: str | None = None
    hf_model_config_kwargs: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        published = self.hf_model_config_kwargs is not None  # files saved by this code have plain fields instead
        repository = TEXT_REPOSITORIES.get(self.hf_model_name_or_path, {}) if published else {}
        if self.pad_token_id is None:  # null in the published file: the id is the text repository's
            self.pad_token_id = 0
        for key, value in (repository | (self.hf_model_config_kwargs or {})).items():
            if key in type(self).__dataclass_fields__:
                setattr(self, key, value)
            elif key not in _RUNTIME_SWITCHES:
                raise ValueError(
                    f"text_config.hf_model_config_kwargs has an unknown key {key!r} (value {value!r}); "
                    "expected are the fields of JinaCLIPTextConfig."
                )
        # Merged into the fields above, so that a saved file has each value once.
        self.hf_model_config_kwargs = None
        super().__post_init__(**kwargs)
        self._check()

    @property
    def lora_task_index(self) -> int | None:
        """Index of the adapter applied to every text, or None. The published code, too, uses only the default."""
        return (self.lora_adaptations or []).index(self.default_lora_task) if self.default_lora_task else None

    def _check(self) -> None:
        for field, allowed in (
            ("hidden_act", ("gelu",)),
            ("mlp_type", ("glu", "mlp")),
            ("position_embedding_type", ("alibi", "rotary")),
            ("pooler_type", ("mean_pooler", None)),
            ("proj_type", (None, "linear", "mlp")),
        ):
            if getattr(self, field) not in allowed:
                raise _unknown_value(
                    "text_config", field, getattr(self, field), " or ".join(f"{value!r}" for value in allowed)
                )
        for field, known in (
            ("default_lora_task", self.lora_adaptations or []),
            ("default_instruction_task", list(self.task_instructions or {})),
        ):
            task = getattr(self, field)
            if task is not None and task not in known:
                raise _unknown_value("text_config", field, task, f"null or one of {known}")
        if self.lora_adaptations and self.mlp_type == "glu":
            raise _unknown_value("text_config", "lora_adaptations", self.lora_adaptations, "null with mlp_type='glu'")
        sizes: tuple[str, ...] = ("embed_dim", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        sizes += ("intermediate_size", "max_position_embeddings", "type_vocab_size", "rotary_emb_base", "lora_rank")
        _check_numbers(self, sizes, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"text_config.hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.position_embedding_type == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"text_config.hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} makes "
                f"heads {self.hidden_size // self.num_attention_heads} wide; rotary positions turn pairs, so the width "
                "must be even."
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise _unknown_value("text_config", "pad_token_id", self.pad_token_id, f"0 to {self.vocab_size - 1}")
        if self.proj_type is None and self.embed_dim != self.hidden_size:
            raise ValueError(
                f"text_config.embed_dim={self.embed_dim} differs from hidden_size={self.hidden_size} without a "
                "projection; make them equal or set proj_type='linear'."
            )


@strict
class JinaCLIPVisionConfig(PretrainedConfig):
    """Configuration of the EVA02 image tower (defaults: jina-clip-v1, EVA02-B/16 at 224 px).

    Field names are those of the published ``vision_config``. ``pt_hw_seq_len`` is the side of the pre-training grid;
    with ``intp_freq`` rotary positions are scaled to it (v1: 14 and False).

    Example::

        >>> config = JinaCLIPVisionConfig(width=64, embed_dim=64, head_width=16, layers=2, image_size=32, patch_size=8)
        >>> config.num_attention_heads, config.intermediate_size
        (4, 170)
    """

    model_type = "jina_clip_vision"
    base_config_key = "vision_config"
    attribute_map = {"hidden_size": "width", "num_hidden_layers": "layers"}

    embed_dim: int = 768
    width: int = 768
    head_width: int = 64
    layers: int = 12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    mlp_ratio: float | int = 2.6667
    patch_dropout: float | int = 0.1
    qkv_bias: bool = True
    rope_embeddings: bool = True
    pt_hw_seq_len: int = 14
    intp_freq: bool = False
    naive_swiglu: bool = True
    subln: bool = True
    post_norm: bool = False
    ls_init_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    proj_type: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_attention_heads(self) -> int:
        return self.width // self.head_width

    @property
    def intermediate_size(self) -> int:
        return int(self.width * self.mlp_ratio)

    def _check(self) -> None:
        for field, supported in (
            ("rope_embeddings", True),
            ("naive_swiglu", True),
            ("subln", True),
            ("post_norm", False),
            ("ls_init_value", None),
            ("drop_path_rate", 0.0),
        ):
            if getattr(self, field) != supported:
                raise _unknown_value("vision_config", field, getattr(self, field), repr(supported))
        if self.proj_type not in (None, "linear"):
            raise _unknown_value("vision_config", "proj_type", self.proj_type, "None or 'linear'")
        if not math.isfinite(self.mlp_ratio):
            raise _unknown_value("vision_config", "mlp_ratio", self.mlp_ratio, "a number, e.g. 2.6667")
        sizes = ("embed_dim", "width", "head_width", "layers", "image_size", "patch_size", "num_channels")
        _check_numbers(self, (*sizes, "pt_hw_seq_len", "intermediate_size"), ("patch_dropout",))
        if self.width % self.head_width or self.head_width % 4:
            raise ValueError(
                f"vision_config.width={self.width} must be a multiple of head_width={self.head_width}, and head_width "
                "a multiple of 4 (half of it turns by row, half by column, in pairs)."
            )
        if self.image_size < self.patch_size:  # no need to divide: v2 has 512 / 14, patches cover 504 px
            raise ValueError(
                f"vision_config.image_size={self.image_size} is smaller than patch_size={self.patch_size}."
            )
        if self.proj_type is None and self.embed_dim != self.width:
            raise ValueError(
                f"vision_config.embed_dim={self.embed_dim} differs from width={self.width} without a projection; "
                "make them equal or set proj_type='linear'."
            )


@strict
class JinaCLIPConfig(PretrainedConfig):
    """Configuration of ``JinaCLIPModel``: two towers and one trainable logit scale.

    With ``add_projections`` a linear layer without bias takes each tower's vectors to ``projection_dim``; otherwise it
    raises ``ValueError`` if the towers have different output dimensions.

    Example::

        >>> config = JinaCLIPConfig()
        >>> config.projection_dim == config.text_config.embed_dim == config.vision_config.embed_dim
        True
    """

    model_type = "jina_clip"
    # Identify sub-configs by `model_type`, not by class: loaded as remote code from a local folder, this file may exist
    # as two modules.
    sub_configs = {"text_config": JinaCLIPTextConfig, "vision_config": JinaCLIPVisionConfig}

    if TYPE_CHECKING:  # what they are after __post_init__
        text_config: JinaCLIPTextConfig
        vision_config: JinaCLIPVisionConfig
        projection_dim: int
    else:
        text_config: dict | PretrainedConfig | None = None
        vision_config: dict | PretrainedConfig | None = None
        projection_dim: int | None = None
    add_projections: bool = False
    logit_scale_init_value: float | int = 2.6592  # ln(1 / 0.07), as CLIP
    initializer_factor: float | int = 1.0
    matryoshka_dimensions: list[int] | None = None
    truncate_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key, config_class in self.sub_configs.items():
            value = getattr(self, key)
            if not isinstance(value, PretrainedConfig):
                setattr(self, key, config_class(**(value or {})))
        if self.projection_dim is None:
            self.projection_dim = self.text_config.embed_dim
        # transformers overwrites a tower's own attention backend with that of the whole model; restore it below.
        own = {key: getattr(self, key)._attn_implementation for key in self.sub_configs}
        super().__post_init__(**kwargs)
        for key, backend in own.items():
            if backend is not None and kwargs.get("attn_implementation") is None:
                getattr(self, key)._attn_implementation = backend
        self._check()

    def _check(self) -> None:
        widths = {"projection_dim": self.projection_dim, "text_config.embed_dim": self.text_config.embed_dim}
        widths["vision_config.embed_dim"] = self.vision_config.embed_dim
        if len(set(widths.values())) > 1 and not self.add_projections:
            raise ValueError(
                "Both towers must end in one space: "
                + ", ".join(f"{name}={width}" for name, width in widths.items())
                + "; make them equal, or set add_projections=True."
            )
        if not math.isfinite(self.logit_scale_init_value):
            raise _unknown_value("config", "logit_scale_init_value", self.logit_scale_init_value, "e.g. 2.6592")
        for field, dims in (
            ("truncate_dim", [self.truncate_dim]),
            ("matryoshka_dimensions", self.matryoshka_dimensions),
        ):
            if any(dim is not None and not 0 < dim <= self.projection_dim for dim in dims or []):
                raise _unknown_value("config", field, getattr(self, field), f"1 to {self.projection_dim} or null")
