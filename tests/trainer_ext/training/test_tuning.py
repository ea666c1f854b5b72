"""What a stage trains: frozen parts keep their bits, rates differ by part and layer, optimizers start anew."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import RunFactory, make_model, trained
from tests.trainer_ext.training.test_resume import assert_same_run
from trainer_ext.training.model_parts import part_of, tower_depths, train_only
from trainer_ext.training.trainer import JinaCLIPTrainer

LOCKED_THEN_ALL = [
    "stages.0.trainable=[text]",
    "stages.2.reset_optimizer=true",
    "save_steps=1",
    "save_total_limit=null",
]
PARTS = {"text", "vision", "temperature"}  # the tiny model's towers end without projections


class Watch(TrainerCallback):
    """Notes, step by step, which parts changed, have an optimizer state and got a gradient."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.changed: list[set[str]] = []
        self.with_state: list[set[str]] = []
        self.with_gradient: list[set[str]] = []
        self.training: list[tuple[bool, bool]] = []
        self.oldest: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.with_gradient.append({part_of(name) for name, value in model.named_parameters() if value.grad is not None})
        self.training.append((model.text_model.training, model.vision_model.training))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **kwargs: Any) -> None:
        named = dict(model.named_parameters())
        self.changed.append({part_of(name) for name in named if not torch.equal(named[name], self.before[name])})
        known = {id(parameter): values for parameter, values in optimizer.state.items()}
        self.with_state.append({part_of(name) for name, value in named.items() if id(value) in known})
        self.oldest.append(max(float(values["step"]) for values in known.values()))


def watched(make_trainer: RunFactory, folder: Path, *overrides: str) -> tuple[JinaCLIPTrainer, Watch]:
    watch = Watch()
    return trained(make_trainer(folder, *overrides, callbacks=[watch])), watch


@pytest.mark.parametrize(
    "extra",
    [
        ["gradient_cache_chunk_size=3", "gradient_accumulation_steps=2"],
        pytest.param([], marks=pytest.mark.slow),
    ],
)
def test_a_stage_trains_its_parts_alone(make_trainer: RunFactory, tmp_path: Path, extra: list[str]) -> None:
    """First locked-image tuning, then everything, then the temperature."""
    overrides = ["stages.0.trainable=[text]", "stages.2.trainable=[temperature]", "stages.2.text=null", *extra]
    _, watch = watched(make_trainer, tmp_path, *overrides)
    expected = [{"text"}] * 3 + [PARTS] * 2 + [{"temperature"}] * 3
    assert watch.changed == expected
    assert watch.with_gradient == expected
    assert watch.with_state == [{"text"}] * 3 + [PARTS] * 5
    assert watch.training == [(True, False)] * 3 + [(True, True)] * 2 + [(False, False)] * 3


def test_what_no_stage_trains_costs_nothing(make_trainer: RunFactory, tmp_path: Path) -> None:
    """Locked-text tuning: the optimizer does not even know the other tower."""
    overrides = [f"stages.{i}.{key}" for i in range(3) for key in ("trainable=[vision]", "text=null")]
    trainer, watch = watched(make_trainer, tmp_path, *overrides)
    assert watch.changed == [{"vision"}] * 8
    known = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in trainer.model.vision_model.parameters()}
    assert not any(parameter.requires_grad for parameter in trainer.model.text_model.parameters())


def test_a_frozen_tower_is_a_fixed_function(make_trainer: RunFactory, tmp_path: Path) -> None:
    """Without dropout: the loss of two runs that differ in the frozen tower's dropout alone is the same."""
    overrides = ["stages.0.trainable=[vision]", "stages.0.text=null", "stages.0.patch_dropout=0.0"]
    losses = []
    for dropout in (0.0, 0.5):
        trainer = make_trainer(tmp_path / str(dropout), *overrides, dropout=dropout)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][:3])
    assert losses[0] == losses[1]


def test_a_fresh_optimizer_at_the_boundary(make_trainer: RunFactory, tmp_path: Path) -> None:
    """At the first boundary; the state is carried over the second."""
    _, reset = watched(make_trainer, tmp_path / "reset", "stages.1.reset_optimizer=true")
    assert reset.oldest == [1, 2, 3, 1, 2, 3, 4, 5]


# The boundaries are at 3 and 5.
@pytest.mark.parametrize("steps", [3, 4, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (2, 5, 6))])
def test_resumes_to_the_same_bits_around_the_boundaries(
    make_trainer: RunFactory, tmp_path_factory: pytest.TempPathFactory, steps: int
) -> None:
    finished = _locked_then_all(make_trainer, tmp_path_factory)
    checkpoint = Path(finished.args.output_dir) / f"checkpoint-{steps}"
    folder = tmp_path_factory.mktemp("resumed")
    assert_same_run(trained(make_trainer(folder, *LOCKED_THEN_ALL), checkpoint), finished)


_FINISHED: list[JinaCLIPTrainer] = []


def _locked_then_all(make_trainer: RunFactory, tmp_path_factory: pytest.TempPathFactory) -> JinaCLIPTrainer:
    if not _FINISHED:
        _FINISHED.append(trained(make_trainer(tmp_path_factory.mktemp("whole"), *LOCKED_THEN_ALL)))
    return _FINISHED[0]


@pytest.mark.slow
def test_two_processes_train_the_parts_of_one(make_trainer: RunFactory, tmp_path: Path) -> None:
    """DDP waits for every parameter that some stage trains; the frozen ones must not count all the same."""
    overrides = ["stages.0.trainable=[text]", "stages.1.trainable=[vision]", "stages.1.text=null", "save_steps=8"]
    quiet = [f"stages.{stage}.patch_dropout=0.0" for stage in range(2)]
    alone = trained(make_trainer(tmp_path / "1", *overrides, *quiet, dropout=0.0))
    (tmp_path / "2").mkdir()
    codes = in_two_processes(train_rank, make_trainer.recipe, tmp_path / "2", [*overrides, *quiet], 0.0)
    assert codes == [0, 0]
    entries = [entry for entry in torch.load(tmp_path / "2" / "log-0.pt") if "loss" in entry]
    for left, right in zip([e for e in alone.state.log_history if "loss" in e], entries, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


class Rates(TrainerCallback):
    """Notes the learning rate of every parameter at every step."""

    def __init__(self) -> None:
        self.of: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        self.of.append({name: rates[id(value)] for name, value in model.named_parameters()})


def test_rates_by_part_and_by_layer(make_trainer: RunFactory, tmp_path: Path) -> None:
    """One block: the embeddings lie two layers below the last norm, the block one."""
    rates = Rates()
    overrides = [
        "stages.0.learning_rates={vision: 1e-3, temperature: 0.1}",
        "stages.1.layer_decay={text: 0.5, vision: 0.1}",
        *(f"stages.{stage}.{key}" for stage in range(3) for key in ("schedule=constant", "warmup_steps=0")),
    ]
    trainer = trained(make_trainer(tmp_path, *overrides, callbacks=[rates]))
    named = {
        "text_model.transformer.embeddings.word_embeddings.weight": (1e-2, 5e-3 * 0.25, 2e-3),
        "text_model.transformer.encoder.layers.0.norm1.bias": (1e-2, 5e-3 * 0.5, 2e-3),
        "vision_model.pos_embed": (1e-3, 5e-3 * 0.01, 2e-3),
        "vision_model.patch_embed.proj.weight": (1e-3, 5e-3 * 0.01, 2e-3),
        "vision_model.blocks.0.attn.q_bias": (1e-3, 5e-3 * 0.1, 2e-3),
        "vision_model.norm.weight": (1e-3, 5e-3, 2e-3),
        "logit_scale": (0.1, 5e-3, 2e-3),
    }
    for name, (first, second, third) in named.items():
        expected = [first] * 3 + [second] * 2 + [third] * 3
        assert [step[name] for step in rates.of] == pytest.approx(expected), name
    decays = [(group["weight_decay"], min(p.ndim for p in group["params"])) for group in trainer.optimizer.param_groups]
    assert all((decay > 0) == (ndim >= 2) for decay, ndim in decays)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adafactor", "Adafactor"),
        pytest.param("sgd", "SGD", marks=pytest.mark.slow),
        pytest.param("adamw_torch_fused", "AdamW", marks=pytest.mark.slow),
    ],
)
def test_optim_is_the_optimizer_that_is_asked_for(
    make_trainer: RunFactory, tmp_path: Path, name: str, kind: str
) -> None:
    trainer = make_trainer(tmp_path, f"optim={name}", "stages.0.learning_rates={vision: 1e-3}")
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == kind
    assert len(optimizer.param_groups) == 4  # two rates, each with and without decay
    assert bool(optimizer.defaults.get("fused")) == (name == "adamw_torch_fused")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == kind
    changed = {
        part_of(name) for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed == PARTS


@pytest.mark.slow
def test_eight_bit_states_on_the_cpu_too(make_trainer: RunFactory, tmp_path: Path) -> None:
    """Tensors of 4,096 elements and more have states of one byte an element; the tiny model gets one of those."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    trainer = make_trainer(tmp_path, "optim=adamw_bnb_8bit")
    trainer.model.text_model.transformer.encoder.layers[0].mlp.wo = torch.nn.Linear(32, 16)
    trainer.model.vision_model.blocks[0].mlp.w1 = torch.nn.Linear(16, 256)
    trainer.model.vision_model.blocks[0].mlp.w2 = torch.nn.Linear(16, 256)
    trainer.model.vision_model.blocks[0].mlp.ffn_ln = torch.nn.LayerNorm(256)
    trainer.model.vision_model.blocks[0].mlp.w3 = torch.nn.Linear(256, 16)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, bitsandbytes.optim.AdamW)
    states = trainer.optimizer.state
    assert states[trainer.model.vision_model.blocks[0].mlp.w3.weight]["state1"].dtype == torch.uint8
    assert states[trainer.model.vision_model.norm.weight]["state1"].dtype == torch.float32


def test_every_parameter_is_of_a_part() -> None:
    names = [name for name, _ in make_model().named_parameters()]
    assert {part_of(name) for name in names} == PARTS
    assert tower_depths(names) == {"text": 1, "vision": 1}
    with pytest.raises(ValueError, match=r"'decoder.weight' belongs to no known part"):
        part_of("decoder.weight")


def test_a_part_the_model_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"vision_projection cannot be trained: .* its vision tower ends without"):
        train_only(make_model(), frozenset({"text", "vision_projection"}))


@pytest.mark.gpu
def test_fp16_trains_with_its_gradient_scaler(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = trained(make_trainer(tmp_path, "fp16=true", "gradient_cache_chunk_size=3"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "checkpoint-8" / "scaler.pt").is_file()
