"""Shared by both towers: attention, fast products on a CPU, strict loading, input checks (in this order).

**Attention.** The registry of transformers with our own flex attention, and two plain implementations beside it. All
take (batch, heads, length, head_width) and an additive bias that expands to the shape of the scores, and return the
context (batch, length, heads, head_width) and the weights or None.

========================= ============ ================= ===================== =============================
backend                   image tower  rotary text (v2)  ALiBi text (v1)       limits
========================= ============ ================= ===================== =============================
``eager``, ``sdpa``       yes          yes               yes                   none
``flex_attention``        yes          yes               yes, as ``score_mod`` no dropout; on a CPU no gradient
``flash_attention_2/3``   yes          yes               refused               GPU, float16 or bfloat16
========================= ============ ================= ===================== =============================

Functions registered with ``AttentionInterface.register`` get an additive bias, like ``sdpa``.

**Products.** Linear layers on a CPU use the faster of torch's implementations (benchmarks/products.py measures both):

1. In float32 torch sends linear layers to MKL, which runs at about half the speed of oneDNN on AMD processors with
   AVX-512, and convolutions to oneDNN. A linear layer is a convolution with a 1 x 1 kernel over an image of ``rows``
   pixels in channels-last order, so it can go to oneDNN without a copy, gradients included.
2. Without gradients an operator of oneDNN adds the bias inside the product. In float32 it is faster than MKL for few
   rows, such as a query's, on AMD processors for all; in bfloat16 for many, where torch writes the bias to the output
   first. The operator is not public; if torch does not have it, nothing changes.

The layers stay ``torch.nn.Linear``, which quantizers and LoRA look for. The forward of a block runs inside
``faster_products``, which intercepts the products.

**Strict loading.** An unexpected tensor, or a parameter without a tensor, is an error.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import compile_friendly_flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_jina_clip import JinaCLIPTextConfig

# (score, batch, head, query row, key column) -> score, all scalars; see torch.nn.attention.flex_attention.
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# The score of a padded key under flex attention. Finite, also after the kernels' change to base 2, so that a text
# without tokens does not give NaN.
HIDDEN_SCORE = -1e30


def flex_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: tuple[Tensor, Tensor | None] | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, None]:
    """Flex attention (arXiv 2412.05496); ``attention_mask`` holds the arguments of ``text_score_mod``, or is None.

    transformers' own version takes the bias as a tensor (heads, length, length), which flex attention exists to avoid.
    Raises ``ValueError`` for what torch's kernel does not support: dropout, and gradients on a CPU.
    """
    if dropout:
        raise ValueError(
            f"flex_attention has no dropout, and attention_probs_dropout_prob={dropout}: set it to 0 or train with "
            'attn_implementation="sdpa"'
        )
    on_cpu = query.device.type == "cpu"
    if on_cpu and any(states.requires_grad for states in (query, key, value)):
        raise ValueError(
            "torch's flex_attention has no gradient on a CPU: run it under torch.no_grad(), on a GPU, or with "
            'attn_implementation="sdpa"'
        )
    # Created here: torch.compile cannot pass a function created further out to the kernel's own graph.
    score_mod = None if attention_mask is None else text_score_mod(*attention_mask)
    if on_cpu:  # outside torch.compile it is unfused: correct, and without a C++ compiler
        context = flex_attention(query, key, value, score_mod=score_mod, scale=scaling)
    else:
        context = compile_friendly_flex_attention(  # type: ignore[assignment]  # a tuple only with return_lse
            query, key, value, training=module.training, score_mod=score_mod, scale=scaling
        )
    return context.transpose(1, 2), None  # (B, rows, H, D)


def allow_empty(attend: Callable) -> Callable:
    """``attend``, but an empty batch returns an empty result; transformers' functions raise."""

    @wraps(attend)
    def attend_something(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not torch.jit.is_tracing() and 0 in query.shape:
            return value.transpose(1, 2), None
        return attend(module, query, key, value, *args, **kwargs)

    return attend_something


# Our own registry, so that only these towers use these functions; globally registered ones are found through it too.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS["sdpa"] = allow_empty(sdpa_attention_forward)
ALL_ATTENTION_FUNCTIONS["flex_attention"] = allow_empty(flex_attention_forward)
ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = allow_empty(flash_attention_forward)
ALL_ATTENTION_FUNCTIONS["flash_attention_3"] = allow_empty(flash_attention_forward)


def text_score_mod(padding: Tensor, slopes: Tensor | None) -> ScoreMod:
    """ALiBi (if there are ``slopes``, one per head) and padding (batch, length) as a change of each score."""

    def change(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if slopes is not None:
            score = score - slopes[head] * (row - column).abs()
        return torch.where(padding[batch, column], score, HIDDEN_SCORE)

    return change


def is_flash(backend: str | None) -> bool:
    """Whether the backend is a flash attention, of the flash_attn package or a kernel from the Hub."""
    return backend is not None and "flash" in backend


def refuse_flash_with_alibi(config: JinaCLIPTextConfig, backend: str | None) -> None:
    """Raise ``ValueError`` for ALiBi with flash attention: transformers does not pass it the bias, silently."""
    if is_flash(backend) and config.position_embedding_type == "alibi":
        raise ValueError(
            f"attn_implementation={backend!r} does not support this text tower: it has "
            "ALiBi positions (jina-clip-v1), which transformers cannot pass to it. Choose per tower, e.g. "
            f'attn_implementation={{"text_config": "sdpa", "vision_config": {backend!r}}}; "flex_attention" is the '
            "fused kernel that takes ALiBi."
        )


# Up to this many keys two batched products are faster than torch's fused kernel in bfloat16 on a CPU: 3 times at 32 to
# 64 keys, 1.5 times at 200, equal at 256 (benchmarks/encode_speed.py).
SHORT = 256


def is_short(backend: str | None, query: Tensor, dropout: float) -> bool:
    """Whether to use ``short_attention`` in place of "sdpa": short bfloat16 rows on a CPU, without dropout."""
    return (
        backend == "sdpa"
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and not dropout
        and not torch.compiler.is_compiling()  # the length may be symbolic there
        and query.shape[-2] <= SHORT
    )


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Plain attention, the reference for all other backends."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (B, H, rows, L)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights  # (B, rows, H, D)


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, None]:
    """Attention without dropout: scale and bias inside the first product, softmax in the type of the scores."""
    batch, heads, rows, _ = query.shape
    query, key, value = (states.flatten(0, 1) for states in (query, key, value))  # (B * H, L, D)
    if attention_mask is None:
        scores = torch.bmm(query * scaling, key.transpose(1, 2))  # (B * H, rows, L)
    else:
        bias = attention_mask.expand(batch, heads, rows, key.shape[1]).flatten(0, 1)
        scores = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=scaling)
    context = torch.bmm(F.softmax(scores, dim=-1), value)
    return context.unflatten(0, (batch, heads)).transpose(1, 2), None  # (B, rows, H, D)


def attention_dtype(states: Tensor, device: torch.device | None = None) -> torch.dtype:
    """The type of queries and keys computed from ``states``: under autocast, the type of autocast.

    ``device`` is where they will be, if ``states`` is a weight that accelerate may have offloaded.
    """
    kind = (device or states.device).type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


# With gradients or in bfloat16, all implementations take about the same time for fewer rows.
MIN_ROWS = 32
# In float32 without gradients: where oneDNN is faster than MKL on Intel processors.
FEW_ROWS = range(2, 257)


@cache
def is_amd() -> bool:
    """Whether this is an AMD processor; torch 2.9 and older do not say: then False."""
    return str(getattr(torch.cpu, "get_capabilities", dict[str, Any])().get("cpu_name", "")).startswith("AMD")


@cache
def prefers_onednn() -> bool:
    """Whether float32 products with gradients are faster in oneDNN than in torch's default on this machine."""
    return is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


@cache
def fused_linear(dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """The operator of (2), or None if this torch or this machine does not have it for ``dtype``."""
    avx = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    half = dtype == torch.bfloat16 and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()
    supported = half or (dtype == torch.float32 and avx)
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if supported else None


def faster_products(states: Tensor) -> AbstractContextManager:
    """A context in which linear layers use the faster product, if there is one for ``states``.

    Enter it inside the part that gradient checkpointing repeats, so that both runs use the same product.
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()  # such code chooses its own products
    if compiled or states.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return nullcontext()
    fused = not torch.is_grad_enabled() and fused_linear(states.dtype) is not None
    return _FasterLinear() if fused or (states.dtype == torch.float32 and prefers_onednn()) else nullcontext()


class _FasterLinear(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            func = linear_in_onednn
        return func(*args, **(kwargs or {}))


def linear_in_onednn(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, in oneDNN where that is faster; quantised weights have products of their own."""
    rows, dtype = input.numel() // max(input.shape[-1], 1), input.dtype
    plain = dtype == weight.dtype and type(weight) in (Tensor, nn.Parameter)
    fused = fused_linear(dtype) if plain and not torch.is_grad_enabled() else None
    few = rows > 0 if is_amd() else rows in FEW_ROWS
    if fused is not None and (few if dtype == torch.float32 else rows >= MIN_ROWS):
        return fused(input.contiguous(), weight, bias, "none", [], "")
    if fused is not None or not plain or rows < MIN_ROWS or dtype != torch.float32:
        return F.linear(input, weight, bias)
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # (1, inputs, rows, 1), channels last
    output = F.conv2d(pixels, weight[:, :, None, None], bias)  # (1, outputs, rows, 1)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _LoadingBase
else:
    _LoadingBase = object


class StrictLoadingMixin(_LoadingBase):
    """Goes before ``PreTrainedModel``: ``from_pretrained`` raises where transformers would only log."""

    def post_init(self) -> None:
        """As ``PreTrainedModel.post_init``, but the whole model does not ignore the names that its parts may ignore.

        A tower ignores the other tower's tensors in a file of both; transformers adds such lists to the whole model's.
        """
        super().post_init()
        handed_up = self._keys_to_ignore_on_load_unexpected
        if handed_up is not None:  # a set, and a list in older versions
            own = type(self)._keys_to_ignore_on_load_unexpected or ()
            self._keys_to_ignore_on_load_unexpected = type(handed_up)(own)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, but missing, unexpected or misshapen tensors raise ``ValueError``.

        transformers initialises missing tensors at random and drops unexpected ones, with a log line. In a retrieval
        model both lead to plausible but wrong vectors. Only safetensors are read: a pickle can run code.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        _refuse_pickles(source, kwargs)
        # Collect wrong shapes too, so that one error lists every problem with its sizes.
        strict = {**kwargs, "ignore_mismatched_sizes": True, "use_safetensors": True}
        try:
            loaded: Any = super().from_pretrained(*args, output_loading_info=True, **strict)
            model, info = loaded
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {str(source)!r} are broken, cut short or not safetensors: {error}; fetch them again"
            ) from error
        raise_on_mismatch(cls.__name__, info)
        raise_on_non_finite(model, str(source))
        return (model, info) if output_loading_info else model


def _refuse_pickles(source: Any, options: dict[str, Any]) -> None:
    """Raise with a cure for folders of pickles; transformers would only report that there are no safetensors."""
    cure = (
        "pickles are not read because they can run code. Convert them where you trust them: "
        "save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
    if options.get("use_safetensors") is False:
        raise ValueError(f"use_safetensors=False asks for pickled weights, and {cure}")
    folder = None if source is None else Path(source) / options.get("subfolder", "")
    if folder is None or not folder.is_dir() or options.get("state_dict") is not None:
        return
    variant = f".{options['variant']}" if options.get("variant") else ""
    present = {path.name for path in folder.iterdir()}
    # transformers chooses the reader of a shard by its name, even in an index of safetensors.
    index = folder / f"model.safetensors.index{variant}.json"
    whole = f"model{variant}.safetensors" in present  # then the index is not read
    named = _shards(index) if index.is_file() and not whole else set()
    pickles = sorted(name for name in named or present if name.endswith(_PICKLES))
    if pickles and (named or not any(name.endswith(".safetensors") for name in present)):
        raise ValueError(f"the weights in {str(folder)!r} are {', '.join(pickles[:4])}, and {cure}")


def _shards(index: Path) -> set[str]:
    """The files that an index names; raises ``ValueError`` if it is broken."""
    try:
        content = json.loads(index.read_bytes())
        names = content["weight_map"].values()
        whole = isinstance(content["metadata"], dict) and all(isinstance(name, str) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not names:
        raise ValueError(
            f"{str(index)!r} is broken: it must be JSON with 'metadata' and a 'weight_map' from tensors to files; "
            "fetch it again with its shards"
        )
    return set(names)


def raise_on_non_finite(model: nn.Module, source: str) -> None:
    """Raise ``ValueError`` naming weights that hold NaN or infinity: every vector would be NaN, or wrong in part."""
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    stored = [(name, item.detach()) for name, item in model.named_parameters() if item.numel() and not item.is_meta]
    bad = [name for name, item in stored if item.dtype in plain and not torch.stack(item.aminmax()).isfinite().all()]
    if bad:
        shown = ", ".join(bad[:6]) + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")
        raise ValueError(
            f"{source!r} holds NaN or infinity in {len(bad)} of its weights: {shown}. The file is damaged or the "
            "training that wrote it diverged: fetch it again, or take an earlier checkpoint"
        )


def raise_on_mismatch(name: str, info: dict[str, Any]) -> None:
    """Raise ``ValueError`` listing the missing, unexpected and misshapen tensors of a loading report."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(_describe(key) for key in info.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {shown}")
    if problems:
        raise ValueError(
            f"the checkpoint does not fit {name}: " + "; ".join(problems) + ". Nothing was initialised in their place; "
            "check that config.json and the weights belong together."
        )


def _describe(key: str | tuple) -> str:
    if isinstance(key, str):
        return key
    name, in_checkpoint, in_model = key
    return f"{name} (checkpoint {tuple(in_checkpoint)}, model {tuple(in_model)})"


def check_token_ids(input_ids: Any, attention_mask: Tensor | None) -> None:
    """Raise unless ``input_ids`` is a tensor (batch, length) and the mask has the same shape or is None."""
    _check_tensor("input_ids", input_ids, "tokenizer(texts, padding=True, return_tensors='pt')")
    if input_ids.ndim != 2:
        cure = "; a single text is input_ids[None]" if input_ids.ndim == 1 else ""
        raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} must be (batch, length){cure}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} must have the shape of input_ids, "
            f"{tuple(input_ids.shape)}; pass the tokenizer's, or none at all"
        )


def check_pixels(pixel_values: Any, channels: int) -> None:
    """Raise unless ``pixel_values`` is a tensor (batch, channels, height, width)."""
    _check_tensor("pixel_values", pixel_values, "image_processor(images, return_tensors='pt')")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"pixel_values of shape {tuple(pixel_values.shape)} must be (batch, {channels}, height, width), as "
            "image processors make them"
        )


def _check_tensor(name: str, value: Any, source: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; unpack it: model(**{source})")
