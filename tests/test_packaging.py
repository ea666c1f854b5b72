"""What an installation contains and needs: the wheel's files, its requirements, the pins, a venv of its own."""

import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import modeling_jina_clip
from tests.source_imports import ROOT, files_of, imports_of, named, package_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = importlib.metadata.packages_distributions()
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


# Dependencies of pydantic and transformers, which always come with them.
COME_ALONG = {"pydantic-core", "safetensors", "huggingface-hub", "packaging", "tokenizers", "tqdm"}


def requirements_of(*extras: str) -> dict[str, Requirement]:
    """Return the requirements of the base package and of ``extras``, with those that the extras name in turn."""
    found: dict[str, Requirement] = {}
    todo = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    while todo:
        requirement = Requirement(todo.pop())
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            todo.extend(text for extra in requirement.extras for text in EXTRAS[extra])
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pins(file: str = "constraints.txt") -> dict[str, Version]:
    """Return the versions of a file of constraints by package."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as pip would."""
    [path] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(path)


def test_wheel_holds_our_two_packages_and_one_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    sources = [*files_of("modeling_jina_clip"), *files_of("trainer_ext"), ROOT / "hub_upload.py"]
    values = [path for path in (ROOT / "configuration").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {f"trainer_ext/{path.relative_to(ROOT)}" for path in values}
    for folder in ("trainer_ext/hub/card_template", "trainer_ext/report/template"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).iterdir()}
    assert names - metadata == expected
    assert "trainer_ext/hub/card_template/card.md" in names
    assert {"recipes/openmoji.yaml"} <= {str(path.relative_to(ROOT / "configuration")) for path in values}
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_wheel_declares_what_pyproject_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("modeling-jina-clip", modeling_jina_clip.__version__)
    assert metadata.get_all("Provides-Extra") == sorted(EXTRAS)
    base = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert {Requirement(text).name for text in base} == {"torch", "transformers", "pillow", "numpy"}


@pytest.mark.slow
def test_installed_outside_the_checkout_finds_its_values(wheel: Path, tmp_path: Path) -> None:
    """A fresh venv with our wheel, beside the libraries of this environment but out of the checkout's sight."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
        check=True,
    )
    # A plain line of a .pth file joins sys.path and runs no .pth file of its own: an editable install stays unseen.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = """
import importlib.util, json, sys
import modeling_jina_clip, trainer_ext, hub_upload
from pathlib import Path
from trainer_ext.recipe import load_recipe
from trainer_ext.recipe.reading import available_resources, find_resource
from trainer_ext.run.folder import commit_of
print(json.dumps({
    "files": [module.__file__ for module in (modeling_jina_clip, trainer_ext, hub_upload)],
    "configuration": importlib.util.find_spec("configuration") is not None,
    "models": [str(find_resource("models", name)) for name in available_resources("models")],
    "recipes": [str(find_resource("recipes", name)) for name in available_resources("recipes")],
    "loaded": load_recipe(find_resource("recipes", "openmoji")).name,
    "commit": commit_of(Path(trainer_ext.__file__).parent),
}))
"""
    done = subprocess.run(
        [str(python), "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not seen["configuration"]
    assert seen["commit"] is None
    assert seen["loaded"] == "openmoji"
    for kind in ("models", "recipes"):
        assert len(seen[kind]) == len(list((ROOT / "configuration" / kind).iterdir()))
    for path in [*seen["files"], *seen["models"], *seen["recipes"]]:
        assert Path(path).resolve().is_relative_to(site.resolve())


def test_base_package_needs_no_extra() -> None:
    """`import modeling_jina_clip` works where none of the extras' packages is installed."""
    base = {"torch", "transformers", "pillow", "numpy"}
    of_huggingface_hub = {"pyyaml", "filelock"}  # which transformers imports
    extra = set(requirements_of(*EXTRAS)) - base - COME_ALONG - of_huggingface_hub
    blocked = [
        module
        for module, distributions in DISTRIBUTIONS.items()
        if {canonicalize_name(name) for name in distributions} <= extra and module.isidentifier()
    ]
    assert {"sentence_transformers", "datasets", "accelerate", "pydantic", "peft"} <= set(blocked)
    blocked.append("sklearn")  # which comes with sentence-transformers; transformers 5.5 imports it where it is there
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import modeling_jina_clip"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=300)


def extras_of(path: Path) -> list[str]:
    """Return the extras that whoever uses this file has installed."""
    if path.name == "custom_st.py":
        return ["st"]
    trainer = ROOT / "trainer_ext"
    if path.name == "hub_upload.py" or path.is_relative_to(trainer / "hub"):
        return ["hub", "onnx"]
    if path in (trainer / "__init__.py", trainer / "files.py", trainer / "sentence_files.py"):  # used by both extras
        return []
    return ["train", "check", "demo", "peft"] if path.is_relative_to(trainer) else []


@pytest.mark.parametrize(
    "path", named([*files_of("modeling_jina_clip"), *files_of("trainer_ext"), ROOT / "hub_upload.py"])
)
def test_every_foreign_import_is_a_declared_requirement(path: Path) -> None:
    declared = COME_ALONG | set(requirements_of(*extras_of(path)))
    for found in imports_of(path, package_of(path)):
        if found.root in sys.stdlib_module_names | {"modeling_jina_clip", "trainer_ext"}:
            continue
        distributions = {canonicalize_name(name) for name in DISTRIBUTIONS[found.root]}
        assert distributions & declared, f"{path.name}:{found.line}: {found.module} is not declared for this file"


def test_every_requirement_has_a_lower_bound_and_a_tested_pin() -> None:
    tested = pins("constraints-app.txt") | pins()
    for name, requirement in requirements_of(*EXTRAS).items():
        assert [spec.operator for spec in requirement.specifier] == [">="], f"{name}: one lower bound, no upper one"
        assert requirement.specifier.contains(tested[name]), f"{name}: the pin {tested[name]} is below the bound"


def test_the_search_page_is_tested_with_the_versions_of_all_else() -> None:
    """But for the two that Gradio holds back."""
    page, rest = pins("constraints-app.txt"), pins()
    assert {name for name in page.keys() & rest.keys() if page[name] != rest[name]} == {"pillow", "tomlkit"}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-app.txt"])
def test_constraints_name_versions_and_no_address(file: str) -> None:
    for line in (ROOT / file).read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_pre_commit_uses_the_pinned_ruff() -> None:
    versions = re.findall(r"ruff==([0-9.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert versions
    assert {Version(version) for version in versions} == {pins()["ruff"]}


def test_changelog_knows_this_version() -> None:
    assert f"## {modeling_jina_clip.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_what_the_readme_says() -> None:
    """One script for GitHub and for everyone else: the checks, then the README's test command."""
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    assert "make test" in (ROOT / "README.md").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_ci_has_every_supported_python_and_the_weekly_targets() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    classifiers = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: Python :: 3." in text]
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == classifiers == ["3.11", "3.12", "3.13"]
    assert "schedule" in jobs["weekly"]["if"]
    targets = jobs["weekly"]["strategy"]["matrix"]["target"]
    assert targets == ["test-slow", "test-min"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "path", named([*files_of("modeling_jina_clip"), *files_of("trainer_ext"), ROOT / "hub_upload.py"])
)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    """The model's files, which people read before they trust them, are few and may be longer."""
    most = 600 if path.is_relative_to(ROOT / "modeling_jina_clip") else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most
