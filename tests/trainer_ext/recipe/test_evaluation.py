"""The schema of tasks: what is taken, and each way to be told no in one line."""

import re
from pathlib import Path

import pytest
import yaml

from tests.trainer_ext.own_files import SOURCES, TASKS, write_tasks
from trainer_ext.recipe.evaluation import TaskSpec, load_tasks, sources_of
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe, recipe_differences, recipe_fingerprint


def test_the_example_of_the_guide_is_read(tmp_path: Path) -> None:
    found = load_tasks(write_tasks(tmp_path, truncate_dims=[8], precisions=["int8", "binary"]))
    tasks = {source.name: source.task for source in found.sources}
    measures = [spec.measured_as(tasks.get(spec.source or "")) for spec in found.tasks]
    assert measures == ["retrieval", "retrieval", "similarity", "classification", "match", "one-index"]
    assert found.sources[0].location == str(tmp_path / "test.jsonl"), "paths are taken from the file's folder"
    assert [source.name for source in sources_of(found.tasks[:1], found.sources)] == ["photos-test"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "{name: a, source: photo-test}",
            r"\(a\).source: there is no source 'photo-test'. Did you mean 'photos",
        ),
        (
            "{name: a, source: photos-test, corpus: answer}",
            r"corpus: there is no source 'answer'. Did you mean 'answers",
        ),
        (
            "{name: a, source: answers-test, directions: [t2i]}",
            "directions: are of images and texts, but",
        ),
        ("{name: a, source: photos-test, directions: [t2i, t2i]}", "lists a direction twice"),
        ("{name: a, source: photos-test, directions: [i2ti]}", "directions.0: must be 't2i', 'i2t' or 'i2i'"),
        ("{name: a, source: answers-test, classes: kind}", "measure: classification is not measured on task text-pair"),
        ("{name: a, source: sts-test, measure: match}", "match is not measured on task scored-pair"),
        ("{name: a, source: photos-test, measure: classification}", "classes: is required by classification"),
        ("{name: a, source: photos-test, templates: ['a {}']}", "templates: is for classification, but this task"),
        ("{name: a, source: photos-test, classes: kind, templates: [a photo]}", "must hold {} once"),
        (
            "{name: a, source: photos-test, prompts: {query: x}}",
            "prompts.query: task image-text has prompts for",
        ),
        ("{name: a}", "needs either source, a source to measure on, or mix"),
        ("{name: a, source: sts-test, mix: [b]}", "needs either source"),
        ("{name: a, mix: [shop]}", "mix: 'shop' is no task here"),
        ("{name: a, mix: [a]}", "mix: 'a' is a mix itself"),
        ("{name: a@b, source: sts-test}", "holds an @"),
        ("{name: a/b, source: sts-test}", "cannot name a file"),
        ("{name: a, source: photos-test, by_: x}", "by_: unknown key .* Did you mean 'by'"),
        ("{name: a, source: photos-test, metrics: [r7]}", "metrics.0: must be 'r1', "),
        ("{name: a, source: photos-test, limit: 0}", "limit: must be greater than 0"),
    ],
)
def test_a_task_that_cannot_be_measured_is_named_with_the_cure(tmp_path: Path, task: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        load_tasks(write_tasks(tmp_path, f"[{task}]"))
    assert len(str(refused.value).splitlines()) == 2, "one line, and the file's above it"


def test_tasks_of_one_name_and_mixes_of_other_kinds_are_refused(tmp_path: Path) -> None:
    twice = "[{name: a, source: sts-test}, {name: a, source: answers-test}]"
    with pytest.raises(RecipeError, match=r"tasks.1.name: 'a' is taken by tasks.0. Give it another"):
        load_tasks(write_tasks(tmp_path, twice))
    mixed = "[{name: a, source: sts-test}, {name: b, mix: [a]}]"
    with pytest.raises(RecipeError, match="mix: 'a' is no retrieval task"):
        load_tasks(write_tasks(tmp_path, mixed))


@pytest.mark.parametrize(("key", "values"), [("truncate_dims", [64, 8, 64]), ("precisions", ["int8", "int8"])])
def test_widths_and_precisions_are_named_once(tmp_path: Path, tiny_recipe: Path, key: str, values: list) -> None:
    said = re.escape(f"{key}: {values} lists one of them twice. Name each once.")
    with pytest.raises(RecipeError, match=said):
        load_tasks(write_tasks(tmp_path, "[{name: a, source: sts-test}]", **{key: values}))
    settings = {"tasks": [{"name": "a", "source": "scored"}], key: values}
    recipe = with_evaluation(tiny_recipe, tmp_path, settings)
    with pytest.raises(RecipeError, match=f"evaluation.{said}"):
        load_recipe(recipe)


def test_a_mix_is_offered_what_can_be_mixed(tmp_path: Path) -> None:
    tasks = "[{name: words, source: answers-test}, {name: sts, source: sts-test}, {name: b, mix: [gone]}]"
    with pytest.raises(RecipeError, match=r"'gone' is no task here. Tasks to mix: words\."):
        load_tasks(write_tasks(tmp_path, tasks))


def test_a_streaming_source_is_refused(tmp_path: Path) -> None:
    streaming = SOURCES.replace("name: answers-test,", "name: answers-test, streaming: true,")
    with pytest.raises(RecipeError, match="source: 'answers-test' is streaming, but evaluation needs all rows at once"):
        load_tasks(write_tasks(tmp_path, "[{name: a, source: answers-test}]", streaming))


@pytest.mark.parametrize("content", ["[]", "3", "{}", "{sources: [], tasks: []}", "{tasks: {}}"])
def test_what_is_no_file_of_tasks_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tasks.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"tasks.yaml"):
        load_tasks(tmp_path / "tasks.yaml")


def test_a_name_that_is_none_is_answered_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"No file of tasks 'openmojis'.* Did you mean 'openmoji'"):
        load_tasks("openmojis")


# --- in a recipe ---------------------------------------------------------------------------------------------------


def with_evaluation(tiny_recipe: Path, folder: Path, evaluation: object, **changes: object) -> Path:
    content = yaml.safe_load(tiny_recipe.read_text()) | {"evaluation": evaluation} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def test_a_recipe_measures_on_its_own_sources(tiny_recipe: Path, tmp_path: Path) -> None:
    tasks = [{"name": "shop", "source": "pictures"}, {"name": "sts", "source": "scored"}]
    settings = {"tasks": tasks, "every": 200, "keep_best": "shop/t2i_r5", "patience": 5, "validation_loss": True}
    spec = load_recipe(with_evaluation(tiny_recipe, tmp_path, settings)).evaluation
    assert spec is not None
    assert (spec.tasks[0], spec.every, spec.keep_best) == (TaskSpec(name="shop", source="pictures"), 200, "shop/t2i_r5")


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({}, "evaluation: measures nothing: give it tasks, a suite"),
        ({"tasks": [{"name": "a", "source": "picture"}]}, "there is no source 'picture'. Did you mean 'pictures'"),
        ({"suite": "openmoji", "patience": 3}, "evaluation.patience: waits for a better model, but by no figure"),
        (
            {"tasks": [{"name": "shop", "source": "pictures"}], "keep_best": "shops/t2i_r5"},
            "evaluation.keep_best: 'shops/t2i_r5' is a figure of no task here. Did you mean 'shop'",
        ),
        ({"tasks": [{"name": "a", "source": "pictures"}], "truncate_dims": [99]}, r"\[99\] are larger"),
    ],
)
def test_a_recipes_evaluation_is_checked(tiny_recipe: Path, tmp_path: Path, evaluation: object, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(with_evaluation(tiny_recipe, tmp_path, evaluation))


@pytest.mark.parametrize("in_a_section", [True, False])
def test_a_file_of_tasks_beside_the_recipe_is_found(tiny_recipe: Path, tmp_path: Path, in_a_section: bool) -> None:
    write_tasks(tmp_path)
    recipe = with_evaluation(tiny_recipe, tmp_path, {"suite": "tasks.yaml"} if in_a_section else "tasks.yaml")
    assert load_recipe(recipe).evaluation.suite == str(tmp_path / "tasks.yaml")
    assert load_recipe(recipe, ["evaluation=openmoji"]).evaluation.suite == "openmoji"


def test_a_holdout_changes_what_is_learnt_and_its_absence_does_not(tiny_recipe: Path) -> None:
    plain = load_recipe(tiny_recipe)
    held_out = load_recipe(tiny_recipe, ["sources.pictures.holdout=0.1"])
    assert recipe_fingerprint(plain) != recipe_fingerprint(held_out)
    assert recipe_differences(plain, held_out) == ["sources.0.holdout: absent -> 0.1"]
    with pytest.raises(RecipeError, match=r"holdout: must be less than or equal to 0.5"):
        load_recipe(tiny_recipe, ["sources.pictures.holdout=0.6"])


def test_the_guide_has_the_example_and_every_key() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for key in TaskSpec.model_fields:
        assert f"`{key}`" in guide, key
    for line in [*TASKS.strip().splitlines(), *SOURCES.strip().splitlines()]:
        assert line in guide, line
