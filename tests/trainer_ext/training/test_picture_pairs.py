"""Pictures against pictures in the trainer: the loss by the slow way, idle towers, caches, processes, resumes."""

import csv
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_ext.own_process import (
    in_own_process,
    in_two_processes,
    noisy_evaluation,
    train_rank,
    train_until_killed,
)
from tests.trainer_ext.picture_pair_run import write_picture_pairs
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, make_model, make_processor, trained
from tests.trainer_ext.training.test_gradient_cache_training import both_ways
from trainer_ext.data.batches import JointCollator, JointDataset
from trainer_ext.data.holdout import hold_out
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.sources import planned_rows
from trainer_ext.files import last_whole_checkpoint
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.nt_xent import nt_xent
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.training.validation import ValidationLoss

QUIET = ["stages.0.patch_dropout=0.0", "stages.1.patch_dropout=0.0", "save_steps=8"] + [
    f"stages.{stage}.learning_rate=1e-3" for stage in range(3)
]


@pytest.fixture(scope="module")
def make_pairs(tmp_path_factory: pytest.TempPathFactory) -> RunFactory:
    return RunFactory(write_picture_pairs(tmp_path_factory.mktemp("picture-pairs")))


@pytest.fixture(scope="module")
def finished(make_pairs: RunFactory, tmp_path_factory: pytest.TempPathFactory):
    return trained(make_pairs(tmp_path_factory.mktemp("finished"), "save_steps=2", evaluate_fn=noisy_evaluation))


def test_the_logged_loss_is_that_of_the_vectors_of_the_rows(make_pairs: RunFactory, tmp_path: Path) -> None:
    overrides = ["save_strategy=no", "stages.0.patch_dropout=0.0", "stages.0.learning_rate=1e-12", "stages.0.steps=1"]
    trainer = trained(make_pairs(tmp_path, *overrides, dropout=0.0))
    [entry] = [entry for entry in entries_of(trainer) if entry["step"] == 1]
    recipe = trainer.recipe
    plan = JointBatchPlan(recipe.stages, recipe.sources, planned_rows(recipe.sources, make_pairs.tables), recipe.seed)
    keys = [key for key in plan.keys(0) if key.side == "images"]
    rows = JointDataset(recipe.sources, make_pairs.tables, recipe.seed).__getitems__(keys)
    assert len({row["id"] for row in rows}) == 4
    model = make_model(0.0)
    model.processor = make_processor()
    first, second = (torch.from_numpy(model.encode_image([row[name] for row in rows])) for name in ("image", "partner"))
    ids = torch.arange(4)  # other numbers, all different
    assert entry["loss_images"] == pytest.approx(nt_xent(first, second, 0.1, row_ids=ids).item(), abs=1e-5)
    assert entry["loss"] == pytest.approx(entry["loss_image_text"] + 0.5 * entry["loss_images"], abs=1e-5)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], first, dim=-1)
    assert entry["similarity_picture"] == pytest.approx((cosines.sum().item() - 4) / 12, abs=1e-5)


def test_what_is_logged_and_recorded(finished) -> None:
    entries = [entry for entry in entries_of(finished) if "loss" in entry]
    for entry in entries:
        figures = {f"{kind}_images" for kind in ("loss", "accuracy")} | {"similarity_picture", "similarity_partner"}
        assert figures <= entry.keys() if entry["stage"] != "texts" else not figures & entry.keys()
    with (Path(finished.args.output_dir) / "sources" / "steps.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    assert [*steps[0]] == ["step", "stage", "image_text", "text", "images"]
    assert [step["images"] for step in steps[:3]] == ["paired"] * 3
    assert {step["images"] for step in steps[3:7]} == {"paired", "viewed"}
    assert steps[7]["images"] == ""
    shares = finished.source_record.shares()["images"]
    assert sum(item["rows"] for item in shares.values()) == 7 * 4


def test_a_stage_of_pictures_alone_moves_the_image_tower_alone(make_pairs: RunFactory, tmp_path: Path) -> None:
    stages = ["stages.0.image_text=null", "stages.2.images={sources: [paired], batch_size: 4}", "stages.2.text=null"]
    model = trained(make_pairs(tmp_path, *stages, "save_strategy=no", "weight_decay=0.1")).model
    start = make_model().state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert {name.partition(".")[0] for name in moved} == {"vision_model"}
    assert len(moved) > 10


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="plain"),
        pytest.param(["gradient_cache_chunk_size=1", "gradient_accumulation_steps=2"], id="cache, accumulation"),
        pytest.param(["tile_size=1", "fully_shard=true"], id="tiles, sharded", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(make_pairs: RunFactory, tmp_path: Path, extra: list[str]) -> None:
    """Without captions the text tower is idle, without pictures the other one: DDP waits for both."""
    overrides = [*QUIET, *extra]
    assert in_two_processes(train_rank, make_pairs.recipe, tmp_path / "two", overrides, 0.0) == [0, 0]
    logs = [torch.load(tmp_path / "two" / f"log-{rank}.pt") for rank in range(2)]
    alone = [change for change in overrides if change != "fully_shard=true"]
    one = trained(make_pairs(tmp_path / "one", *alone, dropout=0.0, evaluate_fn=noisy_evaluation))
    for left, right in zip(
        *([entry for entry in log if "loss" in entry] for log in (logs[0], entries_of(one))), strict=True
    ):
        assert left.keys() == right.keys()
        for name, value in left.items():
            close = value if isinstance(value, str) else pytest.approx(value, rel=5e-5, abs=1e-6)
            assert right[name] == close, name
    stored = load_file(tmp_path / "two" / "checkpoint-8" / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=0.0, atol=3e-6)


@pytest.mark.parametrize("extra", [[], ["tile_size=3"]], ids=["whole matrices", "tiles"])
def test_training_with_the_cache_is_training_in_one_pass(
    make_pairs: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    sgd = ["optim=sgd", "max_grad_norm=0", *(f"stages.{stage}.learning_rate=1e-1" for stage in range(3))]
    overrides = [*sgd, "gradient_cache_chunk_size=3", "save_strategy=no", *extra]
    cached, once = both_ways(lambda name: trained(make_pairs(tmp_path / name, *overrides)).model, monkeypatch)
    start, moved = make_model(), 0.0
    for left, right, before in zip(cached.parameters(), once.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-6)
        moved = max(moved, (left - before).abs().max().item())
    assert moved > 1e-2


def test_killed_and_resumed_is_bit_identical(make_pairs: RunFactory, tmp_path: Path, finished) -> None:
    """Killed in the stage of pictures alone: partners, views and dropout come back as they were."""
    code = in_own_process(train_until_killed, make_pairs.recipe, tmp_path, ["save_steps=2"], 5)
    assert code == -signal.SIGKILL
    checkpoint = last_whole_checkpoint(tmp_path, print)
    assert checkpoint == tmp_path / "checkpoint-4"
    resumed = trained(make_pairs(tmp_path, "save_steps=2", evaluate_fn=noisy_evaluation), checkpoint)
    assert_same_weights(resumed.model, finished.model)
    assert entries_of(resumed) == entries_of(finished)
    steps = [Path(one.args.output_dir, "sources", "steps.csv").read_text() for one in (resumed, finished)]
    assert steps[0] == steps[1]


def test_validation_pairs_held_out_pictures(make_pairs: RunFactory, tmp_path: Path) -> None:
    trainer = make_pairs(tmp_path)
    held = {name: hold_out(name, make_pairs.tables[name], 0.5)[1] for name in ("paired", "viewed")}
    assert len(set(held["paired"]["id"])) == 5  # numbers, whole; one of them may be the one that stands alone
    loss = ValidationLoss(trainer.recipe, held, make_processor(), trainer.objective)
    figures, again = loss(trainer.model, 1), loss(trainer.model, 1)
    assert figures == again
    assert 0.1 < figures["validation/loss_images"] < 5.0
    assert figures["validation/loss"] == figures["validation/loss_images"]
    recipe = trainer.recipe
    views = ValidationLoss(recipe, {"viewed": held["viewed"]}, make_processor(), trainer.objective)
    [batch, *_] = views._batches(1, "images", recipe.stages[1].images)
    pictures = [batch["images"][name]["pixel_values"] for name in ("picture", "partner")]
    assert not torch.equal(*pictures)  # the loss of a picture against itself would say nothing


def test_a_teacher_of_pictures(make_pairs: RunFactory, tmp_path: Path) -> None:
    """Against itself a model has nothing to learn; the term is there, by either kind."""
    make_model(0.0).save_pretrained(tmp_path / "teacher")
    make_processor().save_pretrained(tmp_path / "teacher")
    for kind in ("scores", "vectors"):
        spec = f"teacher={{model: {tmp_path / 'teacher'}, kind: {kind}, sides: [images]}}"
        overrides = [spec, "stages.0.steps=1", "stages.0.patch_dropout=0.0", "save_strategy=no"]
        trainer = make_pairs(tmp_path / kind, *overrides, dropout=0.0)
        assert trainer.teacher.columns == {"picture", "partner"}
        entries = entries_of(trained(trainer))
        first = next(entry for entry in entries if entry.get("step") == 1)
        assert first["teacher_images"] == pytest.approx(0.0, abs=1e-6)
        assert "teacher_image_text" not in first
        later = [entry["teacher_images"] for entry in entries if entry.get("stage") == "alone"]
        assert all(value > 1e-6 for value in later)


def test_chance_is_a_choice_among_all_other_vectors(make_pairs: RunFactory) -> None:
    recipe = load_recipe(make_pairs.recipe)
    stage, objective = recipe.stages[1], JointObjective()
    batch = {"images": {"row_ids": torch.tensor([5, 6, 7, 5])}}
    vectors = {name: torch.randn(4, 8) for name in ("picture", "partner")} | {"temperature": torch.tensor(0.07)}
    chance = objective.chance(stage, batch, vectors)
    # Rows 0 and 3 are the same thing: for each, the other row's two vectors are left out.
    expected = (2 * torch.tensor(7.0).log() + 2 * torch.tensor(5.0).log()) / 4
    assert chance["loss_images"].item() == pytest.approx(expected.item(), abs=1e-5)
    kept = JointObjective(false_negatives="keep").chance(stage, batch, vectors)
    assert kept["loss_images"].item() == pytest.approx(torch.tensor(7.0).log().item(), abs=1e-5)


def test_the_collator_of_a_teacher_pairs_the_same_pictures(make_pairs: RunFactory) -> None:
    recipe = load_recipe(make_pairs.recipe)
    plan = JointBatchPlan(recipe.stages, recipe.sources, planned_rows(recipe.sources, make_pairs.tables), recipe.seed)
    rows = JointDataset(recipe.sources, make_pairs.tables, recipe.seed).__getitems__(plan.keys(4))
    batches = [JointCollator(make_processor(), recipe.stages, recipe.seed)(rows) for _ in range(2)]
    for name in ("picture", "partner"):
        assert torch.equal(*(batch["images"][name]["pixel_values"] for batch in batches))
