"""Files and folders are whole or not there, and damaged checkpoints are skipped with the reason."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer_ext.files import (
    SEAL,
    checkpoints_of,
    damage,
    keep_newest,
    last_whole_checkpoint,
    partial_path,
    seal,
    whole_folder,
    write_whole,
)


def make_checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "trainer_state.json").write_text("{}")
    seal(folder)
    return folder


def test_a_failed_write_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "0-pairs"
    with whole_folder(target) as partial:
        (partial / "config.json").write_text("old")

    def fail() -> None:
        with whole_folder(target) as partial:
            (partial / "config.json").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["0-pairs"]


def test_a_second_write_replaces_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("first", "second"):
        with whole_folder(target) as partial:
            (partial / name).touch()
    assert [path.name for path in target.iterdir()] == ["second"]


def test_leftovers_of_a_killed_write_are_not_mixed_in(tmp_path: Path) -> None:
    target = tmp_path / "model"
    partial_path(target).mkdir()
    (partial_path(target) / "leftover").touch()
    with whole_folder(target) as partial:
        (partial / "config.json").touch()
    assert [path.name for path in target.iterdir()] == ["config.json"]


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 60)


def flip_a_bit(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 50 + b"y" + b"x" * 49)


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_seal(folder: Path) -> None:
    (folder / SEAL).unlink()


def cut_seal(folder: Path) -> None:
    (folder / SEAL).write_text('{"model.safe')


def empty_seal(folder: Path) -> None:
    (folder / SEAL).write_text("{}")


def spoil_seal(folder: Path) -> None:
    (folder / SEAL).write_text('{"trainer_state.json": {"bytes": null}, "x": [1]}')


def nest_seal(folder: Path) -> None:
    (folder / SEAL).write_text("[" * 100_000)


def list_seal(folder: Path) -> None:
    (folder / SEAL).write_text('["trainer_state.json"]')


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut_weights, "model.safetensors has 60 bytes instead of 100"),
        (flip_a_bit, "model.safetensors is damaged: its sha256"),
        (drop_weights, "model.safetensors is missing"),
        (drop_seal, "never finished"),
        (cut_seal, "never finished"),
        (empty_seal, "does not list trainer_state.json"),
        (list_seal, "does not list trainer_state.json"),
        (spoil_seal, "trainer_state.json has 2 bytes instead of None"),
        (nest_seal, "never finished or is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path: Path, harm, reason: str) -> None:
    good, bad = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    assert damage(bad) is None
    harm(bad)
    said: list[str] = []
    assert last_whole_checkpoint(tmp_path, said.append) == good
    assert len(said) == 1
    assert "checkpoint-10" in said[0]
    assert reason in said[0]


def test_a_seal_of_sizes_alone_is_still_believed(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 9)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != SEAL}
    (folder / SEAL).write_text(json.dumps(sizes))
    assert damage(folder) is None
    cut_weights(folder)
    assert "60 bytes instead of 100" in str(damage(folder))


def test_a_half_written_checkpoint_is_named(tmp_path: Path) -> None:
    partial_path(tmp_path / "checkpoint-4").mkdir()
    said: list[str] = []
    assert last_whole_checkpoint(tmp_path, said.append) is None
    assert "stopped while it was written" in said[0]


@pytest.mark.parametrize(("limit", "kept"), [(None, [2, 9, 10]), (2, [9, 10]), (1, [10]), (5, [2, 9, 10])])
def test_the_newest_are_kept_by_step_not_by_name(tmp_path: Path, limit: int | None, kept: list[int]) -> None:
    for step in (9, 10, 2):
        make_checkpoint(tmp_path, step)
    partial_path(tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-best").mkdir()  # not a step: not ours to delete
    keep_newest(tmp_path, limit)
    assert [path.name for path in checkpoints_of(tmp_path)] == [f"checkpoint-{step}" for step in kept]
    assert {path.name for path in tmp_path.iterdir()} == {*(f"checkpoint-{step}" for step in kept), "checkpoint-best"}


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two evaluations of one run may write its metrics.json at once: the file is that of one of them, and whole."""
    path, contents = tmp_path / "metrics.json", [b"a" * 100_000, b"b" * 100_000]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda turn: write_whole(path, contents[turn % 2]), range(200)))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_published_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    """safetensors writes weights that only their owner may read."""
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_bytes(b"x")
        (partial / "weights").chmod(0o600)
    folder = tmp_path / "model"
    assert (folder / "weights").stat().st_mode & 0o444 == folder.stat().st_mode & 0o444
