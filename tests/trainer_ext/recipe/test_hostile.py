"""Recipes that are wrong in ways nobody types: each is refused in one line, soon, and none leads out of the run."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.recipe.strict_yaml import parse_yaml

BAD_NAMES = ["x/../../../victim", "../up", "/etc", "a\\b", ".hidden", "", " ", "a\nb", "a\0b", "x" * 101, "..", "a/b"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("place", ["stages.0.name", "sources.0.name"])
def test_a_name_is_never_a_path(name: str, place: str) -> None:
    with pytest.raises(RecipeError, match=r"(stages|sources)\.0.*\.name: cannot name a file") as caught:
        load_recipe("openmoji", [f"{place}={yaml.safe_dump(name, default_style=chr(34)).strip()}"])
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("name", ["short-captions", "stage 2 (long)", "Bilder_ä", "a.b+c@1", "x"])
def test_names_that_people_give_are_fine(name: str) -> None:
    assert load_recipe("openmoji", [f"stages.0.name={name!r}"]).stages[0].name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("when: !!timestamp 2001-99-99", "month must be in 1..12"),
        ("steps: !!int zz", "invalid literal"),
        ("[" * 3000, "nested too deeply|not valid YAML"),
        ("a: \x01", "special characters are not allowed"),
        ("a: &a [*a]", "aliases"),
        ("x: " + "9" * 5000, "digits"),
    ],
)
def test_yaml_that_is_none_is_refused_in_a_line(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        parse_yaml(text, "my.yaml")
    assert "\n" not in str(caught.value)
    assert "my.yaml" in str(caught.value)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"my\.yaml, line \d+: with its aliases written out"):
        parse_yaml("\n".join(lines), "my.yaml")
    assert time.monotonic() - began < 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["name", "model", "sources", "stages", "evaluation", "tokenizer", "lora", "seed"]), value=VALUES
)
def test_any_value_of_any_key_is_a_recipe_or_a_line(tmp_path: Path, key: str, value: object) -> None:
    tree = {"name": "x", "model": "openmoji-small", "sources": ["openmoji"], "stages": []} | {key: value}
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    try:
        assert isinstance(load_recipe(path), Recipe)
    except (RecipeError, FileNotFoundError) as error:
        words = str(error)
    else:
        return
    assert words
    assert "Traceback" not in words


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("model=~nobody_here/model", "'~nobody_here/model'"),
        ("sources.0.location=~nobody_here/x.parquet", "'~nobody_here/x.parquet'"),
        ("initialize={text: ~nobody_here/x.safetensors}", "'~nobody_here/x.safetensors'"),
    ],
)
def test_the_home_of_nobody_is_named(tiny_recipe: Path, change: str, place: str) -> None:
    with pytest.raises(RecipeError, match=rf"{place}: .*Write the folder itself in place of ~"):
        load_recipe(tiny_recipe, [change])


@pytest.mark.parametrize("content", ["", '{"text_config": ', "[1]", "\x00", "[" * 100_000, "null"])
def test_a_model_whose_configuration_is_cut_is_named(tiny_recipe: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RecipeError, match=rf"model {tmp_path / 'config.json'} (cannot be read|is not a model's)"):
        load_recipe(tiny_recipe, [f"model={tmp_path}"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stages.0.lr=0.1", "stages.0.lr: unknown key .* Did you mean 'learning_rate'"),
        ("stages.0.max_len=9", "Did you mean 'max_length'"),
        ("stages.0.warmup=9", "Did you mean 'warmup_steps'"),
        ("stages.0.text.batch=9", "Did you mean 'batch_size'"),
        ("stages.0.text.tau=0.1", "Did you mean 'temperature'"),
        ("stages.0.epochs=2", r"steps = E \* N / batch_size"),
        ("epochs=2", "A stage has `steps`, and no epochs"),
    ],
)
def test_names_of_other_trainers_lead_to_ours(tiny_recipe: Path, change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(tiny_recipe, [change])
