"""The harness of docs/effects.md: its statistics, its table, its arms, and a whole comparison on the tiny run."""

import shutil
from pathlib import Path

import pytest
import yaml
from scipy import stats

from benchmarks.effects import ARMS, HEAD, Runs, with_rows
from benchmarks.paired import paired_difference, trained
from tests.trainer_ext.tiny_run import write_data, write_recipe
from trainer_ext.locks import FolderInUseError, held
from trainer_ext.recipe.evaluation import load_tasks
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import load_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "effects.md").read_text(encoding="utf-8")
CONTENT = yaml.safe_load(ARMS.read_text(encoding="utf-8"))


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    without, having = [10.0, 12.5, 9.0, 11.0], [12.0, 13.0, 12.5, 11.5]
    found = stats.ttest_rel(having, without)
    low, high = found.confidence_interval(0.95)
    mean, half = paired_difference(without, having)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="2 pairs are too few for an interval; give at least 3 seeds"):
        paired_difference([1.0, 2.0], [1.0, 2.0])


def test_rows_are_replaced_or_added() -> None:
    page = with_rows(with_rows(PAGE, "new", ["| `new` | 1 |"]), "newer", ["| `newer` | 1 |"])
    again = with_rows(page, "new", ["| `new` | 2 |", "| `new` | 3 |"]).splitlines()
    place = again.index("| `new` | 2 |")
    assert again[place : place + 4] == ["| `new` | 2 |", "| `new` | 3 |", "| `newer` | 1 |", ""]
    assert again.index(HEAD) < place
    assert PAGE.endswith("\n") == page.endswith("\n")
    with pytest.raises(ValueError, match="no table with the head"):
        with_rows("words", "new", [])


@pytest.mark.parametrize("name", CONTENT["arms"])
def test_an_arm_is_a_recipe_and_the_page_names_it(name: str, tmp_path: Path) -> None:
    runs = Runs(CONTENT, tmp_path)
    arm, spec = runs.arms[name], CONTENT["recipes"][CONTENT["arms"][name]["recipe"]]
    measured = CONTENT["measured"]
    tasks = {task.name for task in load_tasks(measured["suite"]).tasks} & set(measured["tasks"])
    tasks |= {task["name"] for task in measured["own_tasks"]}
    assert {figure.partition("/")[0] for figure in arm.figures} <= tasks
    assert arm.having != arm.without
    (tmp_path / "half").mkdir()
    for folder in (tmp_path, tmp_path / "half"):  # models' folders to a recipe
        shutil.copy(find_resource("models", "openmoji-small"), folder / "config.json")
    for own in (arm.having, arm.without):
        own = [text.replace("{data}", str(tmp_path)).replace("{start}", str(tmp_path)) for text in own]
        recipe = load_recipe(spec["recipe"], [*spec["overrides"], *own])
        assert len(recipe.stages) == 1
    assert f"`{name}`" in PAGE


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    """Two calls in one folder may want the same run, such as the one without a key."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "half.txt").write_text("written so far")
    with held(tmp_path / "run", ["train"], print), pytest.raises(FolderInUseError, match="is in use by process"):
        trained(tmp_path / "run", "openmoji", [])
    assert (tmp_path / "run" / "half.txt").read_text() == "written so far"


@pytest.mark.slow
def test_a_whole_comparison(tmp_path: Path) -> None:
    """Runs without are shared by arms, and a second call trains nothing."""
    write_data(tmp_path)
    tiny_recipe = write_recipe(tmp_path)
    sources = yaml.safe_load(tiny_recipe.read_text())["sources"][:2]
    tasks = [{"name": "pictures", "source": "pictures"}, {"name": "texts", "source": "successors"}]
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"sources": sources, "tasks": tasks}))
    images, texts = "image_text: {sources: [pictures], batch_size: 4}", "text: {sources: [successors], batch_size: 4}"
    stage = f"stages=[{{name: one, steps: 3, learning_rate: 1e-3, max_length: 8, {images}, {texts}}}]"
    recipe = {"recipe": str(tiny_recipe), "overrides": [stage]}
    content = {
        "recipes": {"short": recipe, "tune": recipe | {"start": "short"}},
        "measured": {"suite": str(tmp_path / "tasks.yaml"), "limit": 9, "tasks": ["pictures", "texts"]},
        "arms": {
            "smooth": {"recipe": "short", "having": ["stages.0.text.label_smoothing=0.5"], "figures": ["texts/ndcg10"]},
            "hard": {"recipe": "tune", "having": ["stages.0.text.hardness=5.0"], "figures": ["pictures/t2i_r5"]},
            "copied": {
                "recipe": "tune",
                "prepare": [["-c", "import shutil; shutil.copytree('{start}', '{data}/copy')"], ["-c", "pass"]],
                "having": ["model={data}/copy", "teacher={model: '{start}', kind: scores}"],
                "without": ["model={data}/copy"],
                "figures": ["texts/ndcg10"],
            },
        },
    }
    for steps in (None, 2):
        runs = Runs(content, tmp_path / "effects", steps)
        for name, count in (("smooth", 6), ("hard", 7), ("copied", 6)):
            before = set((tmp_path / "effects").glob("runs/*"))
            [row] = runs.compare(name, [1, 2, 3])
            assert row.startswith(f"| `{name}` |")
            made = set((tmp_path / "effects").glob("runs/*"))
            assert len(made - before) == count
            assert runs.compare(name, [1, 2, 3]) == [row]
            assert set((tmp_path / "effects").glob("runs/*")) == made
