"""A teacher in whole runs: another model with its own tokenizer and image size, and the trained model itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.losses.test_joint_options import IMAGES, PAIRS, QUIET, TRIPLETS, state_of
from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import (
    RunFactory,
    assert_same_weights,
    entries_of,
    make_model,
    trained,
)
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe, recipe_differences, recipe_fingerprint
from trainer_ext.recipe.stages import TeacherSpec
from trainer_ext.training.teacher import Teacher
from trainer_ext.training.trainer import JinaCLIPTrainer


def taught(factory: RunFactory, folder: Path, teacher: Path, *more: str, dropout: float = 0.0) -> JinaCLIPTrainer:
    return factory(folder, *QUIET, IMAGES % "", PAIRS % "", by(teacher), *more, dropout=dropout)


def by(teacher: Path, kind: str = "scores", more: str = "") -> str:
    return f"teacher={{model: {teacher}, kind: {kind}{more}}}"


@pytest.mark.parametrize("kind", ["scores", "vectors"])
def test_at_first_a_model_has_nothing_to_learn_from_itself(
    make_trainer: RunFactory, tmp_path: Path, same: Path, kind: str
) -> None:
    trainer = trained(taught(make_trainer, tmp_path, same, by(same, kind), "false_negatives=keep"))
    entries = entries_of(trainer)
    for name in ("teacher_image_text", "teacher_text"):
        assert entries[0][name] == pytest.approx(0.0, abs=1e-6)
        assert entries[-1][name] > 1e-6
    for entry in entries:
        parts = ("loss_image_text", "loss_text", "teacher_image_text", "teacher_text")
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in parts), rel=1e-5)


def test_it_is_frozen_draws_nothing_and_reads_by_its_own_processor(
    make_trainer: RunFactory, tmp_path: Path, other: Path
) -> None:
    """With dropout in its configuration, a random number drawn anywhere would show."""
    trainer = taught(make_trainer, tmp_path, other)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in trainer.teacher.model.state_dict().items()}
    vectors = trainer.teacher(batch["teacher"], trainer.args)
    assert torch.equal(state, torch.get_rng_state())
    assert all(not value.requires_grad for value in vectors.values())
    ids = batch["image_text"]["input_ids"]
    texts = trainer.processing_class.tokenizer.batch_decode(ids, skip_special_tokens=True)
    stored = JinaCLIPModel.from_pretrained(other).eval()
    expected = torch.from_numpy(stored.encode_text(texts))
    torch.testing.assert_close(torch.nn.functional.normalize(vectors["caption"], dim=-1), expected)
    assert batch["teacher"]["image_text"]["pixel_values"].shape[-1] == 24
    trainer.train()
    after = trainer.teacher.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert entries_of(trainer)[-1]["teacher_text"] > 0
    stored_names = load_file(tmp_path / "checkpoint-4" / "model.safetensors").keys()
    assert stored_names == make_model().state_dict().keys()


def test_it_pulls_and_its_weight_counts(make_trainer: RunFactory, tmp_path: Path, other: Path) -> None:
    """Strongly weighed, its term falls more; a side it does not teach has none."""
    ends = {}
    for weight in (0.01, 10.0):
        more = [
            by(other, more=f", weight: {weight}, sides: [text]"),
            "stages.0.steps=12",
            "stages.0.learning_rate=5e-3",
        ]
        entries = entries_of(trained(taught(make_trainer, tmp_path / str(weight), other, *more)))
        assert "teacher_image_text" not in entries[0]
        ends[weight] = entries[-1]["teacher_text"]
    assert ends[10.0] < 0.7 * ends[0.01]


CACHES = [
    ["gradient_cache_chunk_size=1"],
    ["gradient_cache_chunk_size=3", "gradient_cache_keep_last=true", "tile_size=3"],
]


@pytest.mark.parametrize("extra", CACHES, ids=["chunk 1", "chunk 3, tiles"])
def test_the_gradient_cache_changes_nothing(
    make_trainer: RunFactory, tmp_path: Path, other: Path, extra: list[str]
) -> None:
    plain = trained(taught(make_trainer, tmp_path / "plain", other, TRIPLETS % ""))
    cached = trained(taught(make_trainer, tmp_path / "cached", other, TRIPLETS % "", *extra))
    for name, value in state_of(plain).items():
        torch.testing.assert_close(value, state_of(cached)[name], rtol=0.0, atol=2e-5)
    for one, two in zip(entries_of(plain), entries_of(cached), strict=True):
        assert one["teacher_text"] == pytest.approx(two["teacher_text"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [("scores", []), ("vectors", ["gradient_cache_chunk_size=1"]), ("scores", ["fully_shard=true"])],
)
def test_two_processes_equal_one(
    make_trainer: RunFactory, tmp_path: Path, same: Path, other: Path, kind: str, more: list[str]
) -> None:
    teacher = other if kind == "scores" else same
    overrides = [*QUIET, IMAGES % "", PAIRS % "", by(teacher, kind), *more]
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", overrides, 0.0) == [0, 0]
    one = trained(taught(make_trainer, tmp_path / "one", teacher, by(teacher, kind), *more))
    steps = [entry for entry in torch.load(tmp_path / "two" / "log-0.pt") if "loss" in entry]
    for left, right in zip(steps, entries_of(one), strict=True):
        for name in ("loss", "teacher_image_text", "teacher_text"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6), name
    two, single = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("two", "one"))
    for name, value in single.items():
        torch.testing.assert_close(two[name], value, rtol=0.0, atol=2e-6)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(make_trainer: RunFactory, tmp_path: Path, other: Path) -> None:
    through = trained(taught(make_trainer, tmp_path, other, dropout=0.1))
    again = trained(taught(make_trainer, tmp_path, other, dropout=0.1), tmp_path / "checkpoint-2")
    assert_same_weights(through.model, again.model)
    assert entries_of(through) == entries_of(again)


REFUSED = {
    "vectors of another width": (
        by(Path("OTHER"), "vectors"),
        "teacher.kind: is 'vectors', but its vectors have 24 dimensions and the model's 16. Use kind: scores.",
    ),
    "a preset": (
        by(Path("openmoji-small")),
        "teacher.model: 'openmoji-small' has no config.json: a teacher is the folder of a finished model.",
    ),
    "no such kind": (
        by(Path("OTHER"), "margin"),
        "teacher.kind: must be 'scores', 'vectors' or 'margins', got 'margin'",
    ),
    "no folder": (
        "teacher={kind: vectors}",
        "teacher.model: is missing, and kind 'vectors' compares with a model. Give its folder.",
    ),
    "a scale of no margins": (
        by(Path("OTHER"), more=", scale: 4.0"),
        "teacher.scale: is 4, but kind 'scores' has no margins. Take it out.",
    ),
    "no weight": (by(Path("OTHER"), more=", weight: 0"), "teacher.weight: must be greater than 0"),
    "a side twice": (by(Path("OTHER"), more=", sides: [text, text]"), "lists a side twice. Name each once."),
    "no such side": (
        by(Path("OTHER"), more=", sides: [texts]"),
        "teacher.sides.0: must be 'image_text', 'text' or 'images'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_teach_is_refused_at_load(tiny_recipe: Path, other: Path, case: str) -> None:
    override, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, [override.replace("OTHER", str(other))])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", lambda c: c.update(model_type="bert"), "is of model_type 'bert'"),
        ("tokenizer.json", dict.clear, "its processor cannot be read"),
        (
            "tokenizer.json",
            lambda c: c["model"]["vocab"].update({f"w{i}": 23 + i for i in range(99)}),
            "its tokenizer has",
        ),
    ],
)
def test_a_folder_that_is_no_whole_teacher(tiny_recipe: Path, same: Path, tmp_path: Path, name, change, words) -> None:
    folder = Path(shutil.copytree(same, tmp_path / "teacher"))
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        Teacher(TeacherSpec(model=str(folder), kind="scores"), str(folder))


def test_a_side_that_no_stage_has_is_refused(tiny_recipe: Path, other: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.sides: no stage trains text, so it teaches nothing"):
        load_recipe(tiny_recipe, [*QUIET, IMAGES % "", by(other, more=", sides: [text]")])


def test_a_resumed_run_without_it_is_told(tiny_recipe: Path, other: Path) -> None:
    before, after = load_recipe(tiny_recipe, [by(other)]), load_recipe(tiny_recipe)
    assert recipe_fingerprint(before) != recipe_fingerprint(after)
    assert f"teacher.model: '{other}' -> absent" in recipe_differences(before, after)
