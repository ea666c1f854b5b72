"""The attention backends of both towers: transformers' registry, with flex attention in our own words.

========================= ============ ================= ===================== =============================
backend                   image tower  rotary text (v2)  ALiBi text (v1)       limits
========================= ============ ================= ===================== =============================
``eager``, ``sdpa``       yes          yes               yes                   none
``flex_attention``        yes          yes               yes, as ``score_mod`` no dropout; on a CPU no gradient
``flash_attention_2/3``   yes          yes               refused               GPU, float16 or bfloat16
========================= ============ ================= ===================== =============================

Any other function that was registered with ``AttentionInterface.register`` gets an additive bias, as ``sdpa`` does.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import compile_friendly_flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_jina_clip import JinaCLIPTextConfig

# (score, batch, head, query row, key column) -> score, all scalars; see torch.nn.attention.flex_attention.
ScoreMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# The score of a padded key under flex attention. Finite, also after the kernels' change to base 2, so that a text
# without any token gives numbers.
HIDDEN_SCORE = -1e30


def flex_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: tuple[torch.Tensor, torch.Tensor | None] | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, None]:
    """Flex attention (arXiv 2412.05496); ``attention_mask`` holds the arguments of ``text_score_mod``, or is None.

    transformers' own takes the bias as a tensor, which is the (heads, length, length) that flex attention is there to
    avoid. Raises ``ValueError`` for what torch's kernel cannot do: dropout, and gradients on a CPU.
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
    # Made here: torch.compile cannot hand a function made further out to the kernel's own graph.
    score_mod = None if attention_mask is None else text_score_mod(*attention_mask)
    if on_cpu:  # unfused outside torch.compile, which is right and needs no C++ compiler
        context = flex_attention(query, key, value, score_mod=score_mod, scale=scaling)
    else:
        context = compile_friendly_flex_attention(
            query, key, value, training=module.training, score_mod=score_mod, scale=scaling
        )
    return context.transpose(1, 2), None  # (B, rows, H, D)


def spared_of_nothing(attend: Callable) -> Callable:
    """``attend``, but a batch without items or tokens, which transformers' functions refuse, gives as little."""

    @wraps(attend)
    def attend_something(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not torch.jit.is_tracing() and 0 in query.shape:
            return value.transpose(1, 2), None
        return attend(module, query, key, value, *args, **kwargs)

    return attend_something


# A registry of our own, so that only these towers see these functions; what anybody registers is in it too.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS["sdpa"] = spared_of_nothing(sdpa_attention_forward)
ALL_ATTENTION_FUNCTIONS["flex_attention"] = spared_of_nothing(flex_attention_forward)
ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = spared_of_nothing(flash_attention_forward)
ALL_ATTENTION_FUNCTIONS["flash_attention_3"] = spared_of_nothing(flash_attention_forward)


def text_score_mod(padding: torch.Tensor, slopes: torch.Tensor | None) -> ScoreMod:
    """ALiBi (where there are ``slopes``, one per head) and padding (batch, length) as a change of each score.

    Example::

        >>> change = text_score_mod(torch.tensor([[True, True, False]]), slopes=torch.tensor([0.25]))
        >>> batch, head, row = torch.tensor(0), torch.tensor(0), torch.tensor(0)
        >>> [change(torch.tensor(1.0), batch, head, row, torch.tensor(column)).item() for column in (0, 1)]
        [1.0, 0.75]
    """

    def change(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        if slopes is not None:
            score = score - slopes[head] * (row - column).abs()
        return torch.where(padding[batch, column], score, HIDDEN_SCORE)

    return change


def is_flash(backend: str | None) -> bool:
    """Whether the backend is a flash attention: of the flash_attn package or a kernel of the Hub."""
    return backend is not None and "flash" in backend


def refuse_flash_with_alibi(config: JinaCLIPTextConfig, backend: str | None) -> None:
    """Raise ``ValueError`` for ALiBi with flash attention, which would drop the bias without a word.

    transformers hands no ``alibi_slopes`` to the kernels.
    """
    if is_flash(backend) and config.position_embedding_type == "alibi":
        raise ValueError(
            f"attn_implementation={backend!r} is not for this text tower: it has "
            "ALiBi positions (jina-clip-v1), which transformers cannot pass on. Choose per tower, e.g. "
            f'attn_implementation={{"text_config": "sdpa", "vision_config": {backend!r}}}; "flex_attention" is the '
            "fused kernel that takes ALiBi."
        )
