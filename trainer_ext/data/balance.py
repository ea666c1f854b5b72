"""``balance`` of a source: how often each row is trained on, so that no value of a column takes most of an epoch.

MetaCLIP's balancing (arXiv 2309.16671, algorithm 1) in steps:

1. count the rows of each value of the key, over the rows that are trained on;
2. a value with ``count`` rows keeps each with probability min(1, limit / count), so ``limit`` of them on average;
3. a row with several values is kept if one of them keeps it: 1 - prod(1 - min(1, limit / count)).

MetaCLIP draws once, before training. Here ``plan`` draws anew in every epoch, so that all rows are seen in the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from trainer_ext.data.columns import BALANCE
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import SHARE_BITS
from trainer_ext.recipe.schema import Balance, Source

_WHOLE = 1 << SHARE_BITS


class Balanced(NamedTuple):
    """The shares (rows,) of a source's rows in units of 2**-30, and what the key's values are.

    ``values`` different ones, of which ``above`` have more rows than the limit, and one the ``most``.
    """

    shares: np.ndarray
    values: int
    above: int
    most: int

    @property
    def kept(self) -> int:
        """Rows of an epoch."""
        return int(self.shares.sum()) >> SHARE_BITS

    def describe(self, balance: Balance) -> str:
        """What it does, in one sentence."""
        if not self.above:
            return (
                f"balance leaves nothing out: no value of {balance.key!r} is in more than {_rows(self.most)}, and the "
                f"limit is {balance.limit:,}. Lower it, or take balance out."
            )
        return (
            f"balance keeps {self.kept:,} of {len(self.shares):,} rows in an epoch: {self.above:,} of {self.values:,} "
            f"values of {balance.key!r} are in more than {_rows(balance.limit)}, up to {self.most:,}."
        )

    def as_record(self) -> dict[str, Any]:
        """The figures of a check."""
        return {"kept": self.kept, "values": self.values, "above": self.above, "most": self.most}


def row_shares(rows: Dataset, balance: Balance) -> Balanced:
    """The share of each row, from the column ``balance`` of a loaded source.

    >>> table = Dataset.from_dict({"balance": ["dog"] * 6 + ["cat", "fox"]})
    >>> found = row_shares(table, Balance(key="animal", limit=2))
    >>> (found.shares / 2**30).round(2).tolist(), found.kept
    ([0.33, 0.33, 0.33, 0.33, 0.33, 0.33, 1.0, 1.0], 4)
    >>> found.describe(Balance(key="animal", limit=2))
    "balance keeps 4 of 8 rows in an epoch: 1 of 3 values of 'animal' are in more than 2 rows, up to 6."
    """
    owners, codes = _values(rows.select_columns([BALANCE]).with_format("arrow")[:].column(BALANCE))
    counts = np.bincount(codes)
    missed = np.ones(len(rows))
    np.multiply.at(missed, owners, 1.0 - np.minimum(1.0, balance.limit / counts[codes]))
    return Balanced(whole_shares(1.0 - missed), len(counts), int((counts > balance.limit).sum()), int(counts.max()))


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def balances(sources: Sequence[Source], tables: Mapping[str, Any]) -> Iterator[tuple[str, Balanced, str]]:
    """Of each balanced source with a table: its name, the shares of its rows, and what balance does in a sentence.

    Raises:
        DataError: a table that was loaded from the source before it had a ``balance``.
    """
    for source in sources:
        if source.balance is None or source.name not in tables:
            continue
        if BALANCE not in tables[source.name].column_names:
            raise DataError(
                f"Source {source.name!r} is balanced by {source.balance.key!r}, but its table has no column {BALANCE!r}"
                " with the values. Load it by load_sources, from the source as the recipe has it."
            )
        found = row_shares(tables[source.name], source.balance)
        yield source.name, found, found.describe(source.balance)


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which row has which value, each value of a row once: rows (links,) and numbers of values (links,)."""
    owners = np.arange(len(column))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        owners, column = np.repeat(owners, pc.list_value_length(column).to_numpy()), pc.list_flatten(column)
    codes = column.dictionary_encode().combine_chunks().indices.to_numpy()
    links = np.unique(owners * (int(codes.max()) + 1) + codes)
    return np.divmod(links, int(codes.max()) + 1)


def whole_shares(odds: np.ndarray) -> np.ndarray:
    """Probabilities (rows,) in units of 2**-30, which add up to whole rows: the length of an epoch is one number.

    What is missing or too much, half a row at most, is shared by the rows that are not always kept.

    >>> shares = whole_shares(np.array([1.0, 0.3, 0.3]))
    >>> int(shares.sum()) / 2**30, int(shares[0]) / 2**30
    (2.0, 1.0)
    """
    shares = np.rint(odds * _WHOLE).astype(np.int64)
    total = int(shares.sum())
    excess = total - ((total + _WHOLE // 2) >> SHARE_BITS << SHARE_BITS)
    if excess == 0:
        return shares
    room = np.where(shares < _WHOLE, shares if excess > 0 else _WHOLE - shares, 0)
    change = abs(excess) * room // room.sum()  # below 2**59
    rest = abs(excess) - int(change.sum())  # less than one unit for each row whose part was rounded down
    change[np.flatnonzero(change < room)[:rest]] += 1
    return shares - change if excess > 0 else shares + change
