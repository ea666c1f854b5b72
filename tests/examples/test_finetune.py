"""Fine-tuning with mined negatives on real data: pairs of the dictionary."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer

import hub_upload
from tests.examples.conftest import CHECKOUT, Run
from trainer_ext.data.holdout import hold_out
from trainer_ext.demo_data import load_table


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_pairs(tables: Path, path: Path, count: int) -> Path:
    rows = load_table(tables, "headword_definition", "train").select(range(count))
    return write_csv(path, ["query", "positive"], [[row["query"], row["positive"]] for row in rows])


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
    shares = [value for name, value in last.items() if not name.endswith("median_rank")]  # which is no share
    results = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert [metric["value"] for result in results for metric in result["metrics"]] == shares
    return hub


def test_mined_hard_negatives(
    run: Run, model: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tables, tmp_path / "pairs.csv", 300)
    out = tmp_path / "out"
    # The golden model is not trained: all its scores lie close together.
    small = ["--steps", 2, "--batch_size", 8, "--margin", 0]
    assert run("hard_negatives", model, pairs, "--output_dir", out, *small) == 0
    printed = capsys.readouterr().out
    assert "queries have 7 negatives" in printed
    rows = figures(out)
    names = ["chance", "BM25", "before training", "adapt"]
    assert list(rows) == names
    assert rows["before training"].keys() == rows["adapt"].keys()
    hub = assert_card_has_figures(out, names, tmp_path / "hub")
    assert SentenceTransformer(str(hub), trust_remote_code=True, device="cpu").encode(["a word"]).shape[0] == 1
    assert_split_first(pairs, tmp_path / "out-triplets.parquet", out)
    # Another try finds all that was mined.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "mining-cache").iterdir()}
    assert any(path.name.startswith("mined-") for path in kept)
    assert run("hard_negatives", model, pairs, "--output_dir", tmp_path / "again", *small, "--batch_size", 999) == 2
    assert "rows are fewer than a batch of 999" in capsys.readouterr().err  # mined, and not trained again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mining-cache").iterdir()} == kept
    again = load_dataset("parquet", data_files=str(tmp_path / "again-triplets.parquet"), split="train")
    assert (
        again.to_list() == load_dataset("parquet", data_files=str(out) + "-triplets.parquet", split="train").to_list()
    )


def assert_split_first(pairs: Path, triplets: Path, run: Path) -> None:
    """No text of a held-out pair is trained on, and all held-out queries are measured against all positives."""
    with pairs.open(encoding="utf-8") as file:
        rows = [(row["query"], row["positive"]) for row in csv.DictReader(file)]
    held_out = list(zip(*hold_out("pairs", Dataset.from_list([*map(as_row, rows)]), 0.1)[1][:].values(), strict=True))
    mined = load_dataset("parquet", data_files=str(triplets), split="train").to_list()
    trained = {text for row in mined for text in (row["query"], row["positive"], *row["negatives"])}
    assert not trained & {text for query, positive, _ in held_out for text in (query, positive)}
    queries, positives = {query for query, _, _ in held_out}, {positive for _, positive in rows}
    record = json.loads((run / "metrics.json").read_text())
    assert record["sizes"] == {"held_out": f"{len(queries)} queries, {len(positives)} candidates"}
    [change] = record["differences"]
    assert (change["first"], change["second"]) == ("before training", "adapt")
    assert change["intervals"].keys() == change["metrics"].keys()


def as_row(pair: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("query", "positive"), pair, strict=True))


def test_a_margin_that_leaves_nothing_is_one_line(
    run: Run, model: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tables, tmp_path / "pairs.csv", 60)
    assert run("hard_negatives", model, pairs, "--output_dir", tmp_path / "out", "--margin", 5) == 2
    assert "error: 0 rows are fewer than a batch of 32: more pairs, or less --margin" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_examples_are_short() -> None:
    assert len((CHECKOUT / "examples" / "hard_negatives.py").read_text().splitlines()) < 80
