"""The mixing, stated by its invariants: they hold for every seed, size and number of processes."""

import pickle
import time
from collections import Counter, defaultdict
from itertools import groupby

import numpy as np
import pytest
from accelerate import skip_first_batches
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trainer_ext.data.batches import JointDataset
from trainer_ext.data.plan import BatchKeys, JointBatchPlan, Key
from trainer_ext.recipe.schema import Side, Source
from trainer_ext.recipe.stages import Stage

# (source, epoch, row) of the first and the last batch of a run of 9; see the test that uses it.
FIXED = [
    *[("t", 0, 2), ("t", 0, 4), ("t", 0, 0), ("t", 0, 1), ("t", 0, 3)],
    *[("t", 3, 1), ("t", 3, 2), ("t", 3, 4), ("t", 3, 5), ("t", 4, 3)],
]


def source(name: str, task: str = "text-pair", weight: float = 1.0) -> Source:
    columns = {"query": "query", "positive": "positive"}
    if task == "image-text":
        columns = {"image": "image", "caption": "caption"}
    return Source(name=name, task=task, location="x.csv", format="csv", columns=columns, weight=weight)


def stage(steps: int, **sides: tuple[list[str], int]) -> Stage:
    """A stage of ``steps`` steps, ``image_text`` and ``text`` given as (sources, batch size)."""
    made = {side: Side(sources=names, batch_size=size) for side, (names, size) in sides.items()}
    return Stage(name=f"stage of {steps}", steps=steps, learning_rate=1e-3, max_length=8, **made)


def plan_of(stages: list[Stage], rows: dict[str, int], weights: dict[str, float] | None = None, **options: int):
    sources = [source(name, weight=(weights or {}).get(name, 1.0)) for name in rows]
    return JointBatchPlan(stages, sources, rows, **{"seed": 1, **options})


def all_keys(plan: JointBatchPlan) -> list[list[Key]]:
    return [plan.keys(batch) for batch in range(len(plan))]


def sides_of(keys: list[Key]) -> list[list[Key]]:
    return [list(group) for _, group in groupby(keys, key=lambda key: key.side)]


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Stage], dict[str, int], int]:
    """Up to three stages over small sources of uneven sizes, so that batches cross many epochs' borders."""
    rows = {f"s{i}": draw(st.integers(8, 40)) for i in range(draw(st.integers(1, 3)))}
    stages = [
        stage(draw(st.integers(1, 30)), text=(list(rows), draw(st.integers(1, 8))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return stages, rows, draw(st.integers(0, 2**32))


@settings(max_examples=60, deadline=None)
@given(runs())
def test_epochs_are_permutations_and_batches_hold_no_row_twice(run: tuple[list[Stage], dict[str, int], int]) -> None:
    stages, rows, seed = run
    batches = all_keys(plan_of(stages, rows, seed=seed))
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for keys in batches:
        for side in sides_of(keys):
            assert len({key.source for key in side}) == 1
            assert len({key.index for key in side}) == len(side)
            taken[side[0].source] += [(key.epoch, key.index) for key in side]
    for name, pairs in taken.items():
        epochs = [epoch for epoch, _ in pairs]
        assert epochs == sorted(epochs)
        assert epochs[0] == 0  # the first batch is not dropped
        for epoch in range(epochs[-1] + 1):
            indices = [index for of, index in pairs if of == epoch]
            assert len(indices) == len(set(indices))
            if epoch < epochs[-1]:
                assert set(indices) == set(range(rows[name]))


@settings(max_examples=30, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_any_batch_is_the_same_without_those_before_it(run, random) -> None:
    """Resuming equals not having stopped: nothing depends on what was asked before."""
    stages, rows, seed = run
    batches = all_keys(plan_of(stages, rows, seed=seed))
    fresh = plan_of(stages, rows, seed=seed)
    for batch in random.sample(range(len(batches)), min(20, len(batches))):
        assert fresh.keys(batch) == batches[batch]


@pytest.mark.parametrize("rows", [8, 9, 11, 15, 16, 17])
def test_source_hardly_larger_than_a_batch(rows: int) -> None:
    """Every epoch's mended head reaches into its tail here, back to the first epoch."""
    plan = plan_of([stage(3, text=(["s"], 5)), stage(200, text=(["s"], 8))], {"s": rows})
    batches = all_keys(plan)
    order = [key for keys in batches for key in keys]
    for epoch in range(order[-1].epoch):
        assert sorted(key.index for key in order if key.epoch == epoch) == list(range(rows))
    assert all(len({key.index for key in keys}) == len(keys) for keys in batches)
    assert plan_of([stage(3, text=(["s"], 5)), stage(200, text=(["s"], 8))], {"s": rows}).keys(202) == batches[202]


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    stages = [stage(20, text=(["s"], 10))]

    def order(epoch: int, seed: int, name: str = "s") -> list[int]:
        plan = plan_of([stage(20, text=([name], 10))], {name: 50}, seed=seed)
        return [key.index for keys in all_keys(plan) for key in keys if key.epoch == epoch]

    orders = [order(0, 1), order(1, 1), order(2, 1), order(0, 2), order(0, 1, "other"), list(range(50))]
    assert len({tuple(item) for item in orders}) == len(orders)
    assert all_keys(plan_of(stages, {"s": 50})) == all_keys(plan_of(stages, {"s": 50}))


def test_order_is_fixed_for_good() -> None:
    """Checkpoints of earlier releases resume only while this list stays as it is."""
    plan = plan_of([stage(9, text=(["s", "t"], 5))], {"s": 7, "t": 6}, seed=42)
    keys = [key for batch in (0, 8) for key in plan.keys(batch)]
    assert [(key.source, key.epoch, key.index) for key in keys] == FIXED


def test_stages_go_on_where_the_one_before_stopped() -> None:
    stages = [stage(3, text=(["s"], 4)), stage(5, text=(["s"], 7)), stage(2, image_text=(["i"], 3))]
    batches = all_keys(plan_of(stages, {"s": 100, "i": 9}))
    assert [keys[0].stage for keys in batches] == [0] * 3 + [1] * 5 + [2] * 2
    assert [keys[0].step for keys in batches] == list(range(10))
    seen = [key.index for keys in batches[:8] for key in keys]
    assert len(seen) == len(set(seen)) == 3 * 4 + 5 * 7


def test_joint_step_has_both_sides_each_of_one_source() -> None:
    plan = plan_of([stage(30, image_text=(["i"], 4), text=(["s", "t"], 6))], {"i": 20, "s": 30, "t": 30})
    for keys in all_keys(plan):
        images, texts = sides_of(keys)
        assert (images[0].side, len(images), texts[0].side, len(texts)) == ("image_text", 4, "text", 6)
        assert {key.source for key in images} == {"i"}
        assert len({key.source for key in texts}) == 1


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (3, 2), (2, 6)])
def test_processes_and_micro_batches_share_one_global_batch(world_size: int, accumulation: int) -> None:
    stages = [stage(25, image_text=(["i"], 24), text=(["s", "t"], 12))]
    rows = {"i": 50, "s": 31, "t": 17}
    whole = all_keys(plan_of(stages, rows))
    parts = [
        all_keys(plan_of(stages, rows, rank=rank, world_size=world_size, gradient_accumulation_steps=accumulation))
        for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {25 * accumulation}
    for step, keys in enumerate(whole):
        micro = [part[step * accumulation + k] for k in range(accumulation) for part in parts]
        for position, side in enumerate(sides_of(keys)):
            slices = [sides_of(one)[position] for one in micro]
            assert {len(one) for one in slices} == {len(side) // world_size // accumulation}
            assert [key for one in slices for key in one] == side


def test_sources_are_drawn_in_proportion_to_rows_and_weight() -> None:
    steps = 20_000
    plan = plan_of([stage(steps, text=(["a", "b", "c"], 2))], {"a": 600, "b": 300, "c": 100}, weights={"c": 6.0})
    counts = plan.source_counts()["text"]
    for name, share in {"a": 0.4, "b": 0.2, "c": 0.4}.items():
        deviation = (share * (1 - share) / steps) ** 0.5
        assert counts[name] / (2 * steps) == pytest.approx(share, abs=4 * deviation)
    runs_of = [len(list(group)) for _, group in groupby(keys[0].source for keys in all_keys(plan)[:2000])]
    assert max(runs_of) < 30  # drawn step by step, not source after source


@pytest.mark.parametrize(("alpha", "odds"), [(1.0, [900, 50]), (0.5, [30, 5]), (0.0, [1, 0.5])])
def test_alpha_lets_small_sources_have_more(alpha: float, odds: list[float]) -> None:
    steps = 20_000
    side = Side(sources=["a", "b"], batch_size=2, sampling_alpha=alpha)
    stages = [Stage(name="only", steps=steps, learning_rate=1e-3, max_length=8, text=side)]
    counts = plan_of(stages, {"a": 900, "b": 100}, weights={"b": 0.5}).source_counts()["text"]
    share = odds[0] / sum(odds)
    deviation = (share * (1 - share) / steps) ** 0.5
    assert counts["a"] / (2 * steps) == pytest.approx(share, abs=4 * deviation)


def test_streams_take_part_by_weight_and_give_consecutive_positions() -> None:
    side = Side(sources=["a", "stream"], batch_size=4, sampling_alpha=0)
    stages = [Stage(name=name, steps=200, learning_rate=1e-3, max_length=8, text=side) for name in ("one", "two")]
    parts = [
        plan_of(stages, {"a": 50, "stream": None}, weights={"stream": 3.0}, rank=rank, world_size=2) for rank in (0, 1)
    ]
    keys = [key for step in range(400) for part in parts for key in part.keys(step) if key.source == "stream"]
    assert [key.index for key in keys] == list(range(len(keys)))  # no gap over stages, ranks and steps
    assert len(keys) / 1600 == pytest.approx(0.75, abs=0.08)
    assert parts[0].source_counts()["text"]["stream"] == len(keys)


def test_source_counts_are_what_the_steps_took() -> None:
    stages = [stage(7, image_text=(["i"], 2), text=(["s", "t"], 4)), stage(6, text=(["t"], 3))]
    plan = plan_of(stages, {"i": 5, "s": 20, "t": 10})
    for until in (0, 1, 7, 8, 13):
        took = Counter((key.side, key.source) for keys in all_keys(plan)[:until] for key in keys)
        told = {(side, name): n for side, names in plan.source_counts(until).items() for name, n in names.items()}
        assert {pair: n for pair, n in told.items() if n} == dict(took)
    assert plan.source_counts() == plan.source_counts(13)


def test_batch_that_cannot_be_cut_evenly() -> None:
    with pytest.raises(ValueError, match=r"stages\.0\.text\.batch_size is 10.*3 process.*2 accum.*multiple of 6"):
        plan_of([stage(1, text=(["s"], 10))], {"s": 50}, world_size=3, gradient_accumulation_steps=2)


def test_batch_larger_than_a_source() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 10, but source 's' has only 9 rows.*at most 9"):
        plan_of([stage(1, text=(["s"], 10))], {"s": 9})


def test_source_without_a_row_count() -> None:
    with pytest.raises(ValueError, match="source 's' has no rows"):
        plan_of([stage(1, text=(["s"], 10))], {"t": 9})


def test_batch_or_rank_out_of_range() -> None:
    with pytest.raises(IndexError, match="batch 1 of a plan of 1"):
        plan_of([stage(1, text=(["s"], 2))], {"s": 9}).keys(1)
    with pytest.raises(ValueError, match="rank is 2"):
        plan_of([stage(1, text=(["s"], 2))], {"s": 9}, rank=2, world_size=2)


class Echo(JointDataset):
    """Gives the keys back: what a loader asked for."""

    def __getitems__(self, keys):
        return list(keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_deep_into_a_long_run(workers: int) -> None:
    """Step 50,000 of a million rows: accelerate's own skipping, in seconds."""
    stages = [stage(60_000, text=(["a", "b"], 256))]
    plan = plan_of(stages, {"a": 1_000_000, "b": 700_000})
    loader = DataLoader(Echo([], {}, seed=1), batch_sampler=plan, collate_fn=list, num_workers=workers)
    begin = time.perf_counter()
    first = next(iter(skip_first_batches(loader, 50_000)))
    assert time.perf_counter() - begin < 10
    assert first == plan_of(stages, {"a": 1_000_000, "b": 700_000}).keys(50_000)
    assert first[0].step == 50_000


def test_batches_are_worked_out_late_and_travel_as_lists() -> None:
    plan = plan_of([stage(3, text=(["s"], 2))], {"s": 9})
    batch = list(plan)[2]
    assert isinstance(batch, BatchKeys)
    assert len(batch) == 2
    assert batch[0] == plan.keys(2)[0]
    copy = pickle.loads(pickle.dumps(batch))  # noqa: S301  # our own bytes
    assert type(copy) is list
    assert copy == plan.keys(2)


# --- rows --------------------------------------------------------------------------------------------------------


def tables() -> dict[str, Dataset]:
    captions = [[f"row {row} caption {c}" for c in range(4)] for row in range(12)]
    return {
        "i": Dataset.from_dict({"image": list(range(12)), "caption": captions}),
        "s": Dataset.from_dict({"query": [f"q{i}" for i in range(20)], "positive": [f"p{i}" for i in range(20)]}),
    }


def rows_of(seed: int) -> JointDataset:
    return JointDataset([source("i", "image-text"), source("s")], tables(), seed=seed)


def test_keys_become_their_rows_in_order() -> None:
    plan = plan_of([stage(4, image_text=(["i"], 5), text=(["s"], 3))], {"i": 12, "s": 20})
    rows = rows_of(1)
    assert len(rows) == 32
    for keys in all_keys(plan):
        found = rows.__getitems__(keys)
        assert [row["key"] for row in found] == keys
        assert [row["image"] for row in found[:5]] == [key.index for key in keys[:5]]
        assert [row["query"] for row in found[5:]] == [f"q{key.index}" for key in keys[5:]]
        assert all(row["caption"].startswith(f"row {row['image']} ") for row in found[:5])
    assert rows[keys[0]] == found[0]


def test_captions_are_drawn_anew_in_each_epoch_and_the_same_after_a_resume() -> None:
    plan = plan_of([stage(150, image_text=(["i"], 4))], {"i": 12})
    rows, other = rows_of(1), rows_of(2)
    drawn, elsewhere = ({}, {})
    for keys in all_keys(plan):
        drawn |= {(row["key"].epoch, row["key"].index): row["caption"] for row in rows.__getitems__(keys)}
        elsewhere |= {(row["key"].epoch, row["key"].index): row["caption"] for row in other.__getitems__(keys)}
    assert drawn != elsewhere
    again = rows_of(1).__getitems__(plan.keys(107))
    assert [row["caption"] for row in again] == [drawn[key.epoch, key.index] for key in plan.keys(107)]
    counts = Counter(caption for (_, index), caption in drawn.items() if index == 3)
    assert len(counts) == 4
    assert min(counts.values()) > 4  # 50 epochs, 12.5 expected each
    changes = np.mean([drawn[epoch, 3] != drawn[epoch + 1, 3] for epoch in range(49)])
    assert 0.55 < changes < 0.95  # 0.75 expected
