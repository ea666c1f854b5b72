"""Which split a name belongs to, fixed by a seed: pure functions of names, so a split does not depend on any order.

A key's place is the rank of its hash. Held-out concepts are unseen in every tone and gender, held-out combinations are
tones and genders of concepts that training knows, held-out headwords are unseen in all text tables.
"""

import hashlib
from collections.abc import Iterable

from trainer_ext.demo_data.drawings import Drawing

SEED = 42
TEST_CONCEPTS = 0.10
VALIDATION_CONCEPTS = 0.05
TEST_COMBINATIONS = 0.10
TEST_HEADWORDS = 0.05
VALIDATION_HEADWORDS = 0.02


def draw(keys: Iterable[str], *shares: float, seed: int = SEED) -> list[set[str]]:
    """Disjoint random subsets of ``keys``, one for each share of their number, rounded to whole keys.

    >>> first, second = draw("abcdefghij", 0.2, 0.3)
    >>> len(first), len(second), first & second
    (2, 3, set())
    """
    distinct = sorted(set(keys))
    ranked = sorted(distinct, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    subsets, start = [], 0
    for share in shares:
        end = start + round(share * len(ranked))
        subsets.append(set(ranked[start:end]))
        start = end
    return subsets


def split_drawings(drawings: list[Drawing]) -> dict[str, list[Drawing]]:
    """Train, validation, test_concepts and test_combinations; other variants of a held-out concept are left out.

    ``train_concepts`` are the plainest training drawing of each concept: rows of train once more, for batches in which
    all pictures show different things. A held-out concept is shown by its plainest drawing only, so that a search over
    it has one right answer.
    """
    test, validation = draw((drawing.concept for drawing in drawings), TEST_CONCEPTS, VALIDATION_CONCEPTS)
    unseen = test | validation
    seen = [drawing for drawing in drawings if drawing.concept not in unseen]
    (combinations,) = draw((drawing.id for drawing in seen if not drawing.base), TEST_COMBINATIONS)
    train = [drawing for drawing in seen if drawing.id not in combinations]
    return {
        "train": train,
        "train_concepts": _plainest(train, {drawing.concept for drawing in train}),
        "validation": _plainest(drawings, validation),
        "test_concepts": _plainest(drawings, test),
        "test_combinations": [drawing for drawing in seen if drawing.id in combinations],
    }


def _plainest(drawings: list[Drawing], concepts: set[str]) -> list[Drawing]:
    best: dict[str, Drawing] = {}
    for drawing in sorted(drawings, key=lambda drawing: (not drawing.base, len(drawing.text), drawing.id)):
        if drawing.concept in concepts:
            best.setdefault(drawing.concept, drawing)
    return list(best.values())
