"""Ranks and metrics against a naive re-derivation, an independent library, closed forms and simulation."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.evaluation.metrics import NOT_RELEVANT, Metric, beats_all, relevant_ranks

KINDS = ("hit", "recall", "ndcg", "mrr", "map")


def padded(relevant: list[list[int]]) -> np.ndarray:
    width = max(map(len, relevant))
    return np.array([row + [-1] * (width - len(row)) for row in relevant])


def naive(scores: np.ndarray, relevant: list[list[int]], kind: str, k: int) -> float:
    """Sort each row in plain Python, non-relevant before relevant among equals, and read the definition off it."""
    total = 0.0
    for row, right in zip(scores.tolist(), relevant, strict=True):
        order = sorted(range(len(row)), key=lambda index, row=row, right=right: (-row[index], index in right))
        hits = [index in right for index in order]
        ideal = sum(1 / math.log2(place + 2) for place in range(min(len(right), k)))
        total += {
            "hit": float(any(hits[:k])),
            "recall": sum(hits[:k]) / len(right),
            "ndcg": sum(1 / math.log2(place + 2) for place, hit in enumerate(hits[:k]) if hit) / ideal,
            "mrr": max((1 / (place + 1) for place, hit in enumerate(hits[:k]) if hit), default=0.0),
            "map": sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits[:k]) if hit) / len(right),
        }[kind]
    return total / len(relevant)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    queries, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    levels = draw(st.sampled_from([1, 3, 1000]))  # few levels: many ties
    cells = st.lists(st.integers(0, levels), min_size=candidates, max_size=candidates)
    scores = np.array(draw(st.lists(cells, min_size=queries, max_size=queries)), dtype=np.float32) / 1000
    answers = st.lists(st.integers(0, candidates - 1), min_size=1, max_size=candidates, unique=True)
    return scores, draw(st.lists(answers, min_size=queries, max_size=queries))


@settings(deadline=None, max_examples=150)
@given(rankings(), st.sampled_from(KINDS), st.sampled_from([1, 3, 5, 10]))
def test_equals_the_definition_with_and_without_ties(case, kind, k):
    scores, relevant = case
    measured = Metric(kind, k).measure(relevant_ranks(scores, padded(relevant)))
    assert measured == pytest.approx(naive(scores, relevant, kind, k), abs=1e-12)


def test_equals_sentence_transformers_on_scores_without_ties():
    """Its evaluator is an independent implementation; ``accuracy@k`` there is our ``hit``."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rng = np.random.default_rng(3)
    documents = rng.normal(size=(200, 8)).astype(np.float32)
    queries = rng.normal(size=(60, 8)).astype(np.float32)
    relevant = [sorted(rng.choice(200, size=rng.integers(1, 5), replace=False).tolist()) for _ in queries]
    queries += np.stack([documents[row].sum(axis=0) for row in relevant])
    scores = queries @ documents.T
    assert all(np.diff(np.sort(row)).min() > 1e-6 for row in scores)

    class Lookup:
        """Gives the evaluator the vectors made above: its texts are row numbers."""

        similarity_fn_name = "dot"
        model_card_data = type("Card", (), {"set_evaluation_metrics": staticmethod(lambda *_, **__: None)})

        def encode_query(self, texts, **_):
            import torch

            return torch.from_numpy(np.stack([queries[int(text)] for text in texts]))

        def encode_document(self, texts, **_):
            import torch

            return torch.from_numpy(np.stack([documents[int(text)] for text in texts]))

        similarity = staticmethod(lambda left, right: left @ right.T)

    evaluator = InformationRetrievalEvaluator(
        queries={str(row): str(row) for row in range(len(queries))},
        corpus={str(row): str(row) for row in range(len(documents))},
        relevant_docs={str(row): {str(index) for index in right} for row, right in enumerate(relevant)},
        accuracy_at_k=[1, 5],
        precision_recall_at_k=[5],
        ndcg_at_k=[10],
        write_csv=False,
    )
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    theirs = evaluator(Lookup())
    ranks = relevant_ranks(scores, padded(relevant))
    ours = {f"dot_accuracy@{k}": Metric("hit", k).measure(ranks) for k in (1, 5)}
    ours |= {"dot_recall@5": Metric("recall", 5).measure(ranks), "dot_ndcg@10": Metric("ndcg", 10).measure(ranks)}
    assert ours == pytest.approx({name: theirs[name] for name in ours}, abs=1e-9)
    assert 0.1 < ours["dot_accuracy@1"] < 0.9, "the comparison must not be between trivial values"


def test_ties_give_the_worst_place_and_near_equal_scores_are_ties():
    relevant = np.array([[0]])
    assert relevant_ranks(np.zeros((1, 9)), relevant).tolist() == [[8]]
    assert relevant_ranks(np.array([[0.5 + 2e-8, 0.5, 0.5 - 3e-8, 0.4]]), relevant).tolist() == [[2]]
    assert relevant_ranks(np.array([[0.5001, 0.5, 0.5, 0.4]]), relevant).tolist() == [[0]]


def test_relevant_candidates_do_not_push_each_other_down_beyond_their_own_order():
    ranks = relevant_ranks(np.array([[0.9, 0.9, 0.1, 0.5]]), np.array([[1, 0, 2]]))
    assert ranks.tolist() == [[0, 1, 3]]


def test_padding_is_never_a_hit_even_when_k_exceeds_the_candidates():
    ranks = relevant_ranks(np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([[1, 0], [1, -1]]))
    assert ranks.tolist() == [[0, 1], [1, NOT_RELEVANT]]
    assert Metric("recall", 10).measure(ranks) == 1.0
    assert Metric("ndcg", 10).measure(ranks) == pytest.approx((1 + 1 / math.log2(3)) / 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="1 of 6 scores are not finite"):
        relevant_ranks(np.array([[0.1, value, 0.2], [0.1, 0.2, 0.3]]), np.array([[0], [1]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "candidates"), [(1, 20), (5, 20), (10, 7)])
def test_chance_is_the_mean_over_random_orders(kind, k, candidates):
    rng = np.random.default_rng(0)
    counts = np.array([1, 3, 6])
    relevant = padded([list(range(count)) for count in counts])
    orders = rng.permuted(np.tile(np.arange(candidates, dtype=float), (3000, 1)), axis=1)
    values = [Metric(kind, k).measure(relevant_ranks(np.tile(order, (3, 1)), relevant)) for order in orders]
    expected = Metric(kind, k).chance(counts, candidates)
    assert np.mean(values) == pytest.approx(expected, abs=max(1e-9, 5 * np.std(values) / math.sqrt(len(values))))


def test_names():
    assert [Metric(kind, 5).name for kind in KINDS] == ["r5", "r5", "ndcg5", "mrr5", "map5"]
    assert [Metric("mrr").name, Metric("median_rank").name] == ["mrr", "median_rank"]


@pytest.mark.parametrize(("kind", "k"), [("hit", None), ("median_rank", 3), ("mrr", 0)])
def test_a_metric_without_its_k_is_refused(kind, k):
    with pytest.raises(ValueError, match=r"needs k|k is at least 1"):
        Metric(kind, k)


def test_median_rank_counts_from_one_and_its_chance_is_that_of_random_orders():
    assert Metric("median_rank").measure(np.array([[0], [4], [9]])) == 5.0
    rng = np.random.default_rng(1)
    counts, candidates = np.array([1, 2, 5] * 300), 60
    orders = rng.permuted(np.tile(np.arange(candidates, dtype=float), (900, 1)), axis=1)
    ranks = relevant_ranks(orders, padded([list(range(count)) for count in counts]))
    assert Metric("median_rank").chance(counts, candidates) == pytest.approx(
        Metric("median_rank").measure(ranks), abs=2.0
    )


@pytest.mark.parametrize("kind", [*KINDS, "median_rank"])
def test_chance_takes_a_number_of_candidates_for_each_query(kind):
    metric = Metric(kind, None if kind == "median_rank" else 5)
    counts = np.array([1, 3, 2])
    same = metric.chance(counts, np.array([20, 20, 20]))
    assert same == pytest.approx(metric.chance(counts, 20), abs=1e-12)
    if kind != "median_rank":
        each = [metric.chance(counts[i : i + 1], n) for i, n in enumerate([20, 4, 9])]
        assert metric.chance(counts, np.array([20, 4, 9])) == pytest.approx(np.mean(each), abs=1e-12)


def test_mrr_without_k_counts_every_place():
    assert Metric("mrr").measure(np.array([[0], [99]])) == pytest.approx(0.505)
    assert Metric("mrr").chance(np.array([1]), 4) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_a_positive_must_beat_every_negative_strictly():
    positive = np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float32)
    negatives = np.array([[0.1, 0.4], [0.5, 0.1], [0.5 - 1e-8, 0.1], [0.6, 0.1]], dtype=np.float32)
    assert beats_all(positive, negatives) == 0.25
