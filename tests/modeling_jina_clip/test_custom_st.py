"""The sentence-transformers module: texts, images, mixed lists, prompts, and no guessing about strings."""

import io
import json
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer

import modeling_jina_clip
from modeling_jina_clip import JinaCLIPModel


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sentence-transformers folder, as the export step writes it."""
    folder = tmp_path_factory.mktemp("st") / "model"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    shutil.copy(Path(modeling_jina_clip.__file__).parent / "custom_st.py", folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    method = {"text": "get_text_features", "image": "get_image_features"}
    modalities = {kind: {"method": name, "method_output_name": None} for kind, name in method.items()}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": "sentence_embedding",
    }
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def reference(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model")


@pytest.fixture(scope="module")
def images(golden: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted((golden / "images").glob("*.png"))]


def test_texts_images_and_mixed_lists(model, reference, images) -> None:
    texts = ["a cat on the beach", "two dogs."]
    text, image = reference.encode_text(texts), reference.encode_image(images)
    np.testing.assert_allclose(model.encode(texts), text, atol=1e-5)
    np.testing.assert_allclose(model.encode(images), image, atol=1e-5)
    mixed = model.encode([images[0], texts[0], {"image": images[1]}, {"text": texts[1]}, images[2]])
    np.testing.assert_allclose(mixed, [image[0], text[0], image[1], text[1], image[2]], atol=1e-5)
    assert model.encode("a cat").shape == (64,)
    assert model.get_embedding_dimension() == 64


def test_the_model_says_what_it_embeds(model, images, tmp_path: Path) -> None:
    """Texts and images, and lists of both; what its library calls a message, audio or video it does not take."""
    assert model.modalities == model[0].modalities == ["text", "image"]
    assert model.supports("text")
    assert model.supports("image")
    for kind in ("message", "audio", "video", ("image", "text"), ("audio", "text")):
        assert not model.supports(kind)
    grey = np.asarray(images[0].convert("L"))
    assert model.encode([grey]).shape == model.encode([Image.fromarray(grey)]).shape == (1, 64)
    np.testing.assert_allclose(model.encode([grey, "a cat"]), model.encode([Image.fromarray(grey), "a cat"]), atol=1e-5)
    assert model.modalities == ["text", "image"]  # not only before the first batch
    model.save_pretrained(str(tmp_path))
    assert "Supported Modalities:** Text, Image\n" in (tmp_path / "README.md").read_text()


@pytest.fixture
def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no name, no picture: whoever tries fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"opened: {args[:2]}")

    for module, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (Image, "open")):
        monkeypatch.setattr(module, name, refuse)


def test_a_string_is_always_a_text(model, reference, images, golden: Path, nothing_is_opened: None) -> None:
    path = str(golden / "images" / "gray_257x190.png")
    texts = [
        *[
            path,
            f"file://{path}",
            "http://127.0.0.1:9/cat.png",
            "https://example.com/cat.jpg",
            "data:image/png;base64,AA",
        ],
        *["https://www.youtube.com/watch?v=1", "/etc/hostname", "~/cat.png", "clip.mp4", "ftp://example.com/a.png"],
    ]
    expected = reference.encode_text(texts)
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)
    np.testing.assert_allclose([model.encode(text) for text in texts], expected, atol=1e-5)
    np.testing.assert_allclose(model.encode([{"text": text} for text in texts]), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_query(texts), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_document(texts), expected, atol=1e-5)
    array = np.asarray(images[0].convert("RGB"))
    np.testing.assert_allclose(model.encode([array, *texts])[1:], expected, atol=1e-5)  # beside an image, too


def test_a_path_as_an_image_is_said_so(model, reference, golden: Path) -> None:
    path = golden / "images" / "gray_257x190.png"
    expected = reference.encode_image([path])[0]
    for image in (str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_allclose(model.encode([{"image": image}])[0], expected, atol=1e-5)


def test_an_image_url_needs_the_programs_consent(model, nothing_is_opened: None) -> None:
    for batch in ([{"image": "http://127.0.0.1:9/cat.png"}], ["a cat", {"image": "https://example.com/cat.png"}]):
        with pytest.raises(ValueError, match=r"cat.png' is a URL, .* set model\[0\]\.allow_urls = True"):
            model.encode(batch)
    # Messages of a chat could name a URL as well; this model takes none.
    message = {"role": "user", "content": [{"type": "image", "url": "http://127.0.0.1:9/cat.png"}]}
    with pytest.raises(ValueError, match="cannot embed inputs of kind"):
        model.encode([message])


def test_with_consent_a_url_is_fetched_by_the_same_rules(model, reference, images) -> None:
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/cat.png"
        patch.setattr(model[0], "allow_urls", True)
        with pytest.raises(ValueError, match="is not an address of the public internet"):
            model.encode([{"image": url}])
        # The rule's home is the module that this folder's custom_st was loaded with.
        rules = sys.modules[sys.modules[type(model[0]).__module__].fetch_url.__module__]
        patch.setattr(rules, "is_public", lambda address: address.is_loopback)
        embeddings = model.encode([{"image": url}, "a cat", {"image": url}])
        http.shutdown()
    image, text = reference.encode_image([images[0]])[0], reference.encode_text("a cat")
    np.testing.assert_allclose(embeddings, [image, text, image], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"allow_urls": True},
        {"processing_kwargs": {"image": {"allow_urls": True}}},
        {"processing_kwargs": {"common": {"allow_urls": True}}},
        {"processor_kwargs": {"allow_urls": True}},
        {"transformer_task": "retrieval"},  # for which the stock module opens image strings by itself
    ],
    ids=str,
)
def test_no_file_of_a_repository_gives_consent(
    folder: Path, settings: dict, tmp_path: Path, nothing_is_opened: None
) -> None:
    shutil.copytree(folder, tmp_path / "sly")
    for name in ("sentence_bert_config.json", "preprocessor_config.json", "processor_config.json", "config.json"):
        path = tmp_path / "sly" / name
        if path.is_file():
            path.write_text(json.dumps({**json.loads(path.read_text()), "allow_urls": True}))
    path = tmp_path / "sly" / "sentence_bert_config.json"
    plain = {key: value for key, value in json.loads(path.read_text()).items() if key != "allow_urls"}
    path.write_text(json.dumps({**plain, **settings}))

    def embed() -> np.ndarray:
        sly = SentenceTransformer(str(tmp_path / "sly"), trust_remote_code=True, device="cpu")
        return sly.encode([{"image": "http://127.0.0.1:9/cat.png"}])

    with pytest.raises((ValueError, TypeError), match=r"allow_urls|retrieval"):
        embed()


def test_consent_is_not_saved(model, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model[0], "allow_urls", True)
        model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    assert again[0].allow_urls is False


def test_prompts_truncation_and_similarity(model, reference) -> None:
    np.testing.assert_allclose(model.encode(["cat"], prompt="a "), reference.encode_text(["a cat"]), atol=1e-5)
    short = model.encode(["a cat"], truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(short, reference.encode_text(["a cat"], truncate_dim=16), atol=1e-5)
    assert model.similarity(model.encode(["a cat"]), model.encode(["a cat"])).item() == pytest.approx(1, abs=1e-5)


def test_save_and_reload(model, images, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    batch = ["a cat", images[0]]
    np.testing.assert_allclose(again.encode(batch), model.encode(batch), atol=1e-6)


def test_an_item_of_another_kind_is_refused(model) -> None:
    with pytest.raises((ValueError, TypeError)):
        model.encode([{"audio": np.zeros(100, dtype=np.float32)}])


def test_pixels_of_two_and_three_axes_are_images(model, reference, images) -> None:
    grey = np.asarray(images[0].convert("L"))
    colour = np.asarray(images[1].convert("RGB"))
    expected = reference.encode_image([grey, colour])
    for batch in ([grey, colour], [torch.tensor(grey), torch.tensor(np.moveaxis(colour, -1, 0))], [grey / 255, colour]):
        np.testing.assert_allclose(model.encode(batch), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(grey), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.encode(["a cat", grey])[1], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"array of shape \(2, 8, 8, 3\); .* list\(images\) if it holds several"),
        (torch.zeros(2, 3, 8, 8), r"array of shape \(2, 3, 8, 8\); .* list\(images\)"),
        ([np.zeros((1, 2, 8, 8, 3), np.uint8)], r"array of shape \(1, 2, 8, 8, 3\)"),
        ([np.zeros(5)], r"array of shape \(5,\)"),
        ([None], "NoneType: 'None'"),
        ([b"bytes"], "bytes: .*'image': ..."),
        ([Path("cat.png")], "PosixPath: 'cat.png'; .* a path or bytes as {'image': ...}"),
        ([("a", "b")], "tuple: "),
        ([["a", "b"]], "list: "),
        ([{"text": "a", "image": "b"}], "dict: "),
        ([{"text": 5}], "dict: "),
        ([{}], "dict: "),
        ([7], "int: '7'"),
        ((text for text in ["a"]), "generator: "),
    ],
    ids=range(14),
)
def test_what_is_neither_is_one_line(model, inputs, words: str) -> None:
    with pytest.raises(ValueError, match=f"cannot embed inputs of kind {words}") as caught:
        model.encode(inputs)
    assert "\n" not in str(caught.value)


def test_other_forms_of_texts_and_images(model, reference, images) -> None:
    text = reference.encode_text(["a cat"])[0]
    objects = np.empty(2, dtype=object)
    objects[:] = ["a cat", images[0]]
    for batch in (
        [np.str_("a cat")],
        np.array(["a cat"]),
        ("a cat",),
        objects,
        [np.array("a cat")],
        [{"text": "a cat"}],
    ):
        np.testing.assert_allclose(model.encode(batch)[0], text, atol=1e-5)
    assert len(model.encode([])) == 0


def test_vectors_of_tokens_are_said_to_be_elsewhere(model) -> None:
    with pytest.raises(ValueError, match=r"one vector for each input and no 'token_embeddings'; .*last_hidden_state"):
        model.encode(["a cat"], output_value="token_embeddings")
    rows = model.encode(["a cat", "a dog"], output_value=None)
    assert len(rows) == 2
    assert rows[0]["sentence_embedding"].shape == (64,)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(
        st.one_of(
            st.text(alphabet="ab c", max_size=6), st.none(), st.integers(), st.binary(max_size=4),
            st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda shape: np.zeros(shape, np.uint8)),
            st.dictionaries(st.sampled_from(["text", "image", "audio"]), st.sampled_from(["a", 1, None]), max_size=2),
        ),
        max_size=3,
    )
)  # fmt: skip
def test_any_list_gives_vectors_or_a_line(model, items: list) -> None:
    try:
        found = model.encode(items)
    except (ValueError, TypeError, OSError) as error:
        said = str(error)
    else:
        assert len(found) == len(items)
        assert np.isfinite(found).all()
        return
    assert "\n" not in said
