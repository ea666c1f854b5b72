"""What people trust with ``trust_remote_code=True``: small, closed, and clear about the versions that it needs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

import modeling_jina_clip
from hub_upload import build
from modeling_jina_clip import JinaCLIPModel
from modeling_jina_clip.configuration_jina_clip import OLDEST_TRANSFORMERS, require_version
from modeling_jina_clip.custom_st import OLDEST_SENTENCE_TRANSFORMERS
from tests.source_imports import NOT_SERVED, ROOT

MOST_FILES, MOST_LINES = 10, 3300
NETWORK = {"http", "requests", "httpx", "aiohttp", "socket", "ssl", "urllib", "urllib3"}


@pytest.fixture(scope="module")
def bundle(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    shutil.copy(Path(modeling_jina_clip.__file__).parent / "custom_st.py", folder)
    return folder


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, those of its own folder with a leading dot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_the_bundle_is_small(bundle: Path) -> None:
    files = sorted(bundle.glob("*.py"))
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert 0 < len(files) <= MOST_FILES
    assert 0 < lines <= MOST_LINES
    package = {path.name for path in Path(modeling_jina_clip.__file__).parent.glob("*.py")}
    assert {path.name for path in files} == package - NOT_SERVED
    longest = {path.name: len(path.read_text().splitlines()) for path in files}
    assert max(longest.values()) <= 600, longest


def test_the_bundle_is_closed(bundle: Path) -> None:
    """Imports of our own lead to files that are there, and by public names."""
    for path in bundle.glob("*.py"):
        assert not any(name.startswith("modeling_jina_clip") for name in imports(path)), path.name
        assert all((bundle / f"{name[1:]}.py").is_file() for name in imports(path) if name.startswith(".")), path.name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path.name} imports {private} of {node.module}"


def test_one_file_opens_the_network(bundle: Path) -> None:
    reaching = {path.name: {name.split(".")[0] for name in imports(path)} & NETWORK for path in bundle.glob("*.py")}
    assert {name: found for name, found in reaching.items() if found} == {
        "image_urls.py": {"http", "socket", "ssl", "urllib"}
    }


def test_security_lists_every_file(bundle: Path) -> None:
    """With its lines, at most twenty off."""
    rows = re.findall(r"^\| `(\w+\.py)` \|.*\| (\d+) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    shown = {name: int(count) for name, count in rows}
    assert shown == {
        path.name: pytest.approx(len(path.read_text().splitlines()), abs=20) for path in bundle.glob("*.py")
    }


def test_no_file_does_what_security_rules_out(bundle: Path) -> None:
    """No process, no environment variable, no evaluated text, no pickle, no writing."""
    names = {"subprocess", "multiprocessing", "environ", "getenv", "system", "popen", "exec", "pickle", "write_text"}
    names |= {"write_bytes", "mkdir", "unlink", "rename", "rmtree", "__import__", "importlib"}
    for path in bundle.glob("*.py"):
        used = imports(path)
        for node in ast.walk(ast.parse(path.read_text())):
            used |= {node.id} if isinstance(node, ast.Name) else set()
            used |= {node.attr} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):  # not the method of a module or an image
                assert node.func.id not in {"eval", "open", "compile"}, (path.name, node.lineno)
        assert not used & names, (path.name, used & names)


OLD = """
import sys
import {library}
from transformers import {loader}
from transformers.dynamic_module_utils import get_class_from_dynamic_module
sys.modules[{library!r}].__version__ = {version!r}  # now: transformers may replace its module while it loads a class
try:
    {call}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "version", "oldest", "loader", "call"),
    [
        ("transformers", "4.57.6", OLDEST_TRANSFORMERS, "AutoModel", "AutoModel.from_pretrained({folder!r}, **trust)"),
        pytest.param(
            *("transformers", "4.57.6", OLDEST_TRANSFORMERS, "AutoProcessor"),
            "AutoProcessor.from_pretrained({folder!r}, **trust)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("sentence_transformers", "5.5.0", OLDEST_SENTENCE_TRANSFORMERS, "AutoModel"),
            "get_class_from_dynamic_module('custom_st.Transformer', {folder!r})",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["model", "processor", "sentence-transformers"],
)
def test_old_libraries_are_named(
    bundle: Path, tmp_path: Path, library: str, version: str, oldest: str, loader: str, call: str
) -> None:
    """One line: what is installed, what is needed, and how to serve older runtimes."""
    program = OLD.format(library=library, version=version, loader=loader, call=call.format(folder=str(bundle)))
    program = program.replace("**trust", "trust_remote_code=True")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = library.replace("_", "-")
    assert done.stdout.splitlines() == [
        f"this model needs {name}>={oldest}, but {version} is installed; upgrade it, or convert the folder with "
        "save_published of the package modeling-jina-clip, which writes the layout that older runtimes read"
    ]


REAL = """
import sys
sys.path.insert(0, {place!r})
try:
    {call}
except ImportError as error:
    print(error)
"""
# What these versions need exactly; the rest is taken from this environment.
TRANSFORMERS_4 = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("transformers-4"), *TRANSFORMERS_4)


@pytest.fixture(scope="module")
def sentence_transformers_5_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("sentence-transformers-5.1"), "sentence-transformers==5.1.2")


def installed(place: Path, *requirements: str) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"pip could not get {requirements}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("libraries", "call", "line"),
    [
        *(
            (
                "transformers_4",
                f"import transformers; transformers.{loader}.from_pretrained({{folder!r}}, trust_remote_code=True)",
                f"transformers>={OLDEST_TRANSFORMERS}, but 4.57.6 is",
            )
            for loader in ("AutoConfig", "AutoModel", "AutoProcessor")
        ),
        (
            "sentence_transformers_5_1",
            "import sentence_transformers as st; st.SentenceTransformer({folder!r}, trust_remote_code=True)",
            f"sentence-transformers>={OLDEST_SENTENCE_TRANSFORMERS}, but 5.1.2 is",
        ),
    ],
    ids=["config", "model", "processor", "sentence-transformers"],
)
def test_really_old_libraries_are_named(
    golden: Path, tmp_path: Path, request: pytest.FixtureRequest, libraries: str, call: str, line: str
) -> None:
    """As above, with the old libraries themselves and a whole folder: nothing of theirs fails before our line."""
    place = request.getfixturevalue(libraries)
    folder = build(golden / "tiny_model", tmp_path / "hub")
    program = REAL.format(place=str(place), call=call.format(folder=str(folder)))
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"this model needs {line} installed; upgrade it, or convert the folder with "
        "save_published of the package modeling-jina-clip, which writes the layout that older runtimes read"
    ]


@pytest.mark.parametrize(("installed", "refused"), [("5.4.9", True), ("5.5.0.dev0", False), ("6.0", False)])
def test_versions_compare_as_numbers(installed: str, refused: bool) -> None:
    with pytest.raises(ImportError, match=f"but {installed} is installed") if refused else nullcontext():
        require_version("transformers", installed, "5.5")


def test_the_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"transformers>={OLDEST_TRANSFORMERS}" in project["dependencies"]
    assert f"sentence-transformers>={OLDEST_SENTENCE_TRANSFORMERS}" in project["optional-dependencies"]["st"]
