"""The mixing: which rows of which sources feed which step, as a pure function of the seed and the step.

Nothing is drawn while training runs, so nothing has to be stored to resume, and all processes agree without talking.

1. Per stage and side, one draw decides the source of every step: P(source) = rows ** alpha x weight / sum.
2. All rows of a step's side come from that one source, on all processes, so negatives are of the same kind.
3. A source is an endless sequence of rows: epoch after epoch, each a permutation made from (seed, source, epoch). Steps
   take consecutive rows of it, across stage boundaries too. A step that meets an epoch's end goes on into the next.
4. Such a step might take one row twice. The head of the new epoch is mended: rows that the step already took from the
   old epoch move right behind the step's share of the new one. Both epochs stay permutations.
5. A step's rows are cut into micro-batches, and those into the processes' slices.

Of a streaming source nobody knows the rows, so it takes part by its weight alone; its keys are positions in the stream
(``data_streams``), consecutive ones where the rows of other sources are permuted. Steps 3 and 4 are the stream's own.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count, groupby
from typing import Any, NamedTuple

import datasets
import numpy as np
from torch.utils.data import Dataset, Sampler

from trainer_ext.data_broken import BrokenRows
from trainer_ext.data_columns import IMAGE_ERRORS
from trainer_ext.data_order import Positions, RowOrder
from trainer_ext.data_sources import Rows, broken_image, read_rows, undecoded
from trainer_ext.data_streams import SourceStream
from trainer_ext.recipe import SIDES, Side, SideName, Source, Stage

# First word of the seed; data_order and data_streams have others, so that no two uses share random bits.
_SOURCE_OF_STEP = 1
Row = dict[str, Any]


class Key(NamedTuple):
    """One row of one joint batch. ``step`` and ``stage`` count from 0; ``index`` is the row in the source.

    Of a streaming source ``index`` is the position in the stream and ``epoch`` 0, until the row is read.
    """

    step: int
    stage: int
    side: SideName
    source: str
    epoch: int
    index: int


class BatchKeys(Sequence[Key]):
    """The keys of one micro-batch, worked out when first looked at.

    Skipping to step 50,000 therefore costs nothing. What travels to a loader's worker is a plain list.
    """

    def __init__(self, plan: "JointBatchPlan", batch: int) -> None:
        self._plan, self._batch = plan, batch
        self._keys: list[Key] | None = None

    def _resolve(self) -> list[Key]:
        if self._keys is None:
            self._keys = self._plan.keys(self._batch)
        return self._keys

    def __len__(self) -> int:
        return len(self._resolve())

    def __getitem__(self, position):  # type: ignore[no-untyped-def]  # int -> Key, slice -> list[Key]
        return self._resolve()[position]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._resolve())

    def __reduce__(self) -> tuple[type[list], tuple[list[Key]]]:
        return list, (self._resolve(),)


class _SidePlan(NamedTuple):
    """One side of one stage: the source of every step, and where in that source the step's rows begin."""

    side: SideName
    batch_size: int
    sources: list[str]
    choice: np.ndarray  # (steps,) position in ``sources``
    start: np.ndarray  # (steps,) position in the source's endless sequence

    def rows_until(self, step: int) -> dict[str, int]:
        """Rows taken from each source by this stage's first ``step`` steps."""
        counts = np.bincount(self.choice[:step], minlength=len(self.sources)) * self.batch_size
        return dict(zip(self.sources, counts.tolist(), strict=True))


class JointBatchPlan(Sampler[Sequence[Key]]):
    """The batch sampler of a run: element k is the list of keys of micro-batch k on this process.

    A step has one micro-batch per ``gradient_accumulation_steps``. ``batch_size`` of a side counts a step's rows over
    all processes and micro-batches, so it must divide by their product.

    Args:
        stages: the recipe's stages.
        sources: the recipe's sources; only those that a stage names are used.
        row_counts: rows of each used source, by name; None for a streaming one.
        seed: decides everything, together with the stages, the sources' names, weights and row counts.

    Raises:
        ValueError: a batch that cannot be cut evenly, or that is larger than a source it may be filled from.

    >>> side = Side(sources=["pairs"], batch_size=4)
    >>> stages = [Stage(name="only", steps=5, learning_rate=1e-3, max_length=32, text=side)]
    >>> columns = {"query": "q", "positive": "a"}
    >>> pairs = Source(name="pairs", task="text-pair", location="pairs.csv", format="csv", columns=columns)
    >>> plan = JointBatchPlan(stages, [pairs], {"pairs": 10}, seed=1)
    >>> len(plan), len(plan.keys(3)), plan.keys(3)[0].epoch, plan.source_counts(until_step=2)
    (5, 4, 1, {'text': {'pairs': 8}})
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        sources: Sequence[Source],
        row_counts: Mapping[str, int | None],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but it must lie between 0 and world_size - 1 = {world_size - 1}.")
        self._rank, self._world_size, self._accumulation = rank, world_size, gradient_accumulation_steps
        self._stage_ends = list(accumulate(stage.steps for stage in stages))
        self._weights = {source.name: source.weight for source in sources}
        self._check(stages, row_counts)
        self._orders = {
            name: Positions() if rows is None else RowOrder(name, rows, seed) for name, rows in row_counts.items()
        }
        self._plans = [
            [self._plan_side(index, stage, name, side, seed) for name, side in stage.sides()]
            for index, stage in enumerate(stages)
        ]

    def _check(self, stages: Sequence[Stage], row_counts: Mapping[str, int | None]) -> None:
        parts = self._world_size * self._accumulation
        for index, stage in enumerate(stages):
            for side_name, side in stage.sides():
                place = f"stages.{index}.{side_name}.batch_size is {side.batch_size}"
                if side.batch_size % parts:
                    raise ValueError(
                        f"{place}, which cannot be cut evenly for {self._world_size} process(es) with"
                        f" {self._accumulation} accumulated micro-batch(es). Use a multiple of {parts}."
                    )
                for name in side.sources:
                    if name not in row_counts:
                        raise ValueError(f"{place}, but source {name!r} has no rows: load it, and pass its row count.")
                    rows = row_counts[name]
                    if rows is not None and rows < side.batch_size:
                        raise ValueError(
                            f"{place}, but source {name!r} has only {rows} rows, and a batch takes"
                            f" distinct rows of one source. Use a batch_size of at most {rows},"
                            f" or take {name!r} out of the side's sources."
                        )

    def _plan_side(self, index: int, stage: Stage, side_name: SideName, side: Side, seed: int) -> _SidePlan:
        sizes = [self._orders[name].size(side.sampling_alpha) for name in side.sources]
        odds = np.array([size * self._weights[name] for size, name in zip(sizes, side.sources, strict=True)])
        draws = np.random.default_rng([seed, _SOURCE_OF_STEP, index, SIDES.index(side_name)]).random(stage.steps)
        limits = np.cumsum(odds / odds.sum())[:-1]
        choice = np.searchsorted(limits, draws, side="right")
        start = np.empty(stage.steps, dtype=np.int64)
        for position, name in enumerate(side.sources):
            steps = np.flatnonzero(choice == position)
            first = self._orders[name].extend(side.batch_size, len(steps))
            start[steps] = first + np.arange(len(steps)) * side.batch_size
        return _SidePlan(side_name, side.batch_size, list(side.sources), choice, start)

    def __len__(self) -> int:
        return self._stage_ends[-1] * self._accumulation

    def __iter__(self) -> Iterator[BatchKeys]:
        return (BatchKeys(self, batch) for batch in range(len(self)))

    def keys(self, batch: int) -> list[Key]:
        """The keys of micro-batch ``batch`` on this process: the image-text rows, then the text rows."""
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} of a plan of {len(self)} batches")
        step, micro = divmod(batch, self._accumulation)
        stage = bisect_right(self._stage_ends, step)
        local = step - (self._stage_ends[stage - 1] if stage else 0)
        found: list[Key] = []
        for plan in self._plans[stage]:
            source = plan.sources[plan.choice[local]]
            count = plan.batch_size // (self._accumulation * self._world_size)
            begin = int(plan.start[local]) + (micro * self._world_size + self._rank) * count
            epochs, indices = self._orders[source].read(begin, count)
            found += [
                Key(step, stage, plan.side, source, epoch, row)
                for epoch, row in zip(epochs.tolist(), indices.tolist(), strict=True)
            ]
        return found

    def source_counts(self, until_step: int | None = None) -> dict[SideName, dict[str, int]]:
        """Rows that each source has given to each side by the end of ``until_step`` steps (default: the whole run)."""
        until = self._stage_ends[-1] if until_step is None else until_step
        totals: dict[SideName, dict[str, int]] = {}
        for begin, plans in zip([0, *self._stage_ends], self._plans, strict=False):
            for plan in plans:
                side = totals.setdefault(plan.side, {})
                for name, rows in plan.rows_until(max(0, until - begin)).items():
                    side[name] = side.get(name, 0) + rows
        return totals


class JointDataset(Dataset[Row]):
    """Keys to rows: the columns of the source's row, and its ``key``.

    Of several captions one is drawn by the seed, source, row and epoch: another one in each epoch, the same one again
    after a resume, whichever worker reads it. Texts get the source's prompts. A row whose image cannot be decoded is
    replaced by another one of its source, drawn from the same numbers, within the source's ``max_broken_rows``.

    Args:
        broken: where rows left out are listed and counted; by default in memory.

    >>> from datasets import Dataset as Table
    >>> columns = {"query": "q", "positive": "a"}
    >>> source = Source(name="pairs", task="text-pair", location="pairs.csv", format="csv", columns=columns)
    >>> rows = JointDataset([source], {"pairs": Table.from_dict({"query": ["hi"], "positive": ["hello"]})}, seed=1)
    >>> rows[Key(step=0, stage=0, side="text", source="pairs", epoch=0, index=0)]["positive"]
    'hello'
    """

    def __init__(
        self, sources: Sequence[Source], tables: Mapping[str, Rows], seed: int, broken: BrokenRows | None = None
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._tables = {
            name: rows if isinstance(rows, SourceStream) else undecoded(rows) for name, rows in tables.items()
        }
        self._seed = seed
        self._broken = BrokenRows(None) if broken is None else broken

    def __len__(self) -> int:
        """Rows of the sources that do not stream."""
        return sum(rows for rows in map(row_count, self._tables.values()) if rows is not None)

    def __getitem__(self, key: Key) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Row]:
        """The rows of a micro-batch, read source by source."""
        found: list[Row] = []
        for name, group in groupby(keys, key=lambda key: key.source):
            found += [self._finished(self._sources[name], row) for row in self._read(name, list(group))]
        return found

    def _read(self, name: str, keys: list[Key]) -> list[Row]:
        """The rows as they are stored, each with the key of what was really read."""
        source, table = self._sources[name], self._tables[name]
        if isinstance(table, SourceStream):
            rows = table.read([key.index for key in keys])
            return [
                {**one.row, "key": key._replace(epoch=one.epoch, index=one.identity)}
                for key, one in zip(keys, rows, strict=True)
            ]
        try:
            rows = read_rows(source, table, [key.index for key in keys])
            return [{**row, "key": key} for key, row in zip(keys, rows, strict=True)]
        except IMAGE_ERRORS:
            return [self._readable(source, table, key) for key in keys]

    def _readable(self, source: Source, table: datasets.Dataset, key: Key) -> Row:
        """The row, or the first of its replacements that can be read."""
        drawn = key
        for attempt in count(1):
            try:
                [row] = read_rows(source, table, [drawn.index])
                return {**row, "key": drawn}
            except IMAGE_ERRORS as error:
                self._broken.add(source, broken_image(source, table, drawn.index, error))
            drawn = key._replace(index=self._draw(key, len(table), f"/{attempt}"))
        raise AssertionError("the budget of broken rows ends the search")

    def _finished(self, source: Source, row: Row) -> Row:
        if isinstance(row.get("caption"), list):
            row["caption"] = row["caption"][self._draw(row["key"], len(row["caption"]))]
        for name, prompt in source.prompts.items():
            row[name] = prompt + row[name]
            if name == "positive" and "negatives" in row:
                row["negatives"] = [prompt + text for text in row["negatives"]]
        return row

    def _draw(self, key: Key, choices: int, purpose: str = "") -> int:
        # A hash is a random generator of one draw, and much cheaper to seed than one of many.
        label = f"{self._seed}/{key.source}/{key.epoch}/{key.index}{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(label, digest_size=8).digest()) % choices


def row_count(rows: Rows) -> int | None:
    """Rows of a source; None for a streaming one, whose rows nobody has counted."""
    return None if isinstance(rows, SourceStream) else len(rows)
