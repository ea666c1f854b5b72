"""The study of docs/study.md: its arms, its harness on the tiny run, its tables from rows, and the page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from benchmarks.paired import DONE
from examples.study.peers import clip_encoders, minilm, train_clip
from examples.study.rows import ROWS, append_row, read_rows
from examples.study.run import ARMS, SEEDLESS, Study, chosen, count, main, read_arms
from examples.study.shared import MAKERS, data_names
from examples.study.tables import BLOCK, COLUMNS, PAGE, cell, runs_of, table, with_tables
from examples.study.tables import main as write_tables
from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from tests.trainer_ext.tiny_run import write_data, write_recipe
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import load_recipe

CONTENT = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
ALL_ARMS = read_arms(CONTENT)
TABLES = [*CONTENT["groups"], *CONTENT["comparisons"], "validation", "seen", "machines", "missing"]


def study(folder: Path, content: dict[str, Any] = CONTENT, steps: int | None = None) -> Study:
    return Study(content, folder / "runs", folder / "rows.jsonl", steps)


# --- arms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, arm in ALL_ARMS.items() if arm.base is not None])
def test_an_arm_is_a_recipe(name: str, tmp_path: Path) -> None:
    """With stand-ins for what would be made or trained first."""
    shutil.copy(find_resource("models", "openmoji-small"), tmp_path / "config.json")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "any.safetensors").touch()
    for made, (maker, *arguments) in CONTENT["data"].items():
        if maker == "preset":
            MAKERS[maker](tmp_path / made, *arguments)
    overrides = study(tmp_path).overrides(ALL_ARMS[name])
    assert set(data_names(overrides)) <= CONTENT["data"].keys()
    placed = [text.replace("{data}", str(tmp_path)).replace("{start}", str(tmp_path)) for text in overrides]
    recipe = load_recipe(ARMS.parent / CONTENT["recipe"], placed)
    assert not recipe.training.get("bf16", False)
    shorter = study(tmp_path, steps=2).overrides(ALL_ARMS[name])
    assert len(shorter) == len(overrides) + len(recipe.stages)


def test_a_narrower_preset_keeps_its_heads_and_ratios(tmp_path: Path) -> None:
    MAKERS["preset"](tmp_path / "narrow.json", "openmoji-small", 64)
    narrow = JinaCLIPConfig.from_json_file(tmp_path / "narrow.json")
    whole = JinaCLIPConfig.from_json_file(find_resource("models", "openmoji-small"))
    assert (narrow.text_config.hidden_size, narrow.vision_config.width, narrow.projection_dim) == (64, 64, 64)
    assert narrow.text_config.intermediate_size / 64 == whole.text_config.intermediate_size / 256
    assert 64 / narrow.text_config.num_attention_heads == 256 / whole.text_config.num_attention_heads
    assert narrow.vision_config.layers == whole.vision_config.layers
    JinaCLIPModel(narrow)


def test_arms_differ_and_none_is_asked_for_twice(tmp_path: Path) -> None:
    hashes = {study(tmp_path).hash_of(arm): name for name, arm in ALL_ARMS.items()}
    assert len(hashes) == len(ALL_ARMS)
    assert {study(tmp_path / "elsewhere").hash_of(arm): name for name, arm in ALL_ARMS.items()} == hashes
    assert not {study(tmp_path, steps=2).hash_of(arm) for arm in ALL_ARMS.values() if arm.base} & hashes.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "shorter"}, "base 'shorter' is not one of short"),
        ({"group": "z"}, "group 'z' is not one of a, b"),
        ({"against": "jiont"}, "there is no arm 'jiont'"),
        ({"start": {"of": "nothing"}}, "there is no arm 'nothing'"),
        ({"base": None}, "needs one of base, of and peer"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    arms = CONTENT["arms"] | {"images_only": CONTENT["arms"]["images_only"] | change}
    with pytest.raises(ValueError, match=f"arm images_only: .*{words}"):
        read_arms(CONTENT | {"arms": arms})


def test_arms_are_asked_for_by_name_group_or_all() -> None:
    assert chosen(["joint", "d", "joint"], ALL_ARMS)[:2] == ["joint", "text_temperature_trained"]
    assert chosen(["all"], ALL_ARMS) == list(ALL_ARMS)
    with pytest.raises(ValueError, match=r"'images_onyl' is no arm.*Did you mean images_only\?"):
        chosen(["images_onyl"], ALL_ARMS)


def test_what_a_stage_is_measured_on_counts_to_its_end() -> None:
    stages = [{"steps": 2, "image_text": {"batch_size": 4}, "text": {"batch_size": 3}}] * 2
    assert count(stages) == {"steps": 4, "pictures": 16, "text_rows": 12}


# --- the harness on the tiny run ---------------------------------------------------------------------------------


def tiny(folder: Path) -> dict[str, Any]:
    write_data(folder)
    recipe = write_recipe(folder)
    sources = yaml.safe_load(recipe.read_text())["sources"][:2]
    tasks = [{"name": "pictures", "source": "pictures"}, {"name": "texts", "source": "successors"}]
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"sources": sources, "tasks": tasks}))
    images, texts = "image_text: {sources: [pictures], batch_size: 4}", "text: {sources: [successors], batch_size: 4}"
    base = f"stages=[{{name: one, steps: 3, learning_rate: 1e-3, max_length: 8, {images}, {texts}}}]"
    two = base[:-1] + f", {{name: two, steps: 2, learning_rate: 1e-3, max_length: 8, {texts}}}]"
    return {
        "recipe": str(recipe),
        "bases": {"short": [base], "both": [two]},
        "measured": {"limit": 9, "suites": {"test": str(folder / "tasks.yaml")}},
        "data": {},
        "groups": {"a": "", "p": ""},
        "arms": {
            "joint": {"group": "a", "base": "short"},
            "early": {"group": "a", "of": "late", "folder": "stages/0-one"},
            "late": {"group": "a", "base": "both"},
            "on": {"group": "a", "base": "short", "start": {"of": "late", "folder": "stages/0-one"}},
            "bm25": {"group": "p", "peer": "bm25"},
            "clip": {"group": "p", "peer": "clip", "base": "short", "having": ["stages.0.text=null"]},
        },
    }


@pytest.mark.slow
def test_runs_leave_a_row_each_and_are_not_repeated(tmp_path: Path) -> None:
    content = tiny(tmp_path)
    here = study(tmp_path, content)
    for name in content["arms"]:
        for seed in (42, 43):
            assert (here.do(name, seed) is None) == (name in SEEDLESS and seed == 43)
    rows = runs_of(read_rows(here.rows))
    assert {name: list(seeds) for name, seeds in rows.items()} == {
        name: [42] if name in SEEDLESS else [42, 43] for name in content["arms"]
    }
    assert {name: seeds[42]["steps"] for name, seeds in rows.items()} == {
        **{"joint": 3, "early": 3, "late": 5, "on": 6, "bm25": 0, "clip": 3}
    }
    assert rows["on"][42]["text_rows"] == 24
    assert rows["early"][42]["figures"] != rows["late"][42]["figures"]
    # Three runs of each seed, the fourth arm being a stage of one of them.
    made = sorted((tmp_path / "runs" / "runs").iterdir())
    assert len(made) == 6
    text = here.rows.read_text()
    again = study(tmp_path, content)
    assert all(again.do(name, seed) is None for name in content["arms"] for seed in (42, 43))
    assert here.rows.read_text() == text

    # What a stop leaves: a run without its last file, and no row. It begins anew and gives the same figures.
    kept = [line for line in text.splitlines() if json.loads(line)["arm"] != "joint" or json.loads(line)["seed"] == 43]
    here.rows.write_text("\n".join(kept) + "\n")
    next(path for path in made if path.name.startswith("joint-42")).joinpath(DONE).unlink()
    row = again.do("joint", 42)
    assert row is not None
    assert row["figures"] == rows["joint"][42]["figures"]
    # Another recipe is another row.
    content["arms"]["joint"]["having"] = ["stages.0.text=null"]
    assert study(tmp_path, content).do("joint", 42) is not None


def test_a_stock_clip_learns_from_the_same_batches(tmp_path: Path) -> None:
    content = tiny(tmp_path)
    here = study(tmp_path, content)
    overrides = [*here.overrides(here.arms["clip"]), "stages.0.steps=30"]
    recipe = load_recipe(content["recipe"], [text for text in overrides if "{" not in text.partition("=")[0]])
    first = clip_encoders(*train_clip(recipe))
    texts = ["one red bar", "nine blue bar"] * 40
    vectors = first.encode_text(texts)
    assert vectors.shape == (80, 256)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    again = clip_encoders(*train_clip(recipe)).encode_text(texts)
    assert np.array_equal(again, vectors)
    other = clip_encoders(*train_clip(recipe.model_copy(update={"seed": 8}))).encode_text(texts)
    assert not np.allclose(other, vectors, atol=1e-3)


def test_a_peer_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not there\. Run `make peers`"):
        minilm(tmp_path / "nothing")


def test_the_command_refuses_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["jiont"])
    assert end.value.code == 2
    assert "Did you mean joint?" in capsys.readouterr().err


def test_half_a_row_is_named(tmp_path: Path) -> None:
    append_row(tmp_path / "rows.jsonl", {"arm": "joint"})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"arm": "jo')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is no row of results .* Delete the line"):
        read_rows(tmp_path / "rows.jsonl")


# --- tables ------------------------------------------------------------------------------------------------------


def row(arm: str, seed: int, value: float) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "seconds": {"training": 10.0 * seed},
        **{"steps": 120, "pictures": 7680, "text_rows": 7680},
        "versions": {"python": "3", "torch": "2", "transformers": "5"},
        "machine": {"processor": "P", "cores": 2, "threads": 1},
        "figures": {"test": {name: value for _, name in COLUMNS.values()}, "validation": {}},
    }


JOINT, IMAGES = [0.30, 0.33, 0.32, 0.36], [0.31, 0.30, 0.27, 0.31]
MADE = [row("joint", seed, value) for seed, value in enumerate(JOINT)]
MADE += [row("images_only", seed, value) for seed, value in enumerate(IMAGES)]


def test_a_cell_has_the_mean_and_the_paired_interval() -> None:
    low, high = stats.ttest_rel(IMAGES, JOINT).confidence_interval(0.95)
    words = f"{50 * (low + high):+.1f} ±{50 * (high - low):.1f}"
    column = COLUMNS["concepts"]
    assert cell(runs_of(MADE), ALL_ARMS["images_only"], "joint", column) == f"29.8 ({words})"
    assert cell(runs_of(MADE[:6]), ALL_ARMS["images_only"], "joint", column) == "30.5"  # two seeds have no interval
    larger = [row("images_only", seed, value - 0.3) for seed, value in enumerate(IMAGES)]
    assert "**-33.0 ±" in cell(runs_of(MADE[:4] + larger), ALL_ARMS["images_only"], "joint", column)
    assert cell(runs_of(MADE), ALL_ARMS["texts_only"], "joint", column) == "-"
    own = stats.ttest_1samp(JOINT, 0).confidence_interval(0.95)
    assert cell(runs_of(MADE), ALL_ARMS["joint"], "joint", column) == f"32.8 ±{50 * (own[1] - own[0]):.1f}"


def test_a_peer_without_a_seed_is_compared_with_every_seed() -> None:
    runs = runs_of([*MADE, row("bm25", 42, 0.4)])
    low, high = stats.ttest_1samp(0.4 - np.array(JOINT), 0).confidence_interval(0.95)
    assert cell(runs, ALL_ARMS["bm25"], "joint", COLUMNS["headword"]).startswith("40.0 (")
    assert f"±{50 * (high - low):.1f}" in cell(runs, ALL_ARMS["bm25"], "joint", COLUMNS["headword"])


def test_a_difference_in_a_sentence_is_that_of_the_table() -> None:
    page = "so <!-- images_only - joint, concepts -->old<!-- / --> points"
    [said] = re.findall(r"-->(.*)<!-- /", with_tables(page, CONTENT, MADE))
    assert f"({said})" in cell(runs_of(MADE), ALL_ARMS["images_only"], "joint", COLUMNS["concepts"])
    with pytest.raises(ValueError, match="images_only - joint, concepts, but there are no three seeds of both"):
        with_tables(page, CONTENT, MADE[:6])


def test_two_rows_of_one_run_are_refused() -> None:
    with pytest.raises(ValueError, match="arm joint, seed 0 has two rows"):
        runs_of([*MADE, MADE[0]])


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_made_of_rows(name: str) -> None:
    lines = table(name, CONTENT, MADE)
    assert lines
    if name in "bcdefgh":
        assert lines == ["No rows yet."]
    if name == "a":
        assert [line.split("|")[1].strip() for line in lines[2:]] == ["`joint`", "`images_only`"]
    if name == "seen":
        assert "| `joint` | 120 | 7,680 | 7,680 | 15 |" in lines
    with pytest.raises(ValueError, match="there is no table 'z'; there are a, b"):
        table("z", CONTENT, MADE)


def test_the_script_writes_a_page_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in MADE:
        append_row(tmp_path / "rows.jsonl", one)
    page, rows = tmp_path / "page.md", str(tmp_path / "rows.jsonl")
    page.write_text("words\n<!-- table: a -->\nold\n<!-- end -->\nmore\n")
    write_tables(["--rows", rows, "--page", str(page)])
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("words\n")
    assert text.endswith("<!-- end -->\nmore\n")
    assert (tmp_path / "study" / "differences.svg").is_file()
    write_tables(["--rows", rows, "--print", "a"])
    assert capsys.readouterr().out.strip() in text
    with pytest.raises(ValueError, match="has no rows"):
        write_tables(["--rows", str(tmp_path / "none.jsonl")])


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_pages_tables_are_those_of_the_committed_rows() -> None:
    page, rows = PAGE.read_text(encoding="utf-8"), read_rows(ROWS)
    assert with_tables(page, CONTENT, rows) == page, "run: python examples/study/tables.py"
    shown = {block[2] for block in BLOCK.finditer(page)}
    assert shown == set(TABLES)


def test_committed_rows_are_of_the_arms_as_they_are(tmp_path: Path) -> None:
    here = study(tmp_path)
    hashes: dict[str, str] = {name: here.hash_of(arm) for name, arm in ALL_ARMS.items()}
    stale = [(one["arm"], one["seed"]) for one in read_rows(ROWS) if hashes.get(one["arm"]) != one["asked"]]
    assert stale == [], "an arm has changed: delete its rows and run it again"
