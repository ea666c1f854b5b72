"""Which candidates are surely wrong answers, and the BM25 index that finds them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.evaluation.baselines import bm25
from trainer_ext.evaluation.tasks import HardNegativeTask
from trainer_ext.negatives import NEAR_EQUAL, REPEATED, SAME_ID, SAME_TEXT, Bm25, Judge, nearly_equal, text_key

TEXTS = ["a red car", "A RED car!", "a red, fast car", "car", "two boats", "Two boats.", "a blue car", "!!!", "???"]


def judge(ids: list[list[str]] | None = None, near_equal: float = 0.7) -> Judge:
    return Judge(TEXTS, ids or [[] for _ in TEXTS], near_equal)


def test_each_candidate_is_a_negative_or_has_its_reason() -> None:
    ids = [["1"], ["2"], ["3"], ["4"], ["5"], ["6"], ["1"], [], []]
    judged = judge(ids).of(range(len(TEXTS)), "What is red?", ["a red car"], {"1"})
    assert [TEXTS[number] for number in judged.negatives] == ["two boats", "!!!", "???"]
    assert judged.left_out == {SAME_TEXT: 2, NEAR_EQUAL: 2, SAME_ID: 1, REPEATED: 1}


def test_the_order_of_the_retriever_stays() -> None:
    assert judge().of([6, 4, 0], "q", ["a ship"], set()).negatives == [6, 4, 0]


def test_a_text_like_the_query_is_no_negative() -> None:
    assert judge().of([6], "A blue car?", ["yes"], set()).left_out == {SAME_TEXT: 1}
    assert judge().of([6], None, ["yes"], set()).negatives == [6]


@pytest.mark.parametrize(("share", "near"), [(0.49, True), (0.5, False), (1.0, False)])
def test_near_is_more_than_the_share_of_common_words(share: float, near: bool) -> None:
    assert nearly_equal("a blue car", "a red car", share) is near


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text("ab cé!", max_size=12), min_size=1, max_size=8), st.data())
def test_no_right_text_becomes_a_negative(texts: list[str], data: st.DataObject) -> None:
    texts = list(dict.fromkeys(texts))
    rights = data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=3))
    judged = Judge(texts, [[] for _ in texts], 0.6).of(range(len(texts)), "ab", rights, set())
    keys = [text_key(texts[number]) or texts[number] for number in judged.negatives]
    assert not set(keys) & {text_key(text) or text for text in [*rights, "ab"]}
    assert len(set(keys)) == len(keys)
    assert len(keys) + judged.left_out.total() == len(texts)


def test_bm25_scores_are_those_of_its_ranking_and_of_the_baseline() -> None:
    texts = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("car", "boat", "house")]
    index = Bm25(texts)
    scores = index.scores(["red car", "unknown words"])
    documents, best = index.top(["red car"], k=5, threads=1)
    np.testing.assert_array_equal(scores[0][documents[0]], best[0])
    assert texts[documents[0][0]] == "red car"
    assert not scores[1].any()
    task = HardNegativeTask("hard", ["red car"], [texts[0]], [texts[1:]])
    assert bm25([task])["hard/accuracy"] == float(scores[0].argmax() == 0)


def test_texts_of_stop_words_alone_are_indexed() -> None:
    assert Bm25(["the", "a", "red"]).scores(["the red"])[0].argmax() == 2
