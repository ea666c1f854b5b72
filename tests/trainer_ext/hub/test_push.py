"""Pushing a verified folder with the real Hub client to a hub on this machine, and loading it back by its name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import HfApi

from hub_upload import HubFolderError, build, main, push
from modeling_jina_clip import JinaCLIPModel
from tests.hub_checkpoint import finished_run
from tests.loopback_hub import MAIN, TOKEN, Blob, LoopbackHub, Refusal
from trainer_ext.files import file_hash
from trainer_ext.hub.folder import MANIFEST, PLACEHOLDER, STAMP, folder_files, manifest_differences, write_manifest
from trainer_ext.hub.probe import probe_inputs
from trainer_ext.hub.verify import PROBE

REPO = "somebody/tiny-clip"
RESOLVE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub that the client takes for the Hub; nothing else can be reached, and its cache is the test's own."""
    with LoopbackHub() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + RESOLVE)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def built(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with several weight files, stamped as `verify` stamps it (its own test runs the whole check)."""
    place = tmp_path_factory.mktemp("hub")
    folder = build(finished_run(golden, place / "run"), place / "tiny-clip", max_shard_size="400KB")
    stamp(folder)
    return folder


@pytest.fixture(scope="module")
def whole(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in one weight file."""
    folder = build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "tiny-clip")
    stamp(folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "tiny-clip"))


def stamp(folder: Path) -> None:
    text = json.dumps({"manifest": file_hash(folder / MANIFEST)})
    (folder / STAMP).write_text(text)


def rewrite(folder: Path) -> None:
    """A change that the manifest knows of, and `verify` does not."""
    (folder / "config.json").write_text("{}")
    write_manifest(folder)


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_push_sends_the_verified_folder_under_its_own_name(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    address = push(built, REPO)
    there = hub.files(REPO)
    assert address.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert set(there) == {".gitattributes", *folder_files(built), MANIFEST}
    for name, path in folder_files(built).items():
        assert name == "README.md" or there[name] == path.read_bytes()
    card = there["README.md"].decode()
    assert f'SentenceTransformer("{REPO}"' in card
    assert PLACEHOLDER not in card
    listed = json.loads(there[MANIFEST])["files"]
    assert listed == {
        name: hashlib.sha256(there[name]).hexdigest()
        for name in there
        if name not in (".gitattributes", "manifest.json")
    }
    copy = huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "copy", endpoint=hub.endpoint)
    assert manifest_differences(Path(copy)) == []
    assert not hub.repositories[REPO].private
    assert len(hub.lfs) == len(weights(built)) > 1


def test_only_the_whole_name_of_the_repository_is_replaced(hub: LoopbackHub, golden: Path, tmp_path: Path) -> None:
    """A copy from the Hub, pushed under another name: names that begin alike stay."""
    (tmp_path / "notes.md").write_text(f"Not {REPO}-2 or {REPO}.v2 or x/{REPO}: see {REPO}.\n")
    folder = build(golden / "tiny_model", tmp_path / "out", notes=tmp_path / "notes.md", base_model=[f"{REPO}-base"])
    stamp(folder)
    push(folder, REPO)
    copy = Path(huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "copy", endpoint=hub.endpoint))
    stamp(copy)
    push(copy, "me/new")
    card = hub.files("me/new")["README.md"].decode()
    assert f"Not {REPO}-2 or {REPO}.v2 or x/{REPO}: see me/new.\n" in card
    assert f"base_model: {REPO}-base\n" in card
    assert 'SentenceTransformer("me/new"' in card


def test_pushing_again_changes_nothing(hub: LoopbackHub, built: Path) -> None:
    push(built, REPO)
    head = hub.repositories[REPO].resolve("main")
    sent = sum(call.startswith("PUT") for call in hub.requests)
    push(built, REPO)
    assert hub.repositories[REPO].resolve("main") == head
    assert sum(call.startswith("PUT") for call in hub.requests) == sent


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / STAMP).unlink(), "is not verified; run `hub_upload.py verify"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json was changed"),
        (lambda f: (f / "notes.txt").write_text("mine"), r"notes.txt is not in the manifest"),
        (lambda f: (f / "merges.txt").write_text("hf_" + "A1b2C3d4" * 5), "seems to hold a secret"),
        (lambda f: (f / "optimizer.pt").write_bytes(b"1234"), "is a pickle"),
        (lambda f: (f / "modules.json").unlink(), "modules.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "build it first"),
        (rewrite, "is not verified"),
    ],
    ids=["unverified", "changed", "extra", "secret", "pickle", "missing", "not ours", "manifest rewritten"],
)
def test_nothing_is_sent_of_a_bad_folder(hub: LoopbackHub, folder: Path, spoil, complaint: str) -> None:
    spoil(folder)
    with pytest.raises(HubFolderError, match=complaint):
        push(folder, REPO)
    assert hub.requests == []


def test_foreign_files_on_the_hub_are_kept_without_force(hub: LoopbackHub, built: Path) -> None:
    api = HfApi()
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"old", path_in_repo="old/weights.json", repo_id=REPO)
    before = hub.files(REPO)
    with pytest.raises(HubFolderError, match=r"holds other files \(old/weights.json\); delete them with --force"):
        push(built, REPO)
    assert hub.files(REPO) == before
    push(built, REPO, force=True)
    assert "old/weights.json" not in hub.files(REPO)
    assert "config.json" in hub.files(REPO)


def test_files_of_an_earlier_push_give_way(hub: LoopbackHub, built: Path, whole: Path) -> None:
    """From several weight files to one: the old shards would otherwise be loaded beside the new file."""
    push(built, REPO)
    push(whole, REPO)
    assert [name for name in hub.files(REPO) if name.endswith(".safetensors")] == ["model.safetensors"]
    assert "model.safetensors.index.json" not in hub.files(REPO)


def test_a_new_branch_has_nothing_of_main_but_what_is_pushed(
    hub: LoopbackHub, built: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Hub begins a branch as main is: main's weights would be loaded instead of the shards pushed there."""
    push(whole, REPO)
    before = hub.files(REPO)
    assert push(built, REPO, revision="next", dry_run=True) == "dry run: nothing was sent"
    assert "branch next (new, from main); deletes model.safetensors\n" in capsys.readouterr().out
    push(built, REPO, revision="next")
    assert set(hub.files(REPO, "next")) == {".gitattributes", *folder_files(built), MANIFEST}
    copy = huggingface_hub.snapshot_download(REPO, revision="next", local_dir=tmp_path / "copy", endpoint=hub.endpoint)
    assert manifest_differences(Path(copy)) == []
    assert hub.files(REPO) == before


@pytest.mark.parametrize("create_pr", [False, True])
def test_foreign_files_on_main_stop_a_new_branch_too(hub: LoopbackHub, whole: Path, create_pr: bool) -> None:
    api = HfApi()
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="pytorch_model.bin", repo_id=REPO)
    with pytest.raises(HubFolderError, match=r"holds other files \(pytorch_model.bin\)"):
        push(whole, REPO, revision="next", create_pr=create_pr)
    assert set(hub.repositories[REPO].refs) == {MAIN}
    push(whole, REPO, revision="next", create_pr=create_pr, force=True)
    assert "pytorch_model.bin" not in hub.files(REPO, "refs/pr/1" if create_pr else "next")
    assert hub.files(REPO)["pytorch_model.bin"] == b"theirs"


@pytest.mark.parametrize(
    "name", ["bad tag/..", "-x", "a..b", "a b", "x.lock", "/x", "x/", "a~1", "a:b", "é", "", "refs/heads/a?"]
)
def test_names_that_git_refuses_are_told_before_anything_is_sent(hub: LoopbackHub, whole: Path, name: str) -> None:
    for option in ("revision", "tag"):
        with pytest.raises(HubFolderError, match=f"{option} .* is not a name that git accepts"):
            push(whole, REPO, **{option: name})
    assert hub.requests == []


def test_a_pull_request_can_be_pushed_to_again_and_none_is_made_up(hub: LoopbackHub, whole: Path, built: Path) -> None:
    push(whole, REPO, create_pr=True)
    push(built, REPO, revision="refs/pr/1")
    assert set(hub.files(REPO, "refs/pr/1")) == {".gitattributes", *folder_files(built), MANIFEST}
    with pytest.raises(HubFolderError, match=r"has no refs/pr/2; name a branch"):
        push(built, REPO, revision="refs/pr/2")


def test_a_card_that_the_hub_refuses_says_why_in_one_line(hub: LoopbackHub, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("type: words", "type: the words"))
    write_manifest(folder)
    stamp(folder)
    with pytest.raises(
        HubFolderError, match=r'results\[\d\].dataset.type" with value "the words" fails to match'
    ) as error:
        push(folder, REPO)
    assert "\n" not in str(error.value)
    assert "config.json" not in hub.files(REPO)


def test_a_note_in_the_manifest_is_not_sent(hub: LoopbackHub, folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"note": "mine alone"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    stamp(folder)
    push(folder, REPO)
    assert set(json.loads(hub.files(REPO)[MANIFEST])) == {"repo_id", "format", "versions", "files"}


def test_dry_run_reads_and_writes_nothing(hub: LoopbackHub, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(built), "--repo_id", REPO, "--dry_run", "--private", "--tag", "v1"]) == 0
    shown = capsys.readouterr().out
    count = len(folder_files(built)) + 1  # and the manifest
    assert shown == f"{count} files to {REPO}, branch main; deletes nothing\ndry run: nothing was sent\n"
    assert hub.writes() == []
    assert hub.repositories == {}


def test_options_of_push_are_read(hub: LoopbackHub, built: Path) -> None:
    push(built, REPO, private=True, revision="next", tag="v1.0")
    repository = hub.repositories[REPO]
    assert repository.private
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert hub.files(REPO, "v1.0") == hub.files(REPO, "next")
    assert "model.safetensors.index.json" in hub.files(REPO, "next")
    with pytest.raises(HubFolderError, match=r"has a tag v1.0 already"):
        push(built, REPO, tag="v1.0")


def test_pull_request_leaves_main_alone(hub: LoopbackHub, built: Path) -> None:
    address = push(built, REPO, create_pr=True)
    assert address == f"{hub.endpoint}/{REPO}/discussions/1"
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert "config.json" in hub.files(REPO, "refs/pr/1")
    with pytest.raises(HubFolderError, match="leave out --tag"):
        push(built, REPO, create_pr=True, tag="v1")


def test_private_is_never_public_by_mistake(hub: LoopbackHub, built: Path) -> None:
    HfApi().create_repo(REPO)
    with pytest.raises(HubFolderError, match="exists and is public"):
        push(built, REPO, private=True)
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_interrupted_upload_goes_on_where_it_stopped(hub: LoopbackHub, built: Path) -> None:
    arrived: list[str] = []

    def cut_after_two(oid: str) -> None:
        if len(arrived) == 2:
            raise Refusal(403, message="the line went dead")
        arrived.append(oid)

    hub.before_put = cut_after_two
    with pytest.raises(HubFolderError, match=r"weights that arrived are not sent twice"):
        push(built, REPO)
    assert set(hub.files(REPO)) == {".gitattributes"}  # all or nothing: no half model for anyone to load
    assert len(weights(built)) > len(hub.lfs) == 2
    hub.before_put = None
    hub.requests.clear()
    push(built, REPO)
    again = {call.rpartition("/")[2] for call in hub.requests if call.startswith("PUT")}
    assert again == {file_hash(path) for path in weights(built)} - set(arrived)
    assert set(hub.files(REPO)) > {path.name for path in weights(built)}


def test_ctrl_c_ends_in_one_line(
    hub: LoopbackHub, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", interrupt)
    assert main(["push", str(built), "--repo_id", REPO]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: interrupted; run the same command again; weights that arrived are not sent twice"


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("branch", ["main", "next"])
def test_someone_elses_commit_is_not_overwritten(hub: LoopbackHub, built: Path, branch: str, exists: bool) -> None:
    """The repository changes between our look and our commit: the Hub refuses, and says so in one line."""
    if exists:
        HfApi().create_repo(REPO)
    theirs = {"theirs.txt": Blob(b"mine now", lfs=False)}
    hub.before_put = lambda oid: hub.repositories[REPO].commit(f"refs/heads/{branch}", theirs)
    with pytest.raises(HubFolderError, match=r"A commit has happened since"):
        push(built, REPO, revision=branch)
    assert hub.files(REPO, branch) == {"theirs.txt": b"mine now"}


@pytest.mark.parametrize("repo_id", ["tiny-clip", "a/b/c", "../up", "me/"])
def test_bad_names_are_refused(built: Path, repo_id: str) -> None:
    with pytest.raises(HubFolderError, match="is not of the form name/model"):
        push(built, repo_id)


def test_no_access_and_no_network_end_in_one_line(
    hub: LoopbackHub, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["push", str(built), "--repo_id", REPO]) == 2
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(built), "--repo_id", REPO]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {REPO}: ") and "hf auth login" in line for line in lines)


@pytest.mark.parametrize("offline", [True, False])
def test_dry_run_without_a_network_shows_what_the_folder_says(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "none")
    assert main(["push", str(built), "--repo_id", REPO, "--dry_run"]) == 0
    first, *files, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{len(files)} files to {REPO}, branch main; what is there cannot be asked (")
    assert f"  config.json ({(built / 'config.json').stat().st_size:,} bytes)" in files
    assert last == "dry run: nothing was sent"


LOAD_BACK = """
import runpy
probe = runpy.run_path({probe!r})
texts, images = probe["probe_inputs"]()
probe["block_our_packages"]()
import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
model = AutoModel.from_pretrained({repo!r}, trust_remote_code=True, revision="main")
encoder = SentenceTransformer({repo!r}, trust_remote_code=True, device="cpu")
config_module = type(model.config).__module__
assert config_module.rpartition(".")[0] == type(model).__module__.rpartition(".")[0], config_module
assert {commit!r} in config_module, config_module  # the directory of the commit, shared by all files
np.savez("vectors.npz", texts=model.encode_text(texts), images=model.encode_image(images),
         mixed=encoder.encode([*texts, *images]))
"""


@pytest.mark.slow
def test_model_loads_back_by_repository_id(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    """The path of a user: a name, a download, remote code in the commit's directory, our vectors."""
    push(built, REPO, private=True)
    commit = hub.repositories[REPO].resolve("main")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    program = LOAD_BACK.format(probe=str(PROBE), repo=REPO, commit=commit)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    texts, images = probe_inputs()
    model = JinaCLIPModel.from_pretrained(built)
    expected = {"texts": model.encode_text(texts), "images": model.encode_image(images)}
    expected["mixed"] = np.concatenate([expected["texts"], expected["images"]])
    with np.load(tmp_path / "vectors.npz") as vectors:
        for name, rows in expected.items():
            np.testing.assert_allclose(vectors[name], rows, atol=1e-5, rtol=0, err_msg=name)
    assert any(call.startswith(f"GET /{REPO}/resolve/") for call in hub.requests)
