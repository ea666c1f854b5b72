"""Every command and snippet of README and guides: run in a prepared folder, or listed here with the reason why not.

They are found in the pages: each line of a ``bash`` block, each indented or quoted line that begins with a program,
each ``python`` and ``yaml`` block. One that is in none of the tables below fails the test; so does a table's line that
no page has any more. Most commands take the time of a training or an export: ``make test-slow`` runs them, page by page
in the order they stand; what can be checked without running is checked by ``make test``.
"""

import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import hub_upload
from examples import launch_training
from tests.source_imports import ROOT
from tests.workspace import make_workspace, run, run_online
from trainer_ext import __main__ as trainer
from trainer_ext.commands import mine
from trainer_ext.recipe.evaluation import load_tasks
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.source_list import find_source, load_source_list

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), "examples/README.md"]
PROGRAMS = ("accelerate", "git", "hf", "jina-clip", "jina-clip-train", "make", "pip", "pytest", "python", "torchrun")


class Shown(NamedTuple):
    """A command (one line) or a snippet (a block) of a page."""

    kind: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def shown_in(text: str) -> list[Shown]:
    """All of a page, in the order they stand; ``a && b`` is two commands."""
    found: list[tuple[int, Shown]] = []

    def add_line(place: int, line: str) -> None:
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                found.append((place, Shown("command", part if ">" in words else shlex.join(words))))

    def fenced(block: re.Match) -> str:
        if block[1] in ("python", "yaml"):
            found.append((block.start(), Shown(block[1], block[2])))
        for line in block[2].replace("\\\n", " ").splitlines() if block[1] == "bash" else ():
            add_line(block.start(), line)
        return " " * len(block[0])  # places of the rest stay

    rest = re.sub(r"^```(\w*)\n(.*?)^```", fenced, text, flags=re.MULTILINE | re.DOTALL)
    programs = "|".join(PROGRAMS)
    for line in re.finditer(rf"^    ((?:{programs}) .*)|`((?:{programs}) [^`]+)`", rest, re.MULTILINE):
        add_line(line.start(), line[1] or line[2])
    return [shown for _, shown in sorted(found, key=lambda item: item[0])]


ALL = {page: shown_in((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = list(dict.fromkeys(shown.text for page in PAGES for shown in ALL[page] if shown.kind == "command"))

# --- Commands that run, with what is put behind each so that it takes seconds: the last value of an option counts.
SHORT = ["stages.0.steps=2", "stages.0.warmup_steps=1"]
SMALL = [f"stages.0.{side}.batch_size=8" for side in ("image_text", "text")]
DEMO = ["evaluation=null", "stages.1.steps=1", "stages.2.steps=1", "stages.0.steps=1", "stages.2.text.batch_size=8"]
DEMO += [f"stages.{n}.{side}.batch_size=8" for n, side in product(range(3), ("image_text", "text"))]
TINY = ["--width", "64", "--rows", "8", "--chunk", "4"]
RUN: dict[str, list[str]] = {
    "python examples/search_images.py outputs/openmoji-hub 'a red apple' --images my_pictures/": [],
    "python -m trainer_ext openmoji --output_dir outputs/shorter stages.0.steps=100 save_steps=50": DEMO,
    "python -m trainer_ext openmoji --only_stage short-captions --output_dir outputs/start evaluation=null "
    "stages.0.steps=150 stages.0.image_text.batch_size=64 stages.0.text.batch_size=64": [*SHORT, *SMALL],
    "python -m trainer_ext my_recipe.yaml --output_dir outputs/mine": [*SHORT, *SMALL],
    "python -m trainer_ext my_recipe.yaml --output_dir outputs/other seed=1": [*SHORT, *SMALL],
    "python -m trainer_ext merge outputs/openmoji outputs/mine --scale 0.5 --output_dir outputs/half": [],
    "python -m trainer_ext merge outputs/openmoji outputs/mine outputs/other --weights 0.6 0.4 "
    "--output_dir outputs/both": [],
    "python -m trainer_ext merge outputs/openmoji outputs/mine outputs/other --search probe.yaml "
    "--output_dir outputs/found": [],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-hub": [],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-hub --onnx": [],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-short --image_layers 3": ["--image_layers", "1"],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-hub --max_shard_size 2GB --license cc-by-sa-4.0": [],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-hub --notes notes.md --language en "
    "--base_model me/first-clip": [],
    "python hub_upload.py build outputs/openmoji outputs/openmoji-hub --license other --license_name my-terms-1.0 "
    "--license_link https://example.org/terms": [],
    'echo "Trained on drawings; photographs are foreign to it." > notes.md': [],
    "python hub_upload.py build outputs/mine outputs/mine-hub": [],
    "python hub_upload.py build outputs/tuned/with-texts outputs/tuned-hub": [],
    "python hub_upload.py verify outputs/mine-hub": [],
    "python hub_upload.py verify outputs/openmoji-hub": [],
    "python hub_upload.py verify outputs/openmoji-hub --python ../lowest/bin/python --python ../newest/bin/python": [],
    "python hub_upload.py push outputs/mine-hub --repo_id me/my-model --dry_run": [],
    "python hub_upload.py push outputs/openmoji-hub --repo_id me/openmoji-clip --private": [],
    "python hub_upload.py push outputs/openmoji-hub --repo_id me/openmoji-clip --dry_run": [],
    "python hub_upload.py push outputs/openmoji-hub --repo_id me/openmoji-clip --force": [],
    "python examples/finetune_folder.py outputs/openmoji pictures/ captions.csv --texts pairs.csv "
    "--output_dir outputs/tuned": ["--steps", "2", "--batch_size", "8"],
    "python examples/hard_negatives.py outputs/openmoji-hub pairs.csv --output_dir outputs/adapted": [
        *["--steps", "2", "--batch_size", "8", "--margin", "0"]
    ],
    "python -m trainer_ext mine my_recipe.yaml --source answers --retriever outputs/openmoji-hub --cache mined "
    "--out mined.parquet": ["--negatives", "1", "--margin", "none"],
    "python examples/launch_training.py my_recipe.yaml --output_dir outputs/mine": [
        *["--processes", "2", "use_cpu=true", *SHORT, *SMALL]
    ],
    "python -m trainer_ext.demo_data": [],
    "python -X importtime -c 'from transformers import AutoModel, PreTrainedModel; import modeling_jina_clip'": [],
    "python benchmarks/finetuning.py outputs/start --steps 60 --batch_size 32": [
        "--seeds",
        "1",
        "2",
        "--steps",
        "2",
        "--batch_size",
        "8",
    ],
    "python benchmarks/merging.py outputs/start --steps 60 --batch_size 32 --learning_rate 5e-4": [
        *["--seeds", "1", "--steps", "2", "--batch_size", "8", "--rows", "20", "--plot", "curve.png"]
    ],
    "python benchmarks/layers.py --plot layers.png": [
        *["--steps", "2", "--batch_size", "8", "--limit", "20", "--rounds", "1"]
    ],
    "python benchmarks/encode_speed.py text --texts 64": ["--texts", "2", "--rounds", "1"],
    "python benchmarks/query_latency.py": ["--rounds", "1", "--layers", "1", "--cases", "12 tokens"],
    "python benchmarks/encode_speed.py image --images 16 --peers .peers": ["--images", "1", "--rounds", "1"],
    "python benchmarks/encode_speed.py memory": ["--tokens", "64"],
    "python benchmarks/picture_loading.py --peers .peers": [
        *["--rounds", "1", "--kinds", "640x480", "--workers", "0", "--photos", "32"]
    ],
    "python benchmarks/query_latency.py --cpu": ["--rounds", "1", "--layers", "1"],
    "python benchmarks/products.py": ["--rounds", "1"],
    "python benchmarks/training_step.py": ["--rounds", "1"],
    "python benchmarks/joint_step.py": [*TINY, "--steps", "2", "--rounds", "1"],
    "python benchmarks/joint_step.py --compare bf16": [*TINY, "--widths", "64", "--steps", "2", "--rounds", "1"],
    "python benchmarks/trainer_overhead.py": [*TINY, "--steps", "3", "--workers", "0"],
    "python benchmarks/step_memory.py --plot curve.png": [
        *["--batches", "4", "8", "--chunk", "2", "--size", "32", "--tokens", "8"]
    ],
    "python benchmarks/resume_time.py": ["--rows", "2000", "--step", "5", "--batch_size", "32", "--repeats", "1"],
    "python benchmarks/gpu_step.py": ["--tiny", "--rounds", "1"],
    "python benchmarks/loss_memory.py": ["--most", "2048"],
    "python -m trainer_ext check my_recipe.yaml --output_dir outputs/check": SHORT,
    "python benchmarks/check_rows.py": ["--rows", "500", "--pictures", "50"],
    "python benchmarks/effects.py label_smoothing": ["--steps", "2", "--limit", "20"],
    "python benchmarks/memory_advice.py": ["--models", "jina-clip-v1", "--sizes", "224", "--cards", "80"],
}


# --- Commands that do not: a pattern, why, and what is checked in their place.
def target_exists(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def extras_exist(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra for word in words for extra in re.findall(r"\w+", "".join(re.findall(r"\[(.*)]", word)))}
    assert named <= set(project["optional-dependencies"])
    assert all(word.startswith((".", project["name"], "-")) for word in words[2:])


def trainer_takes(words: list[str]) -> None:
    """The trainer's own parser and recipe: names, overrides and the stage."""
    options = trainer.parse(words[words.index("trainer_ext") + 1 :])
    if options.recipe == "openmoji":
        recipe = load_recipe(options.recipe, [text for text in options.overrides if not text.startswith("model=")])
        assert options.only_stage in (None, *(stage.name for stage in recipe.stages))
        if options.only_stage:
            names = [f"model=outputs/openmoji/stages/{n}-{stage.name}" for n, stage in enumerate(recipe.stages)]
            assert set(options.overrides) <= set(names)


def mine_takes(words: list[str]) -> None:
    options = mine.parser().parse_args(words[words.index("mine") + 1 :])
    find_source(load_source_list(options.sources), options.source, options.sources)


def launcher_takes(words: list[str]) -> None:
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(words[2:])
        assert words[2] in launch_training.launcher(8)
    else:
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words[1:])
    trainer_takes(words)


def push_takes(words: list[str]) -> None:
    hub_upload.parser().parse_args(words[2:])


def hub_client_takes(words: list[str]) -> None:
    from huggingface_hub.cli.hf import app

    command, rest = app, words[1:]
    if not hasattr(command, "make_context"):  # in early versions the application is typer's
        from typer.main import get_command

        command = get_command(app)
    while hasattr(command, "commands"):
        _, command, rest = command.resolve_command(command.make_context("hf", list(rest), resilient_parsing=True), rest)
    command.make_context(words[1], list(rest))


def page_takes(words: list[str]) -> None:
    sys.path.insert(0, str(ROOT / "examples" / "app"))
    try:
        parse = runpy.run_path(str(ROOT / words[1]))["parse"]
    finally:
        sys.path.pop(0)
    assert parse(words[2:]).images == Path("photos")


def file_exists(words: list[str]) -> None:
    assert [word for word in words if (ROOT / word).is_file()]


def compare_takes(words: list[str]) -> None:
    from trainer_ext.commands.compare import parser

    parser().parse_args(words[4:])


def study_takes(words: list[str]) -> None:
    from examples.study.run import ARMS, chosen, read_arms

    arms = read_arms(yaml.safe_load(ARMS.read_text(encoding="utf-8")))
    assert chosen(words[2 : words.index("--seeds")], arms)


def scale_takes(words: list[str]) -> None:
    """Its options are those that ``--help`` names."""
    example, text = importlib.import_module(f"examples.{Path(words[1]).stem}"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(text), suppress(SystemExit):
        patch.setattr(sys, "argv", [words[1], "--help"])
        example.main()
    options = {word for word in words if word.startswith("--")}
    assert options
    assert options <= set(re.findall(r"--\w+", text.getvalue()))


def nothing(words: list[str]) -> None:
    """A name in a sentence, or a pattern with a placeholder."""


NOT_RUN: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    r"make [a-z-]+": ("installs, or takes minutes; what a target calls is run by itself", target_exists),
    r"pip install .*": ("installs", extras_exist),
    r"python examples/app/app\.py .*": ("needs Gradio: `make test-app` runs the page in a browser", page_takes),
    r"python examples/(embed_corpus|vector_database)\.py .*": (
        *("needs Ray and LanceDB: tests/examples/test_scale.py runs them", scale_takes),
    ),
    r"hf (repos|upload) .*": ("changes the Hub", hub_client_takes),
    r"hf auth login": ("asks for a token", hub_client_takes),
    r"(accelerate launch|torchrun) --.*": ("needs 8 GPUs", launcher_takes),
    r"python hub_upload\.py push .*--(revision|create_pr).*": (
        *("needs a repository with a branch: tests/trainer_ext/hub/test_push.py", push_takes),
    ),
    r"python -m trainer_ext mine openmoji .*": ("takes minutes: tests/trainer_ext/commands/test_mine.py", mine_takes),
    r"python -m trainer_ext openmoji .*(--only_stage hard-negatives|stages\.\d\.text=null).*": (
        *("the demo once more, or from its stages", trainer_takes),
    ),
    r"python -m trainer_ext my_recipe\.yaml --output_dir outputs/try .*": (
        *("its data are not there; test_yaml_loads loads it", nothing),
    ),
    r"python -m trainer_ext evaluate .*": ("tests/test_docs_evaluation.py runs it on the guide's files", nothing),
    r"python benchmarks/effects\.py .* --write .*": ("takes an hour", file_exists),
    r"python examples/study/run\.py .*": ("takes hours: tests/examples/test_study.py runs a tiny study", study_takes),
    r"python examples/study/(tables|scaling)\.py": ("writes a page that tests/examples compare with it", file_exists),
    r"python benchmarks/search_scale\.py": ("takes gigabytes and minutes", file_exists),
    r"python -m trainer_ext compare .*": ("tests/trainer_ext/report/test_comparison.py runs it", compare_takes),
    r"pytest -s .*": ("needs the peers of `make peers`", file_exists),
    r"(accelerate launch|jina-clip|python -m trainer_ext( mine)?)": ("a name", nothing),
    r"python -m trainer_ext RECIPE --output_dir DIR": ("a pattern", trainer_takes),
}
# Snippets are known by their first line.
RUN_NOW = {
    "import torch": "README: AutoModel",
    "from PIL import Image": "README: SentenceTransformer",
}
RUN_SLOWLY = {
    "import modeling_jina_clip  # this package installed: transformers knows the model, no remote code runs": "",
    "from transformers import AutoModel  # or without it: a folder of `hub_upload.py build` brings its code": "",
    "from modeling_jina_clip import JinaCLIPModel, save_published": "",
    "import onnxruntime": "needs the export before it",
    "from peft import PeftModel": "needs the fine-tuned adapter",
    "from trainer_ext.demo_data import load_table, prepare": "prepares the data",
    "from trainer_ext import train": "trains",
    "from trainer_ext import merge": "merges",
    "from modeling_jina_clip import JinaCLIPModel, pack_weights": "",
}
SNIPPETS_NOT_RUN = {
    "from torch.nn.functional import cosine_similarity": "trained by tests/trainer_ext/losses/test_register.py",
    "from langchain_huggingface import HuggingFaceEmbeddings": "tests/test_integrations.py, where it is installed",
    "from llama_index.embeddings.huggingface import HuggingFaceEmbedding": "the same",
    "from modeling_jina_clip import JinaCLIPModel, encode_record": "tests/modeling_jina_clip/test_records.py",
    "from trainer_ext.report import report_of_run, write_report": "tests/trainer_ext/report/test_page.py",
    "from trainer_ext.measuring import build_tasks, load_task_rows, open_model": "tests/test_docs_evaluation.py",
    "import mteb": "downloads data; tests/test_integrations.py",
}


def rule_of(command: str) -> tuple[str, Callable[[list[str]], None]] | None:
    return next((rule for pattern, rule in NOT_RUN.items() if re.fullmatch(pattern, command)), None)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_run_or_has_its_reason(command: str) -> None:
    rule = rule_of(command)
    assert (command in RUN) != (rule is not None), f"{command!r} belongs into one of RUN and NOT_RUN, and into one only"
    if rule is not None:
        rule[1](shlex.split(command))


def test_the_tables_name_nothing_that_is_no_longer_shown() -> None:
    assert set(RUN) <= set(COMMANDS)
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), pattern
    first = {shown.text.splitlines()[0] for page in PAGES for shown in ALL[page] if shown.kind == "python"}
    tables = (RUN_NOW, RUN_SLOWLY, SNIPPETS_NOT_RUN)
    assert sorted(first) == sorted(line for table in tables for line in table), "each snippet belongs into one table"


def test_every_benchmark_is_run() -> None:
    run_here = {word for command in RUN for word in command.split() if word.startswith("benchmarks/")}
    scripts = {
        f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
    }
    assert run_here | {"benchmarks/search_scale.py"} == scripts  # that one takes gigabytes


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize(
    "snippet",
    [shown.text for page in PAGES for shown in ALL[page] if shown.text.splitlines()[0] in RUN_NOW],
    ids=lambda text: text.splitlines()[0][:40],
)
def test_snippet_runs(snippet: str, checkout: Path) -> None:
    run(["-c", snippet], checkout)


@pytest.mark.parametrize("page", [page for page in PAGES if any(shown.kind == "yaml" for shown in ALL[page])])
def test_yaml_loads(page: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of sources lies beside the page's recipes; what is no recipe is a part of one."""
    monkeypatch.chdir(checkout)
    blocks = [yaml.safe_load(shown.text) for shown in ALL[page] if shown.kind == "yaml"]
    for block in blocks:
        if isinstance(block, list):
            (tmp_path / "my_sources.yaml").write_text(yaml.safe_dump(block))
    for block in blocks:
        if isinstance(block, dict) and "stages" in block:
            for section in (block, block.get("teacher", {})):
                if str(section.get("model")).startswith("outputs/"):
                    section["model"] = str(checkout / section["model"])
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(block))
            recipe = load_recipe(tmp_path / "recipe.yaml")
            assert recipe.name == block["name"]
        elif isinstance(block, dict) and "tasks" in block:
            (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(block))
            assert load_tasks(tmp_path / "tasks.yaml").tasks
        elif isinstance(block, dict):
            load_recipe("openmoji", [f"{key}={yaml.safe_dump(value).strip()}" for key, value in block.items()])


def test_a_page_is_read_whole() -> None:
    """What the finder knows: blocks, comments, two commands in a line, lines that go on, indented and quoted lines."""
    text = (
        "```bash\nmake a  # why\npip install \\\n  x && python y\n```\n\n    python z 'a b'\n\nand `make b`, `not me`\n"
    )
    commands = ["make a", "pip install x", "python y", "python z 'a b'", "make b"]
    assert shown_in(text) == [Shown("command", command) for command in commands]


def add_files(folder: Path) -> None:
    """The reader's own files, under the names that any page has for them."""
    shutil.copytree(folder / "my_pictures", folder / "pictures")
    (folder / "pictures" / "metadata.csv").unlink()
    rows = (folder / "my_pictures" / "metadata.csv").read_text().replace("file_name,text", "file,caption")
    (folder / "captions.csv").write_text(rows)
    pairs = [f"what is {n},it is {n}" for n in range(300)]
    (folder / "pairs.csv").write_text("\n".join(["query,positive", *pairs]))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    [recipe] = [shown.text for shown in ALL["README.md"] if shown.kind == "yaml"]
    (folder / "my_recipe.yaml").write_text(recipe)
    probe = next(shown.text for shown in ALL["docs/merging.md"] if shown.text.startswith("name: probe"))
    (folder / "probe.yaml").write_text(probe)


def runs_slowly(shown: Shown) -> bool:
    return shown.text.splitlines()[0] in RUN_SLOWLY if shown.kind == "python" else shown.text in RUN


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(runs_slowly, ALL[page]))])
def test_what_a_page_shows_runs_in_its_order(page: str, tmp_path: Path) -> None:
    """In a folder as `make demo` leaves it; each push meets an empty Hub on loopback."""
    folder = make_workspace(tmp_path)
    add_files(folder)
    cache = os.environ.get("JINA_CLIP_CACHE", str(ROOT / ".cache" / "tests"))  # the demo's data, prepared once
    for shown in filter(runs_slowly, ALL[page]):
        if shown.kind == "python":
            run(["-c", shown.text], folder, JINA_CLIP_CACHE=cache)
        elif shown.words[0] != "python":
            subprocess.run(["bash", "-c", shown.text], cwd=folder, check=True)
        elif "push" in shown.words:
            run_online([*shown.words[1:], *RUN[shown.text]], folder)
        else:
            words = [sys.executable if word.endswith("/bin/python") else word for word in shown.words[1:]]
            if "--peers" in words and not (ROOT / ".peers").is_dir():
                words = [word for word in words if word not in ("--peers", ".peers")]
            run([*words, *RUN[shown.text]], folder, JINA_CLIP_CACHE=cache)
