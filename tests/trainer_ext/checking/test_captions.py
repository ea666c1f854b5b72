"""What ``check`` says of sentences, and of rows with fewer captions than a stage takes."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer_ext.checking.planted import encoded, picture, source, write_recipe, write_rows
from tests.trainer_ext.tiny_run import make_processor, write_data
from trainer_ext.checking.batches_shown import stage_batches
from trainer_ext.checking.check import Checked, check
from trainer_ext.checking.findings import Finding
from trainer_ext.checking.fit import micro_recipe
from trainer_ext.checking.plan_shares import make_plan
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import Recipe, load_recipe

CAPTIONS = [
    ["One red bar. Two is not after nine.", "three bar"],
    ["four"],
    ["Five is a bar on six on seven on eight on nine. Red."],
    ["one", "two", "three"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def recipe_of(folder: Path, **keys: Any) -> Recipe:
    rows = [{"image": encoded(picture(n)), "caption": texts} for n, texts in enumerate(CAPTIONS)]
    photos = source(write_rows(folder / "photos.parquet", rows), ("image", "caption"), "photos")
    return load_recipe(write_recipe(folder, [photos], {"image_text": {"sources": ["photos"], "batch_size": 4, **keys}}))


def found(checked: Checked, kind: str) -> list[Finding]:
    return [one for group, kept in checked.log.shown.items() if group.kind == kind for one in kept]


def test_whole_captions_are_counted_whole(folder: Path) -> None:
    checked = check(recipe_of(folder), steps=False)
    [cut] = found(checked, "cut")
    assert cut.words.startswith("stage 'only' cuts 1 of 7 (14.3%) of the caption texts at max_length 12")
    assert not found(checked, "few-captions")
    assert "sentences" not in checked.sources["photos"]["texts"]


def test_sentences_are_what_is_cut(folder: Path) -> None:
    """10 sentences; the long one has 12 words and a full stop, between two special tokens."""
    checked = check(recipe_of(folder, split_captions="sentences", captions_per_image=2), steps=False)
    [cut] = found(checked, "cut")
    assert cut.words.startswith("stage 'only' cuts 1 of 9 (11.1%) of the sentence texts at max_length 12")
    assert (cut.row, cut.column) == (2, "caption")
    assert checked.sources["photos"]["texts"]["sentences"]["texts"] == 9
    [few] = found(checked, "few-captions")
    assert "captions_per_image 2, and 1 of 4 (25.0%) of the rows have fewer" in few.words
    assert (few.level, few.row, few.column) == ("note", 1, "caption")


def test_rows_with_fewer_captions_are_counted(folder: Path) -> None:
    [few] = found(check(recipe_of(folder, captions_per_image=3), steps=False), "few-captions")
    assert "stage 'only' takes captions_per_image 3, and 3 of 4 (75.0%) of the rows have fewer" in few.words
    assert few.row == 0


def test_batches_show_every_caption_of_a_picture(folder: Path) -> None:
    recipe = recipe_of(folder, captions_per_image=2, split_captions="sentences")
    [batch] = stage_batches(
        recipe, load_sources(recipe.used_sources()), make_processor(), make_plan(recipe, {"photos": 4})
    )
    assert all([text.name for text in row.texts] == ["caption", "caption"] for row in batch.rows)
    assert ["four", "four"] in [[text.text for text in row.texts] for row in batch.rows]


def test_batches_show_the_short_caption(folder: Path) -> None:
    recipe = recipe_of(folder, short_caption={"principal_components": 2})
    [batch] = stage_batches(
        recipe, load_sources(recipe.used_sources()), make_processor(), make_plan(recipe, {"photos": 4})
    )
    shown = {row.texts[1].text for row in batch.rows}
    assert {row.texts[1].name for row in batch.rows} == {"short caption"}
    assert {"four", "one"} < shown


def test_a_tried_step_has_no_more_components_than_pictures(folder: Path) -> None:
    """One of four processes holds one picture; the run itself has four."""
    recipe = recipe_of(folder, short_caption={"principal_components": 3})
    short = micro_recipe(recipe, processes=4)
    side = short.stages[0].image_text
    assert (side.batch_size, side.short_caption.principal_components) == (1, 1)
    assert micro_recipe(recipe, processes=1).stages[0].image_text.short_caption.principal_components == 3
    assert not list(short.width_problems(16))
