"""The trainer on a tiny model: every kind of stage, what it logs, what it must not disturb, and when it must stop."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, trained
from trainer_ext.files import damage
from trainer_ext.training.monitoring import NonFiniteError
from trainer_ext.training.optimization import learning_rate_share

ONE_STAGE = [
    'stages=[{name: only, steps: 2, learning_rate: 1e-3, max_length: 8, '
    "image_text: {sources: [pictures], batch_size: 4}, text: {sources: [successors], batch_size: 4}}]"
]  # fmt: skip
SIDES = {
    "image-text": {"image_text"},
    "text-pair": {"text"},
    "triplet": {"text"},
    "both": {"image_text", "text"},
}
SHAPES = {
    "image-text": ["stages.0.text=null"],
    "text-pair": ["stages.0.image_text=null"],
    "triplet": ["stages.0.image_text=null", "stages.0.text={sources: [triplets], batch_size: 4, loss: info_nce_plus}"],
    "both": [],
}


class Watch(TrainerCallback):
    """Writes down what the model is set to while each step runs."""

    def __init__(self) -> None:
        self.patch_dropouts: list[float] = []
        self.learning_rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.patch_dropouts.append(kwargs["model"].vision_model.patch_dropout)
        self.learning_rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("extra", [[], ["gradient_cache_chunk_size=3"], ["tile_size=3", "false_negatives=positive"]])
def test_two_steps_of_every_data_shape(make_trainer: RunFactory, tmp_path: Path, shape: str, extra: list[str]) -> None:
    trainer = make_trainer(tmp_path, *ONE_STAGE, *SHAPES[shape], *extra)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    for entry in entries:
        terms = {name.removeprefix("loss_") for name in entry if name.startswith("loss_")}
        assert terms == SIDES[shape]
        assert {f"accuracy_{side}" for side in terms} <= entry.keys()
        assert {"stage", "temperature", "learning_rate", "grad_norm"} <= entry.keys()
        assert entry["loss"] == pytest.approx(sum(entry[f"loss_{side}"] for side in terms), rel=1e-6)
        assert 0.0 <= entry[f"accuracy_{min(terms)}"] <= 1.0
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert ("logit_scale" in changed) == ("image_text" in SIDES[shape])
    assert any(name.startswith("text_model") for name in changed)
    assert any(name.startswith("vision_model") for name in changed) == ("image_text" in SIDES[shape])


def test_stages_change_what_they_say(make_trainer: RunFactory, tmp_path: Path) -> None:
    watch = Watch()
    trainer = make_trainer(tmp_path, callbacks=[watch])
    trainer.train()
    stages = trainer.recipe.stages
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["stage"] for entry in entries] == ["pairs"] * 3 + ["larger"] * 2 + ["hard"] * 3
    assert watch.patch_dropouts == [0.25] * 3 + [0.1] * 2 + [0.0] * 3
    expected = [1e-2 * learning_rate_share(stages)(step) for step in range(8)]
    assert [rates[0] for rates in watch.learning_rates] == pytest.approx(expected)
    assert [entry["learning_rate"] for entry in entries] == pytest.approx(expected)
    assert trainer.model.config.vision_config.patch_dropout == 0.1  # the model is itself again at the end
    decay = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decay == [0.025, 0.0]
    assert min(parameter.ndim for parameter in trainer.optimizer.param_groups[0]["params"]) == 2
    assert max(parameter.ndim for parameter in trainer.optimizer.param_groups[1]["params"]) == 1


def test_batches_have_the_lengths_and_sizes_of_their_stage(make_trainer: RunFactory, tmp_path: Path) -> None:
    loader = make_trainer(tmp_path).get_train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    assert [batch["image_text"]["pixel_values"].shape[-1] for batch in batches] == [16] * 3 + [24] * 2 + [16] * 3
    assert all(batch["text"]["query"]["input_ids"].shape[1] <= 6 for batch in batches[:3])
    assert ["negatives" in batch["text"] for batch in batches] == [False] * 5 + [True] * 3


def test_temperature_stays_between_its_limits(make_trainer: RunFactory, tmp_path: Path) -> None:
    """A step of size 30 throws the scale far out, to one side or the other; it comes back to the edge."""
    trainer = make_trainer(tmp_path, *ONE_STAGE, "stages.0.learning_rate=30.0", "stages.0.steps=1")
    trainer.train()
    assert trainer.model.logit_scale.item() in (0.0, pytest.approx(math.log(100.0)))


def test_accumulation_logs_means_and_steps_once(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *ONE_STAGE, "gradient_accumulation_steps=2", dropout=0.0)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 2
    # Two rows a micro-batch: at chance each direction costs ln 2, a sum over micro-batches would be twice that.
    assert entries[0]["loss"] == pytest.approx(entries[0]["loss_image_text"] + entries[0]["loss_text"], rel=1e-6)


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_gradient_cache_changes_nothing_but_memory(make_trainer: RunFactory, tmp_path: Path, chunk: int) -> None:
    """Without dropout, which draws other numbers for other chunk shapes, the weights agree after all stages."""
    quiet = ["stages.0.patch_dropout=0.0", "stages.1.patch_dropout=0.0", "gradient_accumulation_steps=2"]
    plain = trained(make_trainer(tmp_path / "plain", *quiet, dropout=0.0))
    cached = trained(make_trainer(tmp_path / "cached", *quiet, f"gradient_cache_chunk_size={chunk}", dropout=0.0))
    for left, right in zip(plain.model.parameters(), cached.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-3, atol=2e-5)
    for left, right in zip(entries_of(plain), entries_of(cached), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)


def test_bf16_trains_on_the_cpu_with_losses_in_fp32(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *ONE_STAGE, "bf16=true")
    seen: list[torch.dtype] = []
    hook = trainer.model.text_model.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state.dtype))
    kinds: list[torch.dtype] = []
    compute_loss = trainer.compute_loss

    def spy(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        kinds.append(loss.dtype)
        return loss

    trainer.compute_loss = spy
    trainer.train()
    hook.remove()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert set(kinds) == {torch.float32}
    fp32 = make_trainer(tmp_path / "fp32", *ONE_STAGE)
    fp32.train()
    first, second = entries_of(trainer)[0]["loss"], entries_of(fp32)[0]["loss"]
    assert first == pytest.approx(second, rel=0.05)
    assert first != second  # autocast was on


def test_loader_workers_change_nothing(make_trainer: RunFactory, tmp_path: Path) -> None:
    alone = trained(make_trainer(tmp_path / "0"))
    with_workers = trained(make_trainer(tmp_path / "2", "dataloader_num_workers=2"))
    assert entries_of(alone) == entries_of(with_workers)
    assert_same_weights(alone.model, with_workers.model)


def restless(model: Any, processor: Any) -> dict[str, float]:
    """An evaluation with bad manners: draws random numbers everywhere and leaves evaluation mode on."""
    torch.manual_seed(99)
    np.random.seed(99)
    model.eval()
    model.processor = processor
    return {"first": float(model.encode_text(["one red bar"])[0, 0]), "noise": float(torch.rand(()))}


def test_evaluation_does_not_disturb_training(make_trainer: RunFactory, tmp_path: Path) -> None:
    plain = trained(make_trainer(tmp_path / "plain"))
    evaluated = trained(make_trainer(tmp_path / "evaluated", evaluate_fn=restless))
    entries = [entry for entry in evaluated.state.log_history if "eval_first" in entry]
    assert [entry["step"] for entry in entries] == [3, 5, 8]  # the last step of each stage
    assert [entry for entry in entries_of(evaluated) if "loss" in entry] == entries_of(plain)
    assert_same_weights(plain.model, evaluated.model)


def test_evaluation_in_the_middle_of_a_stage(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "eval_strategy=steps", "eval_steps=2", evaluate_fn=restless)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_first" in entry]
    assert steps == [2, 3, 4, 5, 6, 8]


def test_checkpoints_are_sealed_model_folders_without_our_pickles(make_trainer: RunFactory, tmp_path: Path) -> None:
    make_trainer(tmp_path, "save_total_limit=1").train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-8", "sources"]
    checkpoint = tmp_path / "checkpoint-8"
    assert damage(checkpoint) is None
    names = {path.name for path in checkpoint.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "optimizer.pt"} <= names
    assert "training_args.bin" not in names
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 8


class Poison(TrainerCallback):
    """Breaks the model before a step, or a gradient in it."""

    def __init__(self, step: int, gradient: bool) -> None:
        self.step, self.gradient = step, gradient

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and not self.gradient:
            model.vision_model.norm.weight.data[0] = math.nan

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.gradient:
            model.logit_scale.grad.fill_(math.inf)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [(False, r"the loss is nan at step 5 \(stage larger; .*pictures"), (True, r"not finite at step 5 .*logit_scale")],
)
def test_nan_stops_the_run_and_keeps_the_last_good_state(
    make_trainer: RunFactory, tmp_path: Path, gradient: bool, message: str
) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Poison(4, gradient)])
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "sources"]
    assert damage(tmp_path / "checkpoint-4") is None


def test_a_full_disk_leaves_no_half_checkpoint(
    make_trainer: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer_ext.training.saving.seal", full)
    with pytest.raises(OSError, match="No space left"):
        make_trainer(tmp_path).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
