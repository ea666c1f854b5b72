"""Mining on planted vectors, where the right negatives are known, and what holds for any."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from tests.trainer_ext.tiny_run import NUMBERS, make_tokenizer
from trainer_ext.mining import Mined, MiningSettings, Pairs, mine
from trainer_ext.mining.cache import WorkCache
from trainer_ext.mining.mine import mine_by
from trainer_ext.mining.retrievers import VectorScorer, _encoded
from trainer_ext.negatives import SAME_ID

BY_ANGLE = MiningSettings(retriever="planted", negatives=2)


def at_angles(cosines: Sequence[float]) -> np.ndarray:
    """Unit vectors with these cosines to (1, 0)."""
    cosines = np.asarray(cosines, dtype=np.float64)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)


def planted(cosines: Sequence[float], ids: Sequence[str] | None = None) -> tuple[VectorScorer, Pairs]:
    """One query, whose right answer is the first candidate; the others belong to queries far away."""
    ids = ids or [f"id {number}" for number in range(len(cosines))]
    texts = [f"text{number}" for number in range(len(cosines))]
    queries = ["query", *(f"other{number}" for number in range(1, len(cosines)))]
    pairs = Pairs.of_texts(zip(queries, texts, ids, strict=True))
    vectors = np.tile(np.array([[-1, 0]], np.float32), (len(queries), 1))
    vectors[0] = [1, 0]
    return VectorScorer(vectors, at_angles(cosines)), pairs


def negatives_of_first(mined: Mined) -> list[int]:
    return next((row.negatives for row in mined.rows if row.query == 0), [])


COSINES = [0.8, 0.9, 0.79, 0.77, 0.70, 0.60, 0.10]  # of the right answer, then of the others
CASES = {
    "nothing above the right answer": ({}, [2, 3]),
    "no margin at all": ({"absolute_margin": None}, [1, 2]),
    "0.05 below it": ({"absolute_margin": 0.05}, [4, 5]),
    "5% below it": ({"relative_margin": 0.05}, [4, 5]),  # 0.8 * 0.95 = 0.76
    "3% below it": ({"relative_margin": 0.03}, [3, 4]),  # 0.776
    "1% below it": ({"relative_margin": 0.01}, [2, 3]),  # 0.792
    "the stricter of two margins": ({"absolute_margin": 0.15, "relative_margin": 0.02}, [5, 6]),
    "the first passed over, of those that the margins leave": ({"range_min": 1}, [3, 4]),
    "no rank beyond the last": ({"range_max": 2}, [2]),
}


@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES)
def test_planted_negatives(changes: dict, expected: list[int]) -> None:
    """The closed form: cosines are known, so are the candidates that the ranks and margins leave."""
    changes = {"negatives": len(expected)} | changes
    mined = mine_by(*planted(COSINES), replace(BY_ANGLE, **changes))
    assert negatives_of_first(mined) == expected
    [row] = [row for row in mined.rows if row.query == 0]
    np.testing.assert_allclose(row.scores, [COSINES[number] for number in expected], atol=1e-6)
    np.testing.assert_allclose(row.right_scores, [0.8], atol=1e-6)


def test_same_id_is_left_out_and_told() -> None:
    mined = mine_by(*planted(COSINES, ids=["1", "2", "1", "1", "5", "6", "7"]), BY_ANGLE)
    assert negatives_of_first(mined) == [4, 5]
    mined = mine_by(*planted(COSINES, ids=["1", "2", "1", "1", "1", "1", "7"]), replace(BY_ANGLE, relative_margin=0.0))
    assert negatives_of_first(mined) == []
    assert mined.summary["queries_left_out"][SAME_ID] >= 1
    example = mined.summary["queries_left_out_examples"][0]
    assert example == {"row": 0, "query": "query", "negatives": 1, "reason": SAME_ID}


def test_equal_queries_share_their_right_answers() -> None:
    """The weakest right answer bounds the negatives; each right answer is a row of the table."""
    vectors = at_angles([0.9, 0.5, 0.6, 0.4, 0.3])
    pairs = Pairs.of_texts([("query", f"text{n}") for n in (0, 1)] + [(f"other{n}", f"text{n}") for n in (2, 3, 4)])
    queries = np.array([[1, 0], [-1, 0], [-1, 0], [-1, 0]], np.float32)
    mined = mine_by(VectorScorer(queries, vectors), pairs, BY_ANGLE)
    assert negatives_of_first(mined) == [3, 4]
    np.testing.assert_allclose(mined.rows[0].right_scores, [0.9, 0.5], atol=1e-6)


def test_the_account_adds_up() -> None:
    summary = mine_by(*planted(COSINES), BY_ANGLE).summary
    assert summary["queries"] == summary["queries_with_negatives"] + sum(summary["queries_left_out"].values())
    assert sum(summary["queries_by_negatives_found"].values()) == summary["queries"]


WORDS = st.text("abcd ", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(WORDS, WORDS, st.sampled_from("xyz")), min_size=4, max_size=14),
    margins=st.tuples(st.none() | st.floats(-0.1, 0.3), st.none() | st.floats(0, 0.3)),
    ranks=st.tuples(st.integers(0, 2), st.integers(4, 30)),
    seed=st.integers(0, 2**31),
)
def test_what_holds_for_any_pairs(rows: list, margins: tuple, ranks: tuple, seed: int) -> None:
    pairs = Pairs.of_texts(rows)
    assume(len(pairs.candidates) > ranks[0] + 1)  # fewer are refused before
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(len(pairs.queries) + len(pairs.candidates), 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scorer = VectorScorer(vectors[: len(pairs.queries)], vectors[len(pairs.queries) :])
    absolute, relative = margins
    wanted = MiningSettings("planted", 1, *ranks, absolute_margin=absolute, relative_margin=relative)
    mined = mine_by(scorer, pairs, wanted)
    assert mine_by(scorer, pairs, wanted).rows == mined.rows
    for row in mined.rows:
        rights = {pairs.candidates[number] for number in pairs.rights[row.query]}
        texts = [pairs.candidates[number] for number in row.negatives]
        assert not rights & set(texts)
        assert len(set(row.negatives)) == wanted.negatives
        assert not any(pairs.candidate_ids[number] & pairs.query_ids[row.query] for number in row.negatives)
        weakest = min(row.right_scores)
        if absolute is not None:
            assert max(row.scores) <= weakest - absolute + 1e-6
        if relative is not None and weakest >= 0:  # of a negative one, versions of the library differ
            assert max(row.scores) <= weakest * (1 - relative) + 1e-6


class Stopped(Exception):
    pass


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Blocks of two queries; the scorer of the first run dies after some of them."""
    monkeypatch.setattr("trainer_ext.mining.search._MOST_QUERIES", 2)
    scorer, pairs = planted(COSINES)
    whole = mine_by(scorer, pairs, BY_ANGLE)
    asked: list[list[int]] = []

    class Dying(VectorScorer):
        def scores(self, queries: Sequence[int]):
            if len(asked) == blocks:
                raise Stopped
            asked.append(list(queries))
            return super().scores(queries)

    vectors = scorer._queries.cpu().numpy(), scorer._candidates.cpu().numpy()
    with pytest.raises(Stopped):
        mine_by(Dying(*vectors), pairs, BY_ANGLE, cache=WorkCache(tmp_path), key="k")
    Dying.scores = lambda self, queries: asked.append(list(queries)) or VectorScorer.scores(self, queries)
    resumed = mine_by(Dying(*vectors), pairs, BY_ANGLE, cache=WorkCache(tmp_path), key="k")
    assert resumed.rows == whole.rows
    assert resumed.summary == whole.summary
    assert asked == [[0, 1], [2, 3], [4, 5], [6]], "each block was scored once"


def test_bm25_finds_texts_with_the_words_of_the_right_answer() -> None:
    rows = [(f"what is {word}?", f"{word} is a {kind} here") for word in NUMBERS for kind in ("number", "word")]
    mined = mine(Pairs.of_texts(rows), MiningSettings("bm25", negatives=3), progress=False)
    assert len(mined.rows) == len(NUMBERS)
    for row in mined.rows:
        rights = mined.pairs.rights[row.query]
        texts = [mined.pairs.candidates[number] for number in row.negatives]
        assert all({"number", "word"} & set(text.split()) for text in texts)
        assert not set(rights) & set(row.negatives)
        assert row.scores == sorted(row.scores, reverse=True)
        assert min(row.scores) > 0


def test_bm25_takes_no_text_without_a_common_word() -> None:
    pairs = Pairs.of_texts(
        [("red", "red car"), ("blue", "blue boat"), ("green", "green tree"), ("more red", "red sky")]
    )
    mined = mine(pairs, MiningSettings("bm25", negatives=1), progress=False)
    assert {pairs.queries[row.query]: pairs.candidates[row.negatives[0]] for row in mined.rows} == {
        "red": "red sky",
        "more red": "red car",
    }
    assert mined.summary["queries_left_out"] == {"no word in common, or score within the margin": 2}


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross-encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, **sizes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_cross_encoder_scores_anew_before_the_margins(cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    pairs = Pairs.of_texts([(f"{a} is after", f"{b} bar") for a, b in pairwise(NUMBERS)])
    wanted = MiningSettings("bm25", negatives=2, cross_encoder=str(cross_encoder))
    mined = mine(pairs, wanted, progress=False)
    judge = CrossEncoder(str(cross_encoder))
    assert mined.rows
    for query in range(len(pairs.queries)):
        scores = judge.predict([(pairs.queries[query], text) for text in pairs.candidates])
        [right] = pairs.rights[query]
        below = [number for number in np.argsort(-scores) if number != right and scores[number] <= scores[right]]
        [found] = [row for row in mined.rows if row.query == query] or [None]
        assert (found is None) == (len(below) < 2)
        if found is not None:
            np.testing.assert_allclose(found.scores, scores[below[:2]], atol=1e-5)
            np.testing.assert_allclose(found.right_scores, [scores[right]], atol=1e-5)
    assert mined.has_margins
    most = max(row.right_scores[0] - score for row in mined.rows for score in row.scores)
    assert mined.summary["margins"]["most"] == pytest.approx(most, abs=1e-6)
    assert not mine(pairs, MiningSettings("bm25", negatives=2), progress=False).has_margins


WRONG = {
    "negatives": ({"negatives": 0}, "--negatives 0: must be at least 1"),
    "range": ({"range_min": 95}, "--range_max 100: leaves 5 ranks after --range_min 95, fewer than --negatives 7"),
    "below zero": ({"range_min": -1}, "--range_min -1: must be at least 0"),
    "margin": ({"relative_margin": float("nan")}, "--relative_margin nan: must be a finite number"),
    "near": ({"near_equal": 0.0}, "--near_equal 0.0: must be a share above 0"),
    "length": ({"max_length": 8}, "--max_length is for a model"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_settings_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningSettings("bm25", **changes)


def test_vectors_without_a_direction_are_refused() -> None:
    def encode(items: list, **_: object) -> np.ndarray:
        return np.array([[1, 0], [np.nan, 1], [0, 0]])

    with pytest.raises(ValueError, match=r"gives 2 of 3 inputs no direction \(first: 'b'\)"):
        _encoded(encode, ["a", "b", "c"], None)


def test_fewer_candidates_than_negatives() -> None:
    pairs = Pairs.of_texts([(f"q{n}", f"a{n}") for n in range(7)])
    with pytest.raises(ValueError, match="7 different candidates are fewer than 8: --negatives 7"):
        mine(pairs, MiningSettings("bm25"), progress=False)


def test_a_cross_encoder_needs_a_margin(cross_encoder: Path) -> None:
    pairs = Pairs.of_texts([(f"q{n}", f"a{n}") for n in range(9)])
    wanted = MiningSettings("bm25", absolute_margin=None, cross_encoder=str(cross_encoder))
    with pytest.raises(ValueError, match=r"there is none\. Give --absolute_margin or --relative_margin"):
        mine(pairs, wanted, progress=False)
