"""The house rules: three floors, arrows only downward. Read from the source with ``ast``, nothing is imported.

    examples/, tests/        may use all below; nobody uses them
    trainer_ext | hub_upload may use the model's face, not each other; hub_upload also has trainer_ext.hub_folder
    modeling_jina_clip       uses torch, transformers, PIL, numpy and its own siblings

``trainer_ext.hub_folder`` holds the steps of ``hub_upload``. It uses no other room, and no other room uses it.

Every import counts, wherever it stands: at the top, in a function, under ``TYPE_CHECKING``.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import modeling_jina_clip
from tests.source_imports import ROOT, files_of, imports_of, named, package_of

MODEL = ROOT / "modeling_jina_clip"
OURS = {"modeling_jina_clip", "trainer_ext", "hub_upload", "examples", "tests", "configuration"}
# The last three are there wherever transformers is: it needs them itself.
MODEL_MAY_USE = {"torch", "transformers", "PIL", "numpy", "huggingface_hub", "safetensors", "tqdm"}

# The middle floor from its foundation up: a room may use only rooms that stand before it.
ROOMS = [
    *[
        "resources",
        "recipe_errors",
        "recipe_yaml",
        "recipe_files",
        "recipe_sources",
        "recipe_start",
        "recipe_objective",
    ],
    *["recipe_training", "recipe_tuning", "recipe", "model_parts"],
    *[
        "embedded",
        "data_readers",
        "data_files",
        "data_broken",
        "data_checks",
        "data_columns",
        "data_streams",
        "data_sources",
        "data_order",
        "data_mixing",
        "augmentation",
        "collator",
    ],
    *["distributed", "pairing", "tiled_losses", "pairwise_losses", "losses", "objective", "gradient_cache"],
    "step_parts",
    *["optimization", "arguments", "checkpoints", "run_folder", "stages", "tokenizer_training"],
    *["adapters", "averaging", "sharding", "sentence_files", "saving", "tuning", "initial_model"],
    *["progress", "finite", "health", "source_record", "trainer", "failures"],
    *["evaluation_metrics", "evaluation", "evaluation_suites", "baselines", "report_pictures", "report"],
    "__main__",
]
# Beside them, the steps of hub_upload; in there, too, a file may use only files that stand before it.
HUB_FOLDER = [
    *["errors", "probe", "installed", "onnx_export", "hub_names", "secrets_scan", "folder", "code_references"],
    *["card_record", "card", "build", "verify", "push"],
]
HUB_FOLDER_MAY_USE = {"torch", "transformers", "PIL", "numpy", "huggingface_hub", "safetensors"}
# A look upward that is allowed, from inside a function only: a recipe's training keys are the fields of the arguments,
# and the arguments of a run are made from its recipe.
LATE = {("recipe_training", "arguments")}
# These work on rows, tensors and callables; a model class has no business there.
KNOWS_NO_MODEL = re.compile(r"data_\w+|\w*losses|pairing|objective|distributed|gradient_cache|collator|evaluation\w*")


def room_of(path: Path) -> str:
    """Return the room a file of ``trainer_ext`` belongs to: its own name, or its subpackage's."""
    return path.relative_to(ROOT / "trainer_ext").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", named([path for path in files_of("modeling_jina_clip") if path.name != "__init__.py"]))
def test_model_files_know_only_torch_transformers_and_their_siblings(path: Path) -> None:
    allowed = MODEL_MAY_USE | ({"sentence_transformers"} if path.name == "custom_st.py" else set())
    for found in imports_of(path, package_of(path)):
        where = f"{path.name}:{found.line}"
        if found.level:
            assert found.level == 1, f"{where}: the Hub's folder is flat, there is no parent package"
            sibling = found.module.removeprefix("modeling_jina_clip").lstrip(".")
            assert sibling, f"{where}: write `from .name import X`; `from . import name` is not copied by the loader"
            assert (MODEL / f"{sibling}.py").is_file(), f"{where}: no sibling file {sibling}.py"
        else:
            assert found.root in allowed | sys.stdlib_module_names, (
                f"{where}: {found.module} is not for the model floor"
            )


def test_model_folder_is_flat() -> None:
    assert [entry.name for entry in MODEL.iterdir() if entry.is_dir() and entry.name != "__pycache__"] == []


def test_face_knows_its_siblings_and_transformers() -> None:
    for found in imports_of(MODEL / "__init__.py", "modeling_jina_clip"):
        assert found.level == 1 or found.root in sys.stdlib_module_names | {"transformers"}, (
            f"line {found.line}: {found}"
        )


def entry_files() -> set[Path]:
    """Return the files the Hub's loader starts from: those of the registered auto classes, and custom_st."""
    exported = [getattr(modeling_jina_clip, name) for name in modeling_jina_clip.__all__]
    registered = [item for item in exported if getattr(item, "_auto_class", None) is not None]
    return {MODEL / f"{item.__module__.rpartition('.')[2]}.py" for item in registered} | {MODEL / "custom_st.py"}


def test_remote_code_is_exactly_the_folder() -> None:
    """What the loader copies when it starts from the auto classes and custom_st is every file but the face."""
    reached, todo = set(), entry_files()
    while todo:
        path = todo.pop()
        reached.add(path.name)
        found = {
            MODEL / f"{item.module.rpartition('.')[2]}.py" for item in imports_of(path, package_of(path)) if item.level
        }
        todo |= {target for target in found if target.name not in reached}
    assert reached == {path.name for path in MODEL.glob("*.py")} - {"__init__.py"}


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


def test_rooms_are_the_files_of_the_trainer() -> None:
    assert {room_of(path) for path in files_of("trainer_ext")} == {*ROOMS, "__init__", "hub_folder"}


@pytest.mark.parametrize("path", named(files_of("trainer_ext")))
def test_trainer_sees_the_face_and_the_rooms_before(path: Path) -> None:
    room = room_of(path)
    before = ROOMS[: ROOMS.index(room)] if room in ROOMS else []
    for found in imports_of(path, package_of(path)):
        where = f"{path.relative_to(ROOT)}:{found.line}"
        assert found.root not in OURS - {"modeling_jina_clip", "trainer_ext"}, f"{where}: {found.module} is above"
        if found.root == "modeling_jina_clip":
            assert found.module == "modeling_jina_clip", f"{where}: only the face, not {found.module}"
            assert not KNOWS_NO_MODEL.fullmatch(room), f"{where}: {room} must not know a model"
        if found.root == "trainer_ext":
            # `from trainer_ext import losses` names the room among the imported names.
            for other in found.module.split(".")[1:2] or found.names:
                if found.late and (room, other) in LATE:
                    continue
                assert other == room or other in before, f"{where}: {room} may not use {other}"


@pytest.mark.parametrize("path", named(sorted((ROOT / "trainer_ext").glob("*losses.py"))))
def test_losses_import_torch_alone(path: Path) -> None:
    roots = {found.root for found in imports_of(path, package_of(path))} - sys.stdlib_module_names
    assert roots <= {"torch", "trainer_ext"}


def test_hub_upload_sees_the_model_and_its_own_steps_only() -> None:
    for found in imports_of(ROOT / "hub_upload.py"):
        where = f"hub_upload.py:{found.line}: {found.module}"
        assert found.root not in OURS - {"modeling_jina_clip", "trainer_ext"}, where
        assert not found.module.startswith("modeling_jina_clip."), f"{where}: only the face"
        assert found.root != "trainer_ext" or found.module.startswith("trainer_ext.hub_folder."), where


def test_hub_folder_is_its_files() -> None:
    assert {path.stem for path in files_of("trainer_ext/hub_folder")} == {*HUB_FOLDER, "__init__"}


@pytest.mark.parametrize(
    "path", named([ROOT / f"trainer_ext/hub_folder/{name}.py" for name in HUB_FOLDER if name != "probe"])
)
def test_hub_folder_sees_the_face_and_its_files_before(path: Path) -> None:
    before = {f"trainer_ext.hub_folder.{name}" for name in HUB_FOLDER[: HUB_FOLDER.index(path.stem)]}
    for found in imports_of(path, package_of(path)):
        foreign = found.root in HUB_FOLDER_MAY_USE | sys.stdlib_module_names
        assert foreign or found.module in {"modeling_jina_clip", *before}, found


def test_probe_of_verify_stands_alone() -> None:
    """It is run as a program where nothing of ours can be imported, and says so itself if a library is missing."""
    for found in imports_of(ROOT / "trainer_ext" / "hub_folder" / "probe.py", "trainer_ext.hub_folder"):
        libraries = HUB_FOLDER_MAY_USE | {"onnxruntime", "sentence_transformers"} if found.late else set()
        assert found.root in libraries | sys.stdlib_module_names, found


def test_command_line_of_hub_upload_loads_nothing_heavy() -> None:
    """Wrong arguments are answered at once, and training is not needed to publish."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hub_upload; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"modeling_jina_clip", "sentence_transformers", *HUB_FOLDER_MAY_USE})
    ours = {name for name in loaded if name.startswith("trainer_ext.")}
    assert ours == {"trainer_ext.hub_folder", *(f"trainer_ext.hub_folder.{name}" for name in HUB_FOLDER)}


def test_configuration_holds_values_not_code() -> None:
    suffixes = {path.suffix for path in (ROOT / "configuration").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml"}


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import trainer_ext.losses", "", ["trainer_ext.losses"]),
        ("from .losses import info_nce", "trainer_ext", ["trainer_ext.losses"]),
        ("from . import losses", "trainer_ext", ["trainer_ext"]),
        ("from ..losses import info_nce", "trainer_ext.embedded", ["trainer_ext.losses"]),
        ("def late():\n    from hub_upload import build", "trainer_ext", ["hub_upload"]),
        ("if TYPE_CHECKING:\n    import examples.train", "trainer_ext", ["examples.train"]),
    ],
)
def test_reader_sees_every_form_of_import(tmp_path: Path, source: str, package: str, expected: list[str]) -> None:
    """The rules above are worth what this reader sees."""
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert [found.module for found in imports_of(path, package)] == expected
