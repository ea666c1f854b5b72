"""Model folders and tokenizers that nobody could have trained: one line with the file, before any memory is taken."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer_ext.tiny_run import MODEL
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import checked_config, initial_model


def preset(folder: Path, place: str, value: Any) -> Path:
    """The tiny preset with one value changed; ``place`` is ``text_config.hidden_size`` or a key at the top."""
    tree = json.loads(json.dumps(MODEL))
    *outer, key = place.split(".")
    (tree[outer[0]] if outer else tree)[key] = value
    path = folder / "model.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("text_config.num_hidden_layers", 10**9, "num_hidden_layers=1000000000"),
        ("vision_config.layers", 10**9, "layers=1000000000"),
        ("text_config.num_hidden_layers", -3, "num_hidden_layers=-3"),
        ("vision_config.width", 10**7, "width"),
        ("text_config.vocab_size", 2**31, "parameters, .* GB in float32, but this machine has"),
        ("text_config.intermediate_size", 2**31, "GB of memory. Correct its sizes"),
        ("vision_config.patch_size", 10**6, "image_size=16 is smaller than patch_size"),
        ("text_config.hidden_size", 15, "hidden_size=15"),
        ("text_config.num_attention_heads", 3, "not a multiple"),
        ("text_config.vocab_size", "many", "vocab_size"),
        ("vision_config.layers", 1.5, "layers"),
        ("text_config", [1], "list"),
        ("text_config.hidden_act", None, "hidden_act"),
        ("projection_dim", {}, "projection_dim"),
    ],
)
def test_impossible_models_are_named_at_once(tmp_path: Path, place: str, value: Any, words: str) -> None:
    path = preset(tmp_path, place, value)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"model {path}(:| describes) .*{words}") as caught:
        checked_config(path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 2


KEYS = [f"{tower}.{key}" for tower in ("text_config", "vision_config") for key in MODEL[tower]] + ["projection_dim"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_a_configuration_or_one_line(tmp_path: Path, place: str, value: Any) -> None:
    path = preset(tmp_path, place, value)
    words = f"model {path}"
    try:
        checked_config(path)
    except ValueError as error:
        words = str(error)
    assert words.startswith(f"model {path}")
    assert "\n" not in words


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_bad_tokenizer_is_named(
    tiny_recipe: Path, tiny_data: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_data / "tokenizer", folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"tokenizer '{folder}' cannot be read: ") as caught:
        initial_model(load_recipe(tiny_recipe, [f"tokenizer={folder}"]))
    assert "\n" not in str(caught.value)
