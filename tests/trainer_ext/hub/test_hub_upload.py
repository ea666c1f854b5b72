"""Building and verifying a Hub folder: what goes in, what is refused, and that it loads without our packages."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hub_upload
from hub_upload import HubFolderError, build, main, verify
from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.hub_checkpoint import TOKEN, finished_run
from tests.source_imports import NOT_SERVED, ROOT
from trainer_ext.files import file_hash
from trainer_ext.hub.folder import STAMP, manifest_differences, read_manifest, write_manifest
from trainer_ext.hub.probe import embed_probe
from trainer_ext.hub.verify import PROBE


@pytest.fixture(scope="session")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("hub") / "tiny-clip")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the built folder that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "tiny-clip"))


def test_folder_holds_everything_and_nothing_else(built: Path) -> None:
    code = {path.name for path in (ROOT / "modeling_jina_clip").glob("*.py")} - NOT_SERVED
    expected = code | {
        "README.md", "config.json", "model.safetensors", "manifest.json", "metrics.json",
        "tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
        "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Normalize/config.json",
    }  # fmt: skip
    found = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert found == expected
    for name in code:
        assert (built / name).read_bytes() == (ROOT / "modeling_jina_clip" / name).read_bytes()
    assert manifest_differences(built) == []
    assert set(read_manifest(built)["files"]) == expected - {"manifest.json"}


def test_weights_survive_and_code_is_local(checkpoint: Path, built: Path) -> None:
    before, after = load_file(checkpoint / "model.safetensors"), load_file(built / "model.safetensors")
    assert len(after) > 50
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    config = json.loads((built / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"} <= set(config["auto_map"])
    for path in built.glob("*.json"):  # "owner/repository--module.Class" would load code from somewhere else
        assert "--" not in path.read_text(), path.name


def test_nothing_of_this_machine_leaks(checkpoint: Path, built: Path) -> None:
    places = [str(checkpoint).encode(), str(built).encode(), str(Path.home()).encode() + b"/", b"secret-project"]
    for path in built.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in places if place in content], path.name


def test_options_of_build_are_read(checkpoint: Path, tmp_path: Path) -> None:
    folder = build(checkpoint, tmp_path / "out", max_shard_size="400KB", license="cc-by-sa-4.0")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert "model.safetensors.index.json" in read_manifest(folder)["files"]
    assert "license: cc-by-sa-4.0" in (folder / "README.md").read_text()
    whole = JinaCLIPModel.from_pretrained(checkpoint).state_dict()
    for name, tensor in JinaCLIPModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_rebuilding_replaces_our_folder_and_only_ours(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("a day's work")
    with pytest.raises(HubFolderError, match=r"notes.txt is not in the manifest"):
        build(checkpoint, folder)
    assert (folder / "notes.txt").read_text() == "a day's work"
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("{}")
    build(checkpoint, folder)
    assert manifest_differences(folder) == []
    with pytest.raises(HubFolderError, match="holds something else"):
        build(checkpoint, tmp_path)  # the folder that holds `folder`
    with pytest.raises(HubFolderError, match="holds something else"):
        build(checkpoint, checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-clip"]  # no temporary folder stays


def spoil_weights(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = torch.tensor(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickles are not read"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "does not load"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "does not load"),
        (lambda f: spoil_weights(f, float("nan")), r"holds NaN or infinity in 1 of its weights: logit_scale"),
        (lambda f: (f / "metrics.json").write_text('{"rows": 3}'), "not the trainer's"),
        (lambda f: (f / "run.json").write_text("{"), "not the trainer's"),
        (lambda f: (f / "metrics.json").write_text(json.dumps({"rows": [], "note": TOKEN})), "metrics.json.*secret"),
    ],
    ids=["pickle", "no config", "no processor", "torn weights", "nan", "metrics", "run", "token"],
)
def test_bad_checkpoints_are_refused_and_leave_nothing(checkpoint: Path, tmp_path: Path, spoil, complaint: str) -> None:
    bad = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    spoil(bad)
    with pytest.raises(HubFolderError, match=complaint):
        build(bad, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_links_are_refused(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(HubFolderError, match=r"vocab.txt in .* is not a plain file"):
        verify(folder)


def test_verify_names_every_difference_and_loads_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "extra.py").write_text("raise SystemExit")
    (folder / "custom_st.py").write_text("raise SystemExit")
    (folder / "tokenizer.json").unlink()
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    for line in ("extra.py is not in", "custom_st.py was changed", "tokenizer.json is missing", "NOT verified"):
        assert line in shown
    assert not (folder / STAMP).exists()


def test_code_of_another_version_is_not_run(folder: Path) -> None:
    """A consistent folder whose code is not this package's: nothing of it is executed."""
    (folder / "custom_st.py").write_text("raise SystemExit")
    write_manifest(folder)
    assert verify(folder) == ["custom_st.py differs from the installed package"]


def test_embeddings_that_say_nothing_are_noticed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.transformer.embeddings.word_embeddings.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_manifest(folder)
    assert verify(folder) == [f"{name} are not finite, or all alike" for name in ("texts", "encode_text")]


def test_folder_loads_without_us_and_gives_our_vectors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one run of the whole `verify`: a fresh interpreter, every public way of loading, the card's snippets."""
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    for way in (
        "AutoModel, AutoProcessor/texts (5, 64)",
        "AutoImageProcessor, AutoTokenizer/images (5, 64)",
        "SentenceTransformer/mixed (10, 64)",
        "zero-shot-image-classification/probabilities (5,)",
        "the card's 2 snippets run",
    ):
        assert way in shown
    assert "FAILED" not in shown
    assert json.loads((folder / STAMP).read_text()) == {"manifest": file_hash(folder / "manifest.json")}


def test_other_vectors_elsewhere_are_a_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--python` is used, and what its interpreter answers is compared: here one that lies a little."""
    with np.load(write_answer(tmp_path, folder, 2e-5)) as arrays:
        assert "SentenceTransformer/mixed" in arrays
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncp {tmp_path}/arrays.npz {tmp_path}/facts.json "$5"\n')
    python.chmod(0o755)
    failures = verify(folder, python=python)
    assert failures == ["SentenceTransformer/mixed differ by 2.0e-05, allowed are 1e-05", "builtins was used"]
    assert not (folder / STAMP).exists()
    python.write_text("#!/bin/sh\necho 'ImportError: too old' >&2\nexit 1\n")
    assert verify(folder, python=python) == [f"{python} exited with 1:\nImportError: too old"]
    near = os.path.relpath(python)
    assert verify(folder, python=[near, python]) == [
        f"{name} exited with 1:\nImportError: too old" for name in (near, python)
    ]


def write_answer(place: Path, folder: Path, error: float) -> Path:
    """What a probe would write, with an error in one vector."""
    model, processor = (part.from_pretrained(folder) for part in (JinaCLIPModel, JinaCLIPProcessor))
    found = embed_probe(model, processor)
    mixed = np.concatenate([found["encode_text"], found["encode_image"]])
    mixed[7, 3] += error
    np.savez(place / "arrays.npz", **{"AutoModel/texts": found["texts"], "SentenceTransformer/mixed": mixed})
    (place / "facts.json").write_text(json.dumps({"classes": ["builtins"], "versions": {}}))
    return place / "arrays.npz"


def test_command_line_reports_one_line_and_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
    assert lines[0].endswith("give a folder of the trainer or of save_pretrained")
    assert lines[1].endswith("build it first")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["lots", "5", "0GB", "0.0MB", "-1GB", "5 GB"])
def test_shard_sizes_that_are_none(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    assert main(["build", str(checkpoint), str(tmp_path / "out"), f"--max_shard_size={size}"]) == 2
    assert capsys.readouterr().err == f"error: max_shard_size {size!r} is not a size; give one such as 500MB or 5GB\n"
    assert os.listdir(tmp_path) == []


def test_an_interpreter_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--python", "/nowhere/python"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: /nowhere/python: no such file or directory"


def test_interrupting_leaves_nothing_and_ends_in_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JinaCLIPModel, "save_pretrained", interrupt)
    assert main(["build", str(checkpoint), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; run the same command again"
    assert os.listdir(tmp_path) == []


def test_isolation_bites() -> None:
    """A fresh interpreter that could still import us, or connect, would prove nothing."""
    program = f"""
import runpy, socket, sys
sys.path.insert(0, {str(ROOT)!r})
probe = runpy.run_path({str(PROBE)!r})
probe["block_our_packages"]()
probe["block_network"]()
attempts = [lambda name=name: __import__(name) for name in ("modeling_jina_clip", "trainer_ext", "hub_upload")]
for attempt in [*attempts, lambda: socket.create_connection(("127.0.0.1", 9)), lambda: __import__("wave")]:
    try:
        attempt()
        print("went through")
    except (ModuleNotFoundError, PermissionError) as error:
        print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ModuleNotFoundError"] * 3 + ["PermissionError", "went through"]


def test_folder_asks_for_the_versions_that_the_package_asks_for(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["st"]]
    asked = json.loads((built / "config_sentence_transformers.json").read_text())["requirements"]
    assert {name + bound for name, bound in asked.items()} <= set(declared)
    assert set(asked) == {"transformers", "sentence-transformers"}


def test_documented_commands_are_valid() -> None:
    """Every command shown in the guide and in the module's first lines is one the command line accepts."""
    shown = (ROOT / "docs" / "publishing.md").read_text() + (hub_upload.__doc__ or "")
    commands = re.findall(r"^ *python hub_upload\.py (.+?)(?: +#.*)?$", shown, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"build", "verify", "push"}
    for command in commands:
        hub_upload.parser().parse_args(shlex.split(command))
    options = {flag for command in commands for flag in re.findall(r"--\w+", command)}
    assert options == set(re.findall(r'"(--\w+)"', (ROOT / "hub_upload.py").read_text())) | {
        "--private", "--create_pr", "--dry_run", "--force",
    }  # fmt: skip
