"""The evaluate command on files of one's own: the issue's example, end to end, and each way to be told no."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.trainer_ext.own_files import few_draws, save_ours, save_peer, write_csv, write_files, write_tasks
from trainer_ext.__main__ import main
from trainer_ext.commands.evaluate import short_names
from trainer_ext.evaluation.report import Report
from trainer_ext.measuring import build_tasks, load_task_rows
from trainer_ext.measuring.models import open_model
from trainer_ext.recipe.evaluation import load_tasks


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with few_draws():
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's files, a tasks.yaml as in the issue, two models of ours and a peer of texts alone."""
    folder = write_files(tmp_path_factory.mktemp("shop"))
    write_tasks(folder, truncate_dims=[8])
    save_ours(folder / "runs" / "a" / "best")
    save_ours(folder / "runs" / "b" / "best", seed=1)
    save_peer(folder)
    return folder


@pytest.fixture(scope="module")
def done(shop: Path) -> Path:
    models = [str(shop / "runs" / "a" / "best"), str(shop / "runs" / "b" / "best"), str(shop / "peer")]
    assert evaluate(*models, str(shop / "tasks.yaml"), "--output_dir", str(shop / "out"), "--batch_size", "4") == 0
    return shop / "out"


def evaluate(*arguments: str) -> int:
    return main(["evaluate", *arguments, "--device", "cpu"])


def test_three_models_stand_in_one_table_with_chance_and_bm25(done: Path) -> None:
    stored = json.loads((done / "metrics.json").read_text())
    rows = {row["name"]: row for row in stored["rows"]}
    assert stored["format"] == 2
    assert list(rows) == ["chance", "BM25", "a/best", "b/best", "peer"]
    of_retrieval = {"r1", "r5", "r10", "mrr", "ndcg10", "map10", "median_rank"}
    figures = rows["a/best"]["metrics"]
    for direction in ("shop/t2i", "shop/i2t", "shop/i2i"):
        assert {f"{direction}_{figure}" for figure in of_retrieval} <= set(figures)
    assert {f"answers/{figure}" for figure in of_retrieval} <= set(figures)
    for name in ("sts/spearman", "sts/pearson", "kinds/acc1", "kinds/acc5", "kinds/mean_class_recall", "kinds/ece"):
        assert name in figures, name
    for name in ("match/auroc", "match/threshold", "one-index/r5", "one-index/corrected_r5", "one-index/modality_gap"):
        assert name in figures, name
    assert "shop@8/t2i_r5" in figures
    assert set(rows["BM25"]["metrics"]) == {f"answers/{figure}" for figure in of_retrieval}
    low, high = rows["a/best"]["intervals"]["shop/t2i_r5"]
    assert low <= figures["shop/t2i_r5"] <= high
    words = (done / "metrics.md").read_text()
    assert "- shop/t2i: 40 queries, 20 candidates" in words
    assert " b/best - a/best |" in words
    page = (done / "report.html").read_text()
    assert "data:image/" in page, "the best and worst queries with their pictures"


def test_a_peer_of_texts_leaves_out_tasks_with_pictures_and_says_so(done: Path) -> None:
    stored = json.loads((done / "metrics.json").read_text())
    peer = stored["rows"][-1]["metrics"]
    assert {name.partition("/")[0].partition("@")[0] for name in peer} == {"answers", "sts"}
    said = [note for note in stored["notes"] if "peer has no image tower" in note]
    assert said == ["peer has no image tower: not measured on shop/t2i, shop/i2t, shop/i2i, kinds, match, one-index"]
    assert said[0] in (done / "metrics.md").read_text()


def test_two_models_have_the_difference_of_every_query(done: Path) -> None:
    [first, second] = json.loads((done / "metrics.json").read_text())["differences"]
    assert [(item["first"], item["second"]) for item in (first, second)] == [("a/best", "b/best"), ("a/best", "peer")]
    samples = load_file(done / "samples.safetensors")
    ours, theirs = (samples[f"{name}\0shop/t2i_mrr"] for name in ("a/best", "b/best"))
    assert len(ours) == 40
    assert first["metrics"]["shop/t2i_mrr"] == pytest.approx((theirs - ours).mean())
    low, high = first["intervals"]["shop/t2i_mrr"]
    assert low <= first["metrics"]["shop/t2i_mrr"] <= high
    assert "shop/t2i_mrr" not in second["metrics"]


def test_the_record_is_read_again_as_it_was_written(done: Path, tmp_path: Path) -> None:
    report = Report.load(done)
    report.folder = tmp_path
    report.save()
    for name in ("metrics.json", "metrics.md", "samples.safetensors"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name


def test_a_second_evaluation_encodes_nothing_and_finds_the_same(
    done: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = write_tasks(write_files(tmp_path), "[{name: answers, source: answers-test}, {name: sts, source: sts-test}]")
    models = [str(shop / "runs" / "a" / "best"), str(shop / "peer")]
    out = ["--output_dir", str(tmp_path / "out"), "--cache", str(done / "vectors")]
    assert evaluate(*models, str(some), *out) == 0
    said = capsys.readouterr().out
    assert said.count(": 0 items encoded") == 2
    assert "| answers " in said
    assert not (tmp_path / "out" / "vectors").exists()
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (done, tmp_path / "out"))
    rows = {row["name"].removeprefix("a/"): row for row in before["rows"]}
    for row in after["rows"]:
        assert row["metrics"].items() <= rows[row["name"]]["metrics"].items()
        assert row.get("intervals", {}).items() <= rows[row["name"]].get("intervals", {}).items()


def test_figures_are_those_of_the_vectors_themselves(done: Path, shop: Path) -> None:
    """One figure by hand: is a picture of the product among the five nearest to its caption?"""
    content = load_tasks(shop / "tasks.yaml")
    task = build_tasks(content.tasks[:1], load_task_rows(content.tasks[:1], content.sources), progress=False)[0]
    model = open_model(shop / "runs" / "a" / "best", device="cpu")
    texts, images = model.encode_text(task.queries), model.encode_image([item.load() for item in task.candidates])
    nearest = np.argsort(-texts @ images.T, axis=1)[:, :5]
    hits = [bool(set(found) & set(right)) for found, right in zip(nearest.tolist(), task.relevant, strict=True)]
    rows = {row["name"]: row["metrics"] for row in json.loads((done / "metrics.json").read_text())["rows"]}
    assert rows["a/best"]["shop/t2i_r5"] == np.mean(hits)


def test_without_bm25s_the_models_are_measured_all_the_same(
    done: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    tasks = write_tasks(write_files(tmp_path), "[{name: answers, source: answers-test}]")
    model = str(shop / "runs" / "a" / "best")
    assert evaluate(model, str(tasks), "--output_dir", str(tmp_path / "out"), "--cache", str(done / "vectors")) == 0
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["chance", "best"]
    assert stored["notes"] == ["BM25 is left out. The BM25 baseline needs bm25s: pip install '.[demo]'."]


# --- told no -------------------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert evaluate(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_a_peer_alone_on_pictures_is_refused(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = write_tasks(write_files(tmp_path), "[{name: shop, source: photos-test}]")
    said = told(capsys, str(shop / "peer"), str(tasks), "--output_dir", str(tmp_path / "out"))
    assert "Model 'peer' has no image tower, and all tasks need one: shop/t2i, shop/i2t. Add a task of texts" in said
    assert not (tmp_path / "out").exists()


def test_figures_outlive_a_later_model_that_fails(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks like a model, so only opening it shows that it is none."""
    broken = tmp_path / "broken"
    shutil.copytree(shop / "runs" / "b" / "best", broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    models = [str(shop / "runs" / "a" / "best"), str(broken)]
    words = told(capsys, *models, str(shop / "tasks.yaml"), "--output_dir", str(tmp_path / "out"))
    assert f"Model {str(broken)!r} cannot be loaded" in words
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["chance", "BM25", "best"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_run_and_a_model_keep_their_own_figures(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shop / "runs" / "a" / "best")
    said = told(capsys, model, str(shop / "tasks.yaml"), "--output_dir", model)
    assert "is the folder of a run or a model (config.json is there). Give a folder of its own" in said


def test_a_model_twice_and_a_model_that_is_none(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(shop / "runs" / "a" / "best"), ["--output_dir", str(shop / "no")]
    said = told(capsys, model, model + "/", str(shop / "tasks.yaml"), *out)
    assert "is given twice. Give each model once" in said
    assert "there is no such folder" in told(capsys, str(shop / "nothing"), str(shop / "tasks.yaml"), *out)


def test_broken_rows_are_listed_in_the_folder(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path)
    write_csv(tmp_path / "test.csv", ["question", "answer"], [["one", "two"], ["three", ""], ["four", "five"]])
    source = "[{name: p, task: text-pair, format: csv, location: test.csv, max_broken_rows: 1, columns: %s}]"
    tasks = write_tasks(tmp_path, "[{name: a, source: p}]", source % "{query: question, positive: answer}")
    model = str(shop / "runs" / "a" / "best")
    assert evaluate(model, str(tasks), "--output_dir", str(tmp_path / "out")) == 0
    assert "p: 1 rows cannot be used, of the 1 that may be left out" in capsys.readouterr().out
    [line] = (tmp_path / "out" / "broken_rows.jsonl").read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["column"]) == (1, "answer")


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--help"])
    assert left.value.code == 0
    assert "python -m trainer_ext evaluate outputs/mine jinaai/jina-clip-v1 tasks.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["m", "t.yaml"], ["t.yaml", "--output_dir", "x"], ["m", "t", "--output_dir", "x", "--batch_size", "0"]],
)
def test_arguments_that_are_wrong_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *arguments])
    assert left.value.code == 2


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["x/a", "x/b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert short_names(["a", "x/a"]) == ["a", "x/a"]
