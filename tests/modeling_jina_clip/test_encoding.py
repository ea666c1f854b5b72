"""encode_text and encode_image: order, shapes, conversions, limits. Golden values are in test_golden.py."""

import inspect
import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from modeling_jina_clip.modeling_jina_clip import prepared_ahead, token_budget_batches


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


TEXTS = ["a cat", "two dogs on the beach", "a cat"]


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        (text for text in TEXTS),
        dict(enumerate(TEXTS)).values(),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pandas.Series(TEXTS, index=[7, 3, 3]),
        pandas.Series(TEXTS, dtype="string"),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
    ],
    ids=["tuple", "generator", "values", "array", "objects", "series", "strings", "column"],
)
def test_texts_come_in_any_collection(model: JinaCLIPModel, texts: Iterable[str]) -> None:
    np.testing.assert_array_equal(model.encode_text(texts), model.encode_text(TEXTS))


def test_one_text_is_one_text_in_any_string(model: JinaCLIPModel) -> None:
    for text in (np.str_("a cat"), np.array("a cat")):
        np.testing.assert_array_equal(model.encode_text(text), model.encode_text("a cat"))


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)) for _ in range(3)]


def objects(items: list) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@pytest.mark.parametrize(
    "collect",
    [
        tuple,
        iter,
        lambda images: dict(enumerate(images)).values(),
        objects,
        pandas.Series,
        lambda images: np.stack([np.asarray(image) for image in images]),
        lambda images: torch.stack([torch.tensor(np.asarray(image)) for image in images]),
        lambda images: datasets.Dataset.from_dict(
            {"image": images}, features=datasets.Features({"image": datasets.Image()})
        )["image"],
    ],
    ids=["tuple", "iterator", "values", "objects", "series", "array", "tensor", "column"],
)
def test_images_come_in_any_collection(model: JinaCLIPModel, collect: Callable) -> None:
    expected = model.encode_image(pictures(), batch_size=2)
    np.testing.assert_array_equal(model.encode_image(collect(pictures()), batch_size=2), expected)


def test_paths_come_in_any_collection(model: JinaCLIPModel, golden: Path) -> None:
    paths = sorted(golden.glob("images/*.png"))[:3]
    expected = model.encode_image(paths)
    for collection in (np.array([str(path) for path in paths]), pandas.Series(map(str, paths)), (p for p in paths)):
        np.testing.assert_array_equal(model.encode_image(collection), expected)


class OneWay(io.RawIOBase):
    """Can be read but not rewound, as what comes over a network."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._data.readinto(buffer)


def just_written(path: Path) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.open(path).save(buffer, format="PNG")
    return buffer


ONE_IMAGE = {
    "str": str,
    "path": Path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "just written": just_written,
    "opened": lambda path: path.open("rb"),
    "one way": lambda path: io.BufferedReader(OneWay(path.read_bytes())),
    "PIL": Image.open,
    "channels last": lambda path: np.asarray(Image.open(path)),
    "channels first": lambda path: np.moveaxis(np.asarray(Image.open(path)), -1, 0),
    "tensor": lambda path: torch.tensor(np.asarray(Image.open(path))),
    "array of one": lambda path: np.array(str(path)),
}


@pytest.mark.parametrize("form", ONE_IMAGE)
def test_one_image_is_one_image_in_any_form(model: JinaCLIPModel, tmp_path: Path, form: str) -> None:
    image = pictures()[0]
    image.save(tmp_path / "image.png")
    source = ONE_IMAGE[form](tmp_path / "image.png")
    found = model.encode_image(source)
    np.testing.assert_array_equal(found, model.encode_image(image))
    if form in ("BytesIO", "opened"):
        np.testing.assert_array_equal(model.encode_image([source])[0], found)  # neither closed nor used up
        source.close()


def test_what_the_padding_token_means_is_as_published(model: JinaCLIPModel) -> None:
    """Every token counts but the padding's, also where a text spells it out."""
    ids = torch.tensor([model.processor.tokenizer("a [PAD] b")["input_ids"]])
    assert (ids == model.config.text_config.pad_token_id).sum() == 1
    with torch.no_grad():
        published = torch.nn.functional.normalize(model.get_text_features(ids), dim=-1)
        everything = torch.nn.functional.normalize(model.get_text_features(ids, torch.ones_like(ids)), dim=-1)
    assert (published - everything).abs().max() > 1e-3
    for texts in (["a [PAD] b"], ["a [PAD] b", "a longer text beside it"]):
        assert np.abs(model.encode_text(texts)[0] - published[0].numpy()).max() < 1e-6


def test_a_tokenizer_that_pads_with_another_token_brings_its_mask(golden: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    alone = model.encode_text("a cat")
    model.processor.tokenizer.pad_token = "[UNK]"
    assert np.abs(model.encode_text(["a cat", "a cat and dogs"])[0] - alone).max() < 1e-6


def test_nothing_in_gives_an_empty_matrix(model: JinaCLIPModel) -> None:
    nothing = ([], (), iter([]), {}.values(), np.array([]), np.array([], dtype=str), pandas.Series([], dtype=object))
    for empty in nothing:
        assert model.encode_text(empty).shape == (0, 64)
    for empty in (*nothing, np.empty((0, 8, 8, 3), np.uint8), torch.empty(0, 3, 8, 8)):
        found = model.encode_image(empty, truncate_dim=8)
        assert found.shape == (0, 8)
        assert found.dtype == np.float32


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
        (lambda m: m.encode_text(["a"], truncate_dim="8"), TypeError, "truncate_dim='8' must be an integer in 1..64"),
        (lambda m: m.encode_image([b""], truncate_dim=8.0), TypeError, "truncate_dim=8.0 must be an integer"),
        (lambda m: m.encode_image([b""], truncate_dim=True), TypeError, "truncate_dim=True must be an integer"),
        (lambda m: m.encode_image([b""], truncate_dim=65), ValueError, r"truncate_dim=65 must lie in 1..64"),
        (lambda m: m.encode_text(["a"], batch_size=0), ValueError, "batch_size=0"),
        (lambda m: m.encode_text(["a"], batch_size="8"), TypeError, "batch_size='8' must be an integer"),
        (lambda m: m.encode_text(["a", None]), TypeError, "takes strings, got NoneType: 'None' at position 1"),
        (lambda m: m.encode_text(None), TypeError, "takes strings, got NoneType: 'None'; pass a string or a list"),
        (lambda m: m.encode_text(b"a"), TypeError, "takes strings, got bytes"),
        (lambda m: m.encode_text({"a": "b"}), TypeError, "takes strings, got dict"),
        (lambda m: m.encode_text(pandas.DataFrame({"a": ["b"]})), TypeError, r"columns \['a'\]; pass the column"),
        (lambda m: m.encode_image(pandas.DataFrame({"a": ["b"]})), TypeError, r"columns \['a'\]; pass the column"),
        (lambda m: m.encode_image(None), TypeError, "image 0: cannot read an image from NoneType"),
        (lambda m: m.encode_image({"a": "b"}), TypeError, "image 0: cannot read an image from dict"),
        (lambda m: m.encode_image(io.StringIO("a")), TypeError, r"a StringIO is a file of text; open it with open"),
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
    with pytest.raises(ValueError, match="image 3: 3 bytes is not an image"):
        model.encode_image([good, good, good, b"abc"], batch_size=2)
    assert model.training
    model.eval()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_broken_image_is_named_by_its_place_in_the_callers_list(
    model: JinaCLIPModel, golden: Path, batch_size: int
) -> None:
    good = golden / "images" / "gray_257x190.png"
    for wrong, error in (("absent.png", FileNotFoundError), (None, TypeError), (np.zeros(3), ValueError)):
        with pytest.raises(error, match=r"^image 5: ") as found:
            model.encode_image([good] * 5 + [wrong] + [good] * 2, batch_size=batch_size)
        assert type(found.value.__cause__) is error


@pytest.mark.parametrize("method", ["encode_text", "encode_image"])
def test_nothing_is_encoded_before_the_arguments_are_checked(golden: Path, method: str) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model._origin, model.config._name_or_path = None, ""  # the processor would be missing first
    for arguments in ({"truncate_dim": 65}, {"truncate_dim": "8"}, {"batch_size": 0}):
        with pytest.raises((ValueError, TypeError), match=f"{next(iter(arguments))}="):
            getattr(model, method)(["a", "b"], **arguments)


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
