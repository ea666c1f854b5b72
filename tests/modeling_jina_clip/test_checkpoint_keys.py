"""The key map beside its test: one row a kind of name, what becomes of it, and nothing that two rules would claim."""

import re

import pytest
import torch

from modeling_jina_clip.checkpoints_jina_clip import MASKED_LM_TABLES, TEXT_TABLES, VISION_TABLES, convert

T, L = "transformer.", "transformer.encoder.layers.3."
R = "transformer.roberta."
QKV = ["blocks.3.attn.q_proj.weight", "blocks.3.attn.k_proj.weight", "blocks.3.attn.v_proj.weight"]
DROPPED: list[str] = []

JINA_BERT = {  # BERT's names, with the wrappers of heads and composites
    "embeddings.word_embeddings.weight": [T + "embeddings.word_embeddings.weight"],
    "bert.embeddings.token_type_embeddings.weight": [T + "embeddings.token_type_embeddings.weight"],
    "model.embeddings.LayerNorm.bias": [T + "emb_ln.bias"],
    "encoder.layer.3.attention.output.dense.weight": [L + "mixer.out_proj.weight"],
    "bert.encoder.layer.3.attention.output.LayerNorm.weight": [L + "norm1.weight"],
    "encoder.layer.3.mlp.gated_layers.weight": [L + "mlp.gated_layers.weight"],
    "encoder.layer.3.mlp.wo.bias": [L + "mlp.wo.bias"],
    "encoder.layer.3.mlp.layernorm.weight": [L + "norm2.weight"],
    "pooler.dense.weight": DROPPED,
    "bert.pooler.dense.bias": DROPPED,
    "cls.predictions.bias": DROPPED,
    "embeddings.position_ids": DROPPED,
    "encoder.alibi": DROPPED,
}
JINA_BERT_FLASH = {  # the names of the published jina-clip file
    "text_model.transformer.emb_ln.weight": [T + "emb_ln.weight"],
    "text_model.transformer.encoder.layers.3.mixer.Wqkv.weight": [L + "mixer.Wqkv.weight"],
    "bert.encoder.layers.3.mixer.out_proj.bias": [L + "mixer.out_proj.bias"],
    "encoder.layers.3.norm1.weight": [L + "norm1.weight"],
    "encoder.layers.3.norm2.bias": [L + "norm2.bias"],
    "vision_model.blocks.0.norm1.weight": DROPPED,
    "visual.trunk.cls_token": DROPPED,
    "logit_scale": DROPPED,
}
JINA_XLM_ROBERTA = {
    "roberta.embeddings.word_embeddings.weight": [R + "embeddings.word_embeddings.weight"],
    "text_model.transformer.roberta.encoder.layers.3.mlp.fc1.bias": [R + "encoder.layers.3.mlp.fc1.bias"],
    "transformer.roberta.encoder.layers.3.mixer.Wqkv.parametrizations.weight.0.lora_A": [
        R + "encoder.layers.3.mixer.Wqkv.parametrizations.weight.0.lora_A"
    ],
    "roberta.emb_ln.weight": [R + "emb_ln.weight"],
    "roberta.pooler.dense.weight": DROPPED,
    "lm_head.decoder.bias": DROPPED,
}
EVA_CLIP = {  # split layers with a LayerNorm between (sub-LN), or fused ones without
    "visual.cls_token": ["cls_token"],
    "vision_model.pos_embed": ["pos_embed"],
    "patch_embed.proj.weight": ["patch_embed.proj.weight"],
    "visual.blocks.3.norm1.weight": ["blocks.3.norm1.weight"],
    "visual.blocks.3.attn.q_proj.weight": QKV[:1],
    "blocks.3.attn.q_bias": ["blocks.3.attn.q_bias"],
    "visual.blocks.3.attn.v_bias": ["blocks.3.attn.v_bias"],
    "visual.blocks.3.attn.qkv.weight": QKV,
    "visual.blocks.3.attn.inner_attn_ln.weight": ["blocks.3.attn.inner_attn_ln.weight"],
    "visual.blocks.3.attn.proj.bias": ["blocks.3.attn.proj.bias"],
    "visual.blocks.3.mlp.w1.weight": ["blocks.3.mlp.w1.weight"],
    "visual.blocks.3.mlp.w12.bias": ["blocks.3.mlp.w1.bias", "blocks.3.mlp.w2.bias"],
    "visual.blocks.3.mlp.ffn_ln.bias": ["blocks.3.mlp.ffn_ln.bias"],
    "visual.norm.weight": ["norm.weight"],
    "visual.head.weight": DROPPED,
    "mask_token": DROPPED,
    "visual.rope.freqs_cos": DROPPED,
    "visual.blocks.3.attn.rope.freqs_sin": DROPPED,
    "text.transformer.resblocks.0.ln_1.weight": DROPPED,
    "text_projection": DROPPED,
    "positional_embedding": DROPPED,
}
TIMM = {  # split layers with norms, fused ones without; alone or inside open_clip
    "visual.trunk.cls_token": ["cls_token"],
    "blocks.3.attn.qkv.weight": QKV,
    "visual.trunk.blocks.3.attn.k_proj.weight": QKV[1:2],
    "blocks.3.attn.q_proj.bias": ["blocks.3.attn.q_bias"],
    "blocks.3.attn.v_bias": ["blocks.3.attn.v_bias"],
    "blocks.3.attn.k_bias": DROPPED,
    "blocks.3.attn.norm.weight": ["blocks.3.attn.inner_attn_ln.weight"],
    "blocks.3.attn.proj.weight": ["blocks.3.attn.proj.weight"],
    "blocks.3.mlp.fc1_g.weight": ["blocks.3.mlp.w1.weight"],
    "blocks.3.mlp.fc1_x.bias": ["blocks.3.mlp.w2.bias"],
    "blocks.3.mlp.fc1.weight": ["blocks.3.mlp.w1.weight", "blocks.3.mlp.w2.weight"],
    "blocks.3.mlp.norm.bias": ["blocks.3.mlp.ffn_ln.bias"],
    "blocks.3.mlp.fc2.weight": ["blocks.3.mlp.w3.weight"],
    "norm.weight": ["norm.weight"],
    "fc_norm.weight": ["norm.weight"],
    "head.weight": DROPPED,
    "visual.trunk.head.bias": DROPPED,
    "rope.freqs": DROPPED,
    "visual.head.proj.weight": DROPPED,
    "text.token_embedding.weight": DROPPED,
    "logit_bias": DROPPED,
}
TABLES = [
    ("JinaBERT", TEXT_TABLES, JINA_BERT),
    ("JinaBERT", TEXT_TABLES, JINA_BERT_FLASH),
    ("Jina-XLM-RoBERTa", TEXT_TABLES, JINA_XLM_ROBERTA),
    ("EVA-CLIP", VISION_TABLES, EVA_CLIP),
    ("timm", VISION_TABLES, TIMM),
]


@pytest.mark.parametrize(
    ("source", "tables", "name", "targets"),
    [(source, tables, name, targets) for source, tables, rows in TABLES for name, targets in rows.items()],
    ids=[f"{source}:{name}" for source, _, rows in TABLES for name in rows],
)
def test_names(source: str, tables: dict, name: str, targets: list[str]) -> None:
    tensor = torch.arange(6.0)
    converted, dropped = convert({name: tensor}, tables[source])
    assert list(converted) == targets
    assert dropped == ([] if targets else [name])
    if targets:  # cut along the rows, in the order of the names
        assert torch.equal(torch.cat(list(converted.values())), tensor)


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("prefix", ["", "bert.", "model."])
def test_query_key_and_value_are_stacked_in_this_order(prefix: str, part: str) -> None:
    names = {name: f"{prefix}encoder.layer.3.attention.self.{name}.{part}" for name in ("value", "query", "key")}
    order = {"query": 0.0, "key": 1.0, "value": 2.0}
    weights = {full: torch.full((2,), order[name]) for name, full in names.items()}
    converted, _ = convert(weights, TEXT_TABLES["JinaBERT"])
    assert converted[L + f"mixer.Wqkv.{part}"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("source", "word"), [("JinaBERT", T), ("Jina-XLM-RoBERTa", R)])
def test_the_head_of_a_masked_language_model_is_kept_where_it_is_wanted(source: str, word: str) -> None:
    names = {
        "cls.predictions.bias": "cls.predictions.decoder.bias",
        "cls.predictions.transform.dense.weight": "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.decoder.weight": f"text_model.{word}embeddings.word_embeddings.weight",
    }
    converted, dropped = convert(dict.fromkeys(names, torch.zeros(1)), MASKED_LM_TABLES[source])
    assert sorted(converted) == sorted(names.values())
    assert dropped == []


@pytest.mark.parametrize("name", ["blocks.3.ls1.gamma", "encoder.layer.3.attention.self.layer_norm_q.weight", "x"])
def test_names_of_other_architectures_fit_no_table(name: str) -> None:
    for tables in (TEXT_TABLES, VISION_TABLES):
        for table in tables.values():
            assert not any(re.fullmatch(rule.pattern, name) for rule in table)
