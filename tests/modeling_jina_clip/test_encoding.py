"""encode_text and encode_image: order, shapes, conversions, limits. Golden values are in test_golden.py."""

import inspect
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from modeling_jina_clip.encoding_jina_clip import prepared_ahead, token_budget_batches


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model")


def test_the_published_signatures() -> None:
    """Names, order and defaults that programs written for the published code rely on. ``allow_urls`` is ours."""
    common = {
        "batch_size": 32,
        "show_progress_bar": None,
        "convert_to_numpy": True,
        "convert_to_tensor": False,
        "device": None,
        "normalize_embeddings": True,
        "truncate_dim": None,
    }
    text = inspect.signature(JinaCLIPModel.encode_text).parameters
    defaults = {name: p.default for name, p in text.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(defaults.items()) == list(
        {"self": inspect.Parameter.empty, "sentences": inspect.Parameter.empty, "task": None, **common}.items()
    )
    assert text["tokenizer_kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    image = inspect.signature(JinaCLIPModel.encode_image).parameters
    defaults = {name: p.default for name, p in image.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(defaults.items()) == list(
        {"self": inspect.Parameter.empty, "images": inspect.Parameter.empty, **common}.items()
    )
    assert image["allow_urls"].default is False
    assert image["allow_urls"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("method", ["encode_text", "encode_image"])
def test_each_published_argument_is_read(model: JinaCLIPModel, golden: Path, method: str, capsys) -> None:
    image = golden / "images" / "gray_257x190.png"
    encode, inputs = getattr(model, method), (["a cat", "two dogs"] if method == "encode_text" else [image, image])
    plain = encode(inputs)
    np.testing.assert_allclose(encode(inputs, batch_size=1), plain, atol=1e-6)
    raw = encode(inputs, normalize_embeddings=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 1e-2
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), plain, atol=1e-6)
    short = encode(inputs, truncate_dim=8)
    np.testing.assert_allclose(short, raw[:, :8] / np.linalg.norm(raw[:, :8], axis=1, keepdims=True), atol=1e-6)
    assert isinstance(encode(inputs, convert_to_numpy=False), list)
    assert torch.is_tensor(encode(inputs, convert_to_tensor=True))
    np.testing.assert_array_equal(encode(inputs, device="cpu"), plain)
    capsys.readouterr()
    encode(inputs, show_progress_bar=True)
    assert "Encoding" in capsys.readouterr().err
    encode(inputs, show_progress_bar=False)
    assert "Encoding" not in capsys.readouterr().err


def test_order_is_kept_over_many_lengths(model: JinaCLIPModel) -> None:
    words = ["a", "cat", "sitting", "on", "the", "beach", "with", "two", "people", "and", "red", "dogs"]
    texts = [" ".join(words[i % 12] for i in range(j, j + 1 + (j * 7) % 90)) for j in range(60)]
    together = model.encode_text(texts, batch_size=8)
    alone = np.stack([model.encode_text(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("budget", [32, 400, 4096])
def test_batches_hold_every_index_once_within_the_budget(budget: int) -> None:
    lengths = [int(length) for length in np.random.default_rng(0).lognormal(3.6, 1.0, 500).clip(3, 2000)]
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert 2 * min(lengths[index] for index in batch) >= longest


def test_conversions(model: JinaCLIPModel) -> None:
    texts = ["a cat", "two dogs"]
    numpy, tensor = model.encode_text(texts), model.encode_text(texts, convert_to_tensor=True)
    rows = model.encode_text(texts, convert_to_numpy=False)
    assert isinstance(numpy, np.ndarray)
    assert numpy.dtype == np.float32
    assert torch.equal(tensor, torch.tensor(numpy))
    assert isinstance(rows, list)
    assert torch.equal(torch.stack(rows), tensor)
    torch.testing.assert_close(model.encode_text("a cat", convert_to_numpy=False), rows[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.encode_text(texts, truncate_dim=16), axis=1), 1, atol=1e-6)


def test_nothing_in_gives_an_empty_matrix(model: JinaCLIPModel) -> None:
    assert model.encode_text([]).shape == (0, 64)
    assert model.encode_image([]).shape == (0, 64)


def test_training_mode_survives_and_dropout_is_off(model: JinaCLIPModel) -> None:
    model.train()
    one, other = model.encode_text("a cat"), model.encode_text("a cat")
    np.testing.assert_array_equal(one, other)
    assert model.training
    model.eval()


def test_a_string_is_a_text_even_when_it_names_a_file(model: JinaCLIPModel, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(path)
    assert model.encode_text([str(path), "https://example.com/cat.png"]).shape == (2, 64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode_text([3]), TypeError, "takes strings, got int"),
        (lambda m: m.encode_text(["a"], truncate_dim=65), ValueError, r"truncate_dim=65 must lie in 1..64"),
        (lambda m: m.encode_text(["a"], truncate_dim=0), ValueError, "truncate_dim=0 must lie in"),
        (lambda m: m.encode_text(["a"], batch_size=0), ValueError, "batch_size=0"),
        (lambda m: m.encode_image([b""], batch_size=0), ValueError, "batch_size=0"),
        (lambda m: m.encode_image(["https://example.com/a.png"]), ValueError, "URLs are not fetched"),
    ],
)
def test_bad_input(model: JinaCLIPModel, call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


def test_the_next_batch_is_prepared_while_this_one_is_in_use() -> None:
    prepared: list[int] = []
    second = threading.Event()

    def prepare(batch: int) -> int:
        prepared.append(batch)
        if batch == 2:
            second.set()
        return batch * 10

    batches = prepared_ahead([1, 2, 3, 4], prepare)
    assert next(batches) == (1, 10)
    assert second.wait(timeout=30)  # before anybody asked for it
    assert 4 not in prepared  # and no further: images of all batches would fill the memory
    assert list(batches) == [(2, 20), (3, 30), (4, 40)]


def test_an_image_that_cannot_be_read_ends_the_call_and_names_itself(model: JinaCLIPModel, golden: Path) -> None:
    model.train()
    good = golden / "images" / "gray_257x190.png"
    with pytest.raises(ValueError, match="image 1: 3 bytes is not an image"):
        model.encode_image([good, good, good, b"abc"], batch_size=2)
    assert model.training
    model.eval()


def test_truncation_of_the_config_is_the_default(golden: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model", truncate_dim=16)
    assert model.encode_text(["a cat"]).shape == (1, 16)
    assert model.encode_text(["a cat"], truncate_dim=64).shape == (1, 64)


def test_a_model_made_in_memory_asks_for_its_processor() -> None:
    sizes = {"embed_dim": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    vision = {"embed_dim": 8, "width": 8, "head_width": 8, "layers": 1, "image_size": 8, "patch_size": 8}
    model = JinaCLIPModel(JinaCLIPConfig(text_config=sizes, vision_config=vision))
    with pytest.raises(ValueError, match=r"set model\.processor"):
        model.encode_text("a cat")
