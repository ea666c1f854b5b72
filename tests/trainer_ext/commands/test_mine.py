"""``mine`` as a user runs it: files in, a table and a source entry out, and what goes wrong in one line."""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import yaml
from sentence_transformers import SentenceTransformer

import hub_upload
from tests.trainer_ext.source_files import PAIR_COLUMNS, PICTURE_COLUMNS, write_pictures
from tests.trainer_ext.tiny_run import NUMBERS
from trainer_ext import train
from trainer_ext.__main__ import main
from trainer_ext.data.holdout import hold_out
from trainer_ext.data.sources import load_source
from trainer_ext.mining import read_pairs
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.schema import Source

Mine = Callable[..., int]


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mine:
    """Run the command in a folder with a source list of pairs, pictures and others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [[f"{word} is after", f"{word} bar on {other}"] for word in NUMBERS for other in ("red", "blue")]
        csv.writer(file).writerows([["q", "a"], *rows, ["one is before", " "]])
    write_pictures(tmp_path / "pictures.parquet", 12, broken=[3])
    pairs = {"task": "text-pair", "format": "csv", "location": "pairs.csv", "columns": PAIR_COLUMNS}
    sources = [
        {"name": "pairs", **pairs, "max_broken_rows": 1, "prompts": {"query": "find: "}},
        {"name": "whole", **pairs},
        {"name": "flowing", **pairs, "streaming": True},
        {
            **{"name": "pictures", "task": "image-text", "format": "parquet", "location": "pictures.parquet"},
            **{"columns": PICTURE_COLUMNS, "max_broken_rows": 1},
        },
        {"name": "triplets", **pairs, "task": "triplet", "columns": PAIR_COLUMNS | {"negatives": "n"}},
    ]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(sources))

    def run(*words: object) -> int:
        return main(["mine", "sources.yaml", *map(str, words)])

    return run


def entry_of(printed: str) -> dict:
    [entry] = yaml.safe_load(re.search(r"^- name: .*", printed, re.DOTALL | re.MULTILINE)[0])
    return entry


def test_the_printed_entry_trains(
    mine: Mine, tmp_path: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mine("--source", "pairs", "--retriever", "bm25", "--negatives", 3, "--out", "out/t.parquet") == 0
    entry = entry_of(capsys.readouterr().out)
    assert entry["prompts"] == {"query": "find: "}
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["sources"].append(entry)
    recipe["stages"] = recipe["stages"][2:]
    recipe["stages"][0] |= {"steps": 2, "image_text": None, "trainable": ["text"]}
    recipe["stages"][0]["text"]["sources"] = ["pairs-mined"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert load_recipe(tmp_path / "recipe.yaml").used_sources()[0].name == "pairs-mined"
    assert main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_table_and_summary(mine: Mine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine("--source", "pairs", "--retriever", "bm25", "--negatives", 3, "--out", "t.parquet") == 0
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    printed = capsys.readouterr().out
    assert "10 queries of 20 rows, 20 candidates: 10 queries have 3 negatives, 20 rows written" in printed
    assert "broken rows left out: 1" in printed
    for row in table:
        assert len(row["negatives"]) == len(row["negative_scores"]) == 3
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        assert max(row["negative_scores"]) <= row["positive_score"]
        assert row["query"].split()[0] not in {text.split()[0] for text in row["negatives"]}
    summary = json.loads((tmp_path / "t.summary.json").read_text())
    assert summary["rows_written"] == len(table) == 20
    assert summary["broken_rows"] == 1
    assert summary["settings"]["retriever"] == "bm25"


def test_what_holdout_keeps_from_training_is_not_mined(
    mine: Mine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither as a query nor as a candidate; what is left out is told by its row in the file."""
    sources = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    sources[0] |= {"holdout": 0.25}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(sources))
    source = Source.model_validate(sources[0])
    held = set(hold_out("pairs", load_source(source), 0.25)[1]["row"])
    assert sorted({*held, *read_pairs(source).numbers}) == list(range(20))
    assert mine("--source", "pairs", "--retriever", "bm25", "--negatives", 3, "--out", "t.parquet") == 0
    printed = capsys.readouterr().out
    assert "the rows that holdout 0.25 keeps from training are not among them" in printed
    assert "holdout" not in entry_of(printed)
    with (tmp_path / "pairs.csv").open() as file:
        answers = [row["a"] for row in csv.DictReader(file)]
    mined = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    texts = {text for row in mined for text in (row["positive"], *row["negatives"])}
    assert held
    assert not texts & {answers[row] for row in held}
    most = len(answers) - 1 - len(held)  # one row is empty
    assert mine("--source", "pairs", "--retriever", "bm25", "--negatives", most - 1, "--out", "few.parquet") == 2
    assert f"of {most // 2} queries" in capsys.readouterr().err


def test_a_model_mines_by_its_cosines(mine: Mine, model: Path, tmp_path: Path) -> None:
    options = ["--retriever", model, "--negatives", 2, "--max_length", 8, "--margin", "none", "--cache", "kept"]
    assert mine("--source", "pairs", *options, "--out", "t.parquet") == 0
    encoder = SentenceTransformer(str(model), trust_remote_code=True, device="cpu")
    encoder.max_seq_length = 8
    for row in parquet.read_table(tmp_path / "t.parquet").to_pylist():
        query, *texts = encoder.encode([f"find: {row['query']}", row["positive"], *row["negatives"]])
        right, *scores = texts @ query
        np.testing.assert_allclose([row["positive_score"], *row["negative_scores"]], [right, *scores], atol=1e-5)
        np.testing.assert_allclose(row["margins"], right - np.array(scores), atol=1e-5)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert mine("--source", "pairs", *options, "--out", "again.parquet") == 0
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "t.parquet").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == kept


@pytest.mark.parametrize("retriever", ["bm25", "MODEL"])
def test_captions_are_hard_negatives_of_pictures(
    mine: Mine, model: Path, tmp_path: Path, tiny_recipe: Path, retriever: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One picture cannot be decoded: a model leaves it out and says so, BM25 compares captions alone."""
    name = str(model) if retriever == "MODEL" else retriever
    options = ["--retriever", name, "--negatives", 2, "--margin", "none", "--near_equal", 0.9]
    assert mine("--source", "pictures", *options, "--out", "t.parquet") == 0
    printed = capsys.readouterr().out
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    captions = [f"shade {number}" for number in range(12)]
    assert [row["caption"] for row in table] == [
        [text] for text in captions if retriever == "bm25" or text[-2:] != " 3"
    ]
    assert all(len(set(row["negatives"]) - set(row["caption"])) == 2 for row in table)
    assert ("1 queries, mostly for: picture that cannot be decoded" in printed) == (retriever == "MODEL")
    assert ("broken rows left out: 1" in printed) == (retriever == "MODEL")
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["sources"].append(entry_of(printed))
    recipe["stages"] = recipe["stages"][:1]
    [side] = re.findall("# its negatives are read where a stage has image_text: (.*)", printed)
    recipe["stages"][0]["image_text"] = yaml.safe_load(side) | {"batch_size": 4}
    if retriever == "MODEL":
        recipe["teacher"] = taught_by(printed, "image_text")
    assert ("margins" in table[0]) == ("margins" in recipe["sources"][-1]["columns"]) == (retriever == "MODEL")
    recipe["sources"][-1]["max_broken_rows"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = train(tmp_path / "recipe.yaml", tmp_path / "run", overrides=["stages.0.steps=2"])
    assert json.loads((found.folder / "run.json").read_text())["losses"]["info_nce_plus"]


def taught_by(printed: str, side: str) -> dict:
    """The teacher that the printed words name."""
    [words] = re.findall("# its margins are read where a recipe has teacher: (.*)", printed)
    teacher = yaml.safe_load(words)
    assert teacher.pop("scale", 2.0) > 1.0
    assert teacher == {"kind": "margins", "sides": [side]}
    return yaml.safe_load(words)


def test_margins_of_a_cross_encoder_teach(
    mine: Mine, tmp_path: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scores are no cosines: the printed scale brings them into their range."""
    from transformers import BertConfig, BertForSequenceClassification

    from tests.trainer_ext.tiny_run import make_tokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    judge = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, initializer_range=2.0, **sizes))
    judge.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}  # scores, no chances
    judge.save_pretrained(tmp_path / "judge")
    make_tokenizer().save_pretrained(tmp_path / "judge")
    options = ["--retriever", "bm25", "--cross_encoder", "judge", "--negatives", 2, "--out", "t.parquet"]
    assert mine("--source", "pairs", *options) == 0
    printed = capsys.readouterr().out
    teacher = taught_by(printed, "text")
    margins = [margin for row in parquet.read_table(tmp_path / "t.parquet").to_pylist() for margin in row["margins"]]
    assert max(margins) / teacher["scale"] == pytest.approx(1.0, abs=0.06)
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["sources"].append(entry_of(printed))
    recipe["stages"] = recipe["stages"][2:]
    recipe["stages"][0] |= {"steps": 2, "image_text": None, "trainable": ["text"]}
    recipe["stages"][0]["text"]["sources"] = ["pairs-mined"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"teacher": teacher}))
    found = train(tmp_path / "recipe.yaml", tmp_path / "run")
    log = json.loads((found.folder / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert all(np.isfinite(entry["teacher_text"]) for entry in log if "loss" in entry)


WRONG = {
    "unknown source": (["--source", "pears"], "has no source 'pears'. Did you mean 'pairs'? Its sources are pairs, "),
    "wrong task": (["--source", "triplets"], "has task triplet, but negatives are mined for sources of task text-pair"),
    "streaming": (["--source", "flowing"], "Source 'flowing' is streaming, but mining compares all rows"),
    "broken row": (["--source", "whole"], "row 20, column 'a': empty text"),
    "too few": (["--source", "pairs", "--negatives", 20], "20 different candidates are fewer than 21: --negatives 20"),
    "no folder": (
        ["--source", "pairs", "--retriever", "owner/name"],
        "--retriever owner/name: there is no such folder",
    ),
    "no model": (["--source", "pairs", "--retriever", "."], "--retriever .: the folder has no modules.json"),
    "no cross-encoder": (["--source", "pairs", "--cross_encoder", "no"], "--cross_encoder no: there is no such folder"),
    "none found": (["--source", "pairs", "--margin", "99"], "none of 10 queries has 7 negatives: no word in common"),
    "pictures and cross-encoder": (["--source", "pictures", "--cross_encoder", "."], "but the queries are pictures"),
    "ending": (["--source", "pairs", "--out", "t.csv"], "--out t.csv: must end in .parquet"),
    "there already": (["--source", "pairs", "--out", "pictures.parquet"], "is there already; name a new file"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_what_goes_wrong_is_one_line(
    mine: Mine, words: list, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    assert mine("--retriever", "bm25", "--out", "t.parquet", *words) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} - before <= {"datasets"}


def test_a_model_without_an_image_tower(mine: Mine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    from tests.trainer_ext.tiny_run import make_tokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    words = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[words, Pooling(16)]).save(str(tmp_path / "text-model"))
    assert mine("--source", "pictures", "--retriever", "text-model", "--out", "t.parquet") == 2
    assert "text-model has no image tower, but source 'pictures' has pictures" in capfd.readouterr().err
    options = ["--negatives", 2, "--margin", "none", "--out", "t.parquet"]
    assert mine("--source", "pairs", "--retriever", "text-model", *options) == 0


def test_a_missing_library_is_named_with_its_cure(
    mine: Mine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """bm25s comes with the extra ``demo``."""
    monkeypatch.setitem(sys.modules, "bm25s", None)  # as if it was not installed
    assert mine("--source", "pairs", "--retriever", "bm25", "--out", "t.parquet") == 2
    assert "error: BM25 needs the package 'bm25s': pip install '.[demo]'\n" in capfd.readouterr().err
