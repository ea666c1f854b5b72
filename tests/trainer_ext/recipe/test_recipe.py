"""A recipe is read strictly: what it says is what runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.trainer_ext.recipe_trees import base, problems, put, source, write
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe, recipe_differences
from trainer_ext.recipe.schema import Side, Source
from trainer_ext.recipe.stages import Stage

# --- what loads --------------------------------------------------------------------------------------------------


def test_packaged_recipe_is_the_three_stages_of_the_paper() -> None:
    recipe = load_recipe("openmoji")
    assert [stage.name for stage in recipe.stages] == ["short-captions", "long-captions", "hard-negatives"]
    assert [stage.text.loss for stage in recipe.stages] == ["info_nce", "info_nce", "info_nce_plus"]
    assert all(stage.image_text is not None for stage in recipe.stages)
    rates = [stage.learning_rate for stage in recipe.stages]
    assert rates == sorted(rates, reverse=True)
    assert recipe.stages[0].max_length < recipe.stages[1].max_length
    assert {item.name for item in recipe.used_sources()} == {item.name for item in recipe.sources}
    assert recipe.training["adam_beta2"] == 0.98
    assert "seed" not in recipe.training


@pytest.mark.parametrize(
    ("share", "steps", "warmup"), [(0.1, 50, 5), (0.1, 12, 1), (0.1, 3, 0), (0.0, 9, 0), (7, 9, 7)]
)
def test_warmup_as_a_share_follows_the_steps(tmp_path: Path, share: float, steps: int, warmup: int) -> None:
    path = write(tmp_path, put(base(), "stages.0.warmup_steps", share))
    assert load_recipe(path, [f"stages.0.steps={steps}"]).stages[0].warmup_steps == warmup


def test_any_stage_of_the_packaged_recipe_can_be_cut_short() -> None:
    assert [s.steps for s in load_recipe("openmoji", [f"stages.{n}.steps=1" for n in range(3)]).stages] == [1, 1, 1]


def test_training_arguments_stand_at_the_top_level(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, base()))
    assert recipe.training == {"save_steps": 5}
    assert recipe.seed == 42


def test_numbers_without_a_dot_and_words_like_no(tmp_path: Path) -> None:
    text = yaml.safe_dump(base()).replace("learning_rate: 0.001", "learning_rate: 1e-3") + "save_strategy: no\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.stages[0].learning_rate == 1e-3
    assert recipe.training["save_strategy"] == "no"


def test_source_list_by_name_by_path_and_inline(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists", [source("far", location="data/far.csv")], "mine.yaml")
    tree = base() | {"sources": [*base()["sources"], "lists/mine.yaml", "openmoji"]}
    recipe = load_recipe(write(tmp_path, tree))
    by_name = {item.name: item for item in recipe.sources}
    assert by_name["pairs-a"].location == str(tmp_path / "pairs-a.csv")
    assert by_name["far"].location == str(tmp_path / "lists" / "data" / "far.csv")
    assert by_name["openmoji-short"].location == "openmoji/short_captions"
    assert [item.name for item in recipe.used_sources()] == ["photos", "pairs-a", "pairs-b", "hard"]


def test_folders_of_pictures_are_taken_from_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    file = write(tmp_path, put(base(), "sources.0.image_folder", "photos"))
    assert load_recipe(file).sources[0].image_folder == str(tmp_path / "photos")
    assert load_recipe(file, ["sources.0.image_folder=mine"]).sources[0].image_folder == "/mine"
    plain = load_recipe(write(tmp_path, base(), "plain.yaml"))
    assert recipe_differences(plain, load_recipe(file)) == [
        f"sources.0.image_folder: absent -> {str(tmp_path / 'photos')!r}"
    ]
    with pytest.raises(RecipeError, match=r"sources\.1.*image_folder: is for paths of pictures in files of yours"):
        load_recipe(file, ["sources.1.image_folder=photos"])


def test_patterns_stand_for_the_sources_they_match(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, put(base(), "stages.0.text.sources", ["pairs-*"])))
    assert recipe.stages[0].text.sources == ["pairs-a", "pairs-b"]


def test_model_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.json").write_text("{}")
    monkeypatch.chdir("/")
    recipe = load_recipe(write(tmp_path, base() | {"model": "models/mine.json"}))
    assert recipe.model == str(tmp_path / "models" / "mine.json")


@pytest.mark.parametrize("model", ["openmoji-smal", "models/mising.json", "./missing", "a/b/c"])
def test_missing_model_stops_at_load(tmp_path: Path, model: str) -> None:
    with pytest.raises(FileNotFoundError, match="No model preset"):
        load_recipe(write(tmp_path, base() | {"model": model}))


# --- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_change_values_of_their_type(tmp_path: Path) -> None:
    overrides = [
        "stages.0.steps=12",
        "stages.second.learning_rate=5e-5",
        "sources.pairs-b.weight=0.5",
        "save_steps=3",
        "bf16=true",
        "tokenizer={vocab_size: 99}",
        "stages.1.image_text={sources: [photos], batch_size: 2}",
    ]
    recipe = load_recipe(write(tmp_path, base()), overrides)
    assert recipe.stages[0].steps == 12
    assert recipe.stages[1].learning_rate == 5e-5
    assert recipe.sources[2].weight == 0.5
    assert recipe.training == {"save_steps": 3, "bf16": True}
    assert recipe.tokenizer.vocab_size == 99
    assert recipe.stages[1].image_text.batch_size == 2


def test_override_takes_a_side_away(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, base()), ["stages.0.text=null"]).stages[0].text is None


def test_override_of_sources_starts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, base()["sources"], "all.yaml")
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(write(tmp_path, base() | {"sources": []}), ["sources=[all.yaml]", "sources.1.location=x.csv"])
    assert recipe.sources[0].location == str(elsewhere / "photos.csv")
    assert recipe.sources[1].location == str(elsewhere / "x.csv")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.steps", "not of the form dotted.key=value"),
        ("stages..steps=3", "not of the form dotted.key=value"),
        ("stages.2.steps=3", "Use a position from 0 to 1 or one of the names first, second"),
        ("stages.frist.steps=3", "Did you mean 'first'?"),
        ("name.x=3", "name is the plain value 'try', it has no key 'x'"),
        ("seed={", "value of override 'seed' is not valid YAML"),
    ],
)
def test_override_that_leads_nowhere(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, base()), [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages.0.stepz=3", "stages.0.stepz: unknown key (value 3). Did you mean 'steps'?"),
        ("save_stepz=3", "save_stepz: unknown key (value 3). Did you mean 'save_steps'?"),
        ("stages.1.text.loss=info_nce_pls", "Did you mean 'info_nce_plus'?"),
    ],
)
def test_override_of_unknown_key_names_the_nearest(tmp_path: Path, override: str, line: str) -> None:
    (found,) = problems(tmp_path, base(), [override])
    assert line in found


# --- the recipe of the paper, and the guide ----------------------------------------------------------------------


def test_recipe_of_the_paper_is_table_2(tmp_path: Path) -> None:
    sources = [source("short-captions-a", "image-text"), source("long-captions-a", "image-text")]
    sources += [source("pairs-a"), source("pairs-b"), source("triplets-a", "triplet")]
    path = write(tmp_path, sources, "mine.yaml")
    recipe = load_recipe("jina_clip_v1", ["model=openmoji-small", f"sources=[{path}]"])
    rows = [
        (stage.learning_rate, stage.image_text.batch_size, stage.text.batch_size, stage.steps, stage.max_length)
        for stage in recipe.stages
    ]
    assert rows == [
        (1e-4, 32768, 32768, 60000, 77),
        (5e-6, 8192, 8192, 1500, 512),
        (1e-6, 1024, 1024, 7000, 512),
    ]
    assert [stage.image_text.sources for stage in recipe.stages] == [["short-captions-a"]] + [["long-captions-a"]] * 2
    assert [stage.text.sources for stage in recipe.stages] == [["pairs-a", "pairs-b"]] * 2 + [["triplets-a"]]
    assert [stage.text.loss for stage in recipe.stages] == ["info_nce", "info_nce", "info_nce_plus"]
    optimizer = {name: recipe.training[name] for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")}
    assert optimizer == {"adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "weight_decay": 0.025}


def test_recipe_of_the_paper_asks_for_what_it_cannot_know() -> None:
    with pytest.raises(RecipeError, match="model: is required and missing"):
        load_recipe("jina_clip_v1")
    with pytest.raises(RecipeError, match=r"'short-captions-\*' matches none of this recipe's sources"):
        load_recipe("jina_clip_v1", ["model=openmoji-small"])


GUIDE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_recipe_of_the_guide_loads(tmp_path: Path) -> None:
    recipe_text, sources_text = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "my_sources.yaml").write_text(sources_text)
    recipe = load_recipe(write(tmp_path, recipe_text))
    assert {item.name for item in recipe.used_sources()} == {item.name for item in recipe.sources}
    overrides = re.search(r"python -m trainer_ext my_recipe.yaml --output_dir \S+ (.*)", GUIDE).group(1)
    changed = load_recipe(tmp_path / "recipe.yaml", shlex.split(overrides))
    assert [line.split(":")[0] for line in recipe_differences(recipe, changed)] == [
        "tokenizer.vocab_size",
        "sources.2.weight",
        "stages.0.steps",
        "stages.0.warmup_steps",  # a share of the steps; and save_steps, which changes no weight, is not told
    ]


def test_guide_names_every_key() -> None:
    for section in (Recipe, Source, Stage, Side):
        for name in section.model_fields.keys() - {"training"}:
            assert f"`{name}`" in GUIDE, f"docs/recipes.md does not explain {section.__name__}.{name}"
