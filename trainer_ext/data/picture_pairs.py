"""Pairs of pictures: which rows of a source of task image-pair belong together, and which two of them are shown.

1. With an ``id``: rows of one id are a group, in the order of their first rows. A step takes whole groups, and shows
   two different rows of each, drawn anew in every epoch from (seed, source, epoch, group). A row whose id no other row
   has is left out.
2. Without: every row is a pair of its picture with itself; the stage's crop and augmentation make two views of it.

The plan counts groups where there are ids, and rows where there are none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.recipe.schema import Source


class PictureGroups:
    """The rows of each id that several rows have.

    Args:
        table: with our column names.

    >>> groups = PictureGroups(Dataset.from_dict({"id": ["cup", "fox", "cup", "owl", "fox", "cup"]}))
    >>> len(groups), groups.alone, groups.rows(0).tolist(), groups.rows(1).tolist()
    (2, 1, [0, 2, 5], [1, 4])
    """

    def __init__(self, table: Dataset) -> None:
        ids = table.select_columns(["id"]).with_format("arrow")[:]["id"]
        numbers = ids.combine_chunks().dictionary_encode().indices.to_numpy()
        counts = np.bincount(numbers)
        self._order = np.argsort(numbers, kind="stable")
        kept = np.flatnonzero(counts > 1)
        self._starts, self._sizes = (np.cumsum(counts) - counts)[kept], counts[kept]
        self.alone = int((counts == 1).sum())

    def __len__(self) -> int:
        return len(self._sizes)

    def rows(self, group: int) -> np.ndarray:
        """The rows of a group."""
        return self._order[self._starts[group] : self._starts[group] + self._sizes[group]]

    def drawn(self, seed: int, key: Key) -> list[int]:
        """The two rows that a key shows, in this order; every ordered pair of the group is as likely."""
        label = f"{seed}/{key.source}/{key.epoch}/{key.index}/pair".encode()
        number = int.from_bytes(hashlib.blake2b(label, digest_size=8).digest())
        rows = self.rows(key.index)
        first, step = number % len(rows), number // len(rows) % (len(rows) - 1)
        return [int(rows[first]), int(rows[(first + 1 + step) % len(rows)])]


def picture_groups(sources: Sequence[Source], tables: Mapping[str, Any]) -> dict[str, PictureGroups]:
    """The groups of each source that pairs pictures by id, by name.

    Raises:
        DataError: ids, of which none occurs twice.
    """
    found = {}
    for source in sources:
        if source.pairs_by_id() and source.name in tables:
            groups = found[source.name] = PictureGroups(tables[source.name])
            if not len(groups):
                raise DataError(
                    f"Source {source.name!r}: each of its {groups.alone:,} pictures has an id of its own, so no two "
                    "make a pair. Map id to a column that pictures of one thing share, or leave it out for two views "
                    "of each picture."
                )
    return found


def pair_notes(sources: Sequence[Source], tables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and a line of each source that pairs pictures by id and has pictures without a partner: they are left out.

    >>> source = Source(
    ...     name="cups", task="image-pair", location="x", format="csv", columns={"image": "file", "id": "cup"}
    ... )
    >>> list(pair_notes([source], {"cups": Dataset.from_dict({"id": [1, 2, 1]})}))
    [('cups', '1 of 3 pictures has an id that no other one has, and is left out; 1 id makes pairs.')]
    """
    for name, groups in picture_groups(sources, tables).items():
        if groups.alone:
            verbs = ("has", "is") if groups.alone == 1 else ("have", "are")
            pairs = "1 id makes pairs" if len(groups) == 1 else f"{len(groups):,} ids make pairs"
            yield (
                name,
                (
                    f"{groups.alone:,} of {len(tables[name]):,} pictures {verbs[0]} an id that no other one has, "
                    f"and {verbs[1]} left out; {pairs}."
                ),
            )
