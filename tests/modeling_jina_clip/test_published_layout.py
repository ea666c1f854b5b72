"""Export to the published layout: what was read from it is written back, and other models can be said in it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, save_published
from modeling_jina_clip.checkpoints_jina_clip import published_config
from tests.modeling_jina_clip.test_published_v2 import TINY, text_config
from tests.modeling_jina_clip.test_published_v2 import published_config as published_v2

# What transformers of that time wrote into every file, whatever the model.
NOISE = {"_name_or_path", "transformers_version", "output_attentions", "output_hidden_states", "output_scores"}
NOISE |= {"use_bfloat16", "pad_token_id"}  # null in both towers
# Later fields of the published code, null in a file of v1.
LATER = {"matryoshka_dimensions", "truncate_dim", "use_text_flash_attn", "use_vision_xformers"}
LATER |= {"default_lora_task", "default_instruction_task", "drop_path_rate"}


def schema(config: dict) -> dict:
    """A published config without noise and without later fields that say nothing."""
    return {
        name: schema(value) if name in ("text_config", "vision_config") else value
        for name, value in config.items()
        if name not in NOISE and not (name in LATER and not value)
    }


def test_a_published_folder_comes_back_as_it_was(golden: Path, tmp_path: Path) -> None:
    """Published layout, load, save, load, export: the same bytes in every tensor, the same fields in every file."""
    source = golden / "tiny_model"
    model = JinaCLIPModel.from_pretrained(source)
    model.save_pretrained(tmp_path / "ours")
    model.processor.save_pretrained(tmp_path / "ours")
    again = JinaCLIPModel.from_pretrained(tmp_path / "ours")
    folder = save_published(again, tmp_path / "published")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    expected, written = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert expected.keys() == written.keys()
    assert all(expected[name].dtype == written[name].dtype for name in expected)
    assert all(torch.equal(expected[name], written[name]) for name in expected)
    for name in ("config.json", "preprocessor_config.json"):
        assert schema(json.loads((folder / name).read_text())) == schema(json.loads((source / name).read_text()))
    settings = [json.loads((place / "tokenizer_config.json").read_text()) for place in (source, folder)]
    del settings[0]["added_tokens_decoder"]  # in tokenizer.json
    assert settings[0] == settings[1]


def test_the_exported_folder_is_the_same_model(golden: Path, tmp_path: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    again = JinaCLIPModel.from_pretrained(save_published(model, tmp_path / "published")).eval()
    texts = ["a cat", "two dogs on a mat"]
    assert (model.encode_text(texts) == again.encode_text(texts)).all()
    assert again.processor.image_processor.size == 32
    skip = NOISE - {"pad_token_id"} | {"auto_map", "architectures", "dtype"}
    before, after = (
        {name: value for name, value in config.to_dict().items() if name not in skip}
        for config in (model.config.text_config, again.config.text_config)
    )
    assert before == after


def test_v1_needs_no_overrides() -> None:
    config = published_config(JinaCLIPConfig())
    assert config["text_config"]["hf_model_config_kwargs"] == {"use_flash_attn": False}
    assert config["vision_config"]["mlp_ratio"] == 2.6667
    assert config["torch_dtype"] == "float32"


def test_v2_config_is_the_published_one() -> None:
    config = published_config(published_v2(), torch.bfloat16)
    kwargs = text_config()["hf_model_config_kwargs"]
    assert config["text_config"]["hf_model_config_kwargs"] == kwargs
    assert config["text_config"]["hf_model_name_or_path"] == "jinaai/jina-embeddings-v3"
    assert config["text_config"]["default_lora_task"] == "retrieval.query"
    assert config["matryoshka_dimensions"] == [32, 64, 128, 256, 512, 768, 1024]
    assert config["torch_dtype"] == "bfloat16"
    assert "rope.freqs" not in str(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_v2_weights_keep_names_adapters_and_type(golden: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    vision = {"embed_dim": 32, "width": 32, "head_width": 8, "layers": 1, "image_size": 36, "patch_size": 14}
    config = JinaCLIPConfig(
        text_config=text_config(**TINY) | {"embed_dim": 32}, vision_config=vision | {"intp_freq": True}
    )
    model = JinaCLIPModel(config).to(dtype)
    model.processor = JinaCLIPModel.from_pretrained(golden / "tiny_model").processor
    folder = save_published(model, tmp_path / "published")
    written = load_file(folder / "model.safetensors")
    assert written.keys() == model.state_dict().keys()  # no rotary tables: the published file has none
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in written.items())
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    fields = json.loads((folder / "config.json").read_text())["text_config"]
    assert fields["hf_model_config_kwargs"].items() >= TINY.items()
    again = JinaCLIPModel.from_pretrained(folder)
    assert again.dtype == dtype
    assert again.config.text_config.lora_task_index == 0


def test_every_field_of_a_tower_trained_here_arrives(golden: Path, tmp_path: Path) -> None:
    text = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 48, "type_vocab_size": 1, "layer_norm_eps": 1e-6, "pad_token_id": 3}
    text |= {"embed_dim": 16, "proj_type": "linear", "proj_bias": True, "hidden_dropout_prob": 0.0}
    vision = {"embed_dim": 16, "width": 32, "head_width": 8, "layers": 1, "image_size": 48, "patch_size": 8}
    vision |= {"intp_freq": True, "pt_hw_seq_len": 4, "mlp_ratio": 2.0, "qkv_bias": False, "proj_type": "linear"}
    model = JinaCLIPModel(JinaCLIPConfig(text_config=text, vision_config=vision, truncate_dim=8)).eval()
    model.processor = JinaCLIPModel.from_pretrained(golden / "tiny_model").processor
    again = JinaCLIPModel.from_pretrained(save_published(model, tmp_path / "published")).eval()
    for name, value in text.items():
        assert getattr(again.config.text_config, name) == value, name
    for name, value in vision.items():
        assert getattr(again.config.vision_config, name) == value, name
    assert again.config.truncate_dim == 8
    np.testing.assert_allclose(model.encode_text("a cat"), again.encode_text("a cat"), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "vision", "message"),
    [
        ({"mlp_type": "mlp"}, {}, "text_config.mlp_type='mlp' .* only 'glu' with alibi positions; use save_pretrained"),
        ({"position_embedding_type": "rotary", "mlp_type": "mlp"}, {}, "lora_adaptations=None .* only task adapters"),
        ({}, {"layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps=1e-05 .* only 1e-06"),
        ({}, {"num_channels": 1}, "vision_config.num_channels=1 .* only 3"),
    ],
)
def test_what_the_published_schema_cannot_say_is_refused(text: dict, vision: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        published_config(JinaCLIPConfig(text_config=text, vision_config=vision))


def test_a_folder_with_something_in_it_is_left_alone(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt'; give a new or an empty folder"):
        save_published(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_tokenizer_of_today_is_named_as_before(golden: Path, tmp_path: Path) -> None:
    from tests.trainer_ext.tiny_run import make_model, make_processor

    model = make_model()
    model.processor = make_processor()
    settings = json.loads((save_published(model, tmp_path / "published") / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings.keys().isdisjoint({"backend", "is_local"})


@torch.no_grad()
def test_weights_without_tables_export_with_the_right_ones(golden: Path, tmp_path: Path) -> None:
    """The rotary tables are computed, so they are the same whether the file that was read had them or not."""
    weights = load_file(golden / "tiny_model" / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if "rope" not in name}
    assert len(bare) == len(weights) - 2
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in (golden / "tiny_model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    written = load_file(save_published(JinaCLIPModel.from_pretrained(folder), tmp_path / "out") / "model.safetensors")
    assert torch.equal(written["vision_model.rope.freqs_sin"], weights["vision_model.rope.freqs_sin"])
