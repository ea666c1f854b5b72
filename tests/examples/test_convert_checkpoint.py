"""The conversion example as a user runs it, on small checkpoints under the public names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.convert_checkpoint import main
from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from tests.golden_tolerance import IMAGE_TOLERANCE
from tests.modeling_jina_clip.test_tower_initialization import TEXT, VISION, timm_names, vision_weights
from trainer_ext.recipe.reading import find_resource

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "convert_checkpoint.py"


@dataclass
class Done:
    """What a run of the script left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def convert(capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """The script's own entry point; starting an interpreter for each run would take longer than all the rest."""

    def run(*arguments: object) -> Done:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({"text_config": TEXT, "vision_config": {**VISION, "pt_hw_seq_len": 4}}))
    return path


@pytest.fixture
def vision(golden: Path, tmp_path: Path) -> Path:
    """The image tower of the golden checkpoint as timm names it, fused, with a head."""
    weights = timm_names(vision_weights(load_file(golden / "tiny_model" / "model.safetensors")), fused=True)
    save_file(weights | {"head.weight": torch.zeros(5, 64)}, tmp_path / "eva02.safetensors")
    return tmp_path / "eva02.safetensors"


def test_towers_become_a_model_that_loads(convert, golden: Path, tmp_path: Path, preset: Path, vision: Path) -> None:
    text = tmp_path / "jina-bert"
    text.mkdir()
    (text / "model.safetensors").write_bytes((golden / "jina_bert_v2_style.safetensors").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):  # beside the weights, as on the Hub
        (text / name).write_bytes((golden / "tiny_model" / name).read_bytes())
    done = convert(tmp_path / "out", "--preset", preset, "--text", text, "--vision", vision)
    assert done.returncode == 0, done.stderr
    assert "text: 26 tensors loaded, 0 of them resized, 0 left fresh, 0 of the file not used" in done.stdout
    assert "dropped: blocks.0.attn.k_bias, blocks.1.attn.k_bias, head.weight" in done.stdout
    model = JinaCLIPModel.from_pretrained(tmp_path / "out").eval()
    expected, arrays = np.load(golden / "tiny_encode.npz"), np.load(golden / "tiny_io.npz")
    with torch.no_grad():
        features = model.get_image_features(torch.tensor(arrays["pixel_values"]))
    np.testing.assert_allclose(features, arrays["image_features"], atol=1e-5)
    images = [golden / name for name in json.loads((golden / "tiny_encode.json").read_text())["images"]]
    np.testing.assert_allclose(model.encode_image(images), expected["image_default"], atol=IMAGE_TOLERANCE)


def test_there_and_back_again(convert, golden: Path, tmp_path: Path) -> None:
    """Published layout to ours to published: the same tensors, another schema between."""
    there = convert(tmp_path / "ours", "--checkpoint", golden / "tiny_model")
    assert there.returncode == 0, there.stderr
    assert "torch.float32 loaded, none missing, none left over" in there.stdout
    assert "num_hidden_layers" in json.loads((tmp_path / "ours" / "config.json").read_text())["text_config"]
    assert (tmp_path / "ours" / "modeling_jina_clip.py").is_file()
    back = convert(tmp_path / "theirs", "--checkpoint", tmp_path / "ours", "--published")
    assert back.returncode == 0, back.stderr
    expected, written = (
        load_file(folder / "model.safetensors") for folder in (golden / "tiny_model", tmp_path / "theirs")
    )
    assert expected.keys() == written.keys()
    assert all(torch.equal(expected[name], written[name]) for name in expected)
    assert not list((tmp_path / "theirs").glob("*.py"))


def test_the_type_of_the_file_is_kept_unless_another_is_asked_for(convert, golden: Path, tmp_path: Path) -> None:
    """The published v2 has float16 weights and a config that says bfloat16."""
    folder = tmp_path / "half"
    folder.mkdir()
    for path in (golden / "tiny_model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    for arguments, dtype in (((), torch.float16), (("--dtype", "float32"), torch.float32)):
        out = tmp_path / str(dtype)
        done = convert(out, "--checkpoint", folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert f"parameters of {dtype} written" in done.stdout
        tensor = load_file(out / "model.safetensors")["vision_model.cls_token"]
        assert tensor.dtype == dtype
        assert torch.equal(tensor.half(), weights["vision_model.cls_token"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --checkpoint, or --preset with --text and --vision"),
        (["--preset", "jina-clip-v1", "--text", "x"], "a tower left out would be random"),
        (["--checkpoint", "x", "--text", "y"], "give either --checkpoint"),
        (["--checkpoint", "nowhere"], "error: 'nowhere' has no config.json or no .safetensors file"),
        (
            ["--preset", "jina-clip-v3", "--text", "x", "--vision", "y"],
            "Did you mean 'jina-clip-v",
        ),
        (
            ["--preset", "jina-clip-v1", "--text", "x.safetensors", "--vision", "y"],
            "no tokenizer_config.json in 'x.safetensors'; name the tokenizer's folder with --tokenizer",
        ),
    ],
)
def test_wrong_arguments_end_in_one_line(convert, tmp_path: Path, arguments: list, message: str) -> None:
    done = convert(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_towers_that_do_not_fit_are_listed(convert, golden: Path, tmp_path: Path, preset: Path, vision: Path) -> None:
    weights = load_file(vision)
    del weights["blocks.1.mlp.fc1_g.weight"]
    save_file(weights, vision)
    text, tokenizer = golden / "jina_bert_v2_style.safetensors", golden / "tiny_model"
    done = convert(tmp_path / "out", "--preset", preset, "--text", text, "--vision", vision, "--tokenizer", tokenizer)
    assert done.returncode == 2
    assert "without a tensor there: blocks.1.mlp.w1.weight" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "parameters"), [("jina-clip-v1", 222_647_041), ("jina-clip-v2", 865_278_477)])
def test_presets_have_the_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = JinaCLIPModel(JinaCLIPConfig.from_json_file(find_resource("models", name)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.slow
def test_it_runs_as_a_command(golden: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--checkpoint", str(golden / "tiny_model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"261,649 parameters of torch.float32 written to {tmp_path / 'out'}" in done.stdout


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 120
