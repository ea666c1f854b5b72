"""What is trained on and measured on: pairs, pictures and texts of the evaluation that stand in a training source.

Equal, and nearly equal, as ``near_texts`` and ``pictures`` say: texts by their ``plain`` form, pictures by pixels.
A pair is met on both sides if a row holds its picture or query with a text that belongs to it: such a figure measures
what was learnt by heart.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from trainer_ext.checking.alike import matches
from trainer_ext.checking.findings import Finding, share
from trainer_ext.checking.near_texts import NEARLY, bands, likeness
from trainer_ext.checking.pictures import nearly_equal
from trainer_ext.checking.scan import SourceScan

# Of one kind: its name, the column that is named, and rows with what each holds.
Met = tuple[str, str, list[tuple[int, str]]]


def overlap_findings(found: SourceScan, measured: SourceScan) -> Iterator[Finding]:
    """Rows of a training source that hold what a source of the evaluation holds, after a line with their count."""
    name, other_name = found.source.name, f"source {measured.source.name!r}"
    rows: dict[int, Finding] = {}
    counts: dict[str, int] = {}
    pairs = found.pair_rows.values[np.isin(found.pairs.values, measured.pairs.values)]
    for row in np.unique(pairs).tolist():
        words = f"the row is a pair of {other_name} as well, both sides. Take it out of the training data."
        rows[row] = Finding("warning", "overlap-pair", name, words, *found.place(row))
    counts["on both sides"] = len(rows)
    for kind, column, met in (*_pictures_met(found, measured), *_texts_met(found, measured)):
        fresh = {row: words for row, words in met if row not in rows}
        for row, words in fresh.items():
            sentence = f"{words}. Take the row out of the training data, or the other one out of the evaluation."
            rows[row] = Finding("warning", kind, name, sentence, *found.place(row), column)
        sort = f"its {'pictures' if 'picture' in kind else 'texts'}{' nearly' if 'near' in kind else ''}"
        counts[sort] = counts.get(sort, 0) + len(fresh)
    if rows:
        said = ", ".join(f"{words} {count:,}" for words, count in counts.items() if count)
        words = f"{share(len(rows), found.rows)} of the rows hold what {other_name} measures: {said}."
        yield Finding("warning", "overlap", name, words)
        yield from (rows[row] for row in sorted(rows))


def _pictures_met(found: SourceScan, measured: SourceScan) -> Iterator[Met]:
    ours, theirs = found.pictures, measured.pictures
    if not len(ours) or not len(theirs):
        return
    column, rows = found.column("image"), ours.rows.tolist()
    equal = _equal(ours.pixels, theirs.pixels)
    near = matches(ours.bands(), theirs.bands(), lambda left, right: nearly_equal(ours, left, theirs, right))
    yield (
        "overlap-picture",
        column,
        [(rows[mine], f"the picture is {_at(measured, theirs.rows, other, 'a picture')}") for mine, other in equal],
    )
    yield (
        "near-overlap-picture",
        column,
        [
            (rows[mine], f"the picture is nearly {_at(measured, theirs.rows, other, 'a picture')}")
            for mine, other in near
        ],
    )


def _texts_met(found: SourceScan, measured: SourceScan) -> Iterator[Met]:
    for name, ours in found.texts.items():
        if name == "negatives" or not len(ours):
            continue
        for theirs in (column for other, column in measured.texts.items() if other != "negatives" and len(column)):
            left_minima, right_minima = ours.minima.values, theirs.minima.values

            def agree(
                left: np.ndarray, right: np.ndarray, one: np.ndarray = left_minima, other: np.ndarray = right_minima
            ) -> np.ndarray:
                return likeness(one[left], other[right]) >= NEARLY

            rows = ours.rows.values.tolist()
            equal = _equal(ours.keys.values, theirs.keys.values)
            near = matches(bands(left_minima), bands(right_minima), agree)
            yield (
                "overlap-text",
                found.column(name),
                [
                    (rows[mine], f"the text is {_at(measured, theirs.rows.values, other, 'a text')}")
                    for mine, other in equal
                ],
            )
            yield "near-overlap-text", found.column(name), [
                (rows[mine], f"the text is nearly {_at(measured, theirs.rows.values, other, 'a text')}")
                for mine, other in near
            ]  # fmt: skip


def _equal(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Places of ours that stand among theirs, and where first."""
    keys, first = np.unique(theirs, return_index=True)
    place = np.searchsorted(keys, ours).clip(0, max(len(keys) - 1, 0))
    met = np.flatnonzero(keys[place] == ours) if len(keys) else np.empty(0, np.int64)
    return list(zip(met.tolist(), first[place[met]].tolist(), strict=True))


def _at(measured: SourceScan, rows: np.ndarray, place: int, what: str) -> str:
    file, row = measured.place(int(rows[place]))
    return f"{what} of source {measured.source.name!r} ({file}, row {row})"


def reused_source(name: str, tasks: Sequence[str]) -> Finding:
    """A training source that is measured on as it is."""
    words = (
        f"is trained on and measured on, by {', '.join(map(repr, tasks))}: the figures show what was learnt by heart. "
        "Measure on a file of its own, or on a held-out share of the source."
    )
    return Finding("warning", "overlap", name, words)
