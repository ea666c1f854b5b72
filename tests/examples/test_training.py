"""Training from scratch on a user's own files, and on two processes, as a user runs it: real pictures, real trainer."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml

from examples import launch_training, train_from_scratch
from modeling_jina_clip import JinaCLIPModel
from tests.examples.test_finetune import write_csv, write_pairs
from trainer_ext.demo_data import load_table
from trainer_ext.recipe.recipe import load_recipe

SCRIPTS = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def data(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawings as PNG files, a short and a long caption of each, 300 pairs of the dictionary."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    rows = []
    short, long = (load_table(tables, f"{kind}_captions", "train_concepts") for kind in ("short", "long"))
    for number, (row, other) in enumerate(zip(short.select(range(24)), long.select(range(24)), strict=True)):
        row["image"].save(folder / "pictures" / f"{number}.png")
        rows.append([f"{number}.png", row["caption"][0], other["caption"][0] if number else ""])
    write_csv(folder / "captions.csv", ["file", "caption", "long_caption"], rows)
    write_csv(folder / "short.csv", ["file", "caption"], [row[:2] for row in rows])
    write_pairs(tables, folder / "pairs.csv", 300)
    return folder


@pytest.fixture(scope="module")
def preset(data: Path) -> Path:
    """The demo's sizes, but one narrow layer a tower."""
    tree = json.loads((SCRIPTS.parent / "configuration" / "models" / "openmoji-small.json").read_text())
    tree["projection_dim"] = tree["text_config"]["embed_dim"] = tree["vision_config"]["embed_dim"] = 32
    tree["text_config"] |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 400}
    tree["text_config"]["intermediate_size"] = 64
    tree["vision_config"] |= {"width": 32, "head_width": 16, "layers": 1}
    (data / "model.json").write_text(json.dumps(tree))
    return data / "model.json"


def arguments_of(data: Path, preset: Path, captions: str, out: Path) -> list[str]:
    files = [data / "pictures", data / captions, data / "pairs.csv", "--output_dir", out, "--model", preset]
    return [*map(str, files), "--vocab_size", "400", "--batch_size", "8", "--steps", "2", "2", "2"]


def test_three_stages_from_own_files(data: Path, preset: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert train_from_scratch.main(arguments_of(data, preset, "captions.csv", out)) == 0
    recipe = load_recipe(out / "recipe.yaml")
    assert [stage.name for stage in recipe.stages] == ["short-captions", "long-captions", "hard-negatives"]
    for name in ("0-short-captions", "1-long-captions", "2-hard-negatives"):
        assert JinaCLIPModel.from_pretrained(out / "run" / "stages" / name).config.projection_dim == 32
    rows = pandas.read_json(out / "triplets.jsonl", lines=True)
    pairs = pandas.read_csv(out / "pairs.csv")
    assert len(rows) > 8
    assert all(len(set(row.negatives)) == 7 and row.positive not in row.negatives for row in rows.itertuples())
    assert set(rows["negatives"].explode()) <= set(pairs["positive"])
    assert len((out / "long_captions.jsonl").read_text().splitlines()) == 23  # the blank one is left out
    shares = json.loads((out / "run" / "sources" / "shares.json").read_text())
    assert set(shares["text"]) == {"pairs", "mined"}


def test_without_long_captions_the_short_ones_serve_and_nothing_need_start(
    data: Path, preset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    assert train_from_scratch.main([*arguments_of(data, preset, "short.csv", out), "--only_write"]) == 0
    assert not (out / "run").exists()
    sources = {source["name"]: source for source in yaml.safe_load((out / "recipe.yaml").read_text())["sources"]}
    assert sources["long"]["location"] == "short_captions.jsonl"
    assert load_recipe(out / "recipe.yaml").stages[2].text.loss == "info_nce_plus"


def test_wrong_files_end_in_one_line(data: Path, preset: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    arguments = arguments_of(data, preset, "pairs.csv", out)
    with pytest.raises(SystemExit, match="has no column 'file'; it has query, positive"):
        train_from_scratch.main(arguments)
    rows = (data / "captions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([rows[0], "0.png,a colour, like blood,a red drop", *rows[1:]]))
    arguments = arguments_of(data, preset, "captions.csv", out)
    broken = [str(tmp_path / "captions.csv") if word.endswith("captions.csv") else word for word in arguments]
    with pytest.raises(ValueError, match=r"row 0.*4 cells, but the header names 3 columns"):
        train_from_scratch.main(broken)
    few = write_csv(tmp_path / "few.csv", ["query", "positive"], [["one", "two"]])
    arguments = arguments_of(data, preset, "captions.csv", tmp_path / "mine")
    with pytest.raises(SystemExit, match="none of the 1 pairs has 7 hard negatives"):
        train_from_scratch.main([str(few) if word.endswith("pairs.csv") else word for word in arguments])
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_two_processes_train_what_it_wrote(data: Path, preset: Path, tmp_path: Path) -> None:
    """``accelerate launch`` itself, two processes that meet through gloo; the folder is written once."""
    out = tmp_path / "mine"
    train_from_scratch.main([*arguments_of(data, preset, "captions.csv", out), "--only_write"])
    script = [sys.executable, str(SCRIPTS / "launch_training.py"), str(out / "recipe.yaml"), "--processes", "2"]
    command = [*script, "--output_dir", str(tmp_path / "two"), "use_cpu=true"]
    done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accelerate.commands.launch --multi_gpu --num_processes=2" in done.stdout
    assert done.stdout.count("the finished model is") == 1
    assert JinaCLIPModel.from_pretrained(tmp_path / "two").config.projection_dim == 32
    again = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode != 0
    assert "already holds a run" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "3"], "batch_size 128 is no multiple of 3 processes"),
        (["--processes", "2", "stages.0.step=3"], "unknown key"),
    ],
)
def test_what_cannot_start_is_not_launched(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        launch_training.main(["openmoji", "--output_dir", "unused", *words])


def test_one_process_needs_no_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch_training.main(["openmoji", "--output_dir", "unused", "--processes", "1"])
    assert "run python -m trainer_ext" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_from_scratch", "launch_training"])
def test_the_scripts_are_short(name: str) -> None:
    assert len((SCRIPTS / f"{name}.py").read_text().splitlines()) < 140
