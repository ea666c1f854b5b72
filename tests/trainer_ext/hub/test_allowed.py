"""What a folder for the Hub may hold, by lists of what is allowed; and folders that nobody meant well."""

import gzip
import json
import pickle
import random
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hub_upload import HubFolderError, build, main
from tests.hub_checkpoint import finished_run, v2_checkpoint
from trainer_ext.hub.folder import STAMP, manifest_differences, write_manifest
from trainer_ext.hub.safety import foreign_code
from trainer_ext.hub.verify import _foreign_files
from trainer_ext.locks import held


@pytest.fixture(scope="module")
def built(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub")
    return build(finished_run(golden, place / "run"), place / "tiny-clip")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the built folder that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "tiny-clip"))


def problems(folder: Path) -> list[str]:
    """What `verify` finds before it loads anything."""
    write_manifest(folder)
    return [*manifest_differences(folder), *_foreign_files(folder), *foreign_code(folder)]


def test_cards_and_assets_pass(folder: Path) -> None:
    (folder / "assets").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "assets" / "curve.png")
    Image.new("RGB", (4, 4)).save(folder / "photo.jpg")
    texts = {
        "assets/notes.md": "Trained on drawings. (1) A list.\n",
        "results.json": '{"score": [1, "a/b"], "by": {"x": "y"}}',
        "words.txt": "I am a text.\n", "recipe.yaml": "name: x\n", "LICENSE": "Do what you like.",
        "rows.csv": "a,b\n1,2\n", "CITATION.cff": "title: x\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    assert problems(folder) == []


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_what_build_writes_passes(golden: Path, tmp_path: Path, layout: str) -> None:
    """Configurations of published checkpoints have keys of their own; the built folder has not."""
    checkpoint = tmp_path / "checkpoint"
    if layout == "v2":
        v2_checkpoint(golden, checkpoint, task_instructions={"retrieval.query": "Find: "})
    else:
        shutil.copytree(golden / "tiny_model", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"use_text_flash_attn": None, "tokenizer_hint": "fast", "torch_dtype": "float32", "pruned_heads": {}}
    config["vision_config"] |= {"fused_layer_norm": False, "x_attention": True, "note": {"a": "b"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert problems(build(checkpoint, tmp_path / "out")) == []


OLD = {"a": print}
FILES = {
    "helper.so": b"\x7fELF", "run.sh": b"#!/bin/sh\n", "evil.PY": b"print(1)\n", "page.html": b"<script></script>",
    "zero.txt": pickle.dumps(OLD, protocol=0), "one.json": pickle.dumps(OLD, protocol=1), "plain": b"text",
    "rows.csv": gzip.compress(pickle.dumps(OLD)), "notes.md": zlib.compress(pickle.dumps(OLD)), "logo.png": b"MZ\x90\0",
    ".hidden.md": b"text", "assets/.git/config": b"[core]\n", "latin.txt": "größe".encode("latin-1"),
    "zero.md": b"a\0b", "graph.onnx.data": gzip.compress(b"x"), "chat_template.jinja": b"{{ messages }}",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_other_kinds_of_files_are_refused_by_name(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(FILES[name])
    code = main(["verify", str(folder)])
    said = capsys.readouterr()
    assert (code, name in said.err) == (2, True)
    assert "Traceback" not in said.err
    assert not (folder / STAMP).exists()


def test_links_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "assets").symlink_to("/etc", target_is_directory=True)
    assert main(["verify", str(folder)]) == 2
    assert "assets in" in capsys.readouterr().err


def set_in(folder: Path, file: str, *place: Any, value: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    part = content
    for key in place[:-1]:
        part = part.setdefault(key, {}) if isinstance(part, dict) else part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(content))


KEYS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("config.json", ("attn_implementation",), "evil/kernel"),
    ("config.json", ("text_config", "_attn_implementation"), "evil/kernel:layer"),
    ("config.json", ("_attn_implementation",), {"text_config": "evil/kernel"}),
    ("config.json", ("quantization_config",), {"quant_method": "evil"}),
    ("config.json", ("custom_generate",), "evil/repo"),
    ("config.json", ("vision_config", "kernel"), ["evil/repo"]),
    ("processor_config.json", ("image_processor", "backend"), "evil/repo"),
    ("config_sentence_transformers.json", ("router",), "evil.Router"),
    ("sentence_bert_config.json", ("model_args",), {"attn_implementation": "sdpa"}),
    ("sentence_bert_config.json", ("modality_config", "text", "method"), "push_to_hub"),
    ("modules.json", (1, "path"), "../../evil"),
    ("modules.json", (0, "path"), "/etc"),
    ("modules.json", (1, "type"), "sentence_transformers.models.Router"),
    ("router_config.json", ("types",), {"query_0": "evil.Router"}),
    ("1_Normalize/config.json", ("types",), {"query_0": "evil.Router"}),
    ("generation_config.json", ("custom_generate",), "evil"),
    ("model.safetensors.index.json", ("weight_map",), {"a": "../../other.safetensors"}),
    ("tokenizer_config.json", ("fast_tokenizer_files",), ["../x.json"]),
    ("tokenizer_config.json", ("auto_map",), {"AutoTokenizer": ["evil.X", None]}),
]


@pytest.mark.parametrize(("file", "place", "value"), KEYS, ids=[f"{f}-{'.'.join(map(str, p))}" for f, p, _ in KEYS])
def test_other_keys_are_refused_by_file(folder: Path, file: str, place: tuple[Any, ...], value: Any) -> None:
    set_in(folder, file, *place, value=value)
    [line] = problems(folder)
    assert line.startswith(file)


def test_numbers_under_any_key_pass(folder: Path) -> None:
    set_in(folder, "config.json", "my_metric", value=0.5)
    set_in(folder, "config.json", "text_config", "layers_kept", value=[1, 2, None])
    assert problems(folder) == []


@pytest.mark.slow
def test_a_repository_may_have_any_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cache/hub` was a folder of the check itself."""
    manifest = json.loads((folder / "manifest.json").read_text())
    card = (folder / "README.md").read_text().replace(manifest["repo_id"], "cache/hub")
    (folder / "README.md").write_text(card)
    write_manifest(folder)
    set_in(folder, "manifest.json", "repo_id", value="cache/hub")
    assert main(["verify", str(folder)]) == 0, capsys.readouterr()


@pytest.mark.parametrize("step", ["build", "verify", "push"])
def test_one_step_at_a_time(
    built: Path, golden: Path, folder: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"build": [str(golden / "tiny_model"), str(folder)], "push": [str(folder), "--repo_id", "me/x"]}
    with held(folder, ["first"], print):
        assert main([step, *more.get(step, [str(folder)])]) == 2
    assert "is in use by process" in capsys.readouterr().err


# --- folders that nobody meant well ------------------------------------------------------------------------------

BAD_JSON = [
    "",
    "[]",
    "null",
    "7",
    '"x"',
    "{",
    "[" * 100_000,
    '{"a": ' * 2000,
    "\x00",
    '{"files": 3}',
    '{"manifest": []}',
]
SPOILED = ["config.json", "manifest.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "metrics.json",
           "processor_config.json", "preprocessor_config.json", "model.safetensors", "README.md", STAMP,
           "sentence_bert_config.json"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({}) | st.just([])


def spoil(folder: Path, name: str, how: str, value: Any, seed: int) -> None:
    path = folder / name
    content = path.read_bytes() if path.is_file() else b"{}"
    draw = random.Random(seed)
    if how == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif how == "flip":
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    elif how == "bad" or not name.endswith(".json"):
        path.write_text(BAD_JSON[seed % len(BAD_JSON)])
    else:  # another value under one of its keys
        tree = json.loads(content)
        part: Any = tree
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(part[key], dict | list) and part[key] and draw.random() < 0.8:
                part = part[key]
                continue
            part[key] = value
            break
        path.write_text(json.dumps(tree))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(SPOILED),
    how=st.sampled_from(["cut", "flip", "bad", "value"]),
    value=LEAVES,
    seed=st.integers(0, 2**16),
    step=st.sampled_from(["build", "verify", "push"]),
)
def test_a_spoiled_folder_ends_in_a_line(
    built: Path, tmp_path_factory: pytest.TempPathFactory, name: str, how: str, value: Any, seed: int, step: str
) -> None:
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("spoiled") / "out"))
    try:
        (folder / STAMP).write_text("{}")
        spoil(folder, name, how, value, seed)
        if step == "verify":
            # Up to the point where the folder would be loaded, as one whose manifest knows the change.
            with suppress(HubFolderError):
                assert problems(folder) or build(folder, folder.parent / "again")
        elif step == "build":
            with suppress(HubFolderError):
                build(folder, folder.parent / "again")
        else:
            assert main(["push", str(folder), "--repo_id", "me/x", "--dry_run"]) == 2
    finally:
        shutil.rmtree(folder.parent)
