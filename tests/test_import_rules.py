"""The house rules: who may import whom. Read from the source with ``ast``; every import counts, wherever it stands.

examples/, tests/        may use everything below; nothing uses them
trainer_ext/, hub_upload rooms, each with the rooms it may use: ``MAY_IMPORT``
modeling_jina_clip/      torch, transformers, PIL, numpy and its own siblings
"""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import modeling_jina_clip
from tests.source_imports import NOT_SERVED, ROOT, files_of, imports_of, module_of, modules_in, named, package_of

FACE = "modeling_jina_clip"  # `from modeling_jina_clip import X`, never one of its files
BELOW_TRAINING = {"recipe", "data", "losses", "files", "sentence_files", FACE}

# Room of trainer_ext -> what of ours it may import, beside itself: rooms, or single files of a room. A file's own line
# adds to its room's.
MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "locks": {"files"},
    "sentence_files": {"files", FACE},
    "recipe": {"files"},
    "negatives": set(),
    "demo_data": {"files", "negatives"},
    "data": {"recipe", "demo_data", "files"},
    "data.images": {FACE},  # its picture opener alone: one way from a file to RGB at every door
    "data.holdout": {"negatives"},  # one rule for which texts are the same
    "losses": set(),
    "losses.joint": {"recipe.schema", "recipe.stages"},
    "evaluation": {"recipe.schema", "data", "demo_data", "files"},
    "report": {"recipe", "evaluation", "files"},
    "report.thumbnails": {FACE},  # pictures as RGB: one way at every door
    "training": BELOW_TRAINING,
    "mining": {"recipe.schema", "recipe.strict_yaml", "data", "files", "negatives"},
    "merging": BELOW_TRAINING | {"locks", "training"},
    "measuring": {"recipe", "data", "demo_data", "evaluation", "files", "sentence_files", FACE},
    "run": BELOW_TRAINING | {"demo_data", "evaluation", "locks", "measuring", "merging", "report", "training"},
    "hub": {"files", "locks", "sentence_files", FACE},
    "checking": BELOW_TRAINING | {"training", "run"},
    "commands": BELOW_TRAINING
    | {"checking", "demo_data", "evaluation", "measuring", "merging", "mining", "report", "training", "run"},
    "__main__": {"run", "commands"},
    "__init__": {"recipe", "data", "losses", "merging", "training", "run"},
}
OURS = {"modeling_jina_clip", "trainer_ext", "hub_upload", "examples", "tests", "configuration", "benchmarks"}

# Libraries. The last four of the model's come with transformers, which needs them itself.
STANDARD = frozenset(sys.stdlib_module_names)
MODEL_LIBRARIES = {"torch", "transformers", "PIL", "numpy", "huggingface_hub", "packaging", "safetensors", "tqdm"}
HUB_LIBRARIES = MODEL_LIBRARIES - {"tqdm"}
# Rooms that install without the extra `train`, or that depend on little by design. safetensors comes with transformers.
LIBRARIES = {
    "files": set(),
    "locks": {"filelock"},
    "sentence_files": HUB_LIBRARIES,
    "hub": HUB_LIBRARIES,
    "hub.probe": {"onnxruntime", "sentence_transformers"},
    "losses": {"torch"},
    "losses.stored": {"torch", "safetensors"},
    "negatives": {"bm25s", "numpy"},
}

MODEL = ROOT / "modeling_jina_clip"


# --- trainer_ext: rooms ------------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """``trainer_ext.losses.joint`` -> ``losses``; the face of ``trainer_ext`` itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def of_file(table: dict[str, set[str]], module: str) -> set[str] | None:
    """What a table says about a file: its room's line, and its own."""
    room, own = room_of(module), module.removeprefix("trainer_ext.")
    return table[room] | table.get(own, set()) if room in table else None


def test_the_table_has_every_room_and_no_other() -> None:
    rooms = {room_of(module_of(path)) for path in files_of("trainer_ext")}
    assert {name for name in MAY_IMPORT if "." not in name} == rooms
    files = {module_of(path).removeprefix("trainer_ext.") for path in files_of("trainer_ext")}
    assert {name for name in MAY_IMPORT | LIBRARIES if "." in name} <= files


def forbidden(module: str, path: Path, package: str) -> list[str]:
    """The imports of a file that its room may not have."""
    allowed, libraries = of_file(MAY_IMPORT, module) or set(), of_file(LIBRARIES, module)
    bad = []
    for found in imports_of(path, package):
        if found.root not in OURS:
            bad += [found.module] if libraries is not None and found.root not in libraries | STANDARD else []
        for target in modules_in(found) if found.root in OURS else ():
            room, name = target.split(".")[1:2] or ["__init__"], target.removeprefix("trainer_ext.")
            own = found.root == "trainer_ext" and room == [room_of(module)] and module != "trainer_ext"
            bad += [] if own or target == FACE in allowed or {name, *room} & allowed - {FACE} else [target]
    return [f"{path.name}: {module} may not import {name}" for name in bad]


@pytest.mark.parametrize("path", named(files_of("trainer_ext")))
def test_a_room_imports_what_the_table_allows(path: Path) -> None:
    assert forbidden(module_of(path), path, package_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("data.plan", "from trainer_ext.recipe import Recipe, schema", []),
        ("data.plan", "from trainer_ext import training", ["trainer_ext.training"]),
        ("data.plan", "import modeling_jina_clip", ["modeling_jina_clip"]),
        ("evaluation.tasks", "from trainer_ext.recipe.schema import Task", []),
        ("evaluation.tasks", "from trainer_ext.recipe import schema, Recipe", ["trainer_ext.recipe"]),
        ("hub.card", "import torch, datasets", ["datasets"]),
        ("losses.joint", "from trainer_ext.recipe.stages import Stage", []),
        ("losses.siglip", "from trainer_ext.recipe.stages import Stage", ["trainer_ext.recipe.stages"]),
        ("losses.siglip", "from .tiled import fold\nimport numpy", ["numpy"]),
        ("training.ema", "from modeling_jina_clip import JinaCLIPModel", []),
        ("training.ema", "from modeling_jina_clip.image_urls import fetch", ["modeling_jina_clip.image_urls"]),
        ("training.ema", "def late():\n    from trainer_ext.run import train", ["trainer_ext.run.train"]),
        ("files", "import hub_upload, tests.workspace", ["hub_upload", "tests.workspace"]),
    ],
)
def test_the_table_refuses(tmp_path: Path, module: str, source: str, bad: list[str]) -> None:
    path = tmp_path / "sample.py"
    path.write_text(source)
    found = forbidden(f"trainer_ext.{module}", path, f"trainer_ext.{module.split('.')[0]}")
    assert [line.rpartition(" ")[2] for line in found] == bad


def test_no_circles_between_files() -> None:
    paths = [*files_of("trainer_ext"), *files_of("modeling_jina_clip"), ROOT / "hub_upload.py"]
    found = {module_of(path): imports_of(path, package_of(path)) for path in paths}
    graph = {module: {name for item in items for name in modules_in(item)} for module, items in found.items()}
    TopologicalSorter({name: others & graph.keys() for name, others in graph.items()}).prepare()  # CycleError names it


def loaded_by(program: str) -> set[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_recipe_loads_without_torch() -> None:
    """A wrong recipe is answered at once."""
    assert "torch" not in loaded_by("import trainer_ext.recipe")


# --- hub_upload and hub ------------------------------------------------------------------------------------------


def test_hub_upload_sees_the_model_and_its_own_steps_only() -> None:
    for found in imports_of(ROOT / "hub_upload.py"):
        where = f"hub_upload.py:{found.line}: {found.module}"
        assert found.root not in OURS - {"modeling_jina_clip", "trainer_ext"}, where
        assert not found.module.startswith("modeling_jina_clip."), f"{where}: only the face"
        assert found.root != "trainer_ext" or f"{found.module}.".startswith("trainer_ext.hub."), where


def test_probe_of_verify_stands_alone() -> None:
    """It is run as a program where nothing of ours can be imported, and says so itself if a library is missing."""
    for found in imports_of(ROOT / "trainer_ext" / "hub" / "probe.py", "trainer_ext.hub"):
        libraries = HUB_LIBRARIES | {"onnxruntime", "sentence_transformers"} if found.late else set()
        assert found.root in libraries | STANDARD, found


def test_command_line_of_hub_upload_loads_nothing_heavy() -> None:
    """Wrong arguments are answered at once, and training is not needed to publish."""
    loaded = loaded_by("import hub_upload")
    assert loaded.isdisjoint({"modeling_jina_clip", "sentence_transformers", *HUB_LIBRARIES})
    ours = {name for name in loaded if name.startswith("trainer_ext.")}
    hub = {module_of(path) for path in files_of("trainer_ext/hub")}
    assert ours - {"trainer_ext.files", "trainer_ext.locks", "trainer_ext.sentence_files"} == hub


# --- modeling_jina_clip: the ground floor ------------------------------------------------------------------------


@pytest.mark.parametrize("path", named([path for path in files_of("modeling_jina_clip") if path.name != "__init__.py"]))
def test_model_files_know_only_torch_transformers_and_their_siblings(path: Path) -> None:
    allowed = MODEL_LIBRARIES | ({"sentence_transformers"} if path.name == "custom_st.py" else set())
    for found in imports_of(path, package_of(path)):
        where = f"{path.name}:{found.line}"
        if found.level:
            assert found.level == 1, f"{where}: the Hub's folder is flat, there is no parent package"
            sibling = found.module.removeprefix("modeling_jina_clip").lstrip(".")
            assert sibling, f"{where}: write `from .name import X`; `from . import name` is not copied by the loader"
            assert (MODEL / f"{sibling}.py").is_file(), f"{where}: no sibling file {sibling}.py"
        else:
            assert found.root in allowed | STANDARD, f"{where}: {found.module} is not for the model floor"


def test_model_folder_is_flat() -> None:
    assert [entry.name for entry in MODEL.iterdir() if entry.is_dir() and entry.name != "__pycache__"] == []


def test_face_knows_its_siblings_and_transformers() -> None:
    for found in imports_of(MODEL / "__init__.py", "modeling_jina_clip"):
        assert found.level == 1 or found.root in STANDARD | {"transformers"}, f"line {found.line}: {found}"


def entry_files() -> set[Path]:
    """Return the files the Hub's loader starts from: those of the registered auto classes, and custom_st."""
    exported = [getattr(modeling_jina_clip, name) for name in modeling_jina_clip.__all__]
    registered = [item for item in exported if getattr(item, "_auto_class", None) is not None]
    return {MODEL / f"{item.__module__.rpartition('.')[2]}.py" for item in registered} | {MODEL / "custom_st.py"}


def test_served_is_what_the_loader_reaches() -> None:
    """From the auto classes and custom_st it reaches every file but the face, conversion and pre-training."""
    reached, todo = set(), entry_files()
    while todo:
        path = todo.pop()
        reached.add(path.name)
        found = {
            MODEL / f"{item.module.rpartition('.')[2]}.py" for item in imports_of(path, package_of(path)) if item.level
        }
        todo |= {target for target in found if target.name not in reached}
    assert reached == {path.name for path in MODEL.glob("*.py")} - NOT_SERVED
    assert len(reached) <= 10
    assert sum(len((MODEL / name).read_text(encoding="utf-8").splitlines()) for name in reached) <= 3300


@pytest.mark.parametrize("path", named(sorted(entry_files())))
def test_entry_files_name_all_they_lead_to(path: Path) -> None:
    """Of a local folder transformers 5.5 copies what the entry file imports, and not what those import in turn."""
    reached = {Path(name).stem for name in get_relative_import_files(str(path))}
    assert reached - {path.stem} <= set(get_relative_imports(path))


def test_loader_sees_the_same_imports_as_python() -> None:
    """Transformers searches the text with regular expressions: a docstring line can pass for an import there."""
    for path in MODEL.glob("*.py"):
        if path.name == "__init__.py":
            continue
        by_text = {Path(name).name for name in get_relative_import_files(str(path))}
        assert by_text <= {item.name for item in MODEL.glob("*.py")}, (
            f"{path.name}: the loader would look for {by_text}"
        )


# --- the rest ----------------------------------------------------------------------------------------------------


def test_configuration_holds_values_not_code() -> None:
    suffixes = {path.suffix for path in (ROOT / "configuration").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml"}


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import trainer_ext.losses", "", ["trainer_ext.losses"]),
        ("from .losses import info_nce", "trainer_ext", ["trainer_ext.losses"]),
        ("from . import losses", "trainer_ext", ["trainer_ext"]),
        ("from ..losses import info_nce", "trainer_ext.demo_data", ["trainer_ext.losses"]),
        ("def late():\n    from hub_upload import build", "trainer_ext", ["hub_upload"]),
        ("if TYPE_CHECKING:\n    import examples.train", "trainer_ext", ["examples.train"]),
    ],
)
def test_reader_sees_every_form_of_import(tmp_path: Path, source: str, package: str, expected: list[str]) -> None:
    """The rules above are worth what this reader sees."""
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert [found.module for found in imports_of(path, package)] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from trainer_ext import losses, train", {"trainer_ext.losses", "trainer_ext"}),
        ("from trainer_ext.losses import joint, info_nce_plus", {"trainer_ext.losses.joint", "trainer_ext.losses"}),
        ("from trainer_ext.losses.joint import JointObjective", {"trainer_ext.losses.joint"}),
        ("import modeling_jina_clip.image_urls", {"modeling_jina_clip.image_urls"}),
    ],
)
def test_reader_finds_the_file_behind_a_name(tmp_path: Path, source: str, expected: set[str]) -> None:
    """A name taken from a package may be one of its files."""
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert {target for found in imports_of(path) for target in modules_in(found)} == expected
