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
from trainer_ext.hub.folder import folder_files, write_manifest
from trainer_ext.hub.safety import find_secret, foreign_code


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


MIXED = "A1b2C3d4E5f6G7h8I9j0"
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY"
SECRETS = {
    "hub token": TOKEN,
    "hub oauth": "hf_" + "oauth_eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6WyJv.abcdefghij",
    "github": "ghp_" + "a1B2" * 9,
    "aws key": "AKIA" + "ABCDEFGH12345678",
    "aws session": "ASIA" + "ABCDEFGH12345678",
    "aws secret, quoted": f'aws_secret_access_key = "{AWS}"',
    "aws secret, ini": f"[default]\naws_secret_access_key = {AWS}\nregion = x",
    "aws secret, env": f"AWS_SECRET_ACCESS_KEY={AWS}",
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----",
    "pgp key": "-----BEGIN PGP PRIVATE " + "KEY BLOCK-----",
    "address": "https://me:hunter22" + "@example.org/x",
    "api key, json": '{"api_key": "' + "q" * 20 + '"}',
    "api key, env": "API_KEY=" + "abcdef0123456789",
    "api key, env of somebody": "export WANDB_API_KEY=" + "0123456789abcdef" * 2,
    "api key, quoted env": 'OPENAI_API_KEY="' + "q" * 30 + '"',
    "secret key": "SECRET_KEY = 'django-insecure-" + "abcdefgh12345'",
    "client secret": '{"client_secret": "' + MIXED + '"}',
    "password, yaml": "password: " + "hunter2" * 3,
    "password, nested yaml": "db:\n  - db_password: " + "hunter2" * 3 + "  # mine",
    "token, json": '{"token": "' + MIXED * 2 + '"}',
    "token, env": "GITLAB_TOKEN=" + MIXED,
    "npm": "npm_" + "a1B2c3D4e5F6" * 3,
    "pypi": "pypi-" + "AgEIcHlwaS5vcmc" + "A" * 60,
    "stripe": "sk_" + "live_" + "a1" * 12,
    "openai": "sk-" + "proj-" + "x9" * 20,
    "bearer": "Authorization: Bearer " + "abcdef0123456789" * 2,
    "azure": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=" + "A1" * 43 + "==",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_refused_without_repeating_them(built: Path, tmp_path: Path, secret: str) -> None:
    shutil.copyfile(built / "manifest.json", tmp_path / "manifest.json")
    for encoding in ("utf-8", "utf-16-le"):
        (tmp_path / "notes.txt").write_bytes(f"first line\n{secret}\n".encode(encoding))
        with pytest.raises(HubFolderError, match=r"notes.txt, line [234], seems to hold a secret") as caught:
            verify(tmp_path)
        assert secret not in str(caught.value)


HARMLESS = [
    "password: str | None = None",
    'token = os.environ["HF_TOKEN"]',
    "api_key=settings.openai_api_key_2024,",
    "API_KEY=$OPENAI_API_KEY and HF_TOKEN=<your token>",
    'headers = {"Authorization": f"Bearer {token}"}',
    "the bearer of multi-modal-embeddings, a password: anything you like",
    '"mask_token": "<|reserved_special_token_250|>", "pad_token": "[PAD]", "token": "<|begin_of_text_2|>"',
    '"secret": 30321, "password": 12345678901234567890, "api_key": 7, "token": 199999, "bearer": 20001',
    "secret_key = make_the_key_of_2_parts(x)",
    "PAD_TOKEN_ID = 151643\nHIDDEN_KEY = compute_key_2024_of(rows)",
    "https://127.0.0.1:9/cat.png and https://example.org/a:b@c",
    "--token hf_... or hf_xxx; sk-learn; npm_config_registry; AKIA and ASIA; pypi-tools",
    "sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
]


@pytest.mark.parametrize("text", HARMLESS, ids=range(len(HARMLESS)))
def test_what_only_resembles_a_secret_passes(text: str) -> None:
    assert find_secret(text.encode()) is None


def test_vocabularies_and_everything_we_write_pass(built: Path) -> None:
    """Words of the trade are pieces of every tokenizer, as keys, in lists with scores, and one a line."""
    words = ["password", "secret", "token", "api_key", "client_secret", "bearer", "PRIVATE", "KEY", "hf_", "sk-", "://"]
    pieces = [mark + word for word in words for mark in ("", "##", "▁", "Ġ", '"')] + [f"{n:05d}aA" for n in range(500)]
    table = {piece: number * 1_000_003 for number, piece in enumerate(pieces)}
    scores = [[piece, -1.5 * number] for number, piece in enumerate(pieces)]
    for text in (json.dumps(table), json.dumps(table, indent=2), json.dumps(scores, indent=1), "\n".join(pieces)):
        assert find_secret(text.encode()) is None
    for path in [*built.rglob("*"), *(Path(__file__).parents[3] / "trainer_ext").rglob("*.py")]:
        if path.is_file() and path.suffix != ".safetensors":
            assert find_secret(path.read_bytes()) is None, path.name


def test_secret_in_the_header_of_weights_is_found(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / "more.safetensors", metadata={"author": TOKEN})
    with pytest.raises(HubFolderError, match=r"more.safetensors, line 1"):
        verify(folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pickle.dumps({"a": list(range(1000))}), "is a pickle"),
        (b"PK\x03\x04" + bytes(100), "is a pickle or an archive"),
        (b"notes\n" + TOKEN.encode(), "line 2, seems to hold a secret"),
        (bytes(5 << 20) + TOKEN.encode(), "seems to hold a secret"),
    ],
    ids=["pickle", "archive", "text", "end"],
)
def test_weights_beside_a_graph_are_looked_at(folder: Path, content: bytes, complaint: str) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "text_model.onnx").write_bytes(b"graph")
    (folder / "onnx" / "text_model.onnx.data").write_bytes(content)
    with pytest.raises(HubFolderError, match=f"onnx/text_model.onnx.data.* {complaint}"):
        verify(folder)


def test_numbers_beside_a_graph_that_begin_like_a_pickle_pass(folder: Path) -> None:
    data = folder / "more.onnx.data"
    data.write_bytes(b"\x80\x04" + bytes(100))
    with pytest.raises(HubFolderError, match=r"more.onnx.data is a pickle"):  # without a graph they are no weights
        folder_files(folder)
    (folder / "more.onnx").write_bytes(b"graph")
    assert "more.onnx.data" in folder_files(folder)


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
    assert verify(folder) == ["helper.py is not a file of the installed package"]
