"""Scored pairs, nested columns and prompts: how the data's columns become ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_ext.tiny_run import make_processor
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_source
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

STAGE = Stage(name="only", steps=1, learning_rate=1e-3, max_length=12)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(path: Path) -> Source:
    columns = {"query": "first", "positive": "second", "score": "similarity"}
    return Source(name="sts", task="scored-pair", location=str(path), format="json", columns=columns)


def keys(source: Source, count: int) -> list[Key]:
    side = "image_text" if source.task == "image-text" else "text"
    return [Key(step=0, stage=0, side=side, source=source.name, epoch=0, index=index) for index in range(count)]


@pytest.mark.parametrize("values", [[0.5, 4.75, 0.0], [1, 5, 3]], ids=["float", "whole"])
def test_scored_pairs_become_a_column_of_the_batch(tmp_path: Path, values: list[float]) -> None:
    rows = [{"first": f"red {n}", "second": f"blue {n}", "similarity": value} for n, value in enumerate(values)]
    source = scored(write_rows(tmp_path / "rows.jsonl", rows))
    found = JointDataset([source], {"sts": load_source(source)}, seed=1).__getitems__(keys(source, 3))
    batch = JointCollator(make_processor(), [STAGE])(found)
    assert batch["text"].keys() == {"query", "positive", "score", "query_ids", "positive_ids"}
    torch.testing.assert_close(batch["text"]["score"], torch.tensor(values, dtype=torch.float32), rtol=0, atol=0)


def test_nested_columns(tmp_path: Path) -> None:
    rows = [{"pair": {"first": f"q{n}", "inner": {"second": f"a{n}"}}, "other": 1} for n in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"query": "pair.first", "positive": "pair.inner.second"}
    source = Source(name="deep", task="text-pair", location=str(path), format="json", columns=columns)
    assert load_source(source).to_dict() == {"query": ["q0", "q1", "q2"], "positive": ["a0", "a1", "a2"]}
    wrong = source.model_copy(update={"columns": columns | {"query": "pair.fist"}})
    with pytest.raises(DataError, match=r"Did you mean 'pair\.first'\?.* pair\.inner\.second"):
        load_source(wrong)


def test_prompts_stand_before_the_texts_and_do_not_tell_negatives_apart(tmp_path: Path) -> None:
    rows = [{"q": "what", "a": "this", "n": ["that", "those"]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"query": "q", "positive": "a", "negatives": "n"}
    prompts = {"query": "query: ", "positive": "passage: "}
    source = Source(
        name="t", task="triplet", location=str(path), format="json", columns=columns, prompts=prompts
    )  # fmt: skip
    [row] = JointDataset([source], {"t": load_source(source)}, seed=1).__getitems__(keys(source, 1))
    del row["key"]
    assert row == {
        "query": "query: what", "positive": "passage: this", "negatives": ["passage: that", "passage: those"],
        "prompts": prompts,  # so that an augmentation leaves them whole
    }  # fmt: skip


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (None, "row 1, column 'similarity': no finite number. Fill it or remove the row."),
        (float("nan"), "row 1, column 'similarity': no finite number. Fill it or remove the row."),
        ("high", "holds Value('string'), but score must be a number."),
    ],
)
def test_score_that_is_no_number(tmp_path: Path, score: Any, words: str) -> None:
    first = "1.0" if isinstance(score, str) else 1.0
    rows = [{"first": "a", "second": "b", "similarity": value} for value in (first, score)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_source(scored(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
