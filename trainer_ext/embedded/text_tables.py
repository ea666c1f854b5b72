"""Text pairs from the dictionary: headword-definition, definition-example, definition-definition.

All rows of one headword go to one split. After the split, a training row is dropped when any of its texts is also a
held-out text, in whatever table: spelling variants share definitions, and poets are quoted under several words.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .gcide import Sense, text_key
from .splits import TEST_HEADWORDS, VALIDATION_HEADWORDS, draw

PAIR_TABLES = ("headword_definition", "definition_example", "definition_definition")
# Retrieval over more candidates than this takes longer and ranks models no better.
MAX_HELD_OUT_ROWS = 2000
MIN_HELD_OUT_WORDS = 3


@dataclass(frozen=True)
class Pair:
    """A query, the text it should find, and the headword both belong to."""

    query: str
    positive: str
    headword: str

    @cached_property
    def keys(self) -> frozenset[str]:
        """What its texts share with equal texts: one key when query and positive say the same."""
        return frozenset((text_key(self.query), text_key(self.positive)))


Tables = dict[str, dict[str, list[Pair]]]


@dataclass(frozen=True)
class PairTables:
    """Rows by table and split; the keys of every held-out text, captions among them; the held-out headwords' keys."""

    rows: Tables
    held_out_texts: set[str]
    held_out_headwords: set[str]


def build_pairs(senses: list[Sense], image_texts: set[str], held_out_captions: set[str]) -> PairTables:
    """Split the dictionary by headword and make the three pair tables.

    ``image_texts`` are the keys of all captions: a headword that is also a caption is never held out, because the
    image side trains on it. ``held_out_captions`` are the keys that no training row may hold.
    """
    by_headword: dict[str, list[Sense]] = defaultdict(list)
    for sense in senses:
        by_headword[text_key(sense.headword)].append(sense)
    test, validation = draw(set(by_headword) - image_texts, TEST_HEADWORDS, VALIDATION_HEADWORDS)
    tables: Tables = {name: {} for name in PAIR_TABLES}
    held_out = set(held_out_captions)
    for split, words in (("test", test), ("validation", validation)):
        groups = [by_headword[word] for word in sorted(words)]
        for name in PAIR_TABLES:
            tables[name][split] = _one_each(map(_MAKERS[name], groups), held_out)
        # Only now: the tables of one split may share texts, two splits may not.
        held_out |= {key for name in PAIR_TABLES for row in tables[name][split] for key in row.keys}
    unseen = test | validation
    train = [group for word, group in by_headword.items() if word not in unseen]
    for name in PAIR_TABLES:
        rows = (row for group in train for row in _MAKERS[name](group))
        tables[name]["train"] = [row for row in _distinct(rows) if row.keys.isdisjoint(held_out)]
    return PairTables(tables, held_out, unseen)


def _distinct(rows: Iterable[Pair]) -> Iterator[Pair]:
    """Rows of two different texts, each pair of texts once."""
    seen: set[frozenset[str]] = set()
    for row in rows:
        if len(row.keys) == 2 and all(row.keys) and row.keys not in seen:
            seen.add(row.keys)
            yield row


def _one_each(groups: Iterable[Iterator[Pair]], taken: set[str]) -> list[Pair]:
    """The first row of each headword that is long enough and shares no text with another row or ``taken``."""
    chosen: list[Pair] = []
    used = set(taken)
    for group in groups:
        for row in _distinct(group):
            if len(row.positive.split()) >= MIN_HELD_OUT_WORDS and row.keys.isdisjoint(used):
                chosen.append(row)
                used |= row.keys
                break
    (kept,) = draw((row.headword for row in chosen), min(1.0, MAX_HELD_OUT_ROWS / max(1, len(chosen))))
    return [row for row in chosen if row.headword in kept]


def _headword_definition(senses: list[Sense]) -> Iterator[Pair]:
    for sense in senses:
        yield Pair(sense.headword, sense.definition, sense.headword)


def _definition_example(senses: list[Sense]) -> Iterator[Pair]:
    for sense in senses:
        for example in sense.examples:
            yield Pair(sense.definition, example, sense.headword)


def _definition_definition(senses: list[Sense]) -> Iterator[Pair]:
    for first, second in pairwise(senses):
        yield Pair(first.definition, second.definition, first.headword)


_MAKERS: dict[str, Callable[[list[Sense]], Iterator[Pair]]] = {
    "headword_definition": _headword_definition,
    "definition_example": _definition_example,
    "definition_definition": _definition_definition,
}
