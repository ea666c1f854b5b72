"""jina-clip-v2: the published layout, and its text tower against transformers' own Jina Embeddings v3."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPTextConfig, JinaCLIPTextModel

TASK = "retrieval.query"
INSTRUCTION = "Represent the query for retrieving evidence documents: "
TEXT_KWARGS = {
    "load_trained_adapters": False,
    "lora_adaptations": [TASK],
    "lora_alpha": 4,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": 4,
    "task_instructions": {TASK: INSTRUCTION},
    "use_flash_attn": True,
}
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def text_config(**kwargs) -> dict:
    return {
        "default_lora_task": TASK,
        "hf_model_config_kwargs": TEXT_KWARGS | kwargs,
        "hf_model_name_or_path": "jinaai/jina-embeddings-v3",
    }


def published_config() -> JinaCLIPConfig:
    vision = {"embed_dim": 1024, "width": 1024, "layers": 24, "image_size": 512, "patch_size": 14, "intp_freq": True}
    return JinaCLIPConfig(
        projection_dim=1024,
        matryoshka_dimensions=[32, 64, 128, 256, 512, 768, 1024],
        text_config=text_config() | {"embed_dim": 1024},
        vision_config={**vision, "pt_hw_seq_len": 16},
    )


def tiny_tower(**changes) -> JinaCLIPTextModel:
    torch.manual_seed(0)
    tower = JinaCLIPTextModel(JinaCLIPTextConfig(**(text_config(**TINY) | {"embed_dim": 32} | changes))).eval()
    with torch.no_grad():
        for parameter in tower.parameters():  # adapters start at zero: make them matter
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return tower


def merged(weights: dict[str, torch.Tensor], name: str, embedding: bool) -> torch.Tensor:
    """W + alpha / rank * B A, the other way round for embeddings; alpha equals rank here."""
    prefix = f"transformer.roberta.{name}.parametrizations.weight."
    a, b = weights[prefix + "0.lora_A"][0], weights[prefix + "0.lora_B"][0]
    return weights[prefix + "original"] + (a @ b if embedding else b @ a)


def as_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names to those of ``JinaEmbeddingsV3Model``, adapters merged."""
    root = "transformer.roberta."
    out = {
        f"embeddings.{name}.weight": merged(weights, f"embeddings.{name}", embedding=True)
        for name in ("word_embeddings", "token_type_embeddings")
    }
    out |= {f"embeddings.LayerNorm.{part}": weights[f"{root}emb_ln.{part}"] for part in ("weight", "bias")}
    for layer in range(TINY["num_hidden_layers"]):
        ours, theirs = f"encoder.layers.{layer}.", f"layers.{layer}."
        fused = merged(weights, ours + "mixer.Wqkv", embedding=False).chunk(3)
        biases = weights[f"{root}{ours}mixer.Wqkv.bias"].chunk(3)
        for name, weight, bias in zip("qkv", fused, biases, strict=True):
            out |= {f"{theirs}self_attn.{name}_proj.weight": weight, f"{theirs}self_attn.{name}_proj.bias": bias}
        for source, target in (("mixer.out_proj", "self_attn.o_proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            out[f"{theirs}{target}.weight"] = merged(weights, ours + source, embedding=False)
            out[f"{theirs}{target}.bias"] = weights[f"{root}{ours}{source}.bias"]
        for source, target in (("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm")):
            out |= {f"{theirs}{target}.{part}": weights[f"{root}{ours}{source}.{part}"] for part in ("weight", "bias")}
    return out


def test_the_published_layout_to_the_last_parameter() -> None:
    with torch.device("meta"):
        model = JinaCLIPModel(published_config())
    assert sum(parameter.numel() for parameter in model.parameters()) == 865_278_477
    assert len(model.state_dict()) == 999


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_text_tower_is_jina_embeddings_v3_with_the_adapter_merged(attention: str) -> None:
    tower = tiny_tower()
    tower.set_attn_implementation(attention)
    peer = JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**TINY, max_position_embeddings=64), add_pooling_layer=False)
    peer.load_state_dict(as_transformers(tower.state_dict()))  # strict: nothing missing, nothing left over
    ids = torch.randint(2, 99, (3, 11))
    ids[1, 6:] = 1
    ours = tower(ids).last_hidden_state
    theirs = peer.eval()(ids, attention_mask=(ids != 1).long()).last_hidden_state
    real = ids != 1
    assert theirs[real].std() > 0.1
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=5e-6)


@torch.no_grad()
def test_without_a_default_task_the_adapter_rests() -> None:
    adapted, plain = tiny_tower(), tiny_tower(default_lora_task=None)
    plain.load_state_dict(adapted.state_dict())
    ids = torch.randint(2, 99, (2, 5))
    assert (adapted(ids).pooler_output - plain(ids).pooler_output).abs().max() > 0.01


def test_adapters_train() -> None:
    tower = tiny_tower().train()
    tower(torch.randint(2, 99, (2, 5))).pooler_output.square().sum().backward()
    factors = {name: p.grad for name, p in tower.named_parameters() if ".lora_" in name}
    assert len(factors) == 2 * (2 + 4 * TINY["num_hidden_layers"])
    assert all(gradient.abs().max() > 0 for gradient in factors.values())


def test_round_trip_keeps_the_published_names(tmp_path) -> None:
    config = JinaCLIPConfig(
        text_config=text_config(**TINY) | {"embed_dim": 32},
        vision_config={"embed_dim": 32, "width": 32, "head_width": 8, "layers": 1, "image_size": 36, "patch_size": 14},
    )
    model = JinaCLIPModel(config)
    model.save_pretrained(tmp_path)
    again = JinaCLIPModel.from_pretrained(tmp_path)
    assert again.config.text_config.lora_adaptations == [TASK]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with torch.no_grad():  # 36 px hold 2 patches of 14 and a rest, as 512 holds 36 of them
        assert again.get_image_features(torch.randn(1, 3, 36, 36)).shape == (1, 32)


def test_a_task_puts_its_instruction_before_the_text(golden) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    plain, prompted = model.encode_text("a cat"), model.encode_text(INSTRUCTION + "a cat")
    assert abs(plain - prompted).max() > 0.01
    model.config.text_config.task_instructions = {TASK: INSTRUCTION}
    assert abs(model.encode_text("a cat", task=TASK) - prompted).max() < 1e-6
    assert abs(model.encode_text("a cat") - plain).max() < 1e-6
    model.config.text_config.default_instruction_task = TASK
    assert abs(model.encode_text("a cat") - prompted).max() < 1e-6
    with pytest.raises(ValueError, match=r"task='sts' is unknown; this checkpoint has \['retrieval.query'\]"):
        model.encode_text("a cat", task="sts")


def tiny_model(**changes) -> JinaCLIPModel:
    """A whole model with the tower above, and adapters for two tasks."""
    kwargs = {**TEXT_KWARGS, **TINY, "lora_adaptations": ["other", TASK]}
    tower = tiny_tower(hf_model_config_kwargs=kwargs, **changes)
    vision = {"embed_dim": 32, "width": 32, "head_width": 8, "layers": 1, "image_size": 16, "patch_size": 8}
    model = JinaCLIPModel(JinaCLIPConfig(text_config=tower.config, vision_config=vision)).eval()
    model.text_model.load_state_dict(tower.state_dict())
    return model


IDS = torch.tensor([[5, 9, 11, 3, 2], [7, 8, 2, 1, 1]])


@torch.no_grad()
@pytest.mark.parametrize("task", [None, TASK, "other"])
def test_a_merged_adapter_gives_the_same_vectors(tmp_path: Path, task: str | None) -> None:
    model = tiny_model(default_lora_task="other" if task == "other" else TASK)
    expected = model.get_text_features(IDS)
    base = tiny_model(default_lora_task=None).get_text_features(IDS)
    assert (expected - base).abs().max() > 1e-3
    assert not any(isinstance(part, (nn.Linear, nn.Embedding)) for part in model.text_model.modules())
    count = model.num_parameters()
    assert model.merge_task_adapter(task) is model
    assert model.num_parameters() < count
    torch.testing.assert_close(model.get_text_features(IDS), expected, rtol=0, atol=1e-6)
    assert model.get_input_embeddings().padding_idx == 1
    assert model.config.text_config.lora_adaptations is None
    model.save_pretrained(tmp_path)
    again = JinaCLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.get_text_features(IDS), expected, rtol=0, atol=1e-6)
    assert not again.merge_task_adapter().training  # nothing is left to merge, which is no error
    assert again.config.text_config.task_instructions == {TASK: INSTRUCTION}
    with pytest.raises(ValueError, match=f"task={TASK!r} has no adapter in this model; it has none"):
        again.merge_task_adapter(TASK)


@torch.no_grad()
def test_merging_another_task_or_none() -> None:
    other = tiny_model(default_lora_task="other").get_text_features(IDS)
    folded = tiny_model().merge_task_adapter("other")
    torch.testing.assert_close(folded.get_text_features(IDS), other, rtol=0, atol=1e-6)
    model = tiny_model(default_lora_task=None)
    plain = model.get_text_features(IDS)
    torch.testing.assert_close(model.merge_task_adapter().get_text_features(IDS), plain, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"task='sts' has no adapter in this model; it has \['other', 'retrieval"):
        tiny_model().merge_task_adapter("sts")


@torch.no_grad()
def test_a_merged_adapter_keeps_its_type_and_what_is_frozen() -> None:
    model = tiny_model().to(torch.bfloat16).requires_grad_(False)
    expected = model.get_text_features(IDS)
    model.merge_task_adapter()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.cosine_similarity(model.get_text_features(IDS).float(), expected.float()).min() > 0.999


@torch.no_grad()
def test_weights_on_disk_are_not_merged(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    tiny_model().save_pretrained(tmp_path / "model")
    model = JinaCLIPModel.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    with pytest.raises(ValueError, match="only where the weights are in memory; load without device_map"):
        model.merge_task_adapter()


@torch.no_grad()
def test_a_quantizer_finds_every_layer_of_a_merged_tower() -> None:
    model = tiny_model().merge_task_adapter()
    expected = model.get_text_features(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert sum("quantized" in type(part).__module__ for part in small.text_model.modules()) >= 4 * 2
    assert torch.cosine_similarity(small.get_text_features(IDS), expected).min() > 0.99


def test_lora_of_peft_finds_and_trains_a_merged_tower(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model().merge_task_adapter()
    with torch.no_grad():
        expected = model.get_text_features(IDS)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    adapted = {name.partition(".lora_A")[0] for name, _ in tuned.named_parameters() if ".lora_A" in name}
    ends = {name.rpartition(".")[2] for name in adapted if "text_model" in name}
    assert ends == {"Wqkv", "out_proj", "fc1", "fc2"}
    tuned.train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        tuned.get_text_features(IDS)[:, 0].sum().backward()
        optimizer.step()
    tuned.eval()
    with torch.no_grad():
        found = tuned.get_text_features(IDS)
        assert (found - expected).abs().max() > 1e-3
        tuned.merge_and_unload().save_pretrained(tmp_path)
        again = JinaCLIPModel.from_pretrained(tmp_path).get_text_features(IDS)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-6)
