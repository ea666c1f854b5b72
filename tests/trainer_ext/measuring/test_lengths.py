"""Figures by length: tokens of the longer text of a query and its answer."""

import pytest
from PIL import Image

from tests.trainer_ext.tiny_run import make_tokenizer
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.hard_negatives import HardNegativeTask
from trainer_ext.evaluation.match import MatchTask
from trainer_ext.evaluation.tasks import ALL_HITS, image_text_tasks, same_item_task, text_task
from trainer_ext.measuring.lengths import set_lengths


def test_the_longer_text_counts_and_pictures_alone_have_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_ext.evaluation.base.BAND_QUERIES", 1)
    images = [Image.new("RGB", (2, 2)) for _ in range(2)]
    t2i, i2t = image_text_tasks("p", images, [["one"], ["two red bar"]])
    words = text_task("w", [("one", "one " * 50), ("two red", "two")])
    hard = HardNegativeTask("h", ["one"], ["two red bar"], [["three"]])
    i2i = same_item_task("i", images, [["x"], ["x"]], ALL_HITS)
    match = MatchTask("m", ["a", "a", "b", "b"], ["a", "b", "b", "a"], [True, False, True, False])
    set_lengths([t2i, i2t, words, hard, i2i, match], make_tokenizer())
    assert [t2i.lengths, i2t.lengths, words.lengths, hard.lengths] == [[3, 5], [3, 5], [52, 4], [5]]
    assert (i2i.lengths, match.lengths) == (None, None)
    named = words._named({"r5": Quantity(words_values())})
    assert list(named) == ["w/r5", "w[up to 32 tokens]/r5", "w[up to 77 tokens]/r5"]


def words_values():
    import numpy as np

    return np.array([1.0, 0.0])
