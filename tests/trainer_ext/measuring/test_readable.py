"""Batches with broken items, against one call an item."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_ext.measuring.readable import vector_column, vectors_or_reasons


class Encoder:
    """Items below 0 are broken."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, items: Sequence[int]) -> np.ndarray:
        self.calls += 1
        if broken := [item for item in items if item < 0]:
            raise ValueError(f"item {broken[0]}\n is broken")
        return np.array([[item, 1] for item in items], np.float32)


@given(items=st.lists(st.integers(-3, 20), max_size=40))
def test_each_item_has_its_vector_or_its_reason(items: list[int]) -> None:
    encoder = Encoder()
    found = vectors_or_reasons(encoder, items)
    expected = [f"item {item} is broken" if item < 0 else [item, 1] for item in items]
    assert [one if isinstance(one, str) else one.tolist() for one in found] == expected
    broken = sum(item < 0 for item in items)
    assert encoder.calls <= 1 + 2 * broken * math.ceil(math.log2(max(len(items), 2)))
    assert vector_column(found, 2).to_pylist() == [None if isinstance(one, str) else one for one in expected]


def test_other_errors_pass_through() -> None:
    def encode(items: Sequence[int]) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        vectors_or_reasons(encode, [1, 2])


def test_a_reason_is_one_line_without_the_place_in_its_batch() -> None:
    def encode(items: Sequence[int]) -> np.ndarray:
        raise ValueError("image 0: cannot\nbe read")

    assert vectors_or_reasons(encode, [1]) == ["cannot be read"]
