"""Where the weights lie and in what form: meta device, ``device_map``, several devices, 8 bits; and long texts."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPModel,
    JinaCLIPTextConfig,
)
from modeling_jina_clip.modeling_jina_clip_text import TextPositions

ROOT = Path(__file__).parents[2]
TEXT = {"embed_dim": 48, "vocab_size": 99, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
ROTARY = {"position_embedding_type": "rotary", "mlp_type": "mlp"}
ADAPTED = {**ROTARY, "lora_adaptations": ["a", "b"], "default_lora_task": "b", "lora_rank": 2}
VISION = {"embed_dim": 48, "width": 48, "head_width": 16, "layers": 2, "image_size": 32, "patch_size": 8}


def config(**text: object) -> JinaCLIPConfig:
    return JinaCLIPConfig(text_config={**TEXT, "intermediate_size": 96, **text}, vision_config=VISION)


@torch.no_grad()
def features(model: JinaCLIPModel) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 99, (3, 11))
    ids[1, 4:] = 0
    output = model.eval()(input_ids=ids, pixel_values=torch.randn(3, 3, 32, 48))
    return output.text_embeds, output.image_embeds


@pytest.fixture(params=[{}, ROTARY, ADAPTED], ids=["v1", "v2", "v2 adapted"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = JinaCLIPModel(config(**request.param))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    return tmp_path, features(model)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_a_device_map_gives_the_same_vectors(saved: tuple, device_map: str | dict) -> None:
    if torch.cuda.is_available() and device_map == "auto":
        pytest.skip("the GPU rounds otherwise; the GPU test has its own tolerance")
    folder, expected = saved
    model = JinaCLIPModel.from_pretrained(folder, device_map=device_map)
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    for found, correct in zip(features(model), expected, strict=True):
        torch.testing.assert_close(found, correct, rtol=0, atol=1e-6)


def test_a_model_made_on_the_meta_device_loads_and_has_nothing_to_rebuild(saved: tuple) -> None:
    folder, expected = saved
    with torch.device("meta"):
        model = JinaCLIPModel(JinaCLIPConfig.from_pretrained(folder))
    assert all(parameter.is_meta for parameter in model.parameters())
    # Tables of positions are computed at each call: a buffer that no file holds would be left uninitialised here.
    assert list(model.named_buffers()) == []
    weights = JinaCLIPModel.from_pretrained(folder).state_dict()
    model.load_state_dict(weights, assign=True)
    for found, correct in zip(features(model), expected, strict=True):
        torch.testing.assert_close(found, correct, rtol=0, atol=1e-6)


def test_layers_that_wait_outside_the_device_give_the_same_vectors(saved: tuple, tmp_path: Path) -> None:
    """Every whole module that ``_no_split_modules`` names is fetched by accelerate's hooks for its own call."""
    accelerate = pytest.importorskip("accelerate")
    folder, expected = saved
    model = JinaCLIPModel.from_pretrained(folder)
    accelerate.cpu_offload(
        model, execution_device=torch.device("cpu"), preload_module_classes=list(model._no_split_modules)
    )
    assert any(parameter.is_meta for parameter in model.text_model.parameters())
    for found, correct in zip(features(model), expected, strict=True):
        torch.testing.assert_close(found, correct, rtol=0, atol=1e-6)


def all_but(folder: Path, name_end: str) -> dict[str, str]:
    """A device map with one module on disk and everything beside the way to it on the CPU."""
    with torch.device("meta"):
        model = JinaCLIPModel(JinaCLIPConfig.from_pretrained(folder))
    target = next(name for name, _ in model.named_modules() if name.endswith(name_end))
    device_map, here = {target: "disk"}, ""
    for part in target.split("."):
        module = model.get_submodule(here)
        beside = [*dict(module.named_children()), *dict(module.named_parameters(recurse=False))]
        prefix = here + "." if here else ""
        device_map |= {prefix + name: "cpu" for name in beside if name != part}
        here = prefix + part
    return device_map


@pytest.mark.parametrize(
    "places",
    [
        {"": "disk"},
        {"text_model": "disk", "vision_model": "cpu", "logit_scale": "cpu"},
        {"text_model": "cpu", "vision_model": "disk", "logit_scale": "cpu"},
        "patch_embed",
        "word_embeddings",
        "layers.1",
        "layers.0.mixer.Wqkv",
        "blocks.1",
    ],
    ids=str,
)
def test_weights_that_wait_on_disk_are_fetched(saved: tuple, tmp_path: Path, places: dict | str) -> None:
    """By nothing but ``device_map``: accelerate's hooks fetch a module's own weights when that module is called."""
    pytest.importorskip("accelerate")
    folder, expected = saved
    device_map = places if isinstance(places, dict) else all_but(folder, places)
    model = JinaCLIPModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    skip_without_hooks(model)
    assert any(parameter.is_meta for parameter in model.parameters())
    for found, correct in zip(features(model), expected, strict=True):
        torch.testing.assert_close(found, correct, rtol=0, atol=1e-6)


def skip_without_hooks(model: JinaCLIPModel) -> None:
    """Old versions of accelerate (1.10) leave a model whose only place is the disk without a way back."""
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        pytest.skip("this accelerate does not dispatch a model that lies on the disk as a whole")


@pytest.mark.parametrize(
    "places", [{"": "disk"}, {"text_model": "disk", "vision_model": "disk", "logit_scale": "cpu"}], ids=str
)
def test_encoding_with_weights_on_disk(golden: Path, tmp_path: Path, places: dict) -> None:
    pytest.importorskip("accelerate")
    plain = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model", device_map=places, offload_folder=tmp_path / "offload")
    skip_without_hooks(model)
    image = golden / "images" / "gray_257x190.png"
    assert np.abs(model.encode_text(["a cat", "b"]) - plain.encode_text(["a cat", "b"])).max() < 1e-6
    assert np.abs(model.encode_image(image) - plain.encode_image(image)).max() < 1e-6


def test_modules_that_must_not_be_split_are_in_the_model() -> None:
    model = JinaCLIPModel(config())
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names
    accelerate = pytest.importorskip("accelerate")
    # Two devices of little memory: whole layers on either side, none through the middle.
    device_map = accelerate.infer_auto_device_map(
        model, max_memory={0: 200_000, "cpu": 10**9}, no_split_module_classes=list(model._no_split_modules)
    )
    assert len(set(device_map.values())) == 2
    whole = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    assert not [name for name in device_map if any(name.startswith(f"{layer}.") for layer in whole)]


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention", "flash_attention_2"])
def test_positions_move_to_the_device_of_a_layer(backend: str) -> None:
    settings = JinaCLIPTextConfig(**TEXT, **(ROTARY if backend == "flash_attention_2" else {}))
    settings._attn_implementation = backend
    positions = TextPositions(settings, torch.tensor([[True, True, False]]), torch.float32)
    assert positions.to("cpu") is positions
    moved = positions.to("meta", non_blocking=True)
    tables = [moved.padding, moved.slopes, *(moved.rope or ())]
    tables += moved.whole if isinstance(moved.whole, tuple) else [moved.whole]
    assert {table.device.type for table in tables if table is not None} == {"meta"}
    assert positions.padding.device.type == "cpu"


@pytest.mark.gpu
def test_towers_on_two_devices_give_the_same_vectors(saved: tuple) -> None:
    folder, expected = saved
    backbone = "text_model.transformer" + ("" if "alibi" in (folder / "config.json").read_text() else ".roberta")
    device_map = {"": 0, f"{backbone}.encoder.layers.1": "cpu", "vision_model.blocks.1": "cpu"}
    model = JinaCLIPModel.from_pretrained(folder, device_map=device_map)
    for found, correct in zip(features(model), expected, strict=True):
        torch.testing.assert_close(found.cpu(), correct, rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", [{}, ROTARY], ids=["v1", "v2"])
def test_all_large_matrices_are_linear_layers_that_take_8_bits(text: dict) -> None:
    torch.manual_seed(0)
    model = JinaCLIPModel(config(**text)).eval()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    others = {name for name in matrices - linear if "embed" not in name}
    assert others == {"vision_model.cls_token"}
    expected = features(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in small.modules())
    for found, correct in zip(features(small), expected, strict=True):
        assert torch.cosine_similarity(found, correct).min() > 0.99
        assert not torch.equal(found, correct)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 511])
@pytest.mark.parametrize("text", [{}, ROTARY], ids=["v1", "v2"])
def test_texts_of_any_length(text: dict, length: int) -> None:
    tower = JinaCLIPModel(config(**text)).eval().text_model
    output = tower(torch.randint(1, 99, (2, length)))
    assert output.last_hidden_state.shape == (2, length, 48)
    assert output.pooler_output.isfinite().all()


LONG_TEXT = """
import resource, sys, torch
from modeling_jina_clip import JinaCLIPTextConfig, JinaCLIPTextModel
heads, layers = 4, 2
config = JinaCLIPTextConfig(embed_dim=64, vocab_size=99, hidden_size=64, num_attention_heads=heads,
    num_hidden_layers=layers, intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
tower = JinaCLIPTextModel(config).eval()
tower.set_attn_implementation(sys.argv[1])
short, long = torch.randint(1, 99, (1, 64)), torch.randint(1, 99, (1, 8192))
def run(ids):
    with torch.set_grad_enabled(sys.argv[2] == "gradient"):
        output = tower(ids).pooler_output
        if sys.argv[2] == "gradient":
            output.sum().backward()
    assert output.isfinite().all()
run(short)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(long)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "mode"),
    [
        ("sdpa", "values"),
        ("eager", "values"),
        ("sdpa", "gradient"),
    ],
)
def test_a_text_of_8192_tokens_never_has_its_whole_bias(attention: str, mode: str) -> None:
    """Peak memory of a process of its own, against the bias of (4, 8192, 8192) float32: 1 GiB."""
    result = subprocess.run(
        [sys.executable, "-c", LONG_TEXT, attention, mode], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    bias = 4 * 8192 * 8192 * 4
    assert 2**20 < int(result.stdout) < (0.9 if attention == "eager" else 0.75) * bias


def test_positions_of_8192_tokens_stay_in_blocks() -> None:
    settings = JinaCLIPTextConfig(**{**TEXT, "num_attention_heads": 12})
    settings._attn_implementation = "sdpa"
    positions = TextPositions(settings, torch.ones(1, 8192, dtype=torch.bool), torch.float32)
    assert positions.whole is None
    assert sum(rows.stop - rows.start for rows in positions.blocks()) == 8192
    assert positions.bias(positions.blocks()[0]).numel() <= 2**25
