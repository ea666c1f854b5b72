"""A teacher's margins in whole runs: of a model, and of a column of the sources."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, Image
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.trainer_ext.losses.test_joint_options import CONTRASTED, IMAGES, PAIRS, QUIET, TRIPLETS, state_of
from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import (
    RunFactory,
    assert_same_weights,
    entries_of,
    trained,
    write_data,
    write_recipe,
)
from tests.trainer_ext.training.test_teacher import CACHES, by
from trainer_ext.__main__ import main
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe, recipe_fingerprint
from trainer_ext.training.trainer import JinaCLIPTrainer

COLUMNS = {"triplets": ("query", "positive", "negatives"), "contrasted": ("image", "caption", "negatives")}
MARKED = "stages.0.text={sources: [triplets-marked], batch_size: 4, loss: info_nce_plus}"
MARKED_PICTURES = "stages.0.image_text={sources: [contrasted-marked], batch_size: 4, loss: info_nce_plus}"
# Rows whose margins are given, and rows whose margins a model tells.
SIDES = {"model": [CONTRASTED % "", TRIPLETS % ""], "columns": [MARKED_PICTURES, MARKED]}
KIND = "margins"


def marked(row: int, negatives: int) -> list[float]:
    """The margins of a row, all of them different."""
    return [0.01 * row + 0.1 * negative - 0.2 for negative in range(negatives)]


@pytest.fixture(scope="session")
def marked_run(tmp_path_factory: pytest.TempPathFactory) -> RunFactory:
    """The tiny run, its sources with negatives also with a column of margins."""
    folder = tmp_path_factory.mktemp("marked-run")
    write_data(folder)
    path = write_recipe(folder)
    recipe = yaml.safe_load(path.read_text())
    for source in [source for source in recipe["sources"] if source["name"] in COLUMNS]:
        table = Dataset.from_parquet(source["location"])
        rows = [marked(row, len(negatives)) for row, negatives in enumerate(table["negatives"])]
        table = table.add_column("m", rows)
        name = f"{source['name']}-marked"
        (table.cast_column("image", Image()) if "image" in table.column_names else table).to_parquet(
            folder / f"{name}.parquet"
        )
        more = {"name": name, "location": str(folder / f"{name}.parquet")}
        recipe["sources"].append(source | more | {"columns": source["columns"] | {"margins": "m"}})
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return RunFactory(path)


def teacher_of(way: str, model: Path, more: str = "") -> str:
    return by(model, KIND, more) if way == "model" else f"teacher={{kind: margins{more}}}"


def taught(
    factory: RunFactory, folder: Path, way: str, model: Path, *overrides: str, more: str = "", dropout: float = 0.0
) -> JinaCLIPTrainer:
    return factory(folder, *QUIET, *SIDES[way], teacher_of(way, model, more), *overrides, dropout=dropout)


def test_at_first_a_model_has_nothing_to_learn_from_itself(marked_run: RunFactory, tmp_path: Path, same: Path) -> None:
    entries = entries_of(trained(taught(marked_run, tmp_path, "model", same, more=", weight: 3.0")))
    for name in ("teacher_image_text", "teacher_text"):
        assert entries[0][name] == pytest.approx(0.0, abs=1e-6)
        assert entries[-1][name] > 1e-6
    for entry in entries:
        parts = entry["loss_image_text"] + entry["loss_text"]
        taught_parts = 3 * (entry["teacher_image_text"] + entry["teacher_text"])
        assert entry["loss"] == pytest.approx(parts + taught_parts, rel=1e-5)


@pytest.mark.parametrize("way", SIDES)
def test_the_term_is_that_of_the_batch(marked_run: RunFactory, tmp_path: Path, other: Path, way: str) -> None:
    """Embedded row by row, and compared by hand; a teacher of columns is no model at all."""
    trainer = taught(marked_run, tmp_path, way, other, more=", scale: 2.0")
    assert (trainer.teacher is None) == (way == "columns")
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    with torch.no_grad():
        own = trainer._embeddings(trainer.model, batch)
        theirs = trainer.teacher(batch["teacher"], trainer.args) if way == "model" else {}
    _, terms = trainer.objective(trainer.recipe.stages[0], batch, own | {"teacher": theirs})
    for side, names in {
        "text": ("query", "positive", "negatives"),
        "image_text": ("image", "caption", "negative_caption"),
    }.items():
        found = margins_of(*(own[name] for name in names))
        wanted = batch[side]["margins"] if way == "columns" else margins_of(*(theirs[name] for name in names))
        assert wanted.abs().max() > 0.01
        expected = ((found - wanted / 2) ** 2).mean()
        assert terms[f"teacher_{side}"].item() == pytest.approx(expected.item(), rel=1e-5)


def margins_of(q: torch.Tensor, p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    rows = [
        [F.cosine_similarity(q[i], p[i], dim=0) - F.cosine_similarity(q[i], one, dim=0) for one in own]
        for i, own in enumerate(n.unflatten(0, (len(q), -1)))
    ]
    return torch.stack([torch.stack(row) for row in rows])


def test_a_side_without_negatives_that_no_stage_has_is_passed_over(
    marked_run: RunFactory, tmp_path: Path, same: Path
) -> None:
    sides = ", sides: [image_text, text, images]"
    entries = entries_of(trained(taught(marked_run, tmp_path, "model", same, "stages.0.steps=1", more=sides)))
    assert entries[0]["teacher_text"] == pytest.approx(0.0, abs=1e-6)


def test_rows_bring_their_margins(marked_run: RunFactory, tmp_path: Path) -> None:
    """Row by row, whatever the order that the plan takes them in."""
    trainer = taught(marked_run, tmp_path, "columns", tmp_path)
    table = Dataset.from_parquet(str(marked_run.recipe.parent / "triplets-marked.parquet"))
    by_query = dict(zip(table["query"], table["m"], strict=True))
    tokenizer = trainer.processing_class.tokenizer
    for batch in trainer.get_train_dataloader():
        queries = tokenizer.batch_decode(batch["text"]["query"]["input_ids"], skip_special_tokens=True)
        expected = torch.tensor([by_query[query] for query in queries])
        torch.testing.assert_close(batch["text"]["margins"], expected)
        assert batch["image_text"]["margins"].shape == (4, 2)


def test_margins_are_learnt(marked_run: RunFactory, tmp_path: Path) -> None:
    """Weighed strongly, the model's margins come near those of the column, which are not the contrast's."""
    ends = {}
    for weight in (0.01, 100.0):
        more = ["stages.0.steps=20", "stages.0.learning_rate=5e-3"]
        trainer = taught(marked_run, tmp_path / str(weight), "columns", tmp_path, *more, more=f", weight: {weight}")
        ends[weight] = entries_of(trained(trainer))[-1]
    for side in ("teacher_text", "teacher_image_text"):
        assert ends[100.0][side] < 0.3 * ends[0.01][side]


PLAIN = {
    "text": ["stages.0.text={sources: [triplets], batch_size: 4}", IMAGES % ""],
    "image_text": [
        "stages.0.image_text={sources: [contrasted], batch_size: 4, loss: siglip}",
        PAIRS % ", directions: forward",
    ],
}


@pytest.mark.parametrize("side", PLAIN)
def test_beside_a_loss_without_negatives(marked_run: RunFactory, tmp_path: Path, other: Path, side: str) -> None:
    """The negatives are then the teacher's alone: the loss is that of pairs."""
    sources = {
        "text": PAIRS % "",
        "image_text": "stages.0.image_text={sources: [contrasted], batch_size: 4, loss: siglip}",
    }
    trainer = marked_run(tmp_path / "with", *QUIET, *PLAIN[side], by(other, KIND, f", sides: [{side}]"), dropout=0.0)
    entries = entries_of(trained(trainer))
    assert all(entry[f"teacher_{side}"] > 0 for entry in entries)
    assert not any("teacher" in name and name != f"teacher_{side}" for entry in entries for name in entry)
    plain = marked_run(tmp_path / "without", *QUIET, *PLAIN[side], sources[side], dropout=0.0)
    if side == "image_text":  # the same source; triplets are no source of pairs without a teacher
        assert entries[0]["loss_image_text"] == pytest.approx(
            entries_of(trained(plain))[0]["loss_image_text"], rel=1e-6
        )


@pytest.mark.parametrize("extra", CACHES, ids=["chunk 1", "chunk 3, tiles"])
@pytest.mark.parametrize("way", SIDES)
def test_the_gradient_cache_changes_nothing(
    marked_run: RunFactory, tmp_path: Path, other: Path, way: str, extra: list[str]
) -> None:
    plain = trained(taught(marked_run, tmp_path / "plain", way, other))
    cached = trained(taught(marked_run, tmp_path / "cached", way, other, *extra))
    for name, value in state_of(plain).items():
        torch.testing.assert_close(value, state_of(cached)[name], rtol=0.0, atol=2e-5)
    for one, two in zip(entries_of(plain), entries_of(cached), strict=True):
        assert one["teacher_text"] == pytest.approx(two["teacher_text"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "more"), [("model", []), ("columns", ["gradient_cache_chunk_size=1"])])
def test_two_processes_equal_one(
    marked_run: RunFactory, tmp_path: Path, other: Path, way: str, more: list[str]
) -> None:
    overrides = [*QUIET, *SIDES[way], teacher_of(way, other), *more]
    assert in_two_processes(train_rank, marked_run.recipe, tmp_path / "two", overrides, 0.0) == [0, 0]
    one = trained(taught(marked_run, tmp_path / "one", way, other, *more))
    steps = [entry for entry in torch.load(tmp_path / "two" / "log-0.pt") if "loss" in entry]
    for left, right in zip(steps, entries_of(one), strict=True):
        for name in ("loss", "teacher_image_text", "teacher_text"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6), name
    two, single = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("two", "one"))
    for name, value in single.items():
        torch.testing.assert_close(two[name], value, rtol=0.0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", SIDES)
def test_a_resumed_run_is_the_same_run(marked_run: RunFactory, tmp_path: Path, other: Path, way: str) -> None:
    through = trained(taught(marked_run, tmp_path, way, other, dropout=0.1))
    again = trained(taught(marked_run, tmp_path, way, other, dropout=0.1), tmp_path / "checkpoint-2")
    assert_same_weights(through.model, again.model)
    assert entries_of(through) == entries_of(again)


@pytest.mark.slow
def test_the_command_trains_checks_and_resumes(
    marked_run: RunFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUIET, *SIDES["columns"], "teacher={kind: margins}"]
    run = [str(marked_run.recipe), "--output_dir", str(tmp_path / "run"), *words]
    assert main(run) == 0
    assert main([*run, "--resume"]) == 0
    assert main(["check", str(marked_run.recipe), "--out", str(tmp_path / "check"), *words]) == 0, capsys.readouterr()
    log = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert all(entry["teacher_text"] > 0 for entry in log if "loss" in entry)


REFUSED: dict[str, tuple[list[str], str]] = {
    "pairs": (
        [*QUIET, IMAGES % "", PAIRS % "", by(Path("OTHER"), KIND, ", sides: [text]")],
        "stages.0.text: teacher.kind is 'margins', but source 'successors' has no column negatives. Take one that has "
        "(python -m trainer_ext mine makes it), leave text out of teacher.sides, or give this stage its own run.",
    ),
    "an earlier stage of pairs": (
        [by(Path("OTHER"), KIND, ", sides: [text]")],
        "stages.0.text: teacher.kind is 'margins', but source 'successors' has no column negatives.",
    ),
    "neither model nor column": (
        [*QUIET, MARKED_PICTURES, TRIPLETS % "", "teacher={kind: margins}"],
        "teacher.model: is missing, and source 'triplets' has no column margins. Add margins: THE DATA'S COLUMN",
    ),
    "a model for nothing": (
        [*QUIET, MARKED_PICTURES, MARKED, by(Path("OTHER"), KIND)],
        "teacher.model: would teach nothing: every source of its sides has a column margins.",
    ),
    "triplets as pairs without margins": (
        [*QUIET, *PLAIN["text"]],
        "'triplets' has task triplet, but text with loss info_nce needs task text-pair",
    ),
    "margins of no negatives": (
        ["sources.contrasted-marked.columns={image: image, caption: caption, margins: m}"],
        "columns.margins: is of hard negatives, and none are mapped. Map negatives, too, or take it out.",
    ),
    "margins of pairs": (
        ["sources.successors.columns={query: query, positive: positive, margins: m}"],
        "columns.margins: task text-pair has no such column.",
    ),
    "several captions": (
        [
            *QUIET,
            PAIRS % "",
            "stages.0.image_text={sources: [contrasted], batch_size: 4, captions_per_image: 2}",
            by(Path("OTHER"), KIND, ", sides: [image_text]"),
        ],
        "captions_per_image: is 2, and a teacher's margins contrast whole captions with the row's negatives. Take it "
        "out, or leave image_text out of teacher.sides.",
    ),
    "a scale of 0": ([by(Path("OTHER"), KIND, ", scale: 0")], "teacher.scale: must be greater than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_margins_is_refused_at_load(marked_run: RunFactory, other: Path, case: str) -> None:
    overrides, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(marked_run.recipe, [override.replace("OTHER", str(other)) for override in overrides])
    assert words in str(caught.value)


def test_margins_that_no_cosines_have_are_refused(marked_run: RunFactory, tmp_path: Path) -> None:
    """Those of a cross-encoder, without a scale: 0.1 to 0.3 become tens and hundreds when divided by 0.001."""
    make: Callable[[str], JinaCLIPTrainer] = lambda scale: taught(  # noqa: E731
        marked_run, tmp_path, "columns", tmp_path, more=f", scale: {scale}"
    )
    with pytest.raises(
        RecipeError, match=r"teacher\.scale: is 0\.001, but the margins of source 'contrasted-marked' are"
    ) as caught:
        make("0.001")
    cure = str(caught.value).split("Give scale: ")[1].split(":")[0]
    make(cure)


def test_other_kinds_have_the_fingerprint_that_they_had(marked_run: RunFactory, other: Path) -> None:
    load = lambda kind, more="": load_recipe(marked_run.recipe, [*QUIET, *SIDES["model"], by(other, kind, more)])  # noqa: E731
    prints = [load("scores"), load("margins"), load("margins", ", scale: 2.0")]
    assert len({recipe_fingerprint(recipe) for recipe in prints}) == 3
    from trainer_ext.recipe.recipe import _identity

    assert _identity(load("scores"))["teacher"].keys() == {"model", "kind", "weight", "sides"}
