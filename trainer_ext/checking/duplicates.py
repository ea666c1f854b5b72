"""What a source says twice: equal rows, equal and nearly equal pictures and texts, captions that many pictures share,
negatives that are true.

A row is named once, with the earliest row that it is like. Texts and pictures of one thing (an ``id``, or one picture
with several captions) are no twins: they are never each other's negatives.
"""

from collections.abc import Iterator

import numpy as np

from trainer_ext.checking.alike import twins
from trainer_ext.checking.findings import Finding, Level, quoted, share
from trainer_ext.checking.near_texts import NEARLY, bands, likeness, text_key
from trainer_ext.checking.pictures import nearly_equal
from trainer_ext.checking.scan import SourceScan
from trainer_ext.checking.texts import Frequent

# A caption is shared by many pictures from this many on, and from this share of the source's rows on.
SHARED, SHARED_PART = 5, 0.001
# Openings of four words are named from this many captions on, and from this share of them on.
OPENINGS, OPENINGS_PART = 50, 0.2


def duplicate_findings(found: SourceScan, keeps_false_negatives: bool = False) -> Iterator[Finding]:
    """Everything of this file, of one source.

    Args:
        keeps_false_negatives: the recipe has ``false_negatives: keep``, so equal texts do count as negatives.
    """
    yield from _equal_rows(found)
    for name in found.texts:
        if name != "negatives":
            yield from _near_texts(found, name)
    if len(found.pictures):
        yield from _alike_pictures(found)
    if "caption" in found.texts:
        yield from _shared_captions(found)
    yield from _true_negatives(found, keeps_false_negatives)
    if "score" in found.source.columns and len(found.scores) == 1 and found.rows > 1:
        words = f"every score is {next(iter(found.scores)):g}, so there is no order to learn. Map another column."
        yield Finding("warning", "equal-scores", found.source.name, words, column=found.column("score"))


def _repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of items that have occurred before, and where each occurred first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earliest = first[inverse]
    again = np.flatnonzero(earliest != np.arange(len(keys)))
    return again, earliest[again]


def _where(found: SourceScan, row: int) -> str:
    file, number = found.place(int(row))
    return f"{file}, row {number}"


def _equal_rows(found: SourceScan) -> Iterator[Finding]:
    numbers = found.numbers.values
    for again, first in zip(*_repeats(found.row_keys.values), strict=True):
        words = f"the row says the same as {_where(found, numbers[first])}. Remove one of them."
        yield Finding("warning", "equal-row", found.source.name, words, *found.place(int(numbers[again])))
    for row in found.self_pairs.values.tolist():
        words = "query and positive are the same text, so there is nothing to learn. Remove the row."
        place = found.place(row)
        yield Finding("warning", "positive-is-query", found.source.name, words, *place, found.column("positive"))


def _near_texts(found: SourceScan, name: str) -> Iterator[Finding]:
    column = found.texts[name]
    if not len(column):
        return
    keys, rows, things, minima = (grown.values for grown in (column.keys, column.rows, column.things, column.minima))
    same_row = dict.fromkeys(found.numbers.values[_repeats(found.row_keys.values)[0]].tolist())

    def agree(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        alike = (keys[left] != keys[right]) & (things[left] != things[right])
        alike[alike] = likeness(minima[left[alike]], minima[right[alike]]) >= NEARLY
        return alike

    again, first = _repeats(keys)
    apart = things[again] != things[first]
    for place, earlier in zip(again[apart], first[apart], strict=True):
        if int(rows[place]) not in same_row:  # said of the row already
            words = f"the text of {_where(found, rows[earlier])}; equal texts are not each other's negatives."
            yield Finding("note", "equal-text", found.source.name, words, *_cell(found, rows[place], name))
    # Rows of several captions meet more than once.
    near = dict.fromkeys((int(rows[place]), int(rows[earlier])) for place, earlier in twins(bands(minima), agree))
    for row, other in near:
        words = f"nearly the text of {_where(found, other)}, and in one batch its negative. "
        cure = "Keep one of them, or give both the same id."
        yield Finding("warning", "near-text", found.source.name, words + cure, *_cell(found, row, name))


def _cell(found: SourceScan, row: int, name: str) -> tuple[str, int, str]:
    return *found.place(int(row)), found.column(name)


def _alike_pictures(found: SourceScan) -> Iterator[Finding]:
    pictures, name = found.pictures, found.source.name
    rows, labels = pictures.rows, pictures.labels
    things = found.things.values[np.searchsorted(found.numbers.values, rows)]
    same_row = dict.fromkeys(found.numbers.values[_repeats(found.row_keys.values)[0]].tolist())

    def agree(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        alike = (labels[left] != labels[right]) & (things[left] != things[right])
        alike[alike] = nearly_equal(pictures, left[alike], pictures, right[alike])
        return alike

    for place, earlier in zip(*_repeats(labels), strict=True):
        if int(rows[place]) not in same_row:
            words = f"the picture of {_where(found, rows[earlier])}; equal pictures are not each other's negatives."
            yield Finding("note", "equal-picture", name, words, *_cell(found, rows[place], "image"))
    for place, earlier in twins(pictures.bands(), agree):
        words = f"nearly the picture of {_where(found, rows[earlier])}, and in one batch its negative. "
        cure = "Keep one of them, or give both the same id."
        yield Finding("warning", "near-picture", name, words + cure, *_cell(found, rows[place], "image"))


def _shared_captions(found: SourceScan) -> Iterator[Finding]:
    column, name = found.texts["caption"], found.source.name
    keys, things = column.keys.values, column.things.values
    least = max(SHARED, SHARED_PART * found.rows)
    shared = []
    for text, row in column.frequent.first.items():
        pictures = (
            len(np.unique(things[keys == np.uint64(text_key(text))])) if _counted(column.frequent, text, least) else 0
        )
        if pictures >= least:
            shared.append((pictures, text, row))
    for pictures, text, row in sorted(shared, reverse=True):
        words = (
            f"{quoted(text)} is the caption of {pictures:,} pictures. Write what tells them apart; the first is here."
        )
        yield Finding("warning", "shared-caption", name, words, *_cell(found, row, "caption"))
    openings = column.openings
    for text, count in openings.counts.items():
        if count >= max(OPENINGS, OPENINGS_PART * len(column)):
            words = (
                f"{share(count, len(column))} of the captions begin with {quoted(text)}, the first here. Leave it out."
            )
            yield Finding("note", "shared-opening", name, words, *_cell(found, openings.first[text], "caption"))


def _counted(frequent: Frequent, text: str, least: float) -> bool:
    """Whether the counter's figure, which may be too low, allows for so many."""
    return frequent.counts[text] + frequent.total / frequent.most >= least


def _true_negatives(found: SourceScan, kept: bool) -> Iterator[Finding]:
    level: Level = "error" if kept else "warning"
    rest = "and false_negatives is 'keep': it is trained apart from it" if kept else "so it is left out of the loss"
    rows = found.negative_rows.values[np.isin(found.negative_pairs.values, found.pairs.values)]
    for row in np.unique(rows).tolist():
        words = f"a negative is a positive of the same query, {rest}. Take it out of the negatives."
        yield Finding(level, "negative-is-positive", found.source.name, words, *_cell(found, row, "negatives"))
    for row in found.self_negatives.values.tolist():
        words = "a negative is the query itself. Take it out of the negatives."
        yield Finding("warning", "negative-is-query", found.source.name, words, *_cell(found, row, "negatives"))
