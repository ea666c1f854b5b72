"""The schema reads the published file, refuses what no code here computes, and survives a round trip."""

import pytest

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPTextConfig, JinaCLIPVisionConfig


def test_text_sizes_come_from_the_published_overrides() -> None:
    config = JinaCLIPTextConfig(
        embed_dim=64, hf_model_config_kwargs={"hidden_size": 64, "num_attention_heads": 4, "use_flash_attn": False}
    )
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (64, 4, 3072)
    assert config.hf_model_config_kwargs is None


def test_round_trip(tmp_path) -> None:
    config = JinaCLIPConfig(
        text_config={"embed_dim": 32, "hidden_size": 32, "num_attention_heads": 2, "pad_token_id": None},
        vision_config={"embed_dim": 32, "width": 32, "head_width": 8, "image_size": 32, "patch_size": 8},
    )
    assert config.projection_dim == 32
    assert config.text_config.pad_token_id == 0
    config.save_pretrained(tmp_path)
    again = JinaCLIPConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (JinaCLIPTextConfig, {"hf_model_config_kwargs": {"hiden_size": 4}}, "unknown key 'hiden_size'"),
        (JinaCLIPTextConfig, {"num_attention_heads": 7}, "hidden_size=768 is not a multiple of num_attention_heads=7"),
        (JinaCLIPTextConfig, {"embed_dim": 64}, "embed_dim=64 differs from hidden_size=768"),
        (JinaCLIPTextConfig, {"hidden_act": "relu"}, "hidden_act='relu' is not supported; use 'gelu'"),
        (JinaCLIPTextConfig, {"position_embedding_type": "absolute"}, "position_embedding_type='absolute'"),
        (JinaCLIPTextConfig, {"mlp_type": "moe"}, "mlp_type='moe' is not supported; use 'glu' or 'mlp'"),
        (JinaCLIPTextConfig, {"default_lora_task": "sts"}, r"default_lora_task='sts' is not supported; use null"),
        (JinaCLIPTextConfig, {"default_instruction_task": "sts"}, "default_instruction_task='sts'"),
        (JinaCLIPTextConfig, {"lora_adaptations": ["sts"]}, "null with mlp_type='glu'"),
        (JinaCLIPTextConfig, {"pooler_type": "cls_pooler"}, "pooler_type='cls_pooler'"),
        (JinaCLIPTextConfig, {"proj_type": "conv"}, "proj_type='conv' is not supported; use None or 'linear' or 'mlp'"),
        (JinaCLIPTextConfig, {"num_hidden_layers": 0}, r"text_config.num_hidden_layers=0 .*; use 1 or more"),
        (JinaCLIPTextConfig, {"num_attention_heads": 0}, "num_attention_heads=0"),
        (JinaCLIPTextConfig, {"hidden_size": -768}, "hidden_size=-768"),
        (JinaCLIPTextConfig, {"vocab_size": 0}, "vocab_size=0"),
        (JinaCLIPTextConfig, {"intermediate_size": -1}, "intermediate_size=-1"),
        (JinaCLIPTextConfig, {"max_position_embeddings": 0}, "max_position_embeddings=0"),
        (JinaCLIPTextConfig, {"type_vocab_size": 0}, "type_vocab_size=0"),
        (JinaCLIPTextConfig, {"rotary_emb_base": -1}, "rotary_emb_base=-1"),
        (JinaCLIPTextConfig, {"lora_rank": 0}, "lora_rank=0"),
        (JinaCLIPTextConfig, {"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob=1.0 .*; use a value in \[0, 1\)"),
        (JinaCLIPTextConfig, {"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob=-0.1"),
        (JinaCLIPTextConfig, {"layer_norm_eps": 0.0}, "layer_norm_eps=0.0"),
        (JinaCLIPTextConfig, {"pad_token_id": 30528}, "pad_token_id=30528 is not supported; use 0 to 30527"),
        (JinaCLIPTextConfig, {"pad_token_id": -1}, "pad_token_id=-1"),
        (
            JinaCLIPTextConfig,
            {"position_embedding_type": "rotary", "mlp_type": "mlp", "num_attention_heads": 256},
            "hidden_size=768 over num_attention_heads=256 makes heads 3 wide; rotary",
        ),
        (JinaCLIPVisionConfig, {"layers": -1}, "vision_config.layers=-1"),
        (JinaCLIPVisionConfig, {"width": 0}, "width=0"),
        (JinaCLIPVisionConfig, {"head_width": 0}, "head_width=0"),
        (JinaCLIPVisionConfig, {"head_width": 6}, "head_width=6, and head_width a multiple of 4"),
        (JinaCLIPVisionConfig, {"patch_size": 0}, "patch_size=0"),
        (JinaCLIPVisionConfig, {"image_size": -224}, "image_size=-224"),
        (JinaCLIPVisionConfig, {"num_channels": 0}, "num_channels=0"),
        (JinaCLIPVisionConfig, {"pt_hw_seq_len": 0}, "pt_hw_seq_len=0"),
        (JinaCLIPVisionConfig, {"mlp_ratio": -2}, "intermediate_size=-1536"),
        (
            JinaCLIPVisionConfig,
            {"mlp_ratio": float("nan")},
            "mlp_ratio=nan is not supported; use a number, e.g. 2.6667",
        ),
        (JinaCLIPVisionConfig, {"mlp_ratio": float("inf")}, "mlp_ratio=inf is not supported; use a number"),
        (JinaCLIPVisionConfig, {"ls_init_value": 0}, "ls_init_value=0 is not supported; use None"),
        (JinaCLIPVisionConfig, {"layer_norm_eps": -1e-6}, "layer_norm_eps=-1e-06"),
        (JinaCLIPVisionConfig, {"head_width": 50}, "width=768 must be a multiple of head_width=50"),
        (JinaCLIPVisionConfig, {"image_size": 8}, "image_size=8 is smaller than patch_size=16"),
        (JinaCLIPVisionConfig, {"embed_dim": 512}, "embed_dim=512 differs from width=768"),
        (JinaCLIPVisionConfig, {"patch_dropout": 1.0}, "patch_dropout=1.0"),
        (JinaCLIPVisionConfig, {"post_norm": True}, "post_norm=True is not supported; use False"),
        (JinaCLIPVisionConfig, {"ls_init_value": 0.1}, "ls_init_value=0.1"),
        (JinaCLIPVisionConfig, {"rope_embeddings": False}, "rope_embeddings=False"),
        (JinaCLIPVisionConfig, {"subln": False}, "subln=False"),
        (JinaCLIPVisionConfig, {"naive_swiglu": False}, "naive_swiglu=False"),
        (JinaCLIPVisionConfig, {"drop_path_rate": 0.1}, "drop_path_rate=0.1"),
        (JinaCLIPVisionConfig, {"proj_type": "mlp"}, "proj_type='mlp'"),
        (JinaCLIPConfig, {"projection_dim": 512}, "projection_dim=512, text_config.embed_dim=768"),
        (JinaCLIPConfig, {"matryoshka_dimensions": [64, 1024]}, r"matryoshka_dimensions=\[64, 1024\] .* 1 to 768"),
        (JinaCLIPConfig, {"logit_scale_init_value": float("inf")}, "logit_scale_init_value=inf"),
        (JinaCLIPConfig, {"truncate_dim": 1000}, "truncate_dim=1000"),
    ],
)
def test_what_nothing_here_computes_is_refused(config_class: type, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(**values)


def test_projections_widen_both_towers() -> None:
    config = JinaCLIPConfig(
        text_config={"embed_dim": 64, "proj_type": "linear"}, vision_config={"embed_dim": 64, "proj_type": "linear"}
    )
    assert config.projection_dim == 64


@pytest.mark.parametrize(
    ("config_class", "field"),
    [
        *[(JinaCLIPTextConfig, name) for name in ("initializer_range", "hidden_dropout_prob", "rotary_emb_base")],
        *[(JinaCLIPTextConfig, name) for name in ("attention_probs_dropout_prob", "lora_alpha")],
        *[(JinaCLIPVisionConfig, name) for name in ("initializer_range", "mlp_ratio", "patch_dropout")],
        *[(JinaCLIPConfig, name) for name in ("logit_scale_init_value", "initializer_factor")],
    ],
)
def test_a_whole_number_of_json_is_a_number(config_class: type, field: str) -> None:
    value = 0 if "drop" in field else 2
    assert getattr(config_class(**{field: value}), field) == value


def test_a_towers_own_attention_backend_is_kept() -> None:
    sizes = {"embed_dim": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    vision = {"embed_dim": 8, "width": 8, "head_width": 8, "layers": 1, "image_size": 8, "patch_size": 8}

    def backends(text: dict | None = None, **whole: object) -> list[str]:
        config = JinaCLIPConfig(text_config={**sizes, **(text or {})}, vision_config=vision, **whole)
        model = JinaCLIPModel(config)
        return [part.config._attn_implementation for part in (model.text_model, model.vision_model)]

    own = {"attn_implementation": "eager"}
    assert backends() == ["sdpa", "sdpa"]
    assert backends(own) == ["eager", "sdpa"]
    assert backends(**own) == ["eager", "eager"]
    assert backends(own, attn_implementation="sdpa") == ["sdpa", "sdpa"]
    assert backends(own, attn_implementation={"text_config": "flex_attention", "vision_config": "eager"}) == [
        "flex_attention",
        "eager",
    ]
