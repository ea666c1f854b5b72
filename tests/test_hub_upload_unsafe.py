"""What must not be in a published folder: pickles, secrets, and references to code of somebody else."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hub_upload import HubFolderError, build, verify
from tests.hub_checkpoint import TOKEN, finished_run
from trainer_ext.hub_folder.code_references import foreign_code
from trainer_ext.hub_folder.folder import write_manifest


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("hub") / "tiny-clip")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the built folder that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "tiny-clip"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.bin", b"1234"),
        ("model.pt", b"1234"),
        ("data.json", pickle.dumps({"a": 1})),
        ("notes.txt", b"PK\x03\x04" + bytes(20)),
    ],
)
def test_pickles_are_refused_whatever_their_name(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(HubFolderError, match=f"{name} is a pickle or an archive"):
        verify(folder)


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "ghp_" + "a1B2" * 9,
        "AKIA" + "ABCDEFGH12345678",
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        "https://me:hunter22" + "@example.org/x",
        '{"api_key": "' + "q" * 20 + '"}',
        "sk-" + "proj-" + "x9" * 20,
    ],
    ids=lambda secret: secret[:8],
)
def test_secrets_are_refused_without_repeating_them(folder: Path, secret: str) -> None:
    (folder / "README.md").write_text(f"first line\n{secret}\n")
    with pytest.raises(HubFolderError, match=r"README.md, line 2, seems to hold a secret") as caught:
        verify(folder)
    assert secret not in str(caught.value)


def test_secret_in_the_header_of_weights_is_found(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / "more.safetensors", metadata={"author": TOKEN})
    with pytest.raises(HubFolderError, match=r"more.safetensors, line 1"):
        verify(folder)


FOREIGN = "evil/repo--module.Class"
AUTO = dict.fromkeys(["AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoFeatureExtractor"], FOREIGN)


def spoil(file: Path, *place: str, **content: Any) -> None:
    """Add keys to a JSON file, at its top or in one of its parts."""
    value = json.loads(file.read_text()) if file.is_file() else {}
    part = value
    for key in place:
        part = part.setdefault(key, {})
    part.update(content)
    file.write_text(json.dumps(value))


def test_nothing_of_a_checkpoint_names_code_from_elsewhere_after_build(checkpoint: Path, tmp_path: Path) -> None:
    """Every part of a published checkpoint's configuration may bring the names of the code it came with."""
    bad = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    pipelines = {"x": {"impl": FOREIGN, "pt": ["AutoModel"]}}
    for place in ([], ["text_config"], ["vision_config"]):
        spoil(bad / "config.json", *place, auto_map=AUTO, custom_pipelines=pipelines)
    spoil(bad / "preprocessor_config.json", auto_map=AUTO | {"AutoImageProcessor": FOREIGN, "AutoProcessor": FOREIGN})
    spoil(bad / "processor_config.json", auto_map=AUTO)
    spoil(bad / "tokenizer_config.json", auto_map={"AutoTokenizer": [FOREIGN, None]})
    folder = build(bad, tmp_path / "out")
    assert foreign_code(folder) == []
    for path in folder.glob("*.json"):
        assert "evil" not in path.read_text(), path.name
        assert "custom_pipelines" not in path.read_text(), path.name
    places = folder, build(checkpoint, tmp_path / "clean")
    config, clean = (json.loads((place / "config.json").read_text()) for place in places)
    assert config == clean
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"}
    assert "auto_map" not in config["text_config"]


def test_a_reference_in_an_unknown_key_is_refused_by_build(checkpoint: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    spoil(bad / "config.json", "text_config", tokenizer_code=FOREIGN)
    with pytest.raises(HubFolderError, match=r"config.json: text_config.tokenizer_code is 'evil/repo--module.Class'"):
        build(bad, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize(
    ("file", "place", "content"),
    [
        ("config.json", [], {"auto_map": {"AutoModelForMaskedLM": FOREIGN}}),
        ("config.json", ["text_config"], {"auto_map": {"AutoModel": "other_module.Class"}}),
        ("config.json", ["vision_config"], {"auto_map": {"AutoModel": "modeling_jina_clip"}}),
        ("config.json", [], {"custom_pipelines": {"x": {"impl": "pipe.P", "pt": ["AutoModel"]}}}),
        ("config.json", ["text_config"], {"anything": ["repo--module.Class"]}),
        ("preprocessor_config.json", [], {"auto_map": {"AutoFeatureExtractor": FOREIGN}}),
        ("processor_config.json", ["image_processor", "auto_map"], {"AutoImageProcessor": FOREIGN}),
        ("tokenizer_config.json", [], {"auto_map": {"AutoTokenizer": [None, FOREIGN]}}),
        ("adapter_config.json", [], {"base_model_name_or_path": "somebody/base"}),
    ],
)
def test_verify_loads_nothing_that_names_other_code(
    folder: Path, file: str, place: list[str], content: dict[str, Any]
) -> None:
    """Such a folder may have come from the Hub, with a manifest that knows every file."""
    spoil(folder / file, *place, **content)
    write_manifest(folder)
    [failure] = verify(folder)
    assert failure.startswith(file)


def test_verify_loads_no_other_module_of_sentence_transformers(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    for name in (FOREIGN, "os.Path", "another.Transformer"):
        modules[0]["type"] = name
        (folder / "modules.json").write_text(json.dumps(modules))
        write_manifest(folder)
        [failure] = verify(folder)
        assert failure.startswith(f"modules.json: 0.type is {name!r}")


def test_verify_loads_nothing_with_a_program_that_is_not_ours(folder: Path) -> None:
    (folder / "helper.py").write_text("raise SystemExit")
    write_manifest(folder)
    assert verify(folder) == ["helper.py is no file of the installed package"]
