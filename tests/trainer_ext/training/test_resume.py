"""A run killed by SIGKILL and resumed ends in the same bits as one that was left alone."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_ext.own_process import (
    in_own_process,
    noisy_evaluation,
    train_until_killed,
    train_until_killed_in_checkpoint,
)
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, trained
from trainer_ext.files import last_whole_checkpoint
from trainer_ext.training.trainer import JinaCLIPTrainer

SPEC = (
    "{horizontal_flip: 0.5, color_jitter: {}, grayscale: 0.2, gaussian_blur: 0.5, word_deletion: 0.3, word_swap: 0.2}"
)
AUGMENTED = [f"stages.{stage}.augmentation={SPEC}" for stage in range(3)]
BALANCED = ["sources.pictures.balance={key: tags, limit: 5}"]
CAPTIONS = [
    "stages.0.image_text.captions_per_image=3",
    "stages.1.image_text.split_captions=sentences",
    "stages.1.image_text.short_caption={principal_components: 2}",
]
TEXTS = [
    f"sources.successors.{change}"
    for change in ("task=text", "columns={text: query, id: positive}", "repeat_words=0.5")
]
VARIANTS = {
    "every step": ["save_steps=1"],
    "workers": ["save_steps=2", "dataloader_num_workers=2"],
    "accumulation": ["save_steps=2", "gradient_accumulation_steps=2"],
    "cache": ["save_steps=2", "gradient_cache_chunk_size=3", "gradient_accumulation_steps=2"],
    "bf16": ["save_steps=2", "bf16=true"],
    "rare logs": ["save_steps=2", "logging_steps=3"],
    "augmentation": ["save_steps=2", "dataloader_num_workers=1", *AUGMENTED],
    "texts": ["save_steps=2", "gradient_cache_chunk_size=3", "gradient_accumulation_steps=2", *TEXTS],
    "balance": ["save_steps=2", "dataloader_num_workers=1", *BALANCED],
    "captions": ["save_steps=2", "dataloader_num_workers=1", *AUGMENTED, *CAPTIONS],
}


@pytest.fixture(scope="module")
def uninterrupted(
    make_trainer: RunFactory, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], JinaCLIPTrainer]:
    """The finished trainer of a variant, trained once."""
    finished: dict[str, JinaCLIPTrainer] = {}

    def get(variant: str) -> JinaCLIPTrainer:
        if variant not in finished:
            folder = tmp_path_factory.mktemp("uninterrupted")
            finished[variant] = trained(make_trainer(folder, *VARIANTS[variant], evaluate_fn=noisy_evaluation))
        return finished[variant]

    return get


def assert_same_run(left: JinaCLIPTrainer, right: JinaCLIPTrainer) -> None:
    """Weights, optimizer, schedule and every log entry, evaluations included."""
    assert_same_weights(left.model, right.model)
    left_state, right_state = left.optimizer.state_dict(), right.optimizer.state_dict()
    assert left_state["param_groups"] == right_state["param_groups"]
    for index, values in left_state["state"].items():
        for name, value in values.items():
            assert torch.equal(value, right_state["state"][index][name]), (index, name)
    assert left.lr_scheduler.state_dict() == right.lr_scheduler.state_dict()
    assert entries_of(left) == entries_of(right)


@pytest.mark.parametrize(
    ("variant", "steps"),
    [
        pytest.param("every step", 1, marks=pytest.mark.slow),  # nothing to resume from: starts again
        ("every step", 3),  # in the first stage's last step: resumes before the boundary
        ("every step", 4),  # resumes at the boundary
        pytest.param("workers", 5, marks=pytest.mark.slow),
        pytest.param("augmentation", 5, marks=pytest.mark.slow),
        pytest.param("texts", 5, marks=pytest.mark.slow),
        pytest.param("balance", 7, marks=pytest.mark.slow),
        pytest.param("captions", 3, marks=pytest.mark.slow),
        ("cache", 5),
        pytest.param("accumulation", 7, marks=pytest.mark.slow),
        pytest.param("bf16", 7, marks=pytest.mark.slow),
        pytest.param("rare logs", 7, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_bit_identical(
    make_trainer: RunFactory,
    uninterrupted: Callable[[str], JinaCLIPTrainer],
    tmp_path: Path,
    variant: str,
    steps: int,
) -> None:
    overrides = VARIANTS[variant]
    code = in_own_process(train_until_killed, make_trainer.recipe, tmp_path, overrides, steps)
    assert code == -signal.SIGKILL
    checkpoint = last_whole_checkpoint(tmp_path, print)
    assert (checkpoint is None) == (steps == 1)
    resumed = trained(make_trainer(tmp_path, *overrides, evaluate_fn=noisy_evaluation), checkpoint)
    assert resumed.state.global_step == 8
    assert_same_run(resumed, uninterrupted(variant))


def test_killed_while_a_checkpoint_is_written(
    make_trainer: RunFactory, uninterrupted: Callable[[str], JinaCLIPTrainer], tmp_path: Path
) -> None:
    overrides = VARIANTS["every step"]
    code = in_own_process(train_until_killed_in_checkpoint, make_trainer.recipe, tmp_path, overrides, "checkpoint-5")
    assert code == -signal.SIGKILL
    said: list[str] = []
    checkpoint = last_whole_checkpoint(tmp_path, said.append)
    assert checkpoint == tmp_path / "checkpoint-4"
    assert said == ["skipping .checkpoint-5.partial: the run was stopped while it was written"]
    resumed = trained(make_trainer(tmp_path, *overrides, evaluate_fn=noisy_evaluation), checkpoint)
    assert_same_run(resumed, uninterrupted("every step"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "checkpoint-8", "sources"]


def test_a_finished_run_can_be_resumed_without_another_step(
    make_trainer: RunFactory, uninterrupted: Callable[[str], JinaCLIPTrainer]
) -> None:
    finished = uninterrupted("every step")
    folder = Path(finished.args.output_dir)
    again = trained(make_trainer(folder, *VARIANTS["every step"]), folder / "checkpoint-8")
    assert_same_weights(again.model, finished.model)
    assert entries_of(again) == entries_of(finished)
    stored = load_file(folder / "checkpoint-8" / "model.safetensors")
    assert [name for name, value in again.model.state_dict().items() if not torch.equal(value, stored[name])] == []
