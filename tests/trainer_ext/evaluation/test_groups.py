"""Tasks made of rows: what ids, excluded candidates, more candidates, splits and lengths do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_ext.evaluation.base import BAND_QUERIES
from trainer_ext.evaluation.baselines import bm25
from trainer_ext.evaluation.items import Embeddings, Picture
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.tasks import (
    ALL_HITS,
    figure_names,
    figures_of,
    image_text_tasks,
    same_item_task,
    text_task,
)
from trainer_ext.measuring.texts import Instructed, Prompted


def vectors_of(items, seed: int = 0, dim: int = 6) -> Embeddings:
    rows = np.random.default_rng(seed).normal(size=(len(items), dim)).astype(np.float32)
    return Embeddings({item: place for place, item in enumerate(items)}, rows)


def picture(name: str) -> Picture:
    return Picture(name, lambda: pytest.fail("not to be decoded"))


def test_rows_of_one_id_answer_each_other():
    pictures = [picture(name) for name in "abcd"]
    to_images, to_texts = image_text_tasks(
        "shop", pictures, [["red"], ["scarlet"], ["blue"], ["sky"]], ids=[7, 7, None, None]
    )
    assert to_images.relevant == [[0, 1], [0, 1], [2], [3]]
    assert to_texts.relevant == [[0, 1], [0, 1], [2], [3]]
    words = text_task("words", [("q", "a"), ("r", "b"), ("s", "c")], ids=["x", "x", "y"])
    assert words.relevant == [[0, 1], [0, 1], [2]]


def test_the_query_itself_is_left_out_and_those_without_a_partner_are_no_queries():
    pictures = [picture(name) for name in "abcde"]
    task = same_item_task("shop", pictures, [["x"], ["x", "a red one"], ["y"], ["a red one"], []])
    assert task.queries == [pictures[0], pictures[1], pictures[3]]
    assert task.candidates == pictures
    assert task.relevant == [[1], [0, 3], [1]]
    assert task.exclude == [[0], [1], [3]]
    found = task.evaluate(vectors_of(pictures))
    assert set(found) == {f"shop/i2i_{m}" for m in ("r1", "r5", "r10", "mrr", "ndcg10", "map10", "median_rank")}
    perfect = Embeddings(
        {p: place for place, p in enumerate(pictures)},
        np.array([[1, 0, 0], [1, 0.1, 0], [0, 0, 1], [0.9, 0.3, 0], [0, 0, -1]], np.float32),
    )
    assert task.evaluate(perfect)["shop/i2i_r1"] == 1.0, "a picture does not find itself first"
    # Four candidates are left for each query; one query has two right ones.
    expected = (1 / 4 + 2 / 4 + 1 / 4) / 3
    assert task.chance()["shop/i2i_r1"] == pytest.approx(expected)


def test_excluded_candidates_count_for_no_scorer():
    texts = ["red cat", "red cat sat", "blue dog", "red dog"]
    task = RetrievalTask("t", texts[:1], texts, [[1]], (Metric("mrr"),), exclude=[[0]])
    assert bm25([task]) == {"t/mrr": 1.0}
    open_task = RetrievalTask("t", texts[:1], texts, [[1]], (Metric("mrr"),))
    assert bm25([open_task]) == {"t/mrr": 0.5}


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([[0]], "1 queries but 2 lists|2 queries but 1 lists to exclude"),
        ([[1], [5]], r"query 1 excludes \[5\]; give indices between 0 and 1"),
        ([[1], [1]], r"query 1 excludes its own answers \[1\]"),
    ],
)
def test_wrong_exclusions_are_refused(exclude, message):
    with pytest.raises(ValueError, match=message):
        RetrievalTask("t", ["a", "b"], ["x", "y"], [[0], [1]], ALL_HITS, exclude=exclude)


def test_a_corpus_adds_candidates_of_the_same_kind_only_and_none_twice():
    to_images, to_texts = image_text_tasks("shop", [picture("a"), picture("b")], [["red"], ["blue"]])
    corpus = [picture("b"), picture("c"), "red", "a long text"]
    assert to_images.with_corpus(corpus).candidates == [picture("a"), picture("b"), picture("c")]
    assert to_texts.with_corpus(corpus).candidates == ["red", "blue", "a long text"]
    assert to_texts.with_corpus(corpus).size == "2 queries, 3 candidates"
    assert to_images.with_corpus(corpus).chance()["shop/t2i_r1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="Task 'shop/t2i': its corpus has no picture to add"):
        to_images.with_corpus(["text"])
    items = ["red", "blue", "a long text", picture("a"), picture("b")]
    rows = np.array([[1, 0], [0, 1], [1, 0.05], [1, 0.1], [0, 1]], np.float32)
    embeddings = Embeddings({item: place for place, item in enumerate(items)}, rows)
    assert to_texts.evaluate(embeddings)["shop/i2t_r1"] == 1.0
    assert to_texts.with_corpus(corpus).evaluate(embeddings)["shop/i2t_r1"] == 0.5


def test_splits_are_figures_of_their_queries_alone():
    pairs = [(f"q{row}", f"p{row}") for row in range(30)]
    labels = ["de" if row % 3 else "en/us" for row in range(30)]
    task = text_task("words", pairs, metrics=ALL_HITS, by=labels)
    embeddings = vectors_of([text for pair in pairs for text in pair])
    figures, values = task.figures(embeddings), task.evaluate(embeddings)
    assert set(figures) == set(values) == set(task.chance())
    assert {name.rpartition("/")[0] for name in figures} == {"words", "words[de]", "words[en/us]"}
    for label in ("de", "en/us"):
        rows = [row for row in range(30) if labels[row] == label]
        alone = RetrievalTask(
            "words", [f"q{row}" for row in rows], [f"p{row}" for row in range(30)], [[row] for row in rows], ALL_HITS
        )
        for metric, value in alone.evaluate(embeddings).items():
            assert figures[metric.replace("words", f"words[{label}]")].value == value
        assert task.chance()[f"words[{label}]/r5"] == pytest.approx(5 / 30)
    both = figures_of(embeddings, [task], truncate_dims=[3], precisions=["binary"])
    assert {"words[de]/r1", "words@3/r1", "words@binary/r1", "words@3@binary/r1"} <= set(both)
    assert not [name for name in both if "@" in name and "[" in name], "widths and precisions are of the whole task"
    assert set(figure_names([task], [3], ["binary"])) == set(both)


def test_a_label_follows_its_query():
    pictures = [picture("a"), picture("b"), picture("a")]
    to_images, to_texts = image_text_tasks("s", pictures, [["x"], ["y", "x"], ["z"]], by=["1", "2", "3"])
    assert to_images.splits == ["1", "2", "3"]
    assert to_texts.splits == ["1", "2"]
    same = same_item_task("s", pictures, [["u"], ["u"], []], by=["1", "2", "3"])
    assert same.splits == ["1", "2"]


def test_lengths_are_bands_with_their_ends_included(monkeypatch):
    monkeypatch.setattr("trainer_ext.evaluation.base.BAND_QUERIES", 1)
    pairs = [(f"q{row}", f"p{row}") for row in range(6)]
    task = text_task("words", pairs)
    embeddings = vectors_of([text for pair in pairs for text in pair])
    task.lengths = [3, 32, 33, 77, 9000, 8192]
    bands = {name.rpartition("/")[0] for name in task.evaluate(embeddings)}
    ends = ("up to 32 tokens", "up to 77 tokens", "up to 8192 tokens", "over 8192 tokens")
    assert bands == {"words"} | {f"words[{end}]" for end in ends}
    task.lengths = [3] * 6
    assert set(task.evaluate(embeddings)) == {"words/ndcg10", "words/r5"}, "one band is the whole"
    task.lengths = [3]
    with pytest.raises(ValueError, match="Task 'words': 1 lengths for 6 queries; one each"):
        task.evaluate(embeddings)


def test_details_show_what_the_figures_stand_on():
    texts, names = [f"q{row}" for row in range(9)], [f"p{row}" for row in range(20)]
    task = RetrievalTask("t", texts, names, [[row, row + 9] for row in range(9)], ALL_HITS)
    embeddings = vectors_of(texts + names)
    details = task.details(embeddings, shown=4)
    scores = embeddings.of(texts, "q") @ embeddings.of(names, "c").T
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(details.top, order[:, :4])
    np.testing.assert_allclose(details.top_scores, np.take_along_axis(scores, order[:, :4], axis=1), atol=1e-6)
    first = [min(order[row].tolist().index(place) for place in task.relevant[row]) for row in range(9)]
    assert details.first_rank.tolist() == first
    assert details.true_counts.sum() == 18
    assert details.other_counts.sum() == 9 * 20 - 18
    assert len(details.edges) == len(details.true_counts) + 1 == 101
    assert details.top.dtype == details.first_rank.dtype == np.int64
    assert task.evaluate(embeddings)["t/mrr"] == pytest.approx(np.mean([1 / (1 + place) for place in first]))
    assert math.isclose(task.evaluate(embeddings)["t/median_rank"], 1 + np.median(first))


def test_a_length_of_few_queries_has_no_figures():
    pairs = [(f"q{row}", f"p{row}") for row in range(2 * BAND_QUERIES + 5)]
    task = text_task("words", pairs)
    task.lengths = [9] * BAND_QUERIES + [50] * BAND_QUERIES + [300] * 5
    names = {name.rpartition("/")[0] for name in task.chance()}
    assert names == {"words", "words[up to 32 tokens]", "words[up to 77 tokens]"}
    task.lengths = [9] * (2 * BAND_QUERIES) + [300] * 5
    assert {name.rpartition("/")[0] for name in task.chance()} == {"words"}, "one band is the whole, but for a few"


@given(data=st.data())
def test_contents_tell_items_answers_and_parts_apart(data):
    """Whatever is changed in a task, its hash is another one; what only the model asks for changes nothing."""
    count = data.draw(st.integers(2, 6))
    texts = data.draw(st.lists(st.text(min_size=1).filter(str.strip), min_size=count, max_size=count, unique=True))
    pairs = [(f"query {row}", text) for row, text in enumerate(texts)]
    first = text_task("words", pairs).contents()
    assert first == text_task("words", pairs).contents()
    prompted = [(Prompted(f"ask: {query}", query), Instructed(text, "passage")) for query, text in pairs]
    assert text_task("words", prompted).contents() == first
    changed = data.draw(st.integers(0, count - 1))
    others = [(query, text + "!" if row == changed else text) for row, (query, text) in enumerate(pairs)]
    if others[changed][1] not in texts:
        assert text_task("words", others).contents() != first
    ids = ["one" if row < 2 else str(row) for row in range(count)]
    assert text_task("words", pairs, ids=ids).contents() != first, "the answers are others"
    split = text_task("words", pairs, by=["de"] + ["en"] * (count - 1)).contents()
    turned = text_task("words", pairs, by=["en"] * (count - 1) + ["de"]).contents()
    assert split["words"] == turned["words"] == first["words"]
    assert split["words[de]"] != turned["words[de]"]
