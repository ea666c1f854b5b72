"""The side ``images`` and sources of task image-pair: what recipes may say, and that older ones stay what they were."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer_ext.recipe_trees import base, problems, put, source, write
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe, recipe_differences, recipe_fingerprint
from trainer_ext.recipe.stages import Augmentation, ColorJitter, Stage


def tree(columns: dict[str, str] | None = None, **side: Any) -> dict[str, Any]:
    """The base recipe with pairs of pictures in its first stage."""
    found = base()
    columns = {"image": "file", "id": "product"} if columns is None else columns
    found["sources"].append(source("photos") | {"name": "products", "task": "image-pair", "columns": columns})
    found["stages"][0]["images"] = {"sources": ["prod*"], "batch_size": 8, **side}
    return found


def test_defaults(tmp_path: Path) -> None:
    side = load_recipe(write(tmp_path, tree())).stages[0].images
    assert side is not None
    assert (side.loss, side.temperature, side.sources) == ("nt_xent", None, ["products"])
    assert [name for name, _ in load_recipe(write(tmp_path, tree())).stages[0].sides()][-1] == "images"
    assert load_recipe(write(tmp_path, tree(temperature=0.2))).stages[0].images.temperature == 0.2


def test_a_teacher_teaches_the_old_sides_unless_told(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    teacher = {"teacher": {"model": str(tmp_path / "old"), "kind": "scores"}}
    assert load_recipe(write(tmp_path, tree() | teacher)).teacher.sides == ["image_text", "text"]
    teacher["teacher"]["sides"] = ["images"]
    assert load_recipe(write(tmp_path, tree() | teacher)).teacher.sides == ["images"]
    [line] = problems(tmp_path, base() | teacher)
    assert line == "teacher.sides: no stage trains images, so it teaches nothing. Name another side."


def test_recipes_without_the_side_stay_the_same_run(tmp_path: Path) -> None:
    """A run of a version that did not know it has no such key in its stored recipe."""
    recipe = load_recipe(write(tmp_path, base()))
    stored = recipe.model_dump(mode="json")
    for stage in stored["stages"]:
        assert stage.pop("images") is None
    assert recipe_fingerprint(Recipe.model_validate(stored)) == recipe_fingerprint(recipe)
    with_side = load_recipe(write(tmp_path, tree()))
    assert recipe_fingerprint(with_side) != recipe_fingerprint(recipe)
    assert "stages.0.images.loss: absent -> 'nt_xent'" in recipe_differences(recipe, with_side)


REFUSED: list[tuple[str, Any, str]] = [
    ("stages.0.images.loss", "info_nce", "stages.0.images.loss: 'info_nce' does not work here; the images side takes"),
    ("stages.0.image_text.loss", "nt_xent", "'nt_xent' is for pictures against pictures; the image_text side takes"),
    ("stages.0.text.loss", "nt_xent", "'nt_xent' is for pictures against pictures; the text side takes"),
    (
        "stages.0.images.temperature",
        "trained",
        "stages.0.images.temperature: is 'trained', but the model's belongs to images and captions. Give a number.",
    ),
    ("stages.0.images.temperature", 0, "stages.0.images.temperature: must be a number above 0 or 'trained', got 0."),
    ("stages.0.images.directions", "forward", "is 'forward', but nt_xent compares pairs and has no directions."),
    ("stages.0.images.reduction", "mean", "is 'mean', but nt_xent compares pairs and has no directions."),
    ("stages.0.images.sources", ["photos"], "'photos' has task image-text, but images with loss nt_xent needs task"),
    ("stages.0.image_text.sources", ["products"], "'products' has task image-pair, but image_text with loss info_nce"),
    ("stages.0.images.batch", 8, "stages.0.images.batch: unknown key (value 8). Did you mean 'batch_size'?"),
    ("sources.4.columns", {"image": "file", "caption": "c"}, "columns.caption: task image-pair has no such column."),
    ("sources.4.columns", {"id": "product"}, "columns.image: is required by task image-pair. Add it"),
    ("sources.4.prompts", {"caption": "a "}, "prompts: stand before texts; task image-pair has none. Take them out."),
    ("sources.4.streaming", True, "streaming: is on, but pairs are made of rows of one id,"),
    ("stages.0.trainable", ["text"], "stages.0.images: the image tower is frozen, so this side teaches nothing."),
    ("stages.0.image_text", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "line"), REFUSED, ids=[f"{row[0]}={row[1]}" for row in REFUSED])
def test_what_is_refused(tmp_path: Path, path: str, value: Any, line: str | None) -> None:
    changed = put(tree(), path, value)
    if line is None:
        load_recipe(write(tmp_path, changed))
        return
    assert any(line in found for found in problems(tmp_path, changed))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("text", "'text' learns nothing without texts"),
        ("temperature", "'temperature' learns nothing without images and captions"),
    ],
)
def test_what_pictures_alone_do_not_train(tmp_path: Path, part: str, words: str) -> None:
    changed = put(
        put(put(tree(), "stages.0.image_text", None), "stages.0.text", None), "stages.0.trainable", ["vision"]
    )
    load_recipe(write(tmp_path, changed))
    changed["stages"][0]["trainable"] = ["vision", part]
    assert any(words in line for line in problems(tmp_path, changed))


def test_keys_of_pictures_are_for_this_task_too(tmp_path: Path) -> None:
    changed = tree()
    changed["sources"][4] |= {"background": "white", "image_folder": str(tmp_path)}
    changed["stages"][0] |= {"image_text": None, "augmentation": {"grayscale": 0.1}, "image_size": 64}
    assert load_recipe(write(tmp_path, changed)).stages[0].images is not None


VIEWS = {"image": "file"}
CURE = "nothing in this stage tells the two apart. Map id: THE DATA'S COLUMN that pictures of one thing share, or give"


@pytest.mark.parametrize(
    ("changes", "apart"),
    [
        ({}, False),
        ({"random_resized_crop": [0.5, 1.0]}, True),
        ({"random_resized_crop": [1.0, 1.0]}, False),
        ({"augmentation": {"horizontal_flip": 1.0, "grayscale": 1.0}}, False),
        ({"augmentation": {"word_deletion": 0.1}}, False),
        ({"augmentation": {"color_jitter": {"probability": 0.0}}}, False),
        ({"augmentation": {"horizontal_flip": 0.5}}, True),
        ({"augmentation": {"gaussian_blur": 1.0}}, True),
        ({"augmentation": {"color_jitter": {}}}, True),
    ],
)
def test_two_views_have_to_differ(tmp_path: Path, changes: dict[str, Any], apart: bool) -> None:
    changed = tree(VIEWS)
    changed["stages"][0] |= changes
    if apart:
        load_recipe(write(tmp_path, changed))
        changed["sources"][4]["streaming"] = True  # no ids to be known
        load_recipe(write(tmp_path, changed))
        return
    [line] = problems(tmp_path, changed)
    assert line.startswith("stages.0.images.sources.0: 'products' maps no id")
    assert CURE in line


def test_a_stage_knows_what_it_reads() -> None:
    plain = {"name": "one", "steps": 1, "learning_rate": 1.0, "max_length": 8}
    side = {"sources": ["x"], "batch_size": 2}
    read = {
        name: stage.has_pictures()
        for name in ("image_text", "text", "images")
        for stage in [Stage(**plain, **{name: side})]
    }
    assert read == {"image_text": True, "text": False, "images": True}
    assert Augmentation(color_jitter=ColorJitter(probability=0.1)).tells_views_apart()


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ({"directions": ["i2i"]}, None),
        ({"classes": "colour"}, None),
        ({"directions": ["t2i"]}, "directions: are of images and texts, but 'products' has task image-pair."),
        ({"measure": "match"}, "match is not measured on task image-pair, which 'products' has."),
        ({"prompts": {"caption": "a "}}, "prompts: are for texts; task image-pair has none. Take them out."),
    ],
)
def test_what_is_measured(tmp_path: Path, task: dict[str, Any], line: str | None) -> None:
    changed = tree() | {"evaluation": {"tasks": [{"name": "same", "source": "products", **task}]}}
    if line is None:
        assert load_recipe(write(tmp_path, changed)).evaluation is not None
        return
    assert any(line in found for found in problems(tmp_path, changed))


def test_retrieval_needs_ids(tmp_path: Path) -> None:
    changed = tree(VIEWS) | {"evaluation": {"tasks": [{"name": "same", "source": "products"}]}}
    changed["stages"][0]["random_resized_crop"] = [0.5, 1.0]
    [line] = problems(tmp_path, changed)
    assert "source: 'products' maps no id, so no picture has a partner to be found. Add id:" in line


def test_other_keys_know_the_side(tmp_path: Path) -> None:
    changed = tree()
    changed["stages"] = [changed["stages"][0] | {"image_text": None, "text": None}]
    changed |= {"image_decoding": "fast", "matryoshka": {"dims": [256], "layers": {"image": [2, 4]}}}
    assert not any("image_decoding" in line or "no stage" in line for line in lines_of(tmp_path, changed))
    changed["matryoshka"]["layers"] = [2, 4]
    assert any("no stage has texts, so nothing would train them" in line for line in lines_of(tmp_path, changed))
    changed["stages"][0]["images"]["captions_per_image"] = 2
    [line] = [line for line in lines_of(tmp_path, changed) if "captions_per_image" in line]
    assert "is for the captions of pictures; this side has none" in line
    changed = put(tree(), "sources.4.balance", {"key": "product", "limit": 2})
    [line] = problems(tmp_path, changed)
    assert line.endswith("balance: is of rows, but a step takes ids here, each as often as the others. Take it out.")


def lines_of(folder: Path, content: dict[str, Any]) -> list[str]:
    """The problems of a recipe that may have some."""
    try:
        load_recipe(write(folder, content))
    except RecipeError as error:
        return str(error).splitlines()
    return []
