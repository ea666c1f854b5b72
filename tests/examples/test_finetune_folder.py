"""The fine-tuning of a folder on real data: OpenMoji drawings as files with a CSV, and pairs of the dictionary."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from peft import PeftModel

from modeling_jina_clip import JinaCLIPModel
from tests.examples.conftest import CHECKOUT, Run
from tests.examples.test_finetune import assert_card_has_figures, figures, write_csv, write_pairs
from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.data.sources import undecoded
from trainer_ext.demo_data import load_table
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.training import JinaCLIPTrainer


@pytest.fixture
def pictures(tables: Path, tmp_path: Path) -> Path:
    """40 drawings as PNG files, and captions.csv with one row for each caption."""
    folder, captions = tmp_path / "pictures", []
    folder.mkdir()
    for number, row in enumerate(load_table(tables, "short_captions", "train_concepts").select(range(40))):
        row["image"].save(folder / f"{number}.png")
        captions += [[f"{number}.png", caption] for caption in row["caption"]]
    write_csv(tmp_path / "captions.csv", ["file", "caption"], captions)
    return folder


def test_a_folder_of_pictures(
    run: Run, model: Path, tables: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs, each measured beside chance and BM25, and compared; gone on with by --resume, and only so."""
    pairs = write_pairs(tables, tmp_path / "pairs.csv", 60)
    files = [model, pictures, tmp_path / "captions.csv", "--texts", pairs, "--output_dir", tmp_path / "out"]
    options = [*files, "--steps", 2, "--batch_size", 8, "lora.r=4", "save_steps=1"]
    assert run("finetune_folder", *options) == 0
    printed = capsys.readouterr().out
    assert "tune - before training" in printed
    assert "pictures-only minus with-texts:" in printed
    assert "pictures-only" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tuned, alone = (figures(tmp_path / "out" / name) for name in ("with-texts", "pictures-only"))
    names = ["chance", "BM25", "before training", "tune"]
    assert list(tuned) == list(alone) == names
    assert tuned["before training"] == alone["before training"]
    assert tuned["tune"].keys() == alone["tune"].keys() == tuned["chance"].keys()
    assert {re.split(r"[/\[]", name)[0] for name in tuned["tune"]} == {"pictures", "texts"}
    assert all(name.startswith("texts") for name in tuned["BM25"])
    record = json.loads((tmp_path / "out" / "with-texts" / "metrics.json").read_text())
    assert record["rows"][-1]["intervals"].keys() == tuned["tune"].keys()
    [change] = record["differences"]
    assert (change["first"], change["second"]) == ("before training", "tune")
    recipe = json.loads((tmp_path / "out" / "with-texts" / "run.json").read_text())["recipe"]
    assert (recipe["lora"]["r"], recipe["sources"][0]["max_broken_rows"]) == (4, 0)
    merged = JinaCLIPModel.from_pretrained(tmp_path / "out" / "with-texts")
    assert_card_has_figures(tmp_path / "out" / "with-texts", names, tmp_path / "hub")
    adapted = PeftModel.from_pretrained(
        JinaCLIPModel.from_pretrained(model), tmp_path / "out" / "with-texts" / "adapter"
    )
    assert type(adapted.base_model.model) is type(merged)

    assert run("finetune_folder", *options) == 2
    assert "with-texts already holds a run; go on with it by --resume" in capsys.readouterr().err
    assert run("finetune_folder", *options, "--resume", "lora.r=8") == 2
    assert "lora.r: 4 -> 8" in capsys.readouterr().err
    assert run("finetune_folder", *options, "--resume") == 0
    assert figures(tmp_path / "out" / "with-texts") == tuned  # nothing is trained a second time


@pytest.mark.slow
def test_pictures_alone_stopped_and_gone_on_with(
    run: Run, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    options = [model, pictures, tmp_path / "captions.csv", "--output_dir", tmp_path / "out", "save_steps=1"]
    options += ["--steps", 3, "--batch_size", 8]
    steps = JinaCLIPTrainer.training_step

    def stopped(trainer: JinaCLIPTrainer, *arguments: object) -> object:
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return steps(trainer, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(JinaCLIPTrainer, "training_step", stopped)
        assert run("finetune_folder", *options) == 130
    words = capsys.readouterr().err
    assert f"{tmp_path / 'out' / 'pictures-only' / 'checkpoint-2'} is kept; the same command with --resume" in words
    assert run("finetune_folder", *options, "--resume") == 0
    rows = figures(tmp_path / "out" / "pictures-only")
    assert list(rows) == ["chance", "before training", "tune"]
    assert all(name.startswith("pictures/") for name in rows["tune"])


@pytest.mark.parametrize(
    ("folder", "columns", "rows", "message"),
    [
        ("pictures", ["file", "text"], 1, "captions.csv has no column 'caption'"),
        ("pictures", ["file", "caption"], 1, "holdout 0.1 asks for 1 of 1 rows"),
        ("nowhere", ["file", "caption"], 20, "captions.csv, row 0, column 'file': no image file"),
    ],
)
def test_wrong_tables_end_in_one_line(
    run: Run,
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    columns: list[str],
    rows: int,
    message: str,
) -> None:
    """Before a folder is made."""
    write_csv(tmp_path / "captions.csv", columns, [[f"{number}.png", f"an apple {number}"] for number in range(rows)])
    assert run("finetune_folder", model, folder, "captions.csv", "--output_dir", "out") == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_empty_caption_is_named_by_the_users_file_and_row(
    run: Run, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (tmp_path / "captions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([*lines[:3], "7.png,", *lines[3:]]), encoding="utf-8")
    options = [model, pictures, "captions.csv", "--output_dir", tmp_path / "out", "--steps", 1, "--batch_size", 8]
    assert run("finetune_folder", *options) == 2
    words = capsys.readouterr().err
    assert "captions.csv" in words
    assert "row 2" in words
    assert "column 'caption': empty text" in words
    assert not (tmp_path / "out").exists()
    lines = (tmp_path / "captions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([*lines[:4], "gone.png,a", *lines[4:]]), encoding="utf-8")
    assert run("finetune_folder", *options, "--max_broken_rows", 1) == 2
    assert "2 rows of the source cannot be used, but its max_broken_rows is 1" in capsys.readouterr().err
    assert run("finetune_folder", *options, "--max_broken_rows", 2) == 0
    listed = (tmp_path / "out" / "pictures-only" / "sources" / "broken_rows.jsonl").read_text().splitlines()
    broken = {row["row"]: row for row in map(json.loads, listed)}
    assert set(broken) == {2, 3}
    assert broken[3]["file"] == str(tmp_path / "captions.csv")
    assert f"no image file {pictures / 'gone.png'}" in broken[3]["reason"]


def test_a_copy_of_a_training_picture_is_not_held_out(run: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    """Under another name and with another caption; held out are both of its names or none."""
    rows = (tmp_path / "captions.csv").read_text(encoding="utf-8").splitlines()
    shutil.copy(pictures / "0.png", pictures / "copy of 0.png")
    shutil.copy(pictures / "3.png", pictures / "copy of 3.png")
    copies = ["copy of 0.png,words of their own", "copy of 3.png,others"]
    (tmp_path / "captions.csv").write_text("\n".join([*rows, *copies]), encoding="utf-8")
    script = runpy.run_path(str(CHECKOUT / "examples" / "finetune_folder.py"))
    options = script["parser"]().parse_args([str(model), str(pictures), "captions.csv", "--output_dir", "out"])
    recipe = load_recipe("finetune", [*script["recipe_keys"](options), *script["PICTURES_ONLY"]])
    rows, held = load_with_holdout(recipe.used_sources())
    trained, measured = ({path.read_bytes() for path in paths_of(part["pictures"])} for part in (rows, held))
    assert len(measured) >= 2
    assert not trained & measured
    assert len(trained | measured) == 40


def paths_of(rows: Dataset) -> list[Path]:
    return [Path(cell["path"]) for cell in undecoded(rows)["image"]]


def test_the_example_is_short() -> None:
    assert len((CHECKOUT / "examples" / "finetune_folder.py").read_text().splitlines()) < 110
