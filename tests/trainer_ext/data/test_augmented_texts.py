"""Deletion and swaps of words: what they may and may not do to a text, how often, and what stays as it was."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.augmentation import augmented_text, row_generator, swapped, without_some
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.plan import Key
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Augmentation, Stage

TEXTS = st.text(st.sampled_from("ab .,\n\t猫"), max_size=30) | st.text(max_size=30)
BOTH = Augmentation(word_deletion=0.4, word_swap=0.4)


def key(index: int = 0, epoch: int = 0) -> Key:
    return Key(step=5, stage=0, side="text", source="s", epoch=epoch, index=index)


def draws(index: int = 0, seed: int = 1) -> Callable[[str], np.random.Generator]:
    return partial(row_generator, seed, key(index))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.floats(0.0, 0.999), st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_words_are_only_left_out_and_moved(text: str, deletion: float, swap: float, seed: int) -> None:
    found = augmented_text(text, draws(seed=seed), Augmentation(word_deletion=deletion, word_swap=swap))
    words, kept = text.split(), found.split()
    assert not Counter(kept) - Counter(words)
    assert bool(kept) == bool(words)  # never empty
    if not deletion:
        assert Counter(kept) == Counter(words)
    if kept == words:
        assert found == text  # white space and all


@given(TEXTS, st.integers(0, 2**32))
def test_nought_is_the_same_text(text: str, seed: int) -> None:
    assert augmented_text(text, draws(seed=seed), Augmentation()) == text


def test_deletion_keeps_the_order_and_each_word_alike() -> None:
    words = [f"w{place}" for place in range(10)]
    seen: Counter[str] = Counter()
    for seed in range(2000):
        kept = without_some(words, 0.3, np.random.default_rng(seed))
        assert kept == sorted(kept)
        seen.update(kept)
    assert all(abs(seen[word] - 1400) < 85 for word in words)  # four deviations


def test_the_word_that_is_left_is_any_of_them() -> None:
    left = Counter(without_some(["a", "b", "c"], 0.999, np.random.default_rng(seed))[0] for seed in range(300))
    assert min(left["a"], left["b"], left["c"]) > 60


@pytest.mark.parametrize(("share", "swaps"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.25, 2.5)])
def test_swaps_are_as_many_as_asked_on_average(share: float, swaps: float) -> None:
    words = [f"w{place}" for place in range(10)]
    moved = 0
    for seed in range(1000):
        found = swapped(words, share, np.random.default_rng(seed))
        # A swap moves two words; naive re-derivation of which.
        generator, expected = np.random.default_rng(seed), list(words)
        times = int(share * 10 + generator.random())
        for _ in range(times):
            left = int(generator.integers(10))
            right = (left + 1 + int(generator.integers(9))) % 10
            assert left != right
            expected[left], expected[right] = expected[right], expected[left]
        assert found == expected
        moved += times
    assert moved / 1000 == pytest.approx(swaps, abs=0.07)


def test_swaps_take_any_two_places() -> None:
    found = Counter(tuple(swapped(["a", "b", "c"], 1 / 3, np.random.default_rng(seed))) for seed in range(600))
    assert set(found) == {("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")}
    assert min(found.values()) > 150


# --- in a batch --------------------------------------------------------------------------------------------------


def stage(augmentation: Augmentation | None) -> Stage:
    return Stage(name="only", steps=1, learning_rate=1e-3, max_length=30, augmentation=augmentation)


ROW = {
    "query": "one is after two", "positive": "three is before four", "negatives": ["five is after six", "not seven"],
}  # fmt: skip


def collated(
    augmentation: Augmentation | None, keys: list[Key], prompts: dict[str, str] | None = None
) -> dict[str, Any]:
    columns = {name: name for name in ROW}
    source = Source(name="s", task="triplet", location="x", format="csv", columns=columns, prompts=prompts or {})
    dataset = JointDataset([source], {}, seed=1)
    rows = [dataset._finished(source, {**ROW, "key": one}) for one in keys]
    return JointCollator(make_processor(), [stage(augmentation)], seed=1)(rows)["text"]


def words_of(column: dict[str, torch.Tensor]) -> list[str]:
    tokenizer = make_processor().tokenizer
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in column["input_ids"]]


def test_all_texts_change_each_by_itself_and_ids_are_of_the_originals() -> None:
    keys = [key(index) for index in range(40)]
    plain, found = collated(None, keys), collated(BOTH, keys)
    for name in ("query_ids", "positive_ids", "negative_ids"):
        assert torch.equal(plain[name], found[name])
    for name in ("query", "positive", "negatives"):
        before, after = words_of(plain[name]), words_of(found[name])
        assert len(before) == len(after)
        pairs = list(zip(before, after, strict=True))
        assert sum(left != right for left, right in pairs) > 10
        assert all(not Counter(right.split()) - Counter(left.split()) for left, right in pairs)
        assert all(after)
    still = collated(Augmentation(), keys)
    assert all(torch.equal(still[name]["input_ids"], plain[name]["input_ids"]) for name in ("query", "positive"))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    keys = [key(index, epoch) for index in range(3) for epoch in range(3)]
    together = collated(BOTH, keys)
    for name, each in (("query", 1), ("negatives", 2)):
        alone = [text for one in keys for text in words_of(collated(BOTH, [one._replace(step=1)])[name])]
        assert words_of(together[name]) == alone
        assert len(alone) == each * len(keys)
    assert len(set(words_of(together["query"]))) > 4


def test_prompts_stay_whole() -> None:
    prompts = {"query": "the number ", "positive": "a red bar is "}
    found = collated(BOTH, [key(index) for index in range(30)], prompts)
    assert all(text.startswith("the number ") for text in words_of(found["query"]))
    for name in ("positive", "negatives"):
        assert all(text.startswith("a red bar is ") for text in words_of(found[name]))
    assert len({*words_of(found["negatives"])}) > 4
