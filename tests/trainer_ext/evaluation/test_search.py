"""Blocked search against whole score matrices: ranks, the best candidates and histograms, whatever the block sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.evaluation import search as module
from trainer_ext.evaluation.items import Rows
from trainer_ext.evaluation.metrics import relevant_ranks
from trainer_ext.evaluation.search import pad, search


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def searches(draw: st.DrawFn):
    """Vectors, some of them equal (ties); right answers and exclusions that do not meet."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, candidates = draw(st.integers(1, 9)), draw(st.integers(2, 40))
    documents = unit(rng.normal(size=(candidates, 3)))
    documents = documents[rng.integers(0, draw(st.integers(1, candidates)), size=candidates)]
    relevant, exclude = [], []
    for _ in range(queries):
        order = rng.permutation(candidates).tolist()
        right = draw(st.integers(1, candidates))
        relevant.append(sorted(order[:right]))
        exclude.append(sorted(order[right : right + draw(st.integers(0, 3))]))
    return unit(rng.normal(size=(queries, 3))), documents, relevant, exclude


@settings(deadline=None, max_examples=80)
@given(searches(), st.sampled_from([(1, 1), (2, 7), (1024, 4096)]), st.sampled_from([0, 8]), st.integers(0, 6))
def test_equals_the_whole_matrix(case, blocks, counted, shown):
    queries, documents, relevant, exclude = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_BLOCK", blocks[0])
        patch.setattr(module, "CANDIDATE_BLOCK", blocks[1])
        patch.setattr(module, "COUNTED", counted)
        found = list(search(Rows(queries), Rows(documents), relevant, exclude, shown, bins=20))
    scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
    lowest = scores.copy()
    for row, places in enumerate(exclude):
        lowest[row, places] = -9.0
    expected = relevant_ranks(lowest, pad(relevant))
    for block in found:
        width = block.ranks.shape[1]
        assert block.ranks.tolist() == expected[block.rows, :width].tolist()
        for row, places, values in zip(
            range(block.rows.start, block.rows.stop), block.top, block.top_scores, strict=True
        ):
            allowed = [place for place in range(len(documents)) if place not in exclude[row]]
            best = sorted((scores[row, place] for place in allowed), reverse=True)[:shown]
            there = places >= 0
            assert there.sum() == len(best)
            assert set(places[there].tolist()) <= set(allowed)
            np.testing.assert_allclose(values[there], best, atol=1e-6)
            np.testing.assert_allclose(scores[row, places[there]], best, atol=1e-6)
    true = sum(block.true_counts.sum() for block in found)
    other = sum(block.other_counts.sum() for block in found)
    assert true == sum(map(len, relevant))
    assert other == scores.size - true - sum(map(len, exclude))


def test_histograms_are_those_of_numpy():
    rng = np.random.default_rng(0)
    queries, documents = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(400, 8)))
    relevant = [[place, place + 100] for place in range(50)]
    [found] = search(Rows(queries), Rows(documents), relevant, None, 0, bins=100)
    scores = queries @ documents.T
    true = np.take_along_axis(scores, np.array(relevant), axis=1)
    edges = np.linspace(-1, 1, 101)
    np.testing.assert_array_equal(found.true_counts, np.histogram(true, edges)[0])
    np.testing.assert_array_equal(found.other_counts, np.histogram(scores, edges)[0] - np.histogram(true, edges)[0])


def test_equal_scores_are_shown_in_the_order_of_the_candidates(monkeypatch):
    documents = unit(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    for block in (1, 2, 4, 6):
        monkeypatch.setattr(module, "CANDIDATE_BLOCK", block)
        [found] = search(Rows(documents[:1]), Rows(documents), [[1]], None, shown=4)
        assert found.top.tolist() == [[0, 3, 4, 1]]


def test_rows_are_read_in_blocks_and_made_unit_where_they_are_read():
    stored = np.arange(12, dtype=np.float16).reshape(6, 2) + 1
    index = np.array([5, 0, 3])
    norms = np.linalg.norm(stored[index].astype(np.float32), axis=1)
    rows = Rows(stored, index, norms)
    whole = stored[index].astype(np.float32) / norms[:, None]
    np.testing.assert_array_equal(rows.whole(), whole)
    np.testing.assert_array_equal(rows.block(1, 99), whole[1:])
    np.testing.assert_array_equal(rows.take(np.array([2, 0])), whole[[2, 0]])
    assert len(rows) == 3
    plain = np.ones((4, 2), np.float32)
    assert np.shares_memory(Rows(plain).block(1, 3), plain), "a block of plain rows is no copy"
