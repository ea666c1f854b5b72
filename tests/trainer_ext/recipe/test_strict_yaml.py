"""Values that YAML 1.1 reads as something else than their author: a word, or a line that names the key."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.strict_yaml import parse_yaml, read_yaml, write_yaml

PLACES = ["a: {}", "a: [1, {}]", "{{a: {{b: {}}}}}", "- {}", "{}: 1", "a: &x {}", "a: !!int {}", "{}"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("text", "value"),
    [("1:30", 90), ("-1:30", -90), ("190:20:30", 685230), ("010", 8), ("-010", -8), ("00", 0), ("0_1", 1)],
)
def test_numbers_that_are_others_than_they_seem_are_refused(place: str, text: str, value: int) -> None:
    with pytest.raises(RecipeError, match=rf"my\.yaml, line 1: .*'{text}' means {value} in YAML") as caught:
        parse_yaml(place.format(text), "my.yaml")
    assert "\n" not in str(caught.value)


def test_the_key_and_the_line_are_named(tiny_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"my\.yaml, line 3: stages\.1\.steps: '1:30' means 90"):
        parse_yaml("stages:\n- {steps: 3}\n- {steps: 1:30}\n", "my.yaml")
    with pytest.raises(RecipeError, match=r"value of override 'stages\.0\.steps', line 1: '010' means 8"):
        load_recipe(tiny_recipe, ["stages.0.steps=010"])


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1.5e999", "9" * 400 + ".0"])
def test_a_number_beyond_all_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"my\.yaml, line 1: a: .* is beyond all numbers"):
        parse_yaml(f"a: {text}", "my.yaml")


READ: list[tuple[str, Any]] = [
    ("0", 0), ("-0", 0), ("0.5", 0.5), (".5", 0.5), ("0x10", 16), ("0b11", 3), ("1_000", 1000), ("1_000.5", 1000.5),
    ("1e3", 1000.0), ("1E-4", 1e-4), ("1.e3", 1000.0), (".inf", math.inf), ("-.INF", -math.inf), ("'010'", "010"),
    ('"1:30"', "1:30"), ("2026-01-31", "2026-01-31"), ("2001-12-14 21:59:43.10 -5", "2001-12-14 21:59:43.10 -5"),
    ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("=", "="), ("0o10", "0o10"), ("08", "08"),
    ("true", True), ("FALSE", False), ("~", None), ("null", None), ("1,000", "1,000"), ("1 000", "1 000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ)
def test_other_values_are_what_they_seem(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value
    assert type(found) is type(value)


# PyYAML itself does not write all of Unicode's line breaks so that it reads them again.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=20)
WORDS |= st.from_regex(r"[-+]?[0-9]{1,3}(\.[0-9]?)?[eE][-+]?[0-9]", fullmatch=True)  # words that look like numbers


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.dates().map(str),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_comes_back(value: Any) -> None:
    assert parse_yaml(write_yaml(value), "x") == value


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "UTF-16 or UTF-32. Save it as UTF-8"),
        ("utf-16-le", "UTF-16 or UTF-32"),
        ("utf-16-be", "UTF-16 or UTF-32"),
        ("utf-32", "UTF-16 or UTF-32"),
        ("latin-1", r"not in UTF-8 \(byte 6\). Save it as UTF-8"),
    ],
)
def test_other_encodings_are_named_with_the_cure(tmp_path: Path, encoding: str, words: str) -> None:
    (tmp_path / "my.yaml").write_bytes("name: ä\nsteps: 3\n".encode(encoding))
    for read in (read_yaml, load_recipe):
        with pytest.raises(RecipeError, match=rf"Cannot read {tmp_path}/my\.yaml: its text is {words}") as caught:
            read(tmp_path / "my.yaml")
        assert "\n" not in str(caught.value)


def test_utf_8_with_its_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes("name: ä\n".encode("utf-8-sig"))
    assert read_yaml(tmp_path / "my.yaml") == {"name": "ä"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("weight_decay=.inf", "weight_decay: must be a finite number, got inf"),
        ("max_grad_norm=.nan", "max_grad_norm: must be a finite number, got nan"),
        ("adam_epsilon=.nan", "adam_epsilon: must be a finite number"),
        ("ema_decay=.inf", "ema_decay: must be a finite number"),
        ("stages.0.learning_rate=.inf", "learning_rate: must be a finite number"),
        ("stages.0.reset_optimizer=on", "reset_optimizer: must be a valid boolean, got 'on'. Write true or false."),
        ("bf16=2026-01-31", "bf16: must be a valid boolean"),
        ("stages.0.steps=2026-01-31", "steps: must be a valid integer, got '2026-01-31'"),
        ("stages.0.steps=1_000.5", "steps: must be a valid integer"),
        ("sources.0.weight=1 000", "weight: must be a valid number, got '1 000'"),
        ("name=1e3", "name: must be a valid string, got 1000.0"),
    ],
)
def test_a_value_of_another_type_is_named(tiny_recipe: Path, change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(tiny_recipe, [change])


def test_days_and_thousands_are_read(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["name=2026-01-31", "stages.0.steps=1_000", "seed=0x10"])
    assert (recipe.name, recipe.stages[0].steps, recipe.seed) == ("2026-01-31", 1000, 16)
