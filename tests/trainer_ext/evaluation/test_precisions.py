"""Codes against sentence-transformers, and that ``evaluate`` measures with them."""

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from trainer_ext.evaluation import precisions
from trainer_ext.evaluation.items import Embeddings, Rows
from trainer_ext.evaluation.precisions import codes
from trainer_ext.evaluation.tasks import evaluate, text_task


def units(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)) + 0.2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 4096])
def test_codes_are_those_of_sentence_transformers(monkeypatch, block):
    monkeypatch.setattr(precisions, "BLOCK", block)
    vectors = units(150, 24)
    vectors[:, 3] = 0.25  # a component that never changes
    # Not its "int8": version 5.5 cuts its codes towards zero, so those below zero are one step too high.
    expected = quantize_embeddings(vectors, "uint8").astype(int) - 128
    np.testing.assert_array_equal(codes(Rows(vectors), "int8"), expected)
    signs = codes(Rows(vectors), "binary")
    np.testing.assert_array_equal(np.packbits(signs > 0, axis=1), quantize_embeddings(vectors, "ubinary"))
    assert set(np.unique(signs)) == {-1, 1}


def test_signs_order_as_the_hamming_distance_does():
    vectors = units(60, 16)
    bits = quantize_embeddings(vectors, "ubinary")
    hamming = np.bitwise_count(bits[:, None] ^ bits[None]).sum(axis=2, dtype=int)
    places = {str(row): row for row in range(60)}
    signs = Embeddings(places, vectors).quantized("binary", list(places)).of(list(places), "test")
    np.testing.assert_allclose(signs @ signs.T, 1 - 2 * hamming / 16, atol=1e-6)


def test_every_precision_is_measured_under_its_name():
    vectors = units(80, 32)
    vectors[40:] = vectors[:40] + 0.9 * units(40, 32, seed=1)
    pairs = [(f"q{row}", f"p{row}") for row in range(40)]

    def encode(texts):
        return np.stack([vectors[int(text[1:]) + (40 if text[0] == "p" else 0)] for text in texts])

    tasks = [text_task("words", pairs)]
    found = evaluate(encode, encode, tasks, progress=False, precisions=["int8", "binary"], truncate_dims=[8])
    assert set(found) == {
        f"words{mark}/{metric}"
        for mark in ("", "@8", "@int8", "@binary", "@8@int8", "@8@binary")
        for metric in ("ndcg10", "r5")
    }
    cut = evaluate(lambda texts: encode(texts)[:, :8], encode, tasks, progress=False, precisions=["int8", "binary"])
    for name, value in cut.items():
        assert found[name.replace("words", "words@8", 1)] == value, "cut first, then coded"
    for precision in ("int8", "binary"):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        coded = codes(Rows(unit), precision).astype(np.float32)
        by_text = {f"{side}{row}": coded[row + shift] for side, shift in (("q", 0), ("p", 40)) for row in range(40)}
        expected = evaluate(lambda texts, by_text=by_text: np.stack([by_text[t] for t in texts]), encode, tasks, False)
        assert {
            name.replace(f"@{precision}", ""): v for name, v in found.items() if f"words@{precision}/" in name
        } == expected
    assert found["words/ndcg10"] > found["words@binary/ndcg10"]
    more = evaluate(encode, encode, [*tasks, text_task("few", pairs[:5])], progress=False, precisions=["int8"])
    assert more["words@int8/ndcg10"] == found["words@int8/ndcg10"], "ranges come from the task alone"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="no precision 'int4'; choose one of: int8, binary"):
        codes(Rows(units(3, 4)), "int4")
