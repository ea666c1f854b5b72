"""``merge_with_start``: whole folders and rows of the report at the end of a run, once; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import hub_upload
from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.merging.families import make_folder
from tests.trainer_ext.tiny_run import make_tokenizer
from trainer_ext.__main__ import main
from trainer_ext.evaluation.report import Report
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe

TEXTS = ["one red bar", "two is after"]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage of the tiny run from a model's folder, merged with it, measured on its own pictures and pairs."""
    folder = tmp_path_factory.mktemp("merged-run")
    content = yaml.safe_load(tiny_recipe.read_text())
    content["stages"] = content["stages"][:1]
    content |= {"model": str(make_folder(folder / "start")), "tokenizer": None, "merge_with_start": [0.25, 0.5]}
    tasks = [{"name": "texts", "source": "successors", "metrics": ["r5"]}]
    content |= {"evaluation": {"tasks": [*tasks, {"name": "bars", "source": "pictures", "metrics": ["r1"]}]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    """The run's folder."""
    folder = recipe.parent / "run"
    assert main([str(recipe), "--output_dir", str(folder)]) == 0
    return folder


def times_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def names_of(folder: Path) -> list[str]:
    return [row.name for row in Report.load(folder).rows if row.kind != "reference"]


def test_folders_and_rows(recipe: Path, finished: Path) -> None:
    start, end = (load_file(folder / "model.safetensors") for folder in (recipe.parent / "start", finished))
    for share in (0.25, 0.5):
        merged = load_file(finished / f"merged-{share}" / "model.safetensors")
        for name, value in merged.items():
            torch.testing.assert_close(value, start[name] + share * (end[name] - start[name]), rtol=0, atol=1e-6)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert names_of(finished) == ["before training", "pairs", "merged-0.25", "merged-0.5"]
    rows = {row.name: row for row in Report.load(finished).rows}
    assert rows["merged-0.5"].metrics.keys() == rows["pairs"].metrics.keys()
    assert rows["merged-0.5"].kind == "model"  # the last stage stays the run's own result
    assert "merged-0.5" in (finished / "report.html").read_text()
    assert [path.name for path in finished.iterdir() if path.name.startswith(".")] == []


def test_every_door_loads_them(finished: Path, tmp_path: Path) -> None:
    folder = finished / "merged-0.5"
    expected = JinaCLIPModel.from_pretrained(folder).encode_text(TEXTS)
    found = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").encode(TEXTS)
    assert abs(found - expected).max() < 1e-6
    card = (hub_upload.build(folder, tmp_path / "hub") / "README.md").read_text()
    assert "50% of the way from the start" in card
    assert "| task | metric | chance |" in card
    assert card.count("merged-0.5") == 1
    assert "merged-0.25" not in card
    assert str(finished) not in card


def test_a_finished_run_is_left_as_it_is(recipe: Path, finished: Path) -> None:
    before = {share: times_of(finished / f"merged-{share}") for share in (0.25, 0.5)}
    figures = (finished / "metrics.json").read_bytes()
    assert main([str(recipe), "--output_dir", str(finished), "--resume"]) == 0
    assert {share: times_of(finished / f"merged-{share}") for share in (0.25, 0.5)} == before
    assert (finished / "metrics.json").read_bytes() == figures


@pytest.mark.slow
def test_a_resume_makes_what_is_missing_alone(recipe: Path, finished: Path) -> None:
    """Another share is no other training; a folder whose lineage is damaged is made anew."""
    kept = times_of(finished / "merged-0.25")
    whole = (finished / "merged-0.5" / "model.safetensors").read_bytes()
    (finished / "merged-0.5" / "merge.json").write_text("{}")
    words = ["merge_with_start=[0.25, 0.5, 1.0]"]
    assert main([str(recipe), "--output_dir", str(finished), "--resume", *words]) == 0
    assert times_of(finished / "merged-0.25") == kept
    assert (finished / "merged-0.5" / "model.safetensors").read_bytes() == whole
    end, same = (load_file(folder / "model.safetensors") for folder in (finished, finished / "merged-1"))
    assert all(torch.equal(end[name], same[name]) for name in end)
    assert names_of(finished)[-1] == "merged-1"
    rows = {row.name: row.metrics for row in Report.load(finished).rows}
    assert rows["merged-1"] == rows["pairs"]


@pytest.mark.slow
def test_without_an_evaluation_the_folders_are_made(recipe: Path, tmp_path: Path) -> None:
    words = ["evaluation=null", "merge_with_start=[0.75]"]
    assert main([str(recipe), "--output_dir", str(tmp_path / "run"), *words]) == 0
    record = json.loads((tmp_path / "run" / "merged-0.75" / "merge.json").read_text())
    assert record["scale"] == 0.75
    assert record["base"]["folder"] == str(recipe.parent / "start")


@pytest.mark.slow
def test_lora_is_merged_with_its_start(recipe: Path, tmp_path: Path) -> None:
    words = ["evaluation=null", "merge_with_start=[0.5]", "lora={r: 2, alpha: 8}"]
    assert main([str(recipe), "--output_dir", str(tmp_path / "run"), *words]) == 0
    start, end = (load_file(folder / "model.safetensors") for folder in (recipe.parent / "start", tmp_path / "run"))
    merged = load_file(tmp_path / "run" / "merged-0.5" / "model.safetensors")
    for name, value in merged.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2, rtol=0, atol=1e-6)


WRONG: dict[str, tuple[list[str], str]] = {
    "behind the end": (["merge_with_start=[0.5, 1.5]"], "merge_with_start.1: 1.5 lies behind the end of the way"),
    "the start": (["merge_with_start=[0]"], "merge_with_start.0: "),
    "not a number": (["merge_with_start=[half]"], "merge_with_start.0: "),
    "none": (["merge_with_start=[]"], "merge_with_start: "),
    "no list": (["merge_with_start=0.5"], "merge_with_start: "),
    "twice": (["merge_with_start=[0.5, 0.50]"], "merge_with_start.1: 0.5 is the folder merged-0.5 once more"),
    "a stage's name": (["stages.0.name=merged-0.5"], "0.5 is merged-0.5 in the report, as a stage is"),
    "from scratch": (["model=jina-clip-v1"], "the run starts from random weights, and between those and trained ones"),
    "new towers": (["initialize={vision: TOWER}"], "merge_with_start: the start is put together by initialize"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(recipe: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [word.replace("TOWER", str(recipe.parent / "start")) for word in words])
    assert message in str(caught.value)


def test_another_tokenizer_is_refused_before_the_first_step(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words: list[Any] = [recipe, "--output_dir", tmp_path / "run", f"tokenizer={tmp_path / 'tokenizer'}"]
    assert main([str(word) for word in words]) == 2
    assert "the tokenizers differ: 'zebra' is token None and " in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
