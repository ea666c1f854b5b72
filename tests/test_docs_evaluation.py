"""docs/evaluation.md: its command and its snippets run as they stand, on files laid out as it says."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.source_imports import ROOT
from tests.trainer_ext.own_files import few_draws, save_ours, write_files
from trainer_ext.__main__ import main
from trainer_ext.recipe.evaluation import EvaluationSpec, TaskSpec

GUIDE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_files(tmp_path_factory.mktemp("guide"))
    (made / "tasks.yaml").write_text(blocks("yaml")[0])
    save_ours(made / "outputs" / "openmoji")
    return made


def test_the_command_and_the_python_snippet_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    [words] = [line.split() for line in blocks("bash")[0].splitlines()]
    assert words[:3] == ["python", "-m", "trainer_ext"]
    with few_draws():
        assert main(words[3:]) == 0
    written = {path.name for path in Path("outputs/figures").iterdir()}
    assert {"metrics.json", "metrics.md", "samples.safetensors", "report.html", "vectors"} <= written
    capsys.readouterr()
    exec(blocks("python")[0], {})
    metrics = json.loads(Path("outputs/figures/metrics.json").read_text())["rows"][-1]["metrics"]
    assert {"shop@8/t2i_r5", "shop@int8/t2i_r5", "shop@binary/t2i_r5", "one-index/corrected_r5"} <= set(metrics)
    assert capsys.readouterr().out.splitlines()[-1] == str(metrics["shop/t2i_r5"])


def test_the_record_that_is_shown_has_the_form_of_a_real_one() -> None:
    [shown] = map(json.loads, blocks("json"))
    assert {"format", "sizes", "rows", "differences"} == set(shown)


def test_the_recipe_snippet_is_one() -> None:
    spec = EvaluationSpec.model_validate(yaml.safe_load(blocks("yaml")[2])["evaluation"])
    assert spec.tasks == [TaskSpec(name="drawings", source="openmoji-short")]
