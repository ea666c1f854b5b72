"""A run over a stream and a source with broken pictures: killed, resumed, the same to the bit; and what it records."""

import csv
import json
import signal
from pathlib import Path

import datasets
import pytest
import yaml

from tests.trainer_ext.own_process import in_own_process, train_until_killed
from tests.trainer_ext.source_files import BROKEN
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, trained
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.formats import DataError
from trainer_ext.data.record import SourceRecord
from trainer_ext.evaluation.report import Report
from trainer_ext.files import last_whole_checkpoint
from trainer_ext.recipe.recipe import load_recipe


@pytest.fixture(scope="module")
def streaming(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFactory:
    """The tiny run with two broken pictures, random crops, prompts and two streaming text sources."""
    tree = yaml.safe_load(tiny_recipe.read_text())
    folder = tmp_path_factory.mktemp("streaming")
    table = datasets.load_dataset("parquet", data_files=str(tiny_data / "pictures.parquet"), split="train")
    stored = table.cast_column("image", datasets.Image(decode=False)).to_list()
    for row in (4, 20):
        stored[row]["image"] = {"bytes": BROKEN, "path": None}
    broken = datasets.Dataset.from_list(stored).cast_column("image", datasets.Image())
    broken.to_parquet(folder / "pictures.parquet")
    for source in tree["sources"]:
        if source["name"] == "pictures":
            source |= {"location": str(folder / "pictures.parquet"), "max_broken_rows": 2}
        elif source["task"] == "text-pair":
            source |= {"streaming": True, "shuffle_buffer": 4, "prompts": {"query": "the "}}
    for stage in tree["stages"]:
        stage["random_resized_crop"] = [0.8, 1.0]
    tree["stages"][0]["text"]["sampling_alpha"] = 0.0
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return RunFactory(path)


@pytest.mark.parametrize(("workers", "killed_at"), [pytest.param(0, 5, marks=pytest.mark.slow), (2, 7)])
def test_killed_and_resumed_is_bit_identical(
    streaming: RunFactory, tmp_path: Path, workers: int, killed_at: int
) -> None:
    overrides = ["save_steps=2", f"dataloader_num_workers={workers}"]
    code = in_own_process(train_until_killed, streaming.recipe, tmp_path / "killed", overrides, killed_at)
    assert code == -signal.SIGKILL
    # A line beyond the checkpoint, half written, as a kill may leave it.
    steps = tmp_path / "killed" / "sources" / "steps.csv"
    steps.write_text(steps.read_text() + f"{killed_at + 1},har")
    streaming = RunFactory(streaming.recipe)  # streams start anew, as in a new process
    checkpoint = last_whole_checkpoint(tmp_path / "killed", print)
    resumed = trained(streaming(tmp_path / "killed", *overrides), checkpoint)
    whole = trained(RunFactory(streaming.recipe)(tmp_path / "whole", "save_steps=2"))
    assert_same_weights(resumed.model, whole.model)
    losses = [[entry["loss"] for entry in entries_of(run) if "loss" in entry] for run in (resumed, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    for name in ("steps.csv", "shares.json"):
        files = [tmp_path / run / "sources" / name for run in ("killed", "whole")]
        assert files[0].read_text() == files[1].read_text()
    assert_recorded(tmp_path / "whole")
    lists = [(tmp_path / run / "sources" / "broken_rows.jsonl").read_text() for run in ("killed", "whole")]
    assert sorted(lists[0].splitlines()) == sorted(lists[1].splitlines())
    assert sorted(json.loads(line)["row"] for line in lists[1].splitlines()) == [4, 20]


def assert_recorded(folder: Path) -> None:
    with (folder / "sources" / "steps.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [step["step"] for step in steps] == [str(n) for n in range(1, 9)]
    assert [step["stage"] for step in steps] == ["pairs"] * 3 + ["larger"] * 2 + ["hard"] * 3
    assert {step["image_text"] for step in steps} == {"pictures"}
    assert [step["text"] for step in steps[3:]] == ["successors"] * 2 + ["triplets"] * 3
    shares = json.loads((folder / "sources" / "shares.json").read_text())
    texts = [step["text"] for step in steps]
    assert shares["text"] == {
        name: {"rows": 4 * texts.count(name), "share": texts.count(name) / 8} for name in sorted(set(texts))
    }
    assert shares["image_text"] == {"pictures": {"rows": 32, "share": 1.0}}
    assert shares["broken_rows"] == {"pictures": 2}


def test_one_broken_picture_too_many_ends_the_run_and_a_larger_budget_resumes_it(
    streaming: RunFactory, tmp_path: Path
) -> None:
    small = streaming(tmp_path, "sources.pictures.max_broken_rows=1", "save_steps=1")
    with pytest.raises(DataError, match="2 rows of the source cannot be used, but its max_broken_rows is 1"):
        small.train()
    checkpoint = last_whole_checkpoint(tmp_path, print)
    assert checkpoint is not None
    resumed = trained(RunFactory(streaming.recipe)(tmp_path, "save_steps=1"), checkpoint)
    assert resumed.state.global_step == 8
    assert_recorded(tmp_path)


def test_shares_stand_in_the_report(tmp_path: Path, tiny_recipe: Path) -> None:
    record = SourceRecord(tmp_path, load_recipe(tiny_recipe).stages, BrokenRows(None))
    record.folder.mkdir()
    (record.folder / "steps.csv").write_text("step,stage,image_text,text\n1,pairs,pictures,a\n2,pairs,pictures,b\n")
    report = Report(tmp_path)
    report.add("only", {"task/t2i_r5": 0.5})
    report.shares = record.shares()
    report.save()
    assert "- rows of text from b: 4 (50.0%)\n" in (tmp_path / "metrics.md").read_text()
    assert Report.load(tmp_path).shares == report.shares
