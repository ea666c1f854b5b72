"""Warnings of real runs: one that learns, one that cannot, one that collapses."""

import logging
import math
from pathlib import Path

import pytest
import torch

from tests.trainer_ext.tiny_run import RunFactory, make_model
from trainer_ext import health
from trainer_ext.objective import JointObjective, mean_cosine
from trainer_ext.recipe import Side, Stage

STEPS = 30
ONE_STAGE = [
    f"stages=[{{name: only, steps: {STEPS}, learning_rate: 1e-2, schedule: constant, max_length: 8, warmup_steps: 5, "
    "image_text: {sources: [pictures], batch_size: 8}, text: {sources: [successors], batch_size: 8}}]",
    "save_steps=1000",
    "false_negatives=keep",
]


def warnings_of(
    make_trainer: RunFactory,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
) -> list[str]:
    monkeypatch.setattr(health, "PATIENCE", 10)
    with caplog.at_level(logging.WARNING, logger=health.__name__):
        make_trainer(folder, *ONE_STAGE, *more, dropout=0.0).train()
    return [record.getMessage() for record in caplog.records if record.name == health.__name__]


def test_a_run_that_learns_is_left_alone(make_trainer, tmp_path, caplog, monkeypatch) -> None:
    assert warnings_of(make_trainer, tmp_path, caplog, monkeypatch) == []


def test_a_loss_that_stays_at_chance(make_trainer, tmp_path, caplog, monkeypatch) -> None:
    """A learning rate of almost nothing: untrained vectors guess. Warm-up is not counted, and it is said once."""
    found = warnings_of(make_trainer, tmp_path, caplog, monkeypatch, "stages.0.learning_rate=1e-12")
    assert len(found) == 2
    for message, side in zip(found, ("image_text", "text"), strict=True):
        assert message.startswith(f"step 15 (stage only): loss_{side} has been ")
        assert f"guessing costs {2 * math.log(8):.3f}" in message


def test_a_collapse(make_trainer, tmp_path, caplog, monkeypatch) -> None:
    """Steps far too large: weights run away, and every row has the same vector."""
    found = warnings_of(
        make_trainer, tmp_path, caplog, monkeypatch, "stages.0.learning_rate=3.0", "max_grad_norm=0.0"
    )  # fmt: skip
    assert any("the vectors of caption are almost the same" in message for message in found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("false_negatives", ["mask", "positive", "keep"])
def test_chance_is_what_constant_vectors_cost(false_negatives) -> None:
    rows, negatives = 4, 3
    stage = Stage(
        name="s", steps=1, learning_rate=1.0, max_length=8, image_text=Side(sources=["a"], batch_size=rows),
        text=Side(sources=["b"], batch_size=rows, loss="info_nce_plus"),
    )  # fmt: skip
    ids = torch.arange(rows)
    twice = torch.tensor([0, 0, 2, 3])
    batch = {
        "image_text": {"image_ids": twice, "text_ids": ids},
        "text": {"query_ids": ids, "positive_ids": ids, "negative_ids": 100 + torch.arange(rows * negatives)},
    }
    sizes = {"image": rows, "caption": rows, "query": rows, "positive": rows, "negatives": rows * negatives}
    embeddings = {name: torch.randn(size, 5, requires_grad=True) for name, size in sizes.items()}
    embeddings["temperature"] = torch.tensor(0.07)
    chance = JointObjective(false_negatives=false_negatives).chance(stage, batch, embeddings)
    masked = {"keep": 4 * math.log(4), "positive": 4 * math.log(4), "mask": 2 * math.log(3) + 2 * math.log(4)}
    assert chance["loss_image_text"].item() == pytest.approx(2 * masked[false_negatives] / 4, rel=1e-5)
    assert chance["loss_text"].item() == pytest.approx(math.log(rows + rows * negatives) + math.log(rows), rel=1e-5)
    assert not any(value.requires_grad for value in chance.values())


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_mean_cosine_is_that_of_all_pairs(rows: int) -> None:
    vectors = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    others = (unit @ unit.T)[~torch.eye(rows, dtype=torch.bool)]
    expected = others.mean().item() if rows > 1 else 0.0
    assert mean_cosine(vectors).item() == pytest.approx(expected, abs=1e-5)
    assert mean_cosine(torch.ones(rows, 5)).item() == pytest.approx(float(rows > 1), abs=1e-5)


def test_fresh_towers_are_no_collapse() -> None:
    model = make_model(dropout=0.0).eval()
    ids = torch.randint(4, 24, (8, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert mean_cosine(model(input_ids=ids).text_embeds) < health.COLLAPSED
