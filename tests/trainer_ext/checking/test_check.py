"""The whole command: what it prints, writes and returns, on clean data and on planted faults."""

import base64
import io
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.trainer_ext.checking.planted import (
    encoded,
    pair_rows,
    picture,
    picture_rows,
    source,
    write_recipe,
    write_rows,
)
from tests.trainer_ext.tiny_run import make_processor, write_data
from trainer_ext.__main__ import main
from trainer_ext.checking.batches_shown import stage_batches
from trainer_ext.checking.check import check
from trainer_ext.checking.findings import Group
from trainer_ext.checking.fit import StepsFailed, failed_finding, micro_recipe, take_steps, try_steps
from trainer_ext.checking.plan_shares import make_plan, plan_shares
from trainer_ext.data.sources import load_sources, row_count
from trainer_ext.recipe.recipe import Recipe, load_recipe
from trainer_ext.recipe.schema import Balance

PICTURES, PAIRS = ("image", "caption"), ("query", "positive")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache per test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny run's model, tokenizer and tables."""
    write_data(tmp_path)
    return tmp_path


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts}


def test_clean_data_has_no_finding_and_nothing_is_written(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_below(tiny_recipe.parent)
    assert main(["check", str(tiny_recipe), "--no_steps"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "pictures: 36 rows"
    assert printed[-3:] == [
        "note: scored: no stage and no task reads this source. Name it in a stage's sources, or take it out.",
        "note: contrasted: no stage and no task reads this source. Name it in a stage's sources, or take it out.",
        "2 notes.",
    ]
    assert "plan: text takes 16 rows of successors, 50.0% of its rows, 1.78 epochs" in printed
    assert (files_below(tiny_recipe.parent), files_below(tmp_path)) == (before, set())


def test_faults_are_printed_written_and_end_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = picture_rows(8)
    rows[2]["image"], rows[3]["caption"] = b"no picture", "IMG_1.png <script>alert(1)</script>"
    sources = [
        source(write_rows(folder / "p.parquet", rows), PICTURES, "photos"),
        source(write_rows(folder / "t.jsonl", pair_rows(8)), PAIRS, "texts"),
        source(folder / "missing.parquet", PAIRS, "gone"),
    ]
    sides = {
        "image_text": {"sources": ["photos"], "batch_size": 4},
        "text": {"sources": ["texts", "gone"], "batch_size": 4},
    }
    recipe = write_recipe(folder, sources, sides)
    assert main(["check", str(recipe), "--output_dir", str(folder / "out"), "seed=3", "--shown", "1"]) == 1
    printed = capsys.readouterr().out
    assert "error: gone: no file at" in printed
    assert "row 2, column 'image': the image (stored in the row) cannot be decoded" in printed
    assert "no step was tried: correct the errors first" in printed
    found = [json.loads(line) for line in (folder / "out" / "findings.jsonl").read_text().splitlines()]
    assert {one["kind"] for one in found} >= {"source", "broken-row", "machine-text", "cut"}
    record = json.loads((folder / "out" / "check.json").read_text())
    assert record["sources"]["photos"]["broken"] == 1
    assert record["counts"]["error"] == sum(one["level"] == "error" for one in found)
    page = (folder / "out" / "check.html").read_text()
    assert "<script" not in page
    assert {path.name for path in (folder / "out").iterdir()} == {"check.html", "check.json", "findings.jsonl"}


def test_rows_that_are_measured_on_are_named(folder: Path) -> None:
    """Of the recipe's tasks and of a file of tasks; a source that is both is said to be."""
    train, test, other = pair_rows(8), pair_rows(16)[8:], pair_rows(24)[16:]
    test[1], other[2] = train[3], train[5]
    names = {"train": train, "test": test, "other": other}
    sources = {name: source(write_rows(folder / f"{name}.jsonl", rows), PAIRS, name) for name, rows in names.items()}
    suite = folder / "mine.yaml"
    content = {"sources": [sources["other"].model_dump(mode="json", exclude_defaults=True)]}
    suite.write_text(yaml.safe_dump({**content, "tasks": [{"name": "others", "source": "other"}]}))
    tasks = [{"name": "answers", "source": "test"}, {"name": "again", "source": "train"}]
    recipe = write_recipe(
        folder, [sources["train"], sources["test"]], {"text": {"sources": ["train"], "batch_size": 4}},
        evaluation={"suite": str(suite), "tasks": tasks},
    )  # fmt: skip
    log = check(load_recipe(recipe), steps=False).log
    pairs = log.shown[Group("warning", "train", "overlap-pair")]
    assert [one.row for one in pairs] == [3, 5]
    assert ["source 'test'" in pairs[0].words, "source 'mine/other'" in pairs[1].words] == [True, True]
    assert "measured on, by 'again'" in log.shown[Group("warning", "train", "overlap")][0].words


def test_bad_input_ends_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: No recipe")


def test_a_batch_larger_than_its_source_is_an_error(folder: Path) -> None:
    sources = [source(write_rows(folder / "t.jsonl", pair_rows(8)), PAIRS, "texts")]
    recipe = load_recipe(write_recipe(folder, sources, {"text": {"sources": ["texts"], "batch_size": 16}}))
    checked = check(recipe, steps=False)
    [error] = [checked.log.shown[group][0] for group in checked.log.groups("error")]
    assert error.kind == "plan"
    assert "source 'texts' has only 8 rows" in error.words


def test_a_tokenizer_that_is_to_be_trained_counts_tokens(folder: Path) -> None:
    """Also beside rows that the source's budget does not allow."""
    rows = pair_rows(30)
    rows[4]["query"] = ""
    sources = [source(write_rows(folder / "t.jsonl", rows), PAIRS, "texts")]
    sides = {"text": {"sources": ["texts"], "batch_size": 4}}
    recipe = load_recipe(write_recipe(folder, sources, sides, tokenizer={"vocab_size": 200}))
    said: list[str] = []
    checked = check(recipe, steps=False, say=said.append)
    assert "200 entries" in said[0] or "entries" in said[0]
    assert checked.sources["texts"]["texts"]["query"]["length"]["longest"] > 6


# --- the run -------------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_plan(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    tables = load_sources(recipe.used_sources())
    counts = {name: row_count(rows) for name, rows in tables.items()}
    plan = make_plan(recipe, counts)
    taken: dict[tuple[str, str, str], int] = {}
    for batch in range(len(plan)):
        for key in plan.keys(batch):
            place = (key.side, key.source, recipe.stages[key.stage].name)
            taken[place] = taken.get(place, 0) + 1
    shares = plan_shares(plan, recipe.stages)
    for share in shares:
        for stage, steps in share.steps.items():
            assert taken.get((share.side, share.source, stage), 0) == 4 * steps
        rows = sum(count for (side, name, _), count in taken.items() if (side, name) == (share.side, share.source))
        assert (share.rows, share.epochs) == (rows, rows / counts[share.source])
    assert sum(share.rows for share in shares) == sum(taken.values())


def test_batches_are_what_the_model_sees(folder: Path) -> None:
    """Pictures after cropping, pixel by pixel; texts cut to the stage's length, unknown words as such."""
    rows = [
        {"image": encoded(picture(n, (48, 16))), "caption": "one red zebra bar number two after nine"} for n in range(4)
    ]
    sources = [source(write_rows(folder / "p.parquet", rows), PICTURES, "photos")]
    sides = {"image_text": {"sources": ["photos"], "batch_size": 4}}
    recipe = load_recipe(write_recipe(folder, sources, sides, gradient_accumulation_steps=2), ["stages.0.max_length=6"])
    tables = load_sources(recipe.used_sources())
    plan = make_plan(recipe, {"photos": 4})
    [batch] = stage_batches(recipe, tables, make_processor(), plan)
    assert (batch.stage, batch.side, batch.source, batch.of, batch.image_size) == (
        "only",
        "image_text",
        "photos",
        2,
        16,
    )
    for shown, key in zip(batch.rows, plan.keys(0), strict=True):
        assert (shown.texts[0].text, shown.texts[0].tokens, shown.texts[0].full) == ("one red [UNK] bar", 6, True)
        assert shown.picture is not None
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.picture.partition(",")[2]))))
        assert np.array_equal(pixels, np.asarray(picture(key.index, (48, 16)))[:, 16:32])


def test_batches_are_shown_with_their_augmentations(folder: Path) -> None:
    rows = [{"image": encoded(picture(n, (16, 16))), "caption": "one red bar number two after nine"} for n in range(4)]
    sources = [source(write_rows(folder / "p.parquet", rows), PICTURES, "photos")]
    recipe = write_recipe(folder, sources, {"image_text": {"sources": ["photos"], "batch_size": 4}})
    changes = "stages.0.augmentation={horizontal_flip: 1.0, word_deletion: 0.5}"
    [plain], [changed] = (
        stage_batches(found, load_sources(found.used_sources()), make_processor(), make_plan(found, {"photos": 4}))
        for found in (load_recipe(recipe, ["stages.0.max_length=20", *extra]) for extra in ([], [changes]))
    )
    pixels = [
        [np.asarray(Image.open(io.BytesIO(base64.b64decode(row.picture.partition(",")[2])))) for row in batch.rows]
        for batch in (plain, changed)
    ]
    assert all(np.array_equal(left[:, ::-1], right) for left, right in zip(*pixels, strict=True))
    assert max(len(row.texts[0].text.split()) for row in changed.rows) < 7
    assert {row.texts[0].text for row in plain.rows} == {"one red bar number two after nine"}


@pytest.mark.parametrize(("flip", "found"), [("0.5", 1), ("0.0", 0)])
def test_flips_of_captions_that_say_a_side_are_told(folder: Path, flip: str, found: int) -> None:
    captions = ["one red bar", "a bar on the Left", "bright red bars", "turn right"]
    rows = [{"image": encoded(picture(n, (16, 16))), "caption": text} for n, text in enumerate(captions)]
    sources = [source(write_rows(folder / "p.parquet", rows), PICTURES, "photos")]
    recipe = write_recipe(folder, sources, {"image_text": {"sources": ["photos"], "batch_size": 4}})
    changed = load_recipe(recipe, [f"stages.0.augmentation={{horizontal_flip: {flip}, grayscale: 0.1}}"])
    log = check(changed, steps=False).log
    told = log.shown.get(Group("warning", "photos", "flip"), [])
    assert len(told) == found
    assert all("'only' flips pictures, and 2 of 4 (50.0%)" in one.words and one.row == 1 for one in told), told


def answered(recipe: Recipe, folder: Path, processor: Path | None = None) -> dict[str, Any]:
    """What the process of its own would write, in this one."""
    asked, answer = folder / "asked.json", folder / "answer.json"
    content = {"recipe": recipe.model_dump(mode="json"), "processor": processor and str(processor)}
    asked.write_text(json.dumps(content))
    take_steps(str(asked), str(answer), str(folder / "run"))
    return json.loads(answer.read_text())


def test_steps_are_taken_by_the_real_trainer(tiny_recipe: Path, tmp_path: Path) -> None:
    found = answered(micro_recipe(load_recipe(tiny_recipe), processes=1), tmp_path)
    assert len(found["seconds"]) == 3
    assert all(seconds > 0 for seconds in found["seconds"])
    assert 0 < found["trained_bytes"] <= found["model_bytes"]
    assert 0 < found["peak"] < found["memory"]


def test_steps_take_the_tokenizer_that_the_check_has_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset with a tokenizer of its own recipe, as the demo's is."""
    sources = [source(write_rows(folder / "t.jsonl", pair_rows(30)), PAIRS, "texts")]
    sides = {"text": {"sources": ["texts"], "batch_size": 4}}
    recipe = load_recipe(write_recipe(folder, sources, sides, tokenizer={"vocab_size": 200}))
    found: list[dict[str, Any]] = []

    def in_this_process(recipe: Recipe, processor: Path, processes: int) -> NoReturn:
        found.append(answered(micro_recipe(recipe, processes), tmp_path, processor))
        raise StepsFailed("as asked")

    monkeypatch.setattr("trainer_ext.checking.check.try_steps", in_this_process)
    check(recipe, say=lambda words: None)
    assert len(found[0]["seconds"]) == 1, found[0]


@pytest.mark.slow
def test_steps_are_taken_in_a_process_of_their_own(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    fit = try_steps(recipe)
    assert list(fit.seconds) == ["pairs", "larger", "hard"]
    assert all(seconds > 0 for seconds in fit.seconds.values())
    steps = sum(stage.steps * fit.seconds[stage.name] for stage in recipe.stages)
    assert fit.hours == pytest.approx(steps / 3600)
    assert fit.device in ("cpu", "cuda")
    assert 0.05 < fit.peak_gb < fit.memory_gb
    assert fit.disk_gb > 0


def test_steps_that_cannot_run_are_an_error(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = micro_recipe(load_recipe(tiny_recipe, ["stages.1.image_size=22"]), processes=1)
    reason = answered(recipe, tmp_path)["error"]
    assert "stages.1.image_size" in reason
    finding = failed_finding(StepsFailed(reason))
    assert (finding.level, finding.kind) == ("error", "step")
    short = failed_finding(StepsFailed("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert short.words.endswith("Set gradient_cache_chunk_size, or halve it (docs/memory.md).")


def test_micro_steps_hold_one_processs_rows(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["gradient_accumulation_steps=2"])
    short = micro_recipe(recipe, processes=2)
    assert {side.batch_size for stage in short.stages for _, side in stage.sides()} == {1}
    assert {stage.steps for stage in short.stages} == {2}
    assert yaml.safe_dump(short.training)  # still a plain tree: it travels to another process as text


def test_a_balanced_source_says_what_it_keeps(folder: Path) -> None:
    balance = {"key": "tags", "limit": 3}
    rows = source(folder / "pictures.parquet", PICTURES, "pictures", balance=balance)
    recipe = write_recipe(folder, [rows], {"image_text": {"sources": ["pictures"], "batch_size": 4}})
    found = check(load_recipe(recipe), folder / "out", steps=False)
    [note] = found.log.shown[Group("note", "pictures", "balance")]
    # 8 rows of each colour are in 1 of 3 epochs; the first, which is also a single one of 4, in 5 of 6.
    words = "balance keeps 14 of 36 rows in an epoch: 5 of 5 values of 'tags' are in more than 3 rows, up to 9."
    assert note.words == words
    record = json.loads((folder / "out" / "check.json").read_text())
    assert record["sources"]["pictures"]["balance"] == {"kept": 14, "values": 5, "above": 5, "most": 9}
    assert found.shares[0].epochs == pytest.approx(8 / 14)
    loose = rows.model_copy(update={"balance": Balance(key="tags", limit=9)})
    recipe = write_recipe(folder, [loose], {"image_text": {"sources": ["pictures"], "batch_size": 4}})
    [note] = check(load_recipe(recipe), steps=False).log.shown[Group("note", "pictures", "balance")]
    assert note.words.startswith("balance leaves nothing out: no value of 'tags' is in more than 9 rows, and the limit")


def test_texts_without_pairs_are_read_and_their_twins_found(folder: Path) -> None:
    rows = [{"text": f"the note about {pair['positive']}"} for pair in pair_rows(8)]
    rows[5] = rows[2]
    texts = source(write_rows(folder / "t.jsonl", rows), PAIRS, "notes").model_copy(
        update={"task": "text", "columns": {"text": "text"}, "repeat_words": 0.3}
    )
    recipe = write_recipe(folder, [texts], {"text": {"sources": ["notes"], "batch_size": 4}})
    found = check(load_recipe(recipe), steps=False)
    assert found.log.count("error") == 0
    [twin] = found.log.shown[Group("warning", "notes", "equal-row")]
    assert (twin.row, twin.column) == (5, None)
    assert found.sources["notes"]["texts"]["text"]["different"] == 7
    [batch] = found.batches
    assert [text.name for text in batch.rows[0].texts] == ["query", "positive"]
