"""``check`` on pairs of pictures: what is said of the rows, the plan, the batch on the page; and the tokenizer."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.trainer_ext.checking.planted import encoded, pair_rows, picture, said, scanned, write_recipe, write_rows
from tests.trainer_ext.picture_pair_run import write_picture_pairs
from tests.trainer_ext.tiny_run import make_processor, write_data
from trainer_ext.checking.batches_shown import stage_batches
from trainer_ext.checking.check import check
from trainer_ext.checking.duplicates import duplicate_findings
from trainer_ext.checking.findings import Group
from trainer_ext.checking.plan_shares import make_plan
from trainer_ext.data.sources import load_sources, planned_rows
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.schema import Source
from trainer_ext.run.tokenizer import training_texts


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def things(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Source:
    path = write_rows(folder / "things.parquet", rows)
    columns = {name: name for name in rows[0]}
    return Source(name="things", task="image-pair", location=str(path), format="parquet", columns=columns, **changes)


def test_rows_that_say_the_same(tmp_path: Path) -> None:
    """One picture twice in a group is a pair to learn nothing from; twice in two groups, it is its own negative."""
    rows = [{"image": encoded(picture(n)), "id": "ab"[n % 2]} for n in range(6)]
    rows += [rows[0], rows[1] | {"id": "c"}]
    found, log = scanned(things(tmp_path, rows))
    assert said(log) == []
    assert (found.rows, len(found.pairs.values), found.texts) == (8, 0, {})
    findings = [(one.kind, one.row) for one in duplicate_findings(found)]
    assert findings == [("equal-row", 6), ("equal-picture", 7)]


def test_the_whole_check(tmp_path: Path) -> None:
    checked = check(load_recipe(write_picture_pairs(tmp_path)), steps=False, say=lambda line: None)
    assert checked.log.count("error") == 0
    [finding] = checked.log.shown[Group("note", "paired", "no-partner")]
    assert "1 of 37 pictures has an id that no other one has, and is left out; 9 ids make pairs." in str(finding)
    shares = {(share.source, share.side): share for share in checked.shares}
    paired = shares["paired", "images"]
    assert paired.epochs == pytest.approx(paired.rows / 9)
    assert checked.sources["paired"]["texts"] == {}
    assert {(batch.stage, batch.side) for batch in checked.batches} >= {("captions", "images"), ("alone", "images")}


def test_ids_without_a_pair_are_an_error(tmp_path: Path) -> None:
    write_data(tmp_path)
    rows = [{"image": encoded(picture(n)), "id": str(n)} for n in range(4)]
    recipe = write_recipe(tmp_path, [things(tmp_path, rows)], {"images": {"sources": ["things"], "batch_size": 2}})
    checked = check(load_recipe(recipe), steps=False, say=lambda line: None)
    [finding] = checked.log.shown[Group("error", "", "plan")]
    assert "each of its 4 pictures has an id of its own, so no two make a pair" in finding.words


def test_both_pictures_of_a_pair_are_shown(tmp_path: Path) -> None:
    write_data(tmp_path)
    rows = [{"image": encoded(picture(n, (16, 16))), "id": n // 2} for n in range(4)]
    recipe = write_recipe(tmp_path, [things(tmp_path, rows)], {"images": {"sources": ["things"], "batch_size": 2}})
    found = load_recipe(recipe)
    tables = load_sources(found.sources)
    plan = make_plan(found, planned_rows(found.sources, tables))
    [batch] = stage_batches(found, tables, make_processor(), plan)
    assert (batch.side, batch.source, batch.of, batch.image_size) == ("images", "things", 2, 16)
    for shown, key in zip(batch.rows, plan.keys(0), strict=True):
        assert shown.texts == []
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.picture.partition(",")[2]))))
        both = [np.asarray(picture(2 * key.index + n, (16, 16))) for n in range(2)]
        orders = [np.concatenate(pair, axis=1) for pair in (both, both[::-1])]
        assert any(np.array_equal(pixels, one) for one in orders)


def test_pictures_have_no_texts_for_a_tokenizer(tmp_path: Path) -> None:
    write_data(tmp_path)
    views = Source(
        name="views", task="image-pair", location=str(tmp_path / "v.parquet"), format="parquet",
        columns={"image": "image"}, streaming=True,
    )  # fmt: skip
    write_rows(tmp_path / "v.parquet", [{"image": encoded(picture(n))} for n in range(4)])
    rows = pair_rows(4)
    columns = {"query": "query", "positive": "positive"}
    pairs = Source(
        name="pairs", task="text-pair", location=str(write_rows(tmp_path / "p.jsonl", rows)), format="json",
        columns=columns,
    )  # fmt: skip
    sides = {
        "text": {"sources": ["pairs"], "batch_size": 2},
        "images": {"sources": ["views"], "batch_size": 2},
        "random_resized_crop": [0.5, 0.9],
    }
    recipe = load_recipe(write_recipe(tmp_path, [views, pairs], sides))
    assert sorted(training_texts(recipe)) == sorted(text for row in rows for text in row.values())
