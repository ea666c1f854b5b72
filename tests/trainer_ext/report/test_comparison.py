"""Runs beside each other: recipe differences, paired intervals, verdicts, and the command with its exit codes."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.trainer_ext.own_files import few_draws
from tests.trainer_ext.report.run_folders import run_folder
from tests.trainer_ext.report.samples import RECIPE
from trainer_ext.__main__ import main
from trainer_ext.commands import COMMANDS
from trainer_ext.evaluation.items import Embeddings
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.similarity import SimilarityTask
from trainer_ext.evaluation.tasks import ALL_RECALLS, figures_of, text_task
from trainer_ext.report.comparison import compare_runs, recipe_rows, verdict
from trainer_ext.report.data import Difference, RunFacts

MANY = np.random.default_rng(0).integers(0, 2, 200).astype(float)
BETTER = np.maximum(MANY, (np.arange(200) % 4 == 0).astype(float))


def other_recipe(**changes) -> dict:
    recipe = copy.deepcopy(RECIPE)
    recipe["stages"][0] |= changes
    return recipe


def test_the_interval_is_that_of_the_differences_query_by_query(tmp_path):
    data = compare_runs([run_folder(tmp_path / "a", MANY), run_folder(tmp_path / "b", BETTER)])
    [found] = [item for item in data.differences if item.metric == "shop/t2i_r5"]
    assert (found.first, found.second) == ("a", "b")
    assert found.value == pytest.approx((BETTER - MANY).mean())
    spread = 1.96 * (BETTER - MANY).std() / np.sqrt(200)
    assert found.interval == pytest.approx((found.value - spread, found.value + spread), abs=0.02)
    assert verdict(found) == "better"
    assert [item.interval for item in data.differences if item.metric == "match/threshold"] == [None]


def test_without_values_per_query_there_is_no_verdict(tmp_path):
    folders = [run_folder(tmp_path / "a", MANY), run_folder(tmp_path / "b", BETTER)]
    (folders[1] / "samples.safetensors").unlink()
    assert {verdict(item) for item in compare_runs(folders).differences} == {""}


def test_other_queries_are_not_paired_and_the_page_says_so(tmp_path):
    data = compare_runs([run_folder(tmp_path / "a", MANY), run_folder(tmp_path / "b", MANY[:50])])
    assert [item.metric for item in data.differences] == ["match/threshold"], "the others are not subtracted"
    assert data.notes[0] == (
        "shop/t2i is not the same task: 200 queries, 9 candidates in a, 50 queries, 9 candidates in b. Its figures are "
        "not compared."
    )


def measured(folder: Path, answers: Sequence[str], seed: int, lengths: Sequence[int] | None = None) -> Path:
    """Figures of one model on 80 pairs of texts and their scores."""
    questions = [f"question {row}" for row in range(80)]
    pairs = text_task("words", zip(questions, answers, strict=True), ALL_RECALLS, by=["de", "en"] * 40)
    pairs.lengths = lengths
    tasks = [pairs, SimilarityTask("sts", questions, answers, [float(row % 5) for row in range(80)])]
    random, items = np.random.default_rng(seed), [*questions, *answers]
    rows = random.normal(size=(160, 8)).astype(np.float32)
    with few_draws():
        found = figures_of(Embeddings({item: place for place, item in enumerate(items)}, rows), tasks)
    report = Report(folder, tasks)
    report.add_figures("model", found)
    report.save()
    return folder


def test_equal_sizes_over_other_rows_are_not_subtracted(tmp_path):
    """The answers of one run were corrected in one row: as many queries, other data."""
    answers = [f"answer {row}" for row in range(80)]
    first = measured(tmp_path / "a", answers, 0)
    same, other = measured(tmp_path / "b", answers, 1), measured(tmp_path / "c", [*answers[:79], "corrected"], 1)
    found = compare_runs([first, same])
    assert found.notes == []
    assert all(item.interval is not None for item in found.differences)
    assert {"words/r5", "words[de]/r5", "words/median_rank", "sts/spearman"} <= {d.metric for d in found.differences}
    found = compare_runs([first, other])
    assert found.differences == []
    assert [note.partition(":")[0] for note in found.notes] == [
        "words is not the same task", "sts is not the same task"
    ]  # fmt: skip
    assert "80 queries, 80 candidates in both, but not the same rows" in found.notes[0]


def test_lengths_by_other_tokenizers_are_not_subtracted(tmp_path):
    answers = [f"answer {row}" for row in range(80)]
    folders = [
        measured(tmp_path / name, answers, seed, [9] * place + [50] * (80 - place))
        for seed, (name, place) in enumerate([("a", 40), ("b", 41)])
    ]
    found = compare_runs(folders)
    assert not [item.metric for item in found.differences if "tokens" in item.metric]
    assert "words/r5" in [item.metric for item in found.differences]
    assert found.notes[0].startswith("words: the parts [up to 32 tokens], [up to 77 tokens] are not the same queries")


def test_a_record_without_hashes_says_what_is_taken_for_the_same(tmp_path):
    answers = [f"answer {row}" for row in range(80)]
    folders = [measured(tmp_path / name, answers, seed) for seed, name in enumerate("ab")]
    kept = json.loads((folders[1] / "metrics.json").read_text())
    del kept["contents"]
    (folders[1] / "metrics.json").write_text(json.dumps(kept))
    found = compare_runs(folders)
    assert found.notes == [
        "b was written by an older version, which did not keep what its tasks hold: tasks of the same name and size "
        "are taken for the same."
    ]
    assert found.differences


@pytest.mark.parametrize(
    ("metric", "value", "interval", "words"),
    [
        ("a/r5", 0.1, (0.05, 0.2), "better"),
        ("a/r5", -0.1, (-0.2, -0.05), "worse"),
        ("a/r5", 0.1, (-0.05, 0.2), "open"),
        ("a/r5", 0.0, (0.0, 0.0), "open"),
        ("a/ece", 0.1, (0.05, 0.2), "worse"),
        ("a/threshold", 0.1, (0.05, 0.2), ""),
        ("a/r5", 0.1, None, ""),
    ],
)
def test_verdicts(metric, value, interval, words):
    assert verdict(Difference(metric, "x", "y", value, interval)) == words


def test_recipes_differ_by_dotted_keys_whatever_the_order_of_stages():
    runs = [RunFacts("a", RECIPE), RunFacts("b", other_recipe(steps=25, learning_rate=0.1))]
    assert recipe_rows(runs) == [("stages.short.steps", ["20", "25"]), ("stages.short.learning_rate", ["–", "0.1"])]
    turned = copy.deepcopy(RECIPE)
    turned["stages"].reverse()
    assert recipe_rows([RunFacts("a", RECIPE), RunFacts("b", turned)]) == []


def test_command_writes_the_page_and_ends_with_1_where_a_figure_is_worse(tmp_path, capsys):
    good, bad = run_folder(tmp_path / "good", BETTER), run_folder(tmp_path / "bad", MANY, other_recipe(steps=21))
    words = ["compare", str(good), str(bad), "--output_dir", str(tmp_path / "page")]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "stages.short.steps: 20 -> 21" in out
    assert "bad minus good:" in out
    assert "worse" in out
    text = (tmp_path / "page" / "report.html").read_text()
    assert "What differs between the recipes" in text
    assert '<span class="verdict worse">worse</span>' in text
    assert main(["compare", str(bad), str(good), "--output_dir", str(tmp_path / "page")]) == 0
    assert main([*words, "--row", "short"]) == 0, "the same stage of both is the same"


def test_curves_of_both_runs_are_in_one_chart(tmp_path):
    data = compare_runs([run_folder(tmp_path / "a"), run_folder(tmp_path / "b"), run_folder(tmp_path / "c")])
    assert [run.name for run in data.runs] == ["a", "b", "c"]
    assert {(item.first, item.second) for item in data.differences} == {("a", "b"), ("a", "c")}


def test_runs_of_one_name_are_told_apart(tmp_path):
    data = compare_runs([run_folder(tmp_path / "one" / "run"), run_folder(tmp_path / "two" / "run")])
    assert [row.name for row in data.rows if row.kind == "model"] == ["one/run", "two/run"]


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    run = str(run_folder(tmp_path / "run"))
    empty = tmp_path / "empty"
    empty.mkdir()
    models = Report(tmp_path / "models")
    for name in ("ours", "peer"):
        models.add(name, {"shop/t2i_r5": 0.5}, "model")
    models.save()
    bare = run_folder(tmp_path / "bare")
    (bare / "metrics.json").unlink()
    for words, cause in [
        ([run], "compare needs two runs or more; 1 given"),
        ([run, run], "is given twice"),
        ([run, str(empty)], "has neither run.json nor metrics.json"),
        ([run, str(bare)], "has no metrics.json with figures of a run"),
        ([run, str(models.folder)], "has the figures of several models: ours, peer. Name one by --row"),
        ([str(bare), run, "--row", "x"], "has no metrics.json"),
        ([run, str(models.folder), "--row", "x"], "has no row 'x'; it has: before training, short, long"),
        ([run, str(tmp_path / "gone")], "has neither run.json"),
    ]:
        assert main(["compare", *words, "--output_dir", str(tmp_path / "page")]) == 2, words
        error = capsys.readouterr().err
        assert cause in error
        assert error.count("\n") == 1
    assert main(["compare", run, str(bare), "--output_dir", run]) == 2
    assert "is one of the runs" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_help_has_an_example(capsys):
    assert "compare" in COMMANDS
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "python -m trainer_ext compare outputs/first outputs/second" in capsys.readouterr().out
