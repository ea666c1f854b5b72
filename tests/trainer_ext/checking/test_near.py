"""Twins are found without comparing all with all: texts by MinHash, pictures by perceptual hashes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer_ext.checking.planted import picture, sentence
from trainer_ext.checking.alike import matches, twins
from trainer_ext.checking.near_texts import NEARLY, bands, likeness, plain, sketches, text_keys
from trainer_ext.checking.pictures import MASKS, NEAR_BITS, Pictures, facts_of, nearly_equal

few = settings(max_examples=30, deadline=None, derandomize=True)

LONG = "The old lighthouse keeper climbs the winding stairs every evening and lights the lamp above the harbour"


def jaccard(left: str, right: str) -> float:
    one, other = ({text.encode()[n : n + 5] for n in range(len(text.encode()) - 4)} for text in (left, right))
    return len(one & other) / len(one | other)


@few
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=5, max_size=80), min_size=2, max_size=2))
def test_likeness_is_jaccards(texts: list[str]) -> None:
    """Estimated from the minima: within 5 standard deviations of the true one."""
    minima = sketches(texts)
    true = jaccard(*texts)
    spread = max(np.sqrt(true * (1 - true) / minima.shape[1]), 0.02)
    assert abs(float(likeness(minima[:1], minima[1:])[0]) - true) <= 5 * spread


@few
@given(st.integers(0, 40), st.integers(0, len(LONG) - 1), st.characters(codec="ascii", categories=["Ll"]))
def test_a_text_with_one_letter_changed_is_found_wherever_it_stands(place: int, letter: int, other: str) -> None:
    changed = LONG[:letter] + other + LONG[letter + 1 :]
    texts = [sentence(n) for n in range(40)]
    texts[place:place] = [LONG]
    texts.append(changed)
    made, keys = sketches(texts), text_keys(texts)

    def agree(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (keys[left] != keys[right]) & (likeness(made[left], made[right]) >= 0.7)

    assert jaccard(LONG, changed) > NEARLY
    assert twins(bands(made), agree).tolist() == ([] if changed == LONG else [[41, place]])


@few
@given(st.lists(st.integers(0, 3), max_size=30))
def test_twins_are_the_earliest_of_each_equal_item(values: list[int]) -> None:
    """Of one band, with everything alike that agrees in it."""
    items = np.array(values, np.int64)
    found = twins([items], lambda left, right: items[left] == items[right]).tolist()
    assert found == [[place, values.index(value)] for place, value in enumerate(values) if values.index(value) < place]


@few
@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), max_size=8))
def test_matches_are_the_earliest_of_the_others(ours: list[int], theirs: list[int]) -> None:
    mine, other = np.array(ours, np.int64), np.array(theirs, np.int64)
    found = matches([mine], [other], lambda left, right: mine[left] == other[right]).tolist()
    assert found == [[place, theirs.index(value)] for place, value in enumerate(ours) if value in theirs]


def test_a_run_of_thousands_is_not_compared_with_itself() -> None:
    compared = 0

    def agree(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(left)
        return np.ones(len(left), bool)

    items = 20_000
    assert len(twins([np.zeros(items, np.int64)], agree)) == items - 1
    assert compared < 6 * items


@few
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=NEAR_BITS))
def test_no_pair_of_hashes_within_the_limit_is_missed(shape: int, bits: set[int]) -> None:
    other = shape
    for bit in bits:
        other ^= 1 << bit
    assert ((np.uint64(shape) & MASKS) == (np.uint64(other) & MASKS)).any()


@pytest.mark.parametrize("change", ["smaller", "larger", "jpeg", "same"])
def test_a_picture_saved_anew_is_nearly_equal_and_another_is_not(change: str) -> None:
    original = picture(1, (320, 240))
    again = original
    if change == "jpeg":
        file = io.BytesIO()
        original.save(file, "JPEG", quality=70)
        again = Image.open(file).convert("RGB")
    elif change != "same":
        again = original.resize((160, 120) if change == "smaller" else (500, 375))
    pictures = Pictures()
    pictures.add([facts_of(one) for one in (original, again, picture(2, (320, 240)))], [0, 1, 2])
    near = nearly_equal(pictures, np.array([0, 0]), pictures, np.array([1, 2]))
    assert near.tolist() == [True, False]


def test_the_same_shapes_in_other_colours_are_not_nearly_equal() -> None:
    """A perceptual hash is grey: skin tones of one drawing have the same."""
    drawn = np.asarray(picture(3, (64, 64)))
    pictures = Pictures()
    pictures.add(
        [facts_of(Image.fromarray(pixels)) for pixels in (drawn, np.ascontiguousarray(drawn[:, :, ::-1]))], [0, 1]
    )
    assert not nearly_equal(pictures, np.array([0]), pictures, np.array([1])).any()


@few
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_plain_texts_stay_as_they_are(text: str) -> None:
    once = plain(plain(text))
    assert plain(once) == once
