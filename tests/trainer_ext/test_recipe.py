"""A recipe is read strictly: what it says is what runs, and a mistake stops with its place, value and cure."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer_ext.recipe import (
    Recipe,
    Side,
    Source,
    Stage,
    load_recipe,
    recipe_differences,
    recipe_fingerprint,
)
from trainer_ext.recipe_errors import RecipeError


def source(name: str, task: str = "text-pair", **changes: Any) -> dict[str, Any]:
    columns = {
        "image-text": {"image": "picture", "caption": "words"},
        "text-pair": {"query": "q", "positive": "a"},
        "triplet": {"query": "q", "positive": "a", "negatives": "n"},
    }[task]
    return {"name": name, "task": task, "location": f"{name}.csv", "format": "csv", "columns": columns, **changes}


def base() -> dict[str, Any]:
    """A valid recipe with both sides and all tasks."""
    return {
        "name": "try",
        "model": "openmoji-small",
        "sources": [source("photos", "image-text"), source("pairs-a"), source("pairs-b"), source("hard", "triplet")],
        "stages": [
            {
                "name": "first",
                "steps": 10,
                "learning_rate": 0.001,
                "warmup_steps": 2,
                "max_length": 32,
                "image_text": {"sources": ["photos"], "batch_size": 8},
                "text": {"sources": ["pairs-a", "pairs-b"], "batch_size": 8},
            },
            {
                "name": "second",
                "steps": 5,
                "learning_rate": 0.0001,
                "max_length": 64,
                "text": {"sources": ["hard"], "batch_size": 4, "loss": "info_nce_plus"},
            },
        ],
        "save_steps": 5,
    }


def write(folder: Path, content: Any, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def problems(folder: Path, content: Any, overrides: list[str] | None = None) -> list[str]:
    """The problem lines of a recipe that must not load."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, content), overrides or [])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(str(folder / "recipe.yaml"))
    return [line.strip() for line in lines]


def put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``tree`` with the value at a dotted path replaced."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    holder: Any = tree
    for part in way:
        holder = holder[part]
    holder[last] = value
    return tree


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


# --- what is refused ---------------------------------------------------------------------------------------------

REFUSED = [
    ("stages.0.steps", -5, "stages.0.steps: must be greater than 0, got -5."),
    ("stages.0.steps", "ten", "stages.0.steps: must be a valid integer, got 'ten'."),
    ("stages.0.steps", True, "stages.0.steps: must be a valid integer, got True."),
    ("stages.0.learning_rate", 0, "stages.0.learning_rate: must be greater than 0, got 0."),
    ("stages.0.learning_rate", float("inf"), "stages.0.learning_rate: must be a finite number, got inf."),
    ("stages.0.schedule", "cosin", "must be 'cosine', 'linear' or 'constant', got 'cosin'. Did you mean 'cosine'?"),
    ("stages.0.patch_dropout", 1.0, "stages.0.patch_dropout: must be less than 1, got 1.0."),
    ("stages.0.warmup_steps", 10, "stages.0.warmup_steps: must be less than steps (10), got 10."),
    ("stages.0.warmup_steps", 1.5, "stages.0.warmup_steps: must be a valid integer, got 1.5."),
    ("stages.0.warmup_steps", -0.1, "stages.0.warmup_steps: must be a valid integer, got -0.1."),
    ("stages.1.name", "first", "stages.1.name: 'first' is taken by stages.0. Give it another name."),
    ("stages.1.text", None, "stages.1: trains nothing: give it image_text, text, or both."),
    ("stages.0.text.sources", [], "stages.0.text.sources: List should have at least 1 item"),
    ("stages.0.text.sources", ["pairs-a", "pair-b"], "'pair-b' is none of this recipe's sources. Did you mean"),
    ("stages.0.text.sources", ["x-*"], "stages.0.text.sources.0: 'x-*' matches none of this recipe's sources."),
    ("stages.0.text.sources", ["pairs-a", "pairs-a"], "'pairs-a' is listed twice. Raise its weight instead."),
    ("stages.0.text.sources", ["hard"], "'hard' has task triplet, but text with loss info_nce needs task text-pair."),
    ("stages.1.text.sources", ["pairs-a"], "text with loss info_nce_plus needs task triplet."),
    ("stages.0.image_text.sources", ["pairs-a"], "image_text with loss info_nce needs task image-text."),
    ("stages.0.image_text.loss", "info_nce_plus", "the image_text side takes 'info_nce'."),
    ("stages", [], "stages: List should have at least 1 item"),
    ("sources.1.name", "photos", "sources.1 (photos).name: 'photos' is taken by sources.0."),
    ("sources.1.weight", 0, "sources.1 (pairs-a).weight: must be greater than 0, got 0."),
    ("sources.1.formt", "csv", "sources.1 (pairs-a).formt: unknown key (value 'csv'). Did you mean 'format'?"),
    ("sources.1.columns", {"query": "q"}, "sources.1 (pairs-a).columns.positive: is required by task text-pair."),
    ("sources.1.columns", {"query": "q", "positive": "q"}, "column 'q' is mapped twice."),
    (
        "sources.0.columns",
        {"image": "i", "caption": "c", "captoin": "d"},
        "columns.captoin: task image-text has no such column. Did you mean 'caption'?",
    ),
    ("tokenizer", {"vocab_sze": 3}, "tokenizer.vocab_size: is required and missing. Add it."),
    ("tokenizer", {"vocab_sze": 3}, "tokenizer.vocab_sze: unknown key (value 3). Did you mean 'vocab_size'?"),
    ("seed", -1, "seed: must be greater than or equal to 0, got -1."),
    ("stages", 3, "stages: must be a valid list, got 3."),
    ("stages.0", 3, "stages.0: must be a mapping of keys, got 3."),
    ("bf16", 3, "bf16: must be a valid boolean"),
    ("weight_decay", "much", "weight_decay: must be a valid number"),
    ("save_strategy", "sometimes", "save_strategy: must be 'no', 'steps', 'epoch' or 'best', got 'sometimes'."),
    ("zzz", 1, "zzz: unknown key (value 1). Valid keys: "),
]


@pytest.mark.parametrize(("path", "value", "line"), REFUSED, ids=[f"{row[0]}={row[1]}" for row in REFUSED])
def test_mistakes_are_named(tmp_path: Path, path: str, value: Any, line: str) -> None:
    found = problems(tmp_path, put(base(), path, value))
    assert any(line in item for item in found), found


ELSEWHERE = """max_steps num_train_epochs per_device_train_batch_size learning_rate lr_scheduler_type warmup_steps
    output_dir data_seed remove_unused_columns ignore_data_skip hub_token training"""


@pytest.mark.parametrize("key", ELSEWHERE.split())
def test_arguments_that_a_recipe_says_elsewhere(tmp_path: Path, key: str) -> None:
    (line,) = problems(tmp_path, base() | {key: 1})
    assert line.startswith(f"{key}: cannot be set here (value 1): ")


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    tree = put(put(put(base(), "stages.0.steps", -1), "stages.1.stepz", 3), "learning_rate", 1)
    assert len(problems(tmp_path, tree)) == 3


def test_missing_keys_are_named(tmp_path: Path) -> None:
    tree = base()
    del tree["model"]
    assert problems(tmp_path, tree) == ["model: is required and missing. Add it."]


def test_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    text = yaml.safe_dump(base(), sort_keys=False) + "seed: 1\nseed: 2\n"
    lines = text.splitlines()
    with pytest.raises(RecipeError, match=rf"'seed' is given twice, on lines {len(lines) - 1} and {len(lines)}"):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "is not valid YAML"),
        ("- a\n- b", "is not a recipe"),
        ("", "is not a recipe"),
        ("name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_file_that_is_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(write(tmp_path, text))


def test_source_file_that_is_no_list(tmp_path: Path) -> None:
    write(tmp_path, {"name": "x"}, "mine.yaml")
    with pytest.raises(RecipeError, match=r"mine\.yaml is not a source list"):
        load_recipe(write(tmp_path, base() | {"sources": ["mine.yaml"]}))
    with pytest.raises(FileNotFoundError, match="No source list 'other'"):
        load_recipe(write(tmp_path, base() | {"sources": ["other"]}))


def test_recipe_made_in_python_is_checked_too() -> None:
    tree = {key: value for key, value in base().items() if key != "save_steps"}
    assert Recipe(**tree).sources[0] == Source(**tree["sources"][0])
    with pytest.raises(ValueError, match="trains nothing"):
        Recipe(**put(tree, "stages.1.text", None))


# --- identity ----------------------------------------------------------------------------------------------------


def test_equal_recipes_have_equal_fingerprints(tmp_path: Path) -> None:
    before = load_recipe(write(tmp_path, base()))
    shuffled = load_recipe(write(tmp_path, dict(reversed(base().items()))))
    assert recipe_fingerprint(before) == recipe_fingerprint(shuffled)
    assert recipe_differences(before, shuffled) == []


@pytest.mark.parametrize("override", ["save_steps=7", "logging_steps=2", "dataloader_num_workers=2", "name=other"])
def test_what_does_not_change_the_weights_may_change(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, base())
    before, after = load_recipe(path), load_recipe(path, [override])
    assert before != after
    assert recipe_fingerprint(before) == recipe_fingerprint(after)
    assert recipe_differences(before, after) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("stages.0.steps=11", "stages.0.steps: 10 -> 11"),
        ("seed=1", "seed: 42 -> 1"),
        ("sources.1.weight=2", "sources.1.weight: 1.0 -> 2.0"),
        ("weight_decay=0.5", "training.weight_decay: absent -> 0.5"),
        ("stages.0.text.sources=[pairs-a]", "stages.0.text.sources.1: 'pairs-b' -> absent"),
    ],
)
def test_what_changes_the_weights_is_told(tmp_path: Path, override: str, difference: str) -> None:
    path = write(tmp_path, base())
    before, after = load_recipe(path), load_recipe(path, [override])
    assert recipe_fingerprint(before) != recipe_fingerprint(after)
    assert recipe_differences(before, after) == [difference]


def test_stored_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    """A run keeps its recipe as JSON and compares it when it is resumed."""
    overrides = ["save_strategy=no", "tokenizer={vocab_size: 9}", "sources.1.weight=2.5", "optim=sgd"]
    recipe = load_recipe(write(tmp_path, base() | {"sources": [*base()["sources"], "openmoji"]}), overrides)
    stored = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert recipe_differences(stored, recipe) == []
    assert recipe_fingerprint(stored) == recipe_fingerprint(recipe)


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


GUIDE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


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
