"""The key map: parameter names of other checkpoints to ours, one table per source, pure functions on dictionaries.

A table is a list of rules, tried in order against the whole name. Every name must match a rule, so that nothing is left
over without a word; names that have no place here are dropped by a rule that says so.
"""

import re
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose name matches ``pattern``.

    ``targets``: one name, copied; several names, the tensor is cut into as many along the rows; none, dropped.
    ``part``: the tensor is this one of three that are stacked along the rows under the one target.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    part: int | None = None


def _fused(pattern: str, target: str) -> list[Rule]:
    """Separate query, key and value layers to one; ``{}`` in the pattern stands for their names."""
    return [Rule(pattern.format(name), (target,), part) for part, name in enumerate(("query", "key", "value"))]


_TEXT = r"(?:text_model\.transformer\.|transformer\.|bert\.|model\.)?"  # wrappers of heads and composites
_VISION = r"(?:visual\.trunk\.|vision_model\.|visual\.)?"
_LAYER = r"encoder\.layers?\.(\d+)\."
_SCALES = r"logit_(?:scale|bias)"
# What a whole CLIP file holds beside the tower asked for. Never a prefix of that tower's own names.
_VISION_SIDE = rf"(?:visual|vision_model)\..*|{_SCALES}"
_TEXT_SIDE = (
    r"(?:text|text_model|textual|token_embedding|ln_final|transformer\.resblocks)\..*"
    rf"|positional_embedding|text_projection|attn_mask|{_SCALES}"
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
    Rule(_TEXT + r"(?:pooler|cls|lm_head|classifier)\..*"),
    Rule(_TEXT + r"(?:embeddings\.position_ids|encoder\.alibi|.*\.alibi.*)"),
    Rule(_VISION_SIDE),
]

# Jina-XLM-RoBERTa as jina-clip-v2 and jina-embeddings-v3 name it, which is how we do. With task adapters or without.
JINA_XLM_ROBERTA = [
    Rule(
        r"(?:(?:text_model\.)?transformer\.)?roberta\.((?:embeddings|emb_ln|encoder)\..*)", (r"transformer.roberta.\1",)
    ),
    Rule(r"(?:(?:text_model\.)?transformer\.)?roberta\.pooler\..*|(?:cls|lm_head)\..*"),
    Rule(_VISION_SIDE),
]


def _with_head(table: list[Rule], transformer: str) -> list[Rule]:
    """The table of a tower for ``JinaCLIPTextForMaskedLM``: the head is kept.

    Some files hold the tensors that the head shares under both names.
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

# EVA02 with the names of EVA-CLIP (arXiv 2303.15389), which the published jina-clip files share.
EVA_CLIP = [
    Rule(_VISION + r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias))", (r"\1",)),
    Rule(_BLOCK + r"(norm[12]\.(?:weight|bias))", (r"blocks.\1.\2",)),
    Rule(_BLOCK + r"(attn\.(?:[qkv]_proj\.weight|[qv]_bias|inner_attn_ln\..*|proj\..*))", (r"blocks.\1.\2",)),
    Rule(_BLOCK + r"(mlp\.(?:w[123]|ffn_ln)\.(?:weight|bias))", (r"blocks.\1.\2",)),
    # The smallest models have no LayerNorm between, and keep neighbouring layers in one.
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
    # The two smallest models keep both in one, gate first.
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
    """Rename, stack and cut ``weights`` by ``table``: our names with their tensors, and the names dropped on purpose.

    Raises ``ValueError`` listing the names that no rule knows, two different tensors for one target, or a third
    of a fused layer that is missing.

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
            f"the checkpoint has {len(unknown)} tensors that no rule knows: {', '.join(sorted(unknown)[:8]) or 'none'}"
            + (f"; incomplete query, key and value for {', '.join(sorted(incomplete)[:4])}" if incomplete else "")
        )
    converted |= {target: torch.cat([found[i] for i in range(3)]) for target, found in parts.items()}
    return converted, dropped


def choose_table(weights: dict[str, torch.Tensor], tables: dict[str, list[Rule]]) -> list[Rule]:
    """The table that knows every name of ``weights`` and keeps the most of them.

    Raises ``ValueError`` naming what the nearest table does not know.
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
