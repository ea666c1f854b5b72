"""The command line on the tiny run: what a finished folder holds, and every way to be told no."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.trainer_ext.own_process import in_own_process, run_command_until_killed, tiny_suite
from trainer_ext.__main__ import main
from trainer_ext.run.evaluating import BEFORE_TRAINING

QUIET = ["evaluation=tiny"]


@pytest.fixture(autouse=True)
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """``evaluation: tiny`` means tasks over the tiny run's own data."""
    monkeypatch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)
        assert main([str(tiny_recipe), "--output_dir", str(folder), *QUIET]) == 0
    return folder


def test_finished_folder_is_a_model_with_its_report(finished: Path) -> None:
    model = JinaCLIPModel.from_pretrained(finished)
    model.processor = JinaCLIPProcessor.from_pretrained(finished)
    assert model.encode_text(["one red bar"]).shape == (1, 16)
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "metrics.json", "metrics.md", "metrics.png", "contact_sheet.png", "stages"} <= names
    assert not [name for name in names if name.startswith(".") or name.endswith((".bin", ".pt"))]
    rows = json.loads((finished / "metrics.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["chance", "BM25", BEFORE_TRAINING, "pairs", "larger", "hard"]
    assert {name.split("/")[0] for row in rows for name in row["metrics"]} == {"bars", "text", "hard"}
    assert [path.name for path in sorted((finished / "stages").iterdir())] == ["0-pairs", "1-larger", "2-hard"]


def test_stage_folders_are_whole_models_and_the_last_one_is_the_result(finished: Path) -> None:
    stages = [finished / "stages" / name for name in ("0-pairs", "1-larger", "2-hard")]
    weights = [load_file(folder / "model.safetensors") for folder in [*stages, finished]]
    for name, value in weights[-1].items():
        assert torch.equal(weights[2][name], value)
    assert not torch.equal(weights[0]["logit_scale"], weights[1]["logit_scale"])
    for folder in stages:
        JinaCLIPProcessor.from_pretrained(folder)
        assert JinaCLIPModel.from_pretrained(folder).config.vision_config.patch_dropout == 0.1


def test_killed_and_resumed_reports_the_same(
    finished: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the second stage, its last checkpoint then cut short on disk: goes on from the one before."""
    folder = tmp_path / "run"
    command = [str(tiny_recipe), "--output_dir", str(folder), *QUIET, "save_steps=1"]
    assert in_own_process(run_command_until_killed, command, 5) == -signal.SIGKILL
    weights = folder / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "skipping checkpoint-4: model.safetensors has" in said
    assert f"resuming from {folder / 'checkpoint-3'}" in said
    for name in ("metrics.json", "metrics.md", "model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    for name in ("0-pairs", "1-larger", "2-hard"):
        stored = [(place / "stages" / name / "model.safetensors").read_bytes() for place in (folder, finished)]
        assert stored[0] == stored[1]


@pytest.mark.slow
def test_resume_with_nothing_to_resume_starts_from_the_beginning(
    finished: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path / "run"), "--resume", *QUIET]) == 0
    assert "no complete checkpoint" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_leaves_it_as_it_is(
    finished: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (finished / name).read_bytes() for name in ("metrics.json", "model.safetensors")}
    assert main(["--resume", str(tiny_recipe), "--output_dir", str(finished), *QUIET]) == 0
    assert "checkpoint-8" in capsys.readouterr().out
    for name, content in before.items():
        assert (finished / name).read_bytes() == content


def test_a_stage_folder_starts_a_run_with_its_own_tokenizer(finished: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    start = finished / "stages" / "0-pairs"
    overrides = [f"model={start}", "tokenizer=null", "stages.0.steps=1", "stages.0.warmup_steps=0"]
    assert main([str(tiny_recipe), *overrides, "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert not (tmp_path / "run" / "metrics.json").exists()  # no evaluation was asked for


def test_a_trained_tokenizer_sets_the_vocabulary(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["tokenizer={vocab_size: 70}", "save_steps=1", "stages.2.steps=1"]
    assert main([str(tiny_recipe), "--output_dir", str(folder), *overrides]) == 0
    config = JinaCLIPModel.from_pretrained(folder).config
    tokenizer = JinaCLIPProcessor.from_pretrained(folder).tokenizer
    assert config.text_config.vocab_size == len(tokenizer) <= 70
    assert config.text_config.pad_token_id == tokenizer.pad_token_id


ERRORS = {
    "unknown key": (["stages.0.stepz=3"], ["stepz", "'steps'"]),
    "negative steps": (["stages.0.steps=-3"], ["stages.0.steps", "-3"]),
    "argument said elsewhere": (["learning_rate=1.0"], ["learning_rate", "stages.N.learning_rate"]),
    "no such source file": (["sources.0.location=nowhere.parquet"], ["pictures", "nowhere.parquet"]),
    "batch larger than its source": (["stages.0.text.batch_size=10"], ["stages.0.text.batch_size is 10", "9 rows"]),
    "batch that cannot be cut": (["gradient_accumulation_steps=3"], ["batch_size is 4", "multiple of 3"]),
    "pictures that make no patches": (
        ["stages.1.image_size=25", "stages.2.image_size=3"],
        ["stages.1.image_size: 25 px", "such as 24 or 28, or 16", "stages.2.image_size: 3 px", "such as 4, or 16"],
    ),
    "no such model": (["model=openmojy"], ["openmojy"]),
    "no such tokenizer": (["tokenizer=/nowhere/tokenizer"], ["/nowhere/tokenizer", "check the path"]),
    "preset without tokenizer": (["tokenizer=null"], ["has no tokenizer", "vocab_size"]),
    "temperature of zero": (["text_temperature=0.0"], ["text_temperature is 0.0", "above 0"]),
    "chunks of nothing": (["gradient_cache_chunk_size=0"], ["gradient_cache_chunk_size is 0", "at least 1"]),
    "unusable argument": (["save_only_model=true"], ["save_only_model", "could not be resumed"]),
    "exploding run": (
        ["stages.0.learning_rate=1e30", "stages.0.warmup_steps=0"],
        ["the loss is nan at step 2", "learning rate"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_clear_lines_with_the_cure(
    tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    overrides, words = ERRORS[case]
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path / "run"), *overrides]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    message = error[error.index("error: ") :]
    if case != "exploding run":
        assert not (tmp_path / "run" / "run.json").exists()  # the folder is free for another try
    assert [word for word in words if word not in message] == []


def test_another_runs_folder_is_refused(
    finished: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_recipe), "--output_dir", str(finished), *QUIET]) == 2
    assert "already holds a run; go on with it by --resume" in capsys.readouterr().err
    changed = [*QUIET, "stages.2.steps=4"]
    assert main([str(tiny_recipe), "--output_dir", str(finished), "--resume", *changed]) == 2
    assert "stages.2.steps: 3 -> 4" in capsys.readouterr().err
    (tmp_path / "thesis.tex").touch()
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path), *QUIET]) == 2
    assert "thesis.tex" in capsys.readouterr().err


def test_a_changed_recipe_is_taken_on_when_told_so(
    finished: Path, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([str(tiny_recipe), "--output_dir", str(folder), "seed=8"]) == 0
    command = [str(tiny_recipe), "--output_dir", str(folder), "--resume", "--allow_recipe_change"]
    assert main([*command, "seed=8", "stages.2.steps=4"]) == 0
    assert (folder / "checkpoint-9").is_dir()
    assert json.loads((folder / "run.json").read_text())["recipe"]["stages"][2]["steps"] == 4


def test_missing_recipe_and_wrong_option_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.yaml", "--output_dir", "unused"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["openmoji"])
    assert "--output_dir" in capsys.readouterr().err


def test_traceback_on_request(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stepz"):
        main([str(tiny_recipe), "--output_dir", str(tmp_path / "run"), "--traceback", "stages.0.stepz=3"])


def test_interruption_says_how_to_go_on(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer_ext.run.train.JinaCLIPTrainer.train", interrupted)
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path / "run")]) == 130
    assert f"--resume --output_dir {tmp_path / 'run'}" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(
    tiny_recipe: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    table = datasets.Dataset.from_parquet(str(tiny_data / "pictures.parquet"))
    table = table.cast_column("image", datasets.Image(decode=False))
    images = [{"bytes": b"not a picture", "path": None} for _ in table]
    broken = datasets.Dataset.from_dict({"image": images, "caption": table["caption"]})
    broken.to_parquet(tmp_path / "broken.parquet")
    overrides = [f"sources.0.location={tmp_path / 'broken.parquet'}", f"dataloader_num_workers={workers}"]
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path / "run"), *overrides]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "broken.parquet, row" in message
    assert "cannot be decoded" in message


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    # accelerate's own name for several processes on one machine; without a GPU they meet through gloo.
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                          "--mixed_precision=no", "--dynamo_backend=no"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_launchers_end_in_the_same_folder(
    finished: Path, tiny_recipe: Path, tmp_path: Path, launcher: list[str]
) -> None:
    """Two processes by the real launcher: one writes, and dropout off, the weights are those of one process."""
    quiet = [f"stages.{stage}.patch_dropout=0.0" for stage in range(3)] + [
        f"stages.{stage}.learning_rate=1e-3" for stage in range(3)
    ]
    preset = json.loads((tiny_recipe.parent / "model.json").read_text())
    preset["text_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model.json").write_text(json.dumps(preset))
    overrides = [*quiet, f"model={tmp_path / 'model.json'}"]
    assert main([str(tiny_recipe), "--output_dir", str(tmp_path / "one"), *overrides]) == 0
    start = [sys.executable, "-m", *launcher]
    command = [*start, "-m", "trainer_ext", str(tiny_recipe), "--output_dir", str(tmp_path / "two"), *overrides]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("the finished model is") == 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0.0, atol=1e-6)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode != 0
    assert "error: " in again.stderr
    assert "already holds a run" in again.stderr
