"""Bad input at the public doors: the right vectors, or one line that names the input and the cure."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, processing_jina_clip


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_load(golden: Path, tmp_path: Path, value: float) -> None:
    folder = shutil.copytree(golden / "tiny_model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "vision_model.patch_embed.proj.weight"
    weights[name].view(-1)[5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"holds NaN or infinity in 1 of its weights: {name}\. .* earlier checkpoint"):
        JinaCLIPModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"std": [0, 0, 0]}, {"std": [1, 1]}, {"std": [1, -1, 1]}, {"std": [1, float("nan"), 1]},
        {"mean": [float("nan"), 0, 0]}, {"mean": [1]}, {"mean": [0, 0, float("inf")]},
    ],
)  # fmt: skip
def test_numbers_of_a_processor_are_three_and_finite(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(mean|std)=.* must be three finite numbers"):
        JinaCLIPImageProcessor(**options)


def test_a_float_picture_with_nan_is_refused(model: JinaCLIPModel) -> None:
    values = np.full((9, 9), 0.5, np.float32)
    values[4, 4] = np.nan
    for picture in (Image.fromarray(values), values):
        with pytest.raises(ValueError, match="image 0: "):
            model.encode_image([picture])


# At a text that is not cut, or not padded, a tokenizer would pass over some of them.
UNSUITABLE: list[tuple[dict[str, Any], str]] = [
    ({"truncation": "only_second"}, "truncation='only_second' cuts the second of two texts"),
    ({"truncation": "some"}, "takes no texts with {.*'truncation': 'some'.*some is not a valid TruncationStrategy"),
    (
        {"padding": "max_length", "max_length": 10**12},
        "max_length=1000000000000 must be at least 3, and at most 1,048,576",
    ),
    ({"max_length": 2**70}, "must be at least 3, and at most 9,2"),
    ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0 must be at least 1, and at most 1,048,576"),
    ({"pad_to_multiple_of": 2.5}, "pad_to_multiple_of=2.5 must be at least 1"),
    ({"pad_to_multiple_of": 10**12, "truncation": False}, "at most 1,048,576"),
    ({"add_special_tokens": "no"}, "takes no texts with {.*'add_special_tokens': 'no'"),
]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"maxlength": 8}, r"no option 'maxlength' \(8\); did you mean 'max_length'\?"),
        ({"return_overflowing_tokens": True}, "no option 'return_overflowing_tokens'"),
        ({"stride": 2}, "no option 'stride'"),
        ({"max_length": 0}, "max_length=0 must be at least 3"),
        ({"max_length": -1}, "max_length=-1 must be at least 3"),
        ({"max_length": True}, "max_length=True must be at least 3"),
        *UNSUITABLE,
    ],
)
def test_options_that_would_be_ignored_are_refused(model: JinaCLIPModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        model.encode_text(["one", "two"], **options)


def test_half_a_letter_is_named_by_its_place(model: JinaCLIPModel) -> None:
    with pytest.raises(ValueError, match=r"position 1 holds half a letter \(U\+D83D\) at character 2"):
        model.encode_text(["one", "a \ud83d"])


def test_many_texts_are_read_as_they_go(model: JinaCLIPModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In windows: the vectors are those of one go, and a generator is never further ahead than a window."""
    texts = [f"text number {n} " * (1 + n % 7) for n in range(50)]
    whole = model.encode_text(texts)
    monkeypatch.setattr(processing_jina_clip.text_windows, "__defaults__", (8,))
    assert np.allclose(model.encode_text(texts), whole, atol=1e-6)
    taken: list[int] = []

    def read() -> Any:
        for number, text in enumerate(texts):
            taken.append(number)
            yield text

    found = model.encode_text(read())
    assert np.allclose(found, whole, atol=1e-6)
    assert len(taken) == 50
    with pytest.raises(TypeError, match="at position 20"):
        model.encode_text(text if n != 20 else 7 for n, text in enumerate(texts))


def test_global_settings_decide_nothing(model: JinaCLIPModel, golden: Path) -> None:
    texts, picture = ["one", "a longer text of two"], Image.linear_gradient("L")
    expected = model.encode_text(texts), model.encode_image([picture])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for one in (model, JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()):
            found = one.encode_text(texts), one.encode_image([picture])
            assert [vectors.dtype for vectors in found] == [np.float32, np.float32]
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_default_dtype(before)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=30), max_size=4), limit=st.integers(-2, 40))
def test_any_texts_give_unit_vectors_or_a_line(model: JinaCLIPModel, texts: list[str], limit: int) -> None:
    whole = all(not any(0xD800 <= ord(letter) < 0xE000 for letter in text) for text in texts)
    if limit > 2 and whole:
        found = model.encode_text(texts, max_length=limit)
        assert found.shape == (len(texts), model.config.projection_dim)
        assert np.isfinite(found).all()
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        model.encode_text(texts, max_length=limit)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0"])
)
def test_any_bytes_are_a_picture_or_a_line(model: JinaCLIPModel, data: bytes, head: bytes) -> None:
    try:
        found = model.encode_image([head + data])
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        assert np.isfinite(found).all()
        return
    assert said.startswith("image 0: ")
    assert "\n" not in said


def test_a_saved_processor_comes_back(tmp_path: Path) -> None:
    JinaCLIPImageProcessor(mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | {"std": [0, 0, 0]}))
    with pytest.raises(ValueError, match=r"std=.0, 0, 0. must be three finite numbers above 0"):
        JinaCLIPImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_lenght": 8}, r"no option 'max_lenght' \(8\); did you mean 'max_length'\?"),
        ({"text_kwargs": {"max_lenght": 8}}, "no option 'max_lenght'"),
        ({"return_overflowing_tokens": True}, "no option 'return_overflowing_tokens'"),
        ({"is_split_into_words": True}, "no option 'is_split_into_words'"),
        ({"text_pair": ["a", "b"]}, "no option 'text_pair'"),
        ({"max_length": 0}, "max_length=0 must be at least 3"),
        ({"max_length": 1}, "max_length=1 must be at least 3"),
        ({"max_length": -1}, "max_length=-1 must be at least 3"),
        *UNSUITABLE,
        ({"padding": "long"}, "the tokenizer takes no texts with {'padding': 'long', .*: long is not a valid Padding"),
        ({"return_tensors": "jax"}, "takes no texts with .*: jax is not a valid TensorType"),
        ({"text": ["one", None]}, "got NoneType: 'None' at position 1"),
        ({"text": [["one", "two"]]}, "got list: .* at position 0"),
        ({"text": ["one", "a \ud83d"]}, r"position 1 holds half a letter \(U\+D83D\)"),
    ],
)
def test_the_processor_refuses_the_same(model: JinaCLIPModel, options: dict[str, Any], words: str) -> None:
    """Limits of 0 and 1 would switch cutting off, and a nested list would become one pair of texts."""
    with pytest.raises((TypeError, ValueError), match=words):
        model.processor(**{"text": ["one", "two"], "padding": True, "return_tensors": "pt", **options})


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.dictionaries(
        st.sampled_from([*processing_jina_clip.TEXT_OPTIONS, "stride", "return_length"]), ANY, max_size=3
    ),
    door=st.sampled_from(["encode_text", "processor"]),
)
def test_any_options_of_texts_are_taken_or_named(model: JinaCLIPModel, options: dict[str, Any], door: str) -> None:
    try:
        if door == "processor":
            found = len(model.processor(text=["one", "two"], **options)["input_ids"])
        else:
            found = len(model.encode_text(["one", "two"], **options))
    except (ValueError, TypeError) as error:
        found, said = 2, str(error)
    else:
        said = ""
    assert found == 2
    assert "\n" not in said


def test_the_processor_reads_a_generator_and_gives_what_is_asked(model: JinaCLIPModel) -> None:
    found = model.processor(text=(text for text in ("one", "two")), padding=True, return_length=True)
    assert len(found["input_ids"]) == 2
    assert "length" in found
