"""Chance in closed form, BM25 against its formula written out, and which tasks each measures."""

import math
import sys

import numpy as np
import pytest
from PIL import Image

from trainer_ext.evaluation.baselines import _Index, bm25, chance
from trainer_ext.evaluation.tasks import ALL_RECALLS, HardNegativeTask, image_text_tasks, text_task

TEXTS = ["red cat sat quietly", "blue dog ran away fast fast", "cat dog friends", "purple whale swims"]


def test_chance_in_closed_form():
    images = [Image.new("RGB", (2, 2)) for _ in range(40)]
    pairs = [(f"query {place}", f"positive {place}") for place in range(50)]
    hard = HardNegativeTask("hard", ["q"], ["p"], [[f"n{place}" for place in range(7)]])
    metrics = chance(
        [*image_text_tasks("pictures", images, [[f"{i}"] for i in range(40)]), text_task("words", pairs), hard]
    )
    assert metrics["pictures/t2i_r1"] == pytest.approx(1 / 40)
    assert metrics["pictures/i2t_r5"] == pytest.approx(5 / 40)
    assert metrics["words/r5"] == pytest.approx(5 / 50)
    assert metrics["words/ndcg10"] == pytest.approx(sum(1 / math.log2(place + 2) for place in range(10)) / 50)
    assert metrics["hard/accuracy"] == 1 / 8


def lucene_bm25(query: str, texts: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """idf * tf / (tf + k1 (1 - b + b length / mean length)), idf = ln(1 + (n - df + 0.5) / (df + 0.5))."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(documents)
    for word in query.split():
        df = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for place, document in enumerate(documents):
            tf = document.count(word)
            scores[place] += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
    return scores


def test_scores_are_those_of_the_formula():
    queries = ["cat", "dog fast", "whale purple cat", "unicorn", "the"]
    scores = _Index(TEXTS).scores(queries)
    np.testing.assert_allclose(scores, [lucene_bm25(query, TEXTS) for query in queries], atol=1e-5)
    assert not scores[3:].any(), "neither an unknown word nor a stop word matches anything"


def test_bm25_measures_texts_only_and_unknown_words_are_misses():
    pictures = image_text_tasks("pictures", [Image.new("RGB", (2, 2))], [["cat"]])
    words = text_task(
        "words", [("red cat", TEXTS[0]), ("fast dog", TEXTS[1]), ("swims", TEXTS[3]), ("unicorn", TEXTS[2])]
    )
    metrics = bm25([*pictures, words])
    # Four candidates: R@5 is always 1; the unknown word ties with everything and stands last.
    assert metrics == {"words/ndcg10": pytest.approx((3 + 1 / math.log2(5)) / 4), "words/r5": 1.0}


def test_bm25_on_hard_negatives():
    hard = HardNegativeTask(
        "hard",
        ["cat friends", "dog", "unicorn"],
        [TEXTS[2], TEXTS[3], TEXTS[0]],
        [[TEXTS[0], TEXTS[1]], [TEXTS[1], TEXTS[0]], [TEXTS[1], TEXTS[2]]],
    )
    assert bm25([hard]) == {"hard/accuracy": pytest.approx(1 / 3)}


def test_a_missing_library_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[demo\]'"):
        bm25([text_task("words", [("a b", "c d")])])


def test_texts_without_a_word_are_misses() -> None:
    assert bm25([text_task("signs", [("what is it", "?"), ("and this", "!")], ALL_RECALLS)])["signs/r1"] == 0
