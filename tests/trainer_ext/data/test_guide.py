"""docs/data.md: its snippets load as they stand."""

import re
from pathlib import Path

import yaml

from tests.source_imports import ROOT
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.schema import Source

GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_snippets_load(tmp_path: Path) -> None:
    sources, recipe = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_sources.yaml").write_text(sources)
    (tmp_path / "recipe.yaml").write_text(recipe)
    found = load_recipe(tmp_path / "recipe.yaml")
    assert [source.name for source in found.sources] == [item["name"] for item in yaml.safe_load(sources)]
    assert {source.format for source in found.sources} == {"parquet", "csv", "imagefolder", "webdataset", "hub"}
    assert found.stages[0].random_resized_crop == [0.9, 1.0]
    assert found.stages[0].image_text.sampling_alpha == 0
    locations = {source.name: source.location for source in found.sources}
    assert locations["hub-photos"] == "owner/photos"
    assert locations["crawled"] == str(tmp_path / "shards" / "*.tar")


def test_every_key_that_the_guide_is_about_is_used_in_it() -> None:
    snippets = "".join(re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
    for key in Source.model_fields.keys() - {"weight"}:
        assert f"{key}:" in snippets, key
