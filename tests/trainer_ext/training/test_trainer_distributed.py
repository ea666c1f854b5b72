"""Two processes and one, given the same global batch, take the same steps."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_ext.own_process import in_two_processes, noisy_evaluation, train_rank, train_until_killed
from tests.trainer_ext.tiny_run import RunFactory, entries_of, trained
from tests.trainer_ext.training.test_resume import AUGMENTED, BALANCED, TEXTS
from trainer_ext.files import last_whole_checkpoint
from trainer_ext.recipe.problems import RecipeError

# No dropout: two processes draw other random numbers than one. Steps of size 1e-3, a thousand times the tolerance.
QUIET = ["stages.0.patch_dropout=0.0", "stages.1.patch_dropout=0.0", "save_steps=8"] + [
    f"stages.{stage}.learning_rate=1e-3" for stage in range(3)
]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="plain"),
        pytest.param(["gradient_cache_chunk_size=1", "gradient_accumulation_steps=2"], id="cache, accumulation"),
        pytest.param(["stages.0.image_text=null"], id="first stage without images", marks=pytest.mark.slow),
        pytest.param(
            ["stages.2.image_text=null", "gradient_cache_chunk_size=1"],
            id="last without images, cache",
            marks=pytest.mark.slow,
        ),
        pytest.param(["tile_size=1", "false_negatives=positive"], id="tiles", marks=pytest.mark.slow),
        pytest.param([*TEXTS, "gradient_cache_chunk_size=1"], id="texts without pairs", marks=pytest.mark.slow),
        pytest.param(BALANCED, id="balance", marks=pytest.mark.slow),
        pytest.param([*AUGMENTED, "gradient_accumulation_steps=2"], id="augmentation", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(make_trainer: RunFactory, tmp_path: Path, extra: list[str]) -> None:
    overrides = [*QUIET, *extra]
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", overrides, 0.0) == [0, 0]
    logs = [torch.load(tmp_path / "two" / f"log-{rank}.pt") for rank in range(2)]
    one = trained(make_trainer(tmp_path / "one", *overrides, dropout=0.0, evaluate_fn=noisy_evaluation))
    assert logs[0] == logs[1]
    for left, right in zip(logs[0], entries_of(one), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            close = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-6)
            assert right[name] == close, name
    stored = load_file(tmp_path / "two" / "checkpoint-8" / "model.safetensors")
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=0.0, atol=1e-6)


def test_fsdp_of_accelerate_is_refused(
    make_trainer: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"fsdp: .*cannot shard .*logit_scale; write `fully_shard: true`"):
        make_trainer(tmp_path, "fsdp=true")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"`accelerate launch` asks for FSDP.*`fully_shard: true`"):
        make_trainer(tmp_path)


# Frozen parts have no optimizer state at first; a stage that begins anew has none to bring back; a loss has parameters
# of its own.
SHARDED = ["stages.0.trainable=[text]", "stages.2.reset_optimizer=true", "stages.1.image_text.loss=siglip"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["fully_shard=true", *SHARDED]], ids=["whole weights", "sharded"])
def test_two_processes_killed_and_resumed_are_bit_identical(
    make_trainer: RunFactory, tmp_path: Path, extra: list[str]
) -> None:
    """With dropout: each process has random numbers of its own to bring back."""
    recipe, overrides = make_trainer.recipe, ["save_steps=2", *extra]
    killed, left_alone = tmp_path / "killed", tmp_path / "left-alone"
    assert in_two_processes(train_rank, recipe, left_alone, overrides) == [0, 0]
    assert in_two_processes(train_until_killed, recipe, killed, overrides, 5) == [-signal.SIGKILL] * 2
    checkpoint = last_whole_checkpoint(killed, print)
    assert checkpoint == killed / "checkpoint-4"
    assert in_two_processes(train_rank, recipe, killed, overrides, 0.1, checkpoint) == [0, 0]
    for name in ("log-0.pt", "log-1.pt"):
        assert torch.load(killed / name) == torch.load(left_alone / name)
    for name in ("model.safetensors", "rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"):
        stored = [(folder / "checkpoint-8" / name).read_bytes() for folder in (killed, left_alone)]
        assert stored[0] == stored[1], name
