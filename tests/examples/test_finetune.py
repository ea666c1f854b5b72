"""Both fine-tuning examples on real data: OpenMoji drawings as files with a CSV, and pairs of the dictionary."""

import csv
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from sentence_transformers import SentenceTransformer

import hub_upload
from modeling_jina_clip import JinaCLIPModel
from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.cache import prepare

CHECKOUT = Path(__file__).parents[2]
Run = Callable[..., None]


@pytest.fixture(scope="module")
def tables() -> Path:
    return prepare(os.environ.get("JINA_CLIP_CACHE", CHECKOUT / ".cache" / "tests"), progress=False)


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run an example as a program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def start(name: str, *arguments: object) -> None:
        script = str(CHECKOUT / "examples" / f"{name}.py")
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    return start


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_pairs(tables: Path, path: Path, count: int) -> Path:
    rows = load_table(tables, "headword_definition", "train").select(range(count))
    return write_csv(path, ["query", "positive"], [[row["query"], row["positive"]] for row in rows])


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


def figures(folder: Path) -> dict[str, dict[str, float]]:
    return {row["name"]: row["metrics"] for row in json.loads((folder / "metrics.json").read_text())["rows"]}


def assert_card_has_figures(run: Path, rows: list[str], hub: Path) -> Path:
    """Build a Hub folder of what the example leaves: its card has the recipe, the table, and the Hub's own index."""
    assert list(figures(run)) == rows
    hub = hub_upload.build(run, hub)
    card = (hub / "README.md").read_text(encoding="utf-8")
    assert "no record" not in card
    assert "Nothing was measured" not in card
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert f"Recipe `{recipe['name']}`, seed {recipe['seed']}" in card
    assert f"| task | metric | {' | '.join(rows)} |" in card
    *_, last = figures(run).values()
    results = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert [metric["value"] for result in results for metric in result["metrics"]] == list(last.values())
    return hub


def test_a_folder_of_pictures(
    run: Run, model: Path, tables: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tables, tmp_path / "pairs.csv", 60)
    files = [model, pictures, tmp_path / "captions.csv", "--texts", pairs, "--output_dir", tmp_path / "out"]
    run("finetune_folder", *files, "--steps", 2, "--batch_size", 8)
    table = capsys.readouterr().out
    assert "| before | with texts | pictures only |" in " ".join(table.split())
    rows = figures(tmp_path / "out")
    assert list(rows) == ["before", "with texts", "pictures only"]
    assert rows["before"].keys() == rows["with texts"].keys() == rows["pictures only"].keys()
    assert {name.split("/")[0] for name in rows["before"]} == {"pictures", "texts"}
    held_out = {f"{number}.png" for number in range(0, 40, 10)}
    trained = [json.loads(line)["file"] for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert {Path(path).name for path in trained} == {f"{number}.png" for number in range(40)} - held_out
    tuned = JinaCLIPModel.from_pretrained(tmp_path / "out" / "with-texts")
    assert_card_has_figures(tmp_path / "out" / "with-texts", ["before", "with texts"], tmp_path / "hub")
    merged = PeftModel.from_pretrained(
        JinaCLIPModel.from_pretrained(model), tmp_path / "out" / "with-texts" / "adapter"
    )
    assert type(merged.base_model.model) is type(tuned)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["file", "text"], "has no column 'caption'; it has file, text."),
        (["file", "caption"], "has 1 rows; at least 20 are needed"),
    ],
)
def test_wrong_tables_end_in_one_line(run: Run, model: Path, tmp_path: Path, columns: list[str], message: str) -> None:
    captions = write_csv(tmp_path / "captions.csv", columns, [["a.png", "an apple"]])
    with pytest.raises(SystemExit, match=message):
        run("finetune_folder", model, tmp_path, captions, "--texts", captions, "--output_dir", tmp_path / "out")


def test_a_picture_that_is_not_there(run: Run, model: Path, tmp_path: Path) -> None:
    captions = write_csv(tmp_path / "captions.csv", ["file", "caption"], [[f"{n}.png", "an apple"] for n in range(20)])
    with pytest.raises(SystemExit, match=r"names '0.png', which is not in"):
        run("finetune_folder", model, tmp_path, captions, "--texts", captions, "--output_dir", tmp_path / "out")


def test_mined_hard_negatives(
    run: Run, model: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tables, tmp_path / "pairs.csv", 300)
    out = tmp_path / "out"
    # The golden model is not trained: all its scores lie close together.
    run("hard_negatives", model, pairs, "--output_dir", out, "--steps", 2, "--batch_size", 8, "--margin", 0)
    assert "7 mined negatives each" in capsys.readouterr().out
    rows = figures(out)
    assert list(rows) == ["before", "after"]
    assert rows["before"].keys() == rows["after"].keys()
    hub = assert_card_has_figures(out, ["before", "after"], tmp_path / "hub")
    assert SentenceTransformer(str(hub), trust_remote_code=True, device="cpu").encode(["a word"]).shape[0] == 1


def test_examples_are_short() -> None:
    for name in ("finetune_folder", "hard_negatives"):
        assert len((CHECKOUT / "examples" / f"{name}.py").read_text().splitlines()) < 120
