"""Which rows of which sources feed which step: a pure function of the seed and the step.

Nothing is drawn while training runs, so there is nothing to store for a resume, and all processes agree without
exchanging anything.

1. Per stage and side, one draw decides the source of every step: P(source) = rows ** alpha x weight / sum.
2. All rows of a step's side come from that one source, on all processes, so negatives are of the same kind.
3. A source is an endless sequence of rows: epoch after epoch, each a permutation made from (seed, source, epoch). Steps
   take consecutive rows of it, across stage boundaries too. A step that meets the end of an epoch continues in the
   next.
4. A step may span two epochs. To keep its rows distinct, rows already taken from the old epoch move to just after the
   step's share of the new one. Both epochs stay permutations.
5. Of a balanced source (``balance``) an epoch holds some rows only: along the epoch's permutation row i is kept where
   the running sum of the rows' shares, plus the epoch's offset, passes a whole number (systematic sampling). So each
   row is kept with its share as the probability, none twice, and every epoch has as many rows.
6. A step's rows are cut into micro-batches, and those into the processes' slices.

The size of a streaming source is unknown, so only its weight counts; its keys are consecutive positions in the stream
(``streams``), where the rows of other sources are permuted. Steps 3 and 4 are then the stream's own.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias, overload

import numpy as np
from torch.utils.data import Sampler

from trainer_ext.recipe.schema import SIDES, Side, SideName, Source
from trainer_ext.recipe.stages import Stage

# First words of the seeds; streams.py has 3 and 4, so no two uses share random bits.
_SOURCE_OF_STEP, _ORDER_OF_ROWS, _KEPT_ROWS = 1, 2, 5
# Shares of balanced rows are whole numbers of 2**-30: sums are exact, on every machine.
SHARE_BITS = 30

# Of a source its number of rows, or None for a streaming one; of a balanced one the shares (rows,) of its rows in an
# epoch, int64 in units of 2**-30, which add up to whole rows.
RowCount: TypeAlias = "int | np.ndarray | None"


class _Run(NamedTuple):
    """One stage's consecutive use of a source: ``steps`` steps of ``batch_size`` rows from position ``start`` on."""

    start: int
    batch_size: int
    steps: int


class Positions:
    """The positions that steps take from the endless sequence of one source: all that is planned of a stream."""

    epoch_rows: int | None = None

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @property
    def end(self) -> int:
        """Position behind the last planned row."""
        last = self._runs[-1] if self._runs else _Run(0, 1, 0)
        return last.start + last.batch_size * last.steps

    def extend(self, batch_size: int, steps: int) -> int:
        """Plan ``steps`` more steps; return the position of their first row."""
        start = self.end
        if steps:
            self._runs.append(_Run(start, batch_size, steps))
        return start

    def size(self, alpha: float) -> float:
        """What the number of rows contributes to the source's share."""
        return 1.0

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and row indices of ``count`` consecutive positions."""
        return np.zeros(count, dtype=np.int64), np.arange(start, start + count)


class RowOrder(Positions):
    """The endless row sequence of one source, readable at any position (steps 3 to 5 of the module's text).

    Holds the permutations of the two latest epochs: 8 or 16 bytes per row of the source.
    """

    def __init__(self, name: str, rows: int | np.ndarray, seed: int) -> None:
        super().__init__()
        self._shares = rows if isinstance(rows, np.ndarray) else None
        self._rows = rows if isinstance(rows, int) else len(rows)
        self.epoch_rows: int = rows if isinstance(rows, int) else int(rows.sum()) >> SHARE_BITS
        label = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        self._seed, self._keep_seed = [seed, _ORDER_OF_ROWS, label], [seed, _KEPT_ROWS, label]
        self._made: OrderedDict[int, np.ndarray] = OrderedDict()

    def size(self, alpha: float) -> float:
        """What the number of rows contributes to the source's share."""
        return float(self.epoch_rows**alpha)

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and row indices of ``count`` consecutive positions."""
        epochs, offsets = np.divmod(np.arange(start, start + count), self.epoch_rows)
        indices = np.empty(count, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            indices[chosen] = self._epoch(epoch)[offsets[chosen]]
        return epochs, indices

    def _epoch(self, epoch: int) -> np.ndarray:
        """Row order of one epoch, the mended head included."""
        if epoch in self._made:
            self._made.move_to_end(epoch)
            return self._made[epoch]
        # The tail of an epoch is as drawn unless its own mended head reaches into it (sources below two batches).
        # Go back to the first epoch that can be made from drawn permutations alone, then forward again.
        first = epoch
        while first - 1 not in self._made and self._head_reaches_tail(first - 1, self._taken_before(first)[0]):
            first -= 1
        for current in range(first, epoch + 1):
            self._made[current] = self._mend(current)
            while len(self._made) > 2:
                self._made.popitem(last=False)
        return self._made[epoch]

    def _mend(self, epoch: int) -> np.ndarray:
        order = self._draw(epoch)
        taken, batch_size = self._taken_before(epoch)
        if not taken:
            return order
        before = self._made[epoch - 1] if epoch - 1 in self._made else self._draw(epoch - 1)
        head = order[:batch_size]
        repeated = np.isin(head, before[self.epoch_rows - taken :])
        # Of batch_size rows at most ``taken`` are repeated, so enough others are left for the step's share.
        share = np.flatnonzero(~repeated)[: batch_size - taken]
        rest = np.setdiff1d(np.arange(batch_size), share)
        order[:batch_size] = head[np.concatenate([share, rest])]
        return order

    def _draw(self, epoch: int) -> np.ndarray:
        dtype = np.int32 if self._rows <= np.iinfo(np.int32).max else np.int64
        order = np.arange(self._rows, dtype=dtype)
        np.random.default_rng([*self._seed, epoch]).shuffle(order)
        if self._shares is None:
            return order
        offset = np.random.default_rng([*self._keep_seed, epoch]).integers(1 << SHARE_BITS)
        whole = (np.cumsum(self._shares[order]) + offset) >> SHARE_BITS
        return order[np.diff(whole, prepend=0) > 0]

    def _taken_before(self, epoch: int) -> tuple[int, int]:
        """(rows that the step crossing the start of ``epoch`` took before it, that step's batch size); (0, 0): none."""
        boundary = epoch * self.epoch_rows
        if epoch <= 0 or boundary >= self.end:
            return 0, 0
        run = self._runs[bisect_right(self._runs, boundary, key=lambda run: run.start) - 1]
        taken = (boundary - run.start) % run.batch_size
        return (taken, run.batch_size) if taken else (0, 0)

    def _head_reaches_tail(self, epoch: int, tail: int) -> bool:
        """Whether the mended head of ``epoch`` overlaps its last ``tail`` rows."""
        return tail > 0 and self._taken_before(epoch)[1] > self.epoch_rows - tail


class Key(NamedTuple):
    """One row of one joint batch. ``step`` and ``stage`` count from 0; ``index`` is the row in the source, or the group
    of rows where pictures are paired by id.

    Of a streaming source ``index`` is the position in the stream and ``epoch`` 0, until the row is read.
    """

    step: int
    stage: int
    side: SideName
    source: str
    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no use for a key


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

    @overload
    def __getitem__(self, position: int) -> Key: ...
    @overload
    def __getitem__(self, position: slice) -> list[Key]: ...
    def __getitem__(self, position: int | slice) -> Key | list[Key]:
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
        row_counts: rows of each used source, by name; ``sources.planned_rows`` has them.
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
        row_counts: Mapping[str, RowCount],
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
        self._units = {one.name: "ids" if one.pairs_by_id() else "rows" for one in sources}
        self._orders = {
            name: Positions() if rows is None else RowOrder(name, rows, seed) for name, rows in row_counts.items()
        }
        self._check(stages, row_counts)
        self._plans = [
            [self._plan_side(index, stage, name, side, seed) for name, side in stage.sides()]
            for index, stage in enumerate(stages)
        ]

    def _check(self, stages: Sequence[Stage], row_counts: Mapping[str, RowCount]) -> None:
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
                    rows = self._orders[name].epoch_rows
                    if rows is not None and rows < side.batch_size:
                        balanced = isinstance(row_counts[name], np.ndarray)
                        of, cure = (" in an epoch", " raise the limit of its balance,") if balanced else ("", "")
                        raise ValueError(
                            f"{place}, but source {name!r} has only {rows} {self._units[name]}{of}, and a batch takes"
                            f" distinct {self._units[name]} of one source. Use a batch_size of at most {rows},{cure}"
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

    def epoch_rows(self, source: str) -> int | None:
        """Rows of one epoch of a source; None for a streaming one."""
        return self._orders[source].epoch_rows

    def keys(self, batch: int) -> list[Key]:
        """The keys of micro-batch ``batch`` on this process, side after side."""
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
