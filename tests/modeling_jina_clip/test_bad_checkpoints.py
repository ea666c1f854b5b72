"""Checkpoints that are broken, do not fit or are pickles: an error with values and the cure, and no code is run.

Each folder is a small whole checkpoint with one thing wrong. It is loaded by ``JinaCLIPModel``, by ``AutoModel``, and
by ``AutoModel`` in a fresh interpreter that has only the folder's own code.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_jina_clip import JinaCLIPModel, JinaCLIPTextModel, JinaCLIPVisionModel, initialize_towers

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


class Malice:
    """Unpickling this writes a file: what a pickle from a stranger can do."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def settings(**values) -> Change:
    """Set values of config.json; ``text_config__hidden_size`` reaches into a part."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            *parts, last = re.split(r"(?<=[a-z])__", key)
            place = config
            for part in parts:
                place = place[part]
            place[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Edit the state dict."""

    def change(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        edit(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def content(make: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(make((folder / WEIGHTS).read_bytes())) and None


def only_pickled(name: str, dump: Callable[[object, Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        dump({"logit_scale": Malice(folder / "malice")}, folder / name)

    return change


def pickled_shard(folder: Path) -> None:
    only_pickled("pytorch_model.bin", torch.save)(folder)
    index = {"metadata": {}, "weight_map": {"logit_scale": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index(text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def plain_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


BLOCK = "vision_model.blocks.1."
ROWS: dict[str, tuple[Change, type[Exception], str]] = {
    "cut-in-the-tensors": (content(lambda b: b[:50_000]), ValueError, "broken, cut short or not safetensors"),
    "cut-in-the-header": (content(lambda b: b[:500]), ValueError, "broken, cut short or not safetensors"),
    "empty": (content(lambda b: b""), ValueError, "broken, cut short .*fetch them again"),
    "pointer-of-git-lfs": (
        content(lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ValueError,
        "not safetensors",
    ),
    "no-weights": (lambda folder: (folder / WEIGHTS).unlink(), OSError, r"no file named model\.safetensors"),
    "shapes": (
        tensors(lambda w: w.update({BLOCK + "norm1.bias": torch.zeros(63)})),
        ValueError,
        r"1 mismatched keys: vision_model\.blocks\.1\.norm1\.bias \(checkpoint \(63,\), model \(64,\)\)",
    ),
    "missing": (
        tensors(lambda w: (w.pop(BLOCK + "norm1.bias"), w.pop("logit_scale"))),
        ValueError,
        r"2 missing keys: logit_scale, vision_model\.blocks\.1\.norm1\.bias",
    ),
    "unexpected": (
        tensors(lambda w: w.update({"text_model.head.bias": torch.zeros(1)})),
        ValueError,
        r"1 unexpected keys: text_model\.head\.bias",
    ),
    "another-depth": (settings(vision_config__layers=3), ValueError, r"missing keys: vision_model\.blocks\.2\."),
    "another-width": (
        settings(vision_config__patch_size=4),
        ValueError,
        r"patch_embed\.proj\.weight \(checkpoint \(64, 3, 8, 8\), model \(64, 3, 4, 4\)\)",
    ),
    "pickle-of-torch": (
        only_pickled("pytorch_model.bin", torch.save),
        ValueError,
        "pytorch_model.bin, and pickles are",
    ),
    "plain-pickle": (only_pickled("pytorch_model.bin", plain_pickle), ValueError, "can run code. Convert them where"),
    "pickle-called-safetensors": (only_pickled(WEIGHTS, plain_pickle), ValueError, "not safetensors"),
    "pickle-in-an-index": (pickled_shard, ValueError, "pytorch_model.bin, and pickles are not read"),
    "index-of-nothing": (index(""), ValueError, "index.json' is broken: it must be JSON .*; fetch it again"),
    "index-of-a-list": (index("[]"), ValueError, "index.json' is broken"),
    "index-without-a-map": (index("{}"), ValueError, "index.json' is broken"),
    "index-of-no-files": (index('{"metadata": {}, "weight_map": {}}'), ValueError, "index.json' is broken"),
    "index-of-numbers": (index('{"metadata": {}, "weight_map": {"a": 3}}'), ValueError, "index.json' is broken"),
    "index-without-metadata": (index('{"weight_map": {"a": "b.safetensors"}}'), ValueError, "index.json' is broken"),
    "attention-of-a-tower": (
        settings(text_config__attn_implementation="quantum"),
        ValueError,
        'attn_implementation="quantum"` is not supported',
    ),
    "attention-of-the-other-tower": (
        settings(vision_config___attn_implementation="quantum"),
        ValueError,
        'attn_implementation="quantum"` is not supported',
    ),
    "activation": (settings(text_config__hidden_act="relu"), ValueError, "hidden_act='relu' is not supported"),
    "positions": (settings(text_config__position_embedding_type="t5"), ValueError, "position_embedding_type='t5'"),
    "attention": (
        settings(_attn_implementation="quantum"),
        ValueError,
        'attn_implementation="quantum"` is not supported',
    ),
    "towers-apart": (
        settings(vision_config__embed_dim=32, vision_config__proj_type="linear"),
        ValueError,
        r"must end in one space: projection_dim=64, text_config\.embed_dim=64, vision_config\.embed_dim=32",
    ),
    "heads": (settings(vision_config__head_width=24), ValueError, "width=64 must be a multiple of head_width=24"),
    "negative": (settings(vision_config__layers=-1), ValueError, r"vision_config\.layers=-1 .*use 1 or more"),
    "no-number": (settings(vision_config__width="wide"), Exception, "'width' expected int, got str .value: 'wide'"),
    "config-cut-short": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "jina'),
        OSError,
        "is not a valid JSON file",
    ),
}


@pytest.fixture(scope="module")
def good(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    JinaCLIPModel.from_pretrained(golden / "tiny_model").save_pretrained(folder)
    return folder


def damaged(good: Path, folder: Path, change: Change) -> Path:
    folder.mkdir()
    for path in good.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    return folder


@pytest.mark.parametrize("loader", [JinaCLIPModel, AutoModel], ids=["JinaCLIPModel", "AutoModel"])
@pytest.mark.parametrize("row", ROWS)
def test_refused(good: Path, tmp_path: Path, row: str, loader: type) -> None:
    change, error, message = ROWS[row]
    folder = damaged(good, tmp_path / row, change)
    with pytest.raises(error, match=message):
        loader.from_pretrained(folder)
    assert not (folder / "malice").exists()


def test_an_index_that_is_not_read_does_no_harm(good: Path, tmp_path: Path) -> None:
    """Beside the whole file; and by its own name, that of a variant is not taken for the plain one."""
    folder = damaged(good, tmp_path / "both", lambda folder: (folder / "model.safetensors.index.json").write_text("{}"))
    JinaCLIPModel.from_pretrained(folder)
    pickled_shard(folder)
    (folder / "model.safetensors.index.json").rename(folder / "model.safetensors.index.fp16.json")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, and pickles are not read"):
        JinaCLIPModel.from_pretrained(folder, variant="fp16")
    assert not (folder / "malice").exists()


def test_the_pickles_of_these_tests_would_do_harm(tmp_path: Path) -> None:
    plain_pickle(Malice(tmp_path / "malice"), tmp_path / "bad.bin")
    pickle.loads((tmp_path / "bad.bin").read_bytes())  # noqa: S301
    assert (tmp_path / "malice").exists()


def test_pickles_are_not_read_on_request_either(good: Path, tmp_path: Path) -> None:
    folder = damaged(
        good,
        tmp_path / "both",
        lambda folder: torch.save({"a": Malice(folder / "malice")}, folder / "pytorch_model.bin"),
    )
    with pytest.raises(ValueError, match="use_safetensors=False asks for pickled weights, and pickles are not read"):
        JinaCLIPModel.from_pretrained(folder, use_safetensors=False)
    JinaCLIPModel.from_pretrained(folder)  # beside safetensors, a pickle lies there unread
    assert not (folder / "malice").exists()


@pytest.mark.parametrize("tower", [JinaCLIPTextModel, JinaCLIPVisionModel])
@pytest.mark.parametrize("row", ["cut-in-the-tensors", "pickle-of-torch"])
def test_towers_refuse_the_same(good: Path, tmp_path: Path, row: str, tower: type) -> None:
    change, error, message = ROWS[row]
    with pytest.raises(error, match=message):
        tower.from_pretrained(damaged(good, tmp_path / row, change))


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("cut-in-the-tensors", ValueError, "broken or cut short"),
        ("empty", ValueError, "broken or cut short"),
        ("pickle-called-safetensors", ValueError, "broken or cut short"),
        ("pickle-of-torch", FileNotFoundError, r"no \.safetensors file"),
        ("no-weights", FileNotFoundError, r"no \.safetensors file"),
    ],
)
@pytest.mark.parametrize("side", ["text", "vision"])
def test_starting_points_refuse_the_same(
    good: Path, tmp_path: Path, row: str, error: type[Exception], message: str, side: str
) -> None:
    model = JinaCLIPModel.from_pretrained(good)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = damaged(good, tmp_path / row, ROWS[row][0])
    with pytest.raises(error, match=message):
        initialize_towers(model, **{side: folder})
    if row == "pickle-of-torch":
        with pytest.raises(ValueError, match="pickles are not read because they can run code"):
            initialize_towers(model, **{side: folder / "pytorch_model.bin"})
    assert not (folder / "malice").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


LOADER = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_jina_clip", "trainer_ext", "hub_upload"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModel
found = {}
for folder in sys.argv[2:]:
    try:
        AutoModel.from_pretrained(folder, trust_remote_code=True)
        found[folder] = ["loaded", ""]
    except Exception as error:
        found[folder] = [[kind.__name__ for kind in type(error).__mro__], str(error)]
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_the_folders_own_code_refuses_the_same(good: Path, tmp_path: Path) -> None:
    rows = ["empty", "missing", "pickle-of-torch", "pickle-in-an-index", "heads", "activation"]
    folders = {row: damaged(good, tmp_path / row, ROWS[row][0]) for row in rows}
    out = tmp_path / "errors.json"
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-I", "-c", LOADER, str(out), *map(str, folders.values())]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(out.read_text())
    for row, folder in folders.items():
        kinds, text = errors[str(folder)]
        with pytest.raises(ROWS[row][1], match=ROWS[row][2]):
            raise ValueError(text) if "ValueError" in kinds else RuntimeError(f"{kinds}: {text}")
        assert not (folder / "malice").exists()
