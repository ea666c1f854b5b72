"""Balanced sources: the probabilities by the slow way, epochs of one length, and what a table must have."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer_ext.data.test_plan import all_keys, plan_of, stage
from trainer_ext.data.balance import row_shares, whole_shares
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.sources import load_source, planned_rows, read_rows
from trainer_ext.recipe.recipe import load_recipe, recipe_differences
from trainer_ext.recipe.schema import Balance, Source

ONE = 2**30
values_of_rows = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=40)


def slow_odds(values: list[list[Any]], limit: int) -> list[float]:
    """MetaCLIP's probabilities, row by row."""
    counts = Counter(value for row in values for value in set(row))
    odds = []
    for row in values:
        missed = 1.0
        for value in set(row):
            missed *= 1 - min(1, limit / counts[value])
        odds.append(1 - missed)
    return odds


def topics(folder: Path, rows: list[Any], name: str = "pairs", **changes: Any) -> Source:
    """A source of JSON lines with a column ``topic``, balanced by it."""
    lines = [{"q": f"question {i}", "a": f"answer {i}", "topic": topic} for i, topic in enumerate(rows)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"query": "q", "positive": "a"}
    spec = {"balance": {"key": "topic", "limit": 1}, "columns": columns, **changes}
    return Source(name=name, task="text-pair", format="json", location=str(folder / f"{name}.jsonl"), **spec)


@settings(max_examples=100, deadline=None)
@given(values_of_rows, st.integers(1, 9))
def test_shares_are_the_probabilities_and_add_up_to_whole_rows(values: list[list[int]], limit: int) -> None:
    found = row_shares(Dataset.from_dict({"balance": values}), Balance(key="k", limit=limit))
    odds = np.array(slow_odds(values, limit))
    assert found.kept * ONE == found.shares.sum()
    assert found.kept == max(1, round(odds.sum())) or abs(odds.sum() % 1 - 0.5) < 1e-6
    assert (found.shares[odds == 1] == ONE).all()
    assert ((found.shares >= 0) & (found.shares <= ONE)).all()
    difference = found.shares / ONE - odds
    assert abs(difference).sum() <= 0.5 + 1e-6  # what makes the epoch whole, in one direction
    assert (difference > -1e-6).all() or (difference < 1e-6).all()
    counts = Counter(value for row in values for value in set(row))
    most = max(counts.values())
    assert (found.values, found.most, found.above) == (len(counts), most, sum(n > limit for n in counts.values()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_whole_shares_of_any_probabilities(odds: list[float]) -> None:
    shares = whole_shares(np.array(odds))
    assert shares.sum() % ONE == 0
    assert ((shares >= 0) & (shares <= ONE)).all()
    assert (shares[np.array(odds) == 1] == ONE).all()
    assert (shares[np.array(odds) == 0] <= ONE // 2).all()


@settings(max_examples=40, deadline=None)
@given(values_of_rows, st.integers(1, 3), st.integers(1, 8), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_epochs_have_one_length_and_no_row_twice(values, limit, batch, seed, random) -> None:
    """Whatever process asks for whatever batch, after a resume or not."""
    shares = row_shares(Dataset.from_dict({"balance": values}), Balance(key="k", limit=limit)).shares
    kept = int(shares.sum()) // ONE
    stages = [stage(7, text=(["s"], min(batch, kept))), stage(40, text=(["s"], max(1, kept // 2)))]
    plan = plan_of(stages, {"s": shares}, seed=seed)
    batches = all_keys(plan)
    assert all(len({key.index for key in keys}) == len(keys) for keys in batches)
    taken = [key for keys in batches for key in keys]
    for epoch in range(taken[-1].epoch + 1):
        rows = [key.index for key in taken if key.epoch == epoch]
        assert len(set(rows)) == len(rows)
        assert set(np.flatnonzero(shares == ONE)) <= set(rows) or epoch == taken[-1].epoch
        assert len(rows) == kept or epoch == taken[-1].epoch
    fresh = plan_of(stages, {"s": shares}, seed=seed)
    for place in random.sample(range(len(batches)), 10):
        assert fresh.keys(place) == batches[place]


def test_each_row_is_kept_as_often_as_its_share() -> None:
    """No row is favoured by its place in the table, and the rows of a value take turns."""
    values = [[0]] * 20 + [[1]] * 5 + [[2]] + [[0, 2]] * 3
    shares = row_shares(Dataset.from_dict({"balance": values}), Balance(key="k", limit=2)).shares
    kept, epochs = int(shares.sum()) // ONE, 2000
    plan = plan_of([stage(epochs, text=(["s"], kept))], {"s": shares})
    counts = Counter(key.index for keys in all_keys(plan) for key in keys)
    odds = shares / ONE
    seen = np.array([counts[row] for row in range(len(values))]) / epochs
    # Mending the seams swaps rows between steps and not between epochs.
    assert np.abs(seen - odds).max() < 5 * np.sqrt((odds * (1 - odds)).max() / epochs)
    assert len({tuple(sorted(key.index for key in keys)) for keys in all_keys(plan)}) > epochs // 2


def test_a_limit_above_all_counts_leaves_the_order_as_it_is() -> None:
    stages = [stage(30, text=(["s"], 7))]
    shares = row_shares(Dataset.from_dict({"balance": ["a"] * 30 + ["b"]}), Balance(key="k", limit=30)).shares
    assert all_keys(plan_of(stages, {"s": shares})) == all_keys(plan_of(stages, {"s": 31}))


def test_other_sources_draw_what_they_drew_and_shares_count_kept_rows() -> None:
    stages = [stage(2000, text=(["s", "t"], 4))]
    shares = whole_shares(np.full(900, 1 / 9))
    plan = plan_of(stages, {"s": shares, "t": 100})
    taken = plan.source_counts()["text"]
    assert taken["s"] / 8000 == pytest.approx(0.5, abs=0.04)
    assert (plan.epoch_rows("s"), plan.epoch_rows("t")) == (100, 100)
    assert all_keys(plan_of(stages, {"s": 100, "t": 100})) != all_keys(plan)

    def order(of: JointBatchPlan) -> list[int]:
        return [key.index for keys in all_keys(of) for key in keys if key.source == "t"]

    assert order(plan) == order(plan_of(stages, {"s": 100, "t": 100}))


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (2, 2)])
def test_processes_share_one_global_batch(world_size: int, accumulation: int) -> None:
    stages, shares = [stage(25, text=(["s"], 12))], whole_shares(np.linspace(0.05, 1, 50))
    options = {"world_size": world_size, "gradient_accumulation_steps": accumulation}
    parts = [plan_of(stages, {"s": shares}, rank=rank, **options) for rank in range(world_size)]
    for step, keys in enumerate(all_keys(plan_of(stages, {"s": shares}))):
        micro = [part.keys(step * accumulation + k) for k in range(accumulation) for part in parts]
        assert [key for one in micro for key in one] == keys


def test_a_batch_larger_than_an_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only 5 rows in an epoch, .* at most 5, raise the limit of its balance, or"):
        plan_of([stage(2, text=(["s"], 6))], {"s": whole_shares(np.full(50, 0.1))})


# --- tables ------------------------------------------------------------------------------------------------------

TOPICS: dict[str, list[Any]] = {
    "texts": ["cats"] * 6 + ["dogs", "fish"],
    "numbers": [3] * 6 + [1, 2],
    "lists": [["cats", "pets"]] * 6 + [["dogs", "pets"], ["fish"]],
    "lists of numbers": [[1, 2, 1]] * 6 + [[4, 2], [5]],
}


@pytest.mark.parametrize("rows", TOPICS.values(), ids=list(TOPICS))
@pytest.mark.parametrize("broken", [False, True], ids=["fast", "by lines"])
def test_values_are_read_from_files(tmp_path: Path, rows: list[Any], broken: bool) -> None:
    """Also by the reader of files in which a row cannot be read."""
    source = topics(tmp_path, rows, max_broken_rows=int(broken))
    if broken:
        with Path(source.location).open("a") as file:
            file.write("{cut\n")
    table = load_source(source, BrokenRows(None))
    lists = [row if isinstance(row, list) else [row] for row in rows]
    found = planned_rows([source], {"pairs": table})["pairs"]
    np.testing.assert_allclose(found, whole_shares(np.array(slow_odds(lists, 1))), atol=len(rows))
    assert set(read_rows(source, table, [0])[0]) == {"query", "positive"}


def test_classes_are_values(tmp_path: Path) -> None:
    features = Features({"q": Value("string"), "a": Value("string"), "kind": ClassLabel(names=["cat", "dog"])})
    columns = {"q": list("abcd"), "a": list("efgh"), "kind": [0, 0, 0, 1]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pairs.parquet")
    source = topics(tmp_path, ["x"]).model_copy(
        update={
            "format": "parquet",
            "location": str(tmp_path / "pairs.parquet"),
            "balance": Balance(key="kind", limit=1),
        }
    )
    assert row_shares(load_source(source), Balance(key="kind", limit=1)).kept == 2


def test_the_key_may_be_a_column_that_is_read_anyway(tmp_path: Path) -> None:
    source = topics(tmp_path, ["cats"] * 6 + ["dogs", "fish"], columns={"query": "q", "positive": "a", "id": "topic"})
    table = load_source(source)
    assert row_shares(table, Balance(key="topic", limit=1)).kept == 3
    assert read_rows(source, table, [6])[0]["id"] == "dogs"


BAD = [
    (["cats", None, "dogs"], r"row 1, column 'topic': no value to balance by\. Fill it or remove the row\."),
    (["cats", " ", "dogs"], r"row 1, column 'topic': no value to balance by"),
    ([["cats"], [], ["dogs"]], r"row 1, column 'topic': no value to balance by"),
    ([["cats"], ["dogs"], ["dogs", ""]], r"row 2, column 'topic': no value to balance by"),
    ([0.5, 0.25], r"column 'topic' holds .*, but balance must be a text, a whole number, or a list of them\. Convert"),
    ([[["a"]], [["b"]]], r"column 'topic' holds .*, but balance must be a text, a whole number, or a list of them"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_values_that_are_none_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_source(topics(tmp_path, rows))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    source = topics(tmp_path, ["cats", "dogs"], balance={"key": "topci", "limit": 1})
    with pytest.raises(DataError, match=r"has no column 'topci' for balance\. Did you mean 'topic'\?"):
        load_source(source)


def test_a_table_loaded_without_its_values_is_named(tmp_path: Path) -> None:
    source = topics(tmp_path, ["cats", "dogs"])
    table = load_source(source.model_copy(update={"balance": None}))
    with pytest.raises(DataError, match=r"'pairs' is balanced by 'topic', but .* Load it by load_sources"):
        planned_rows([source], {"pairs": table})


def test_rows_that_are_held_out_do_not_count(tmp_path: Path) -> None:
    source = topics(tmp_path, [f"topic {i % 4}" for i in range(40)], holdout=0.5, balance={"key": "topic", "limit": 3})
    tables, held = load_with_holdout([source])
    counts = Counter(tables["pairs"]["balance"])
    assert len(held["pairs"]) == 20
    assert (
        sum(min(3, count) for count in counts.values()) == row_shares(tables["pairs"], Balance(key="t", limit=3)).kept
    )


# --- recipes -----------------------------------------------------------------------------------------------------


def test_recipes_without_it_resume_and_those_with_it_are_others(tiny_recipe: Path) -> None:
    plain, balanced = (
        load_recipe(tiny_recipe),
        load_recipe(tiny_recipe, ["sources.pictures.balance={key: tags, limit: 3}"]),
    )
    assert "balance" not in json.dumps(recipe_differences(plain, plain.model_copy(update={"seed": 1})))
    assert recipe_differences(plain, balanced) == [
        "sources.0.balance.key: absent -> 'tags'",
        "sources.0.balance.limit: absent -> 3",
    ]


def test_a_stream_is_refused(tmp_path: Path, tiny_recipe: Path) -> None:
    balance = "sources.pictures.balance={key: tags, limit: 3}"
    with pytest.raises(
        ValueError, match=r"\(pictures\)\.balance: counts values in all rows, and a streaming source is"
    ):
        load_recipe(tiny_recipe, [balance, "sources.pictures.streaming=true"])
