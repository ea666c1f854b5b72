"""The joint objective against losses written out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_ext.losses.batch_metrics import in_batch_accuracy
from trainer_ext.losses.joint import JointObjective
from trainer_ext.recipe.schema import Side
from trainer_ext.recipe.stages import Stage
from trainer_ext.training.embedding import encoder_inputs

TEXT_TEMPERATURE = 0.05


def make_stage(image_text: Side | None, text: Side | None) -> Stage:
    return Stage(name="s", steps=1, learning_rate=1e-3, max_length=8, image_text=image_text, text=text)


def pairs_by_hand(queries: Tensor, targets: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    queries, targets = F.normalize(queries, dim=-1), F.normalize(targets, dim=-1)
    forward = queries @ targets.T / temperature
    backward = forward.T
    if negatives is not None:
        forward = torch.cat([forward, queries @ F.normalize(negatives, dim=-1).T / temperature], dim=1)
    labels = torch.arange(len(queries))
    return F.cross_entropy(forward, labels) + F.cross_entropy(backward, labels)


@pytest.fixture
def embeddings() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = {"image": 4, "caption": 4, "query": 3, "positive": 3, "negatives": 6}
    parts = {name: torch.randn(count, 5, generator=generator) for name, count in rows.items()}
    return parts | {"temperature": torch.tensor(0.2)}


@pytest.fixture
def batch() -> dict[str, Any]:
    """Only the ids of a joint batch, each of them different."""
    return {
        "image_text": {"image_ids": torch.arange(4), "text_ids": torch.arange(4)},
        "text": {
            "query_ids": torch.arange(3),
            "positive_ids": torch.arange(3),
            "negative_ids": torch.arange(10, 16),
        },
    }


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("loss_name", ["info_nce", "info_nce_plus"])
@pytest.mark.parametrize("false_negatives", ["mask", "positive", "keep"])
def test_weighted_sum_of_both_sides(
    embeddings: dict[str, Tensor], batch: dict[str, Any], false_negatives: str, loss_name: str, tile_size: int | None
) -> None:
    stage = make_stage(
        Side(sources=["i"], batch_size=4, weight=2.0), Side(sources=["t"], batch_size=3, weight=0.5, loss=loss_name)
    )
    objective = JointObjective(TEXT_TEMPERATURE, tile_size, false_negatives)
    loss, terms = objective(stage, batch, embeddings)
    negatives = embeddings["negatives"] if loss_name == "info_nce_plus" else None
    by_hand = {
        "loss_image_text": pairs_by_hand(embeddings["image"], embeddings["caption"], 0.2),
        "loss_text": pairs_by_hand(embeddings["query"], embeddings["positive"], TEXT_TEMPERATURE, negatives),
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(loss, 2.0 * by_hand["loss_image_text"] + 0.5 * by_hand["loss_text"])
    assert terms["temperature"].item() == pytest.approx(0.2)


def test_true_candidates_of_other_rows_are_negatives_only_if_kept(
    embeddings: dict[str, Tensor], batch: dict[str, Any]
) -> None:
    """Row 1's hard negatives hold row 0's positive, and two captions are the same text."""
    batch["text"]["negative_ids"][2] = batch["text"]["positive_ids"][0]
    batch["image_text"]["text_ids"][3] = batch["image_text"]["text_ids"][2]
    stage = make_stage(Side(sources=["i"], batch_size=4), Side(sources=["t"], batch_size=3, loss="info_nce_plus"))
    terms = {kind: JointObjective(false_negatives=kind)(stage, batch, embeddings)[1] for kind in ("mask", "keep")}
    for name in ("loss_image_text", "loss_text"):
        assert terms["mask"][name] < terms["keep"][name] - 1e-4


def test_text_loss_never_touches_the_trained_temperature(embeddings: dict[str, Tensor], batch: dict[str, Any]) -> None:
    temperature = embeddings["temperature"].requires_grad_()
    leaf = embeddings["query"].requires_grad_()
    loss, terms = JointObjective()(make_stage(None, Side(sources=["t"], batch_size=3)), batch, embeddings)
    loss.backward()
    assert leaf.grad is not None
    assert temperature.grad == 0.0
    assert "loss_image_text" not in terms


@pytest.mark.parametrize("block", [1, 3, 512])
def test_accuracy_counts_own_rows_against_all_candidates(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("trainer_ext.losses.batch_metrics.ACCURACY_BLOCK", block)
    queries = torch.eye(6)
    candidates = torch.cat([torch.eye(6)[[0, 1, 2, 4, 3, 5]], torch.eye(6)[5:] * 9])  # a hard negative equal to row 5
    assert in_batch_accuracy(queries, candidates, slice(0, 6)).item() == pytest.approx(4 / 6)
    assert in_batch_accuracy(queries, candidates, slice(3, 5)).item() == 0.0
    assert in_batch_accuracy(torch.ones(8, 4), torch.ones(8, 4), slice(0, 8)).item() == pytest.approx(1 / 8)


def test_parts_of_a_batch() -> None:
    tokens = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}
    batch = {
        "stage": 0,
        "image_text": {"pixel_values": torch.zeros(2, 3, 4, 4), **tokens, "text_ids": torch.zeros(2)},
        "text": {"query": tokens, "positive": tokens, "query_ids": torch.zeros(2)},
        "sources": {"image_text": "a", "text": "b"},
    }
    parts = encoder_inputs(batch)
    assert list(parts) == ["image", "caption", "query", "positive"]
    assert set(parts["image"]) == {"pixel_values"}
    assert set(parts["caption"]) == set(parts["query"]) == {"input_ids", "attention_mask"}
