"""Long texts are cut at one length by every door, and it is said once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from modeling_jina_clip import JinaCLIPModel
from modeling_jina_clip.processing_jina_clip import MAX_LENGTH
from trainer_ext.sentence_files import write_sentence_files

LONG = "red bus " * 260 + "the quiet sea " * 100


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limit") / "model"
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    write_sentence_files(folder, model.config)
    return folder


@pytest.fixture
def model(folder: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(folder).eval()


@pytest.fixture
def encoder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def processed(model: JinaCLIPModel, texts: list[str], **options: object) -> np.ndarray:
    with torch.no_grad():
        return model(**model.processor(text=texts, padding=True, return_tensors="pt", **options)).text_embeds.numpy()


def test_all_doors_cut_at_one_length(model: JinaCLIPModel, encoder: SentenceTransformer) -> None:
    texts = [LONG, "a red bus"]
    expected = model.encode_text(texts)
    np.testing.assert_allclose(model.encode_text(texts, max_length=MAX_LENGTH), expected, atol=1e-6)
    np.testing.assert_allclose(processed(model, texts), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    whole = model.encode_text(texts, max_length=8192)
    assert whole[0] @ expected[0] < 1 - 1e-5
    np.testing.assert_allclose(processed(model, texts, max_length=8192), whole, atol=1e-5)
    np.testing.assert_allclose(processed(model, texts, truncation=False), whole, atol=1e-5)
    encoder.max_seq_length = 8192
    assert encoder.max_seq_length == 8192
    np.testing.assert_allclose(encoder.encode(texts), whole, atol=1e-5)
    model.processor.max_length = 8192  # the same for both of our doors
    np.testing.assert_allclose(model.encode_text(texts), whole, atol=1e-6)


def test_a_shorter_limit_of_the_tokenizer_holds_everywhere(folder: Path, tmp_path: Path) -> None:
    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    encoder.max_seq_length = 16
    encoder.save_pretrained(str(tmp_path / "short"))
    again = SentenceTransformer(str(tmp_path / "short"), trust_remote_code=True, device="cpu")
    model = JinaCLIPModel.from_pretrained(tmp_path / "short").eval()
    assert again.max_seq_length == model.processor.max_length == 16
    expected = JinaCLIPModel.from_pretrained(folder).eval().encode_text([LONG], max_length=16)
    for found in (again.encode([LONG]), model.encode_text([LONG]), processed(model, [LONG])):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("door", ["encode_text", "processor", "sentence-transformers"])
def test_it_is_said_once(
    door: str, model: JinaCLIPModel, encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["short", LONG, LONG, LONG[:300]]
    call = {
        "encode_text": lambda texts: model.encode_text(texts),
        "processor": lambda texts: processed(model, texts),
        "sentence-transformers": lambda texts: encoder.encode(texts),
    }[door]
    call(texts[:1])
    assert "cut" not in caplog.text
    for _ in range(2):
        call(texts)
    said = [record.getMessage() for record in caplog.records if "cut there" in record.getMessage()]
    assert said == [
        "2 of 4 texts are longer than 512 tokens, and were cut there; pass max_length= to embed more of them "
        "(in sentence-transformers, set model.max_seq_length)"
    ]


def test_what_was_asked_for_is_not_said(model: JinaCLIPModel, caplog: pytest.LogCaptureFixture) -> None:
    model.encode_text([LONG], max_length=8)
    processed(model, [LONG], max_length=8)
    processed(model, [LONG], truncation=False)
    assert "cut" not in caplog.text


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), limit=st.integers(3, 30))
def test_any_lengths_and_limits_agree(golden: Path, lengths: list[int], limit: int) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()
    texts = [" ".join(["red", "bus"] * length)[: 9 * length] for length in lengths]
    expected = model.encode_text(texts, max_length=limit)
    model.processor.max_length = limit
    np.testing.assert_allclose(model.encode_text(texts), expected, atol=1e-6)
    np.testing.assert_allclose(processed(model, texts), expected, atol=1e-5)
