"""A mistake in a recipe stops with its place, its value and the cure."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trainer_ext.recipe_trees import base, problems, put, write
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.recipe.schema import Source

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
    ("stages.1.text", None, "stages.1: trains nothing: give it image_text, text or images."),
    ("stages.0.text.sources", [], "stages.0.text.sources: List should have at least 1 item"),
    ("stages.0.text.sources", ["pairs-a", "pair-b"], "'pair-b' is none of this recipe's sources. Did you mean"),
    ("stages.0.text.sources", ["x-*"], "stages.0.text.sources.0: 'x-*' matches none of this recipe's sources."),
    ("stages.0.text.sources", ["pairs-a", "pairs-a"], "'pairs-a' is listed twice. Raise its weight instead."),
    ("stages.0.text.sources", ["hard"], "'hard' has task triplet, but text with loss info_nce needs task text-pair."),
    ("stages.1.text.sources", ["pairs-a"], "text with loss info_nce_plus needs task triplet."),
    ("stages.0.image_text.sources", ["pairs-a"], "image_text with loss info_nce needs task image-text."),
    ("stages.0.image_text.loss", "info_nce_plus", "'photos' maps no column negatives, which loss info_nce_plus needs."),
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
    ("sources.1.balance", {"key": "topic", "limit": 0}, "(pairs-a).balance.limit: must be greater than 0, got 0."),
    ("sources.1.balance", {"key": "topic"}, "sources.1 (pairs-a).balance.limit: is required and missing. Add it."),
    ("sources.1.balance", {"key": "", "limit": 5}, "sources.1 (pairs-a).balance.key: "),
    ("sources.1.balance", 20, "sources.1 (pairs-a).balance: must be a mapping of keys, got 20."),
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
