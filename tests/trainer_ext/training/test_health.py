"""Warnings of real runs: one that learns, one that cannot, one that collapses."""

import math
from pathlib import Path

import pytest
import torch

from tests.trainer_ext.tiny_run import RunFactory, make_model
from trainer_ext.losses.batch_metrics import mean_cosine
from trainer_ext.losses.joint import JointObjective
from trainer_ext.recipe.schema import Side
from trainer_ext.recipe.stages import Stage
from trainer_ext.training import monitoring as health

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
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
) -> list[str]:
    monkeypatch.setattr(health, "PATIENCE", 10)
    make_trainer(folder, *ONE_STAGE, *more, dropout=0.0).train()
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: step ")]


def test_a_run_that_learns_is_left_alone(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    assert warnings_of(make_trainer, tmp_path, capsys, monkeypatch) == []


def test_a_loss_that_stays_at_chance(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    """A learning rate of almost nothing: untrained vectors guess. Warm-up is not counted, and it is said once."""
    found = warnings_of(make_trainer, tmp_path, capsys, monkeypatch, "stages.0.learning_rate=1e-12")
    assert len(found) == 2
    for message, side in zip(found, ("image_text", "text"), strict=True):
        assert message.startswith(f"step 15 (stage only): loss_{side} has been ")
        assert f"guessing costs {2 * math.log(8):.3f}" in message


@pytest.mark.slow
def test_a_sigmoid_loss_that_stays_at_chance(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    """The bias alone learns: the loss falls from the start, and stops where all pairs have about the same score."""
    siglip = "stages.0.image_text={sources: [pictures], batch_size: 8, loss: siglip, temperature: 1.0}"
    still = ["stages.0.text=null", "stages.0.trainable=[temperature]", "stages.0.learning_rate=1.0", siglip]
    still += ["stages.0.steps=60"]
    (message,) = warnings_of(make_trainer, tmp_path / "still", capsys, monkeypatch, *still)
    assert f"guessing costs {8 * math.log(8) - 7 * math.log(7):.3f}" in message
    # A small rate: far above chance all the time, on its long way down. (And with one score for all, it collapses.)
    found = warnings_of(make_trainer, tmp_path / "falls", capsys, monkeypatch, "stages.0.text=null", siglip)
    assert not any("guessing costs" in message for message in found)


@pytest.mark.slow
def test_each_stage_is_counted_by_itself(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    """Seven steps at chance in each of two stages are not ten in a row."""
    stage = ONE_STAGE[0].removeprefix("stages=[").removesuffix("]").replace(f"steps: {STEPS}", "steps: 7")
    stage = stage.replace("warmup_steps: 5", "warmup_steps: 0").replace("1e-2", "1e-12")
    both = f"stages=[{stage}, {stage.replace('name: only', 'name: second')}]"
    assert warnings_of(make_trainer, tmp_path / "two", capsys, monkeypatch, both) == []
    longer = both.replace("steps: 7", "steps: 11")
    found = warnings_of(make_trainer, tmp_path / "longer", capsys, monkeypatch, longer)
    places = [message.split(":")[0] for message in found]
    assert places == ["step 10 (stage only)"] * 2 + ["step 21 (stage second)"] * 2


def test_a_warning_does_not_tear_the_bar(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    """The bar is taken away before the line, which therefore stands by itself."""
    slow = ["stages.0.learning_rate=1e-12", "disable_tqdm=false"]
    found = warnings_of(make_trainer, tmp_path, capsys, monkeypatch, *slow)
    assert len(found) == 2


def test_a_collapse(make_trainer, tmp_path, capsys, monkeypatch) -> None:
    """Steps far too large: weights run away, and every row has the same vector."""
    found = warnings_of(
        make_trainer, tmp_path, capsys, monkeypatch, "stages.0.learning_rate=3.0", "max_grad_norm=0.0"
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


@pytest.mark.parametrize("false_negatives", ["mask", "positive", "keep"])
def test_chance_of_the_sigmoid_loss_is_its_best_constant_score(false_negatives) -> None:
    """Against a search over constant scores, where some pairs are masked or true twice."""
    rows = 4
    side = Side(sources=["a"], batch_size=rows, loss="siglip")
    stage = Stage(name="s", steps=1, learning_rate=1.0, max_length=8, image_text=side)
    batch = {"image_text": {"image_ids": torch.tensor([0, 0, 2, 3]), "text_ids": torch.arange(rows)}}
    embeddings = {name: torch.ones(rows, 5) for name in ("image", "caption")} | {"temperature": torch.tensor(0.07)}
    objective = JointObjective(false_negatives=false_negatives, stages=[stage])
    chance = objective.chance(stage, batch, embeddings)["loss_image_text"].item()
    costs = []
    for score in torch.linspace(-4.0, 2.0, 601):
        objective.image_text_bias.data = score - 1 / 0.07
        costs.append(objective(stage, batch, embeddings)[0].item())
    assert min(costs) == pytest.approx(chance, rel=1e-4)
    if false_negatives == "keep":
        assert chance == pytest.approx(4 * math.log(4) - 3 * math.log(3), rel=1e-5)


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
