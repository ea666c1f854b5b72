"""Links, pipes, devices and folders in the place of files: refused in a line that names them, and nothing waits."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_upload import HubFolderError, build, main, verify
from tests.hub_checkpoint import finished_run
from trainer_ext.hub.installed import refuse_irregular


@pytest.fixture(scope="module")
def golden_run(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(golden_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_run, tmp_path / "run"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nothing here")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(place)


KINDS: list[Callable[[Path], None]] = [pipe, link, dangling, device, unix_socket, Path.mkdir]
NAMES = ["run.json", "card_notes.md", "tokenizer.json", "metrics.json", "best.json", "config.json", "vocab.txt",
         "model.safetensors", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
         "processor_config.json", "generation_config.json", "added_tokens.json", "model.safetensors.index.json",
         "chat_template.jinja", "spiece.model", "sources/shares.json", "additional_chat_templates/x.jinja"]  # fmt: skip


REFUSED = "is a (link|pipe, socket or device|folder)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "card_notes.md", "tokenizer.json"])
def test_build_refuses_what_is_no_file(run: Path, tmp_path: Path, name: str, kind: Callable) -> None:
    (run / name).unlink(missing_ok=True)
    kind(run / name)
    with pytest.raises(HubFolderError, match=f"{run / name} {REFUSED}") as caught:
        build(run, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_is_read_must_be_a_file(tmp_path: Path, name: str, kind: Callable) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    refuse_irregular(tmp_path)
    kind(path)
    with pytest.raises(HubFolderError, match=f"{path} {REFUSED}"):
        refuse_irregular(tmp_path)


@pytest.mark.parametrize("name", ["sources", "additional_chat_templates"])
def test_a_folder_inside_may_not_be_a_link(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).symlink_to(tmp_path)
    with pytest.raises(HubFolderError, match=rf"{run / name} is a link"):
        build(run, tmp_path / "out")


def test_the_record_of_the_run_above_a_checkpoint_must_be_a_file(run: Path, golden: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(golden / "tiny_model", run / "checkpoint-3"))
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    with pytest.raises(HubFolderError, match=rf"{run / 'run.json'} is a pipe"):
        build(part, tmp_path / "out")


def test_notes_and_manifests_that_are_pipes_do_not_wait(run: Path, tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "notes.md")
    with pytest.raises(HubFolderError, match=r"notes .*notes.md' is not a file"):
        build(run, tmp_path / "out", notes=tmp_path / "notes.md")
    (tmp_path / "hub").mkdir()
    os.mkfifo(tmp_path / "hub" / "manifest.json")
    with pytest.raises(HubFolderError, match=r"manifest.json is a pipe"):
        verify(tmp_path / "hub")
    assert main(["push", str(tmp_path / "hub"), "--repo_id", "me/x"]) == 2
    assert "manifest.json is a pipe" in capsys.readouterr().err


def test_links_of_the_hubs_cache_are_files(run: Path, tmp_path: Path) -> None:
    """A snapshot's files are links to the same download's blobs; links to other places are none of it."""
    blobs, snapshot = tmp_path / "models--me--x" / "blobs", tmp_path / "models--me--x" / "snapshots" / ("0" * 40)
    shutil.copytree(run, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    refuse_irregular(snapshot)
    assert (build(snapshot, tmp_path / "out") / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
    (tmp_path / "secret").write_text("{}")
    (snapshot / "run.json").unlink()
    (snapshot / "run.json").symlink_to(tmp_path / "secret")
    with pytest.raises(HubFolderError, match=r"run.json is a link"):
        refuse_irregular(snapshot)
