"""What the arguments default to and refuse, and that load_recipe knows the ones said elsewhere."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from transformers import TrainingArguments

from trainer_ext.recipe.arguments import COMPILED_GRAPHS, CONTRADICTIONS, SAID_ELSEWHERE, JinaCLIPTrainingArguments
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import training_arguments


def test_optimizer_defaults_are_the_papers(tmp_path: Path) -> None:
    arguments = JinaCLIPTrainingArguments(output_dir=str(tmp_path))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-6)
    assert (arguments.weight_decay, arguments.text_temperature, arguments.report_to) == (0.025, 0.05, [])


def test_compiled_code_is_for_all_shapes_and_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BACKEND": "no", "MODE": "default", "USE_DYNAMIC": "false"}.items():
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", value)  # what the arguments change here ends with the test
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), torch_compile=True)
        assert torch._dynamo.config.recompile_limit == COMPILED_GRAPHS
        assert torch._dynamo.config.fail_on_recompile_limit_hit
        assert TorchDynamoPlugin().dynamic is True


@pytest.mark.parametrize("name", [*SAID_ELSEWHERE, *CONTRADICTIONS])
def test_listed_names_are_arguments_of_the_base_class(name: str) -> None:
    assert name in {field.name for field in dataclasses.fields(TrainingArguments)}


# What fully_shard does not go with.
UNSHARDED = [
    {"ema_decay": 0.9},
    {"torch_compile": True},
    {"torch_compile_backend": "inductor"},
    {"torch_compile_mode": "default"},
    {"deepspeed": {"zero_optimization": {"stage": 2}}},
    {"fp16": True},
    {"save_on_each_node": True},
    {"optim": "adafactor"},
    {"optim": "adamw_bnb_8bit"},
]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text_temperature": 0.0}, "text_temperature is 0.0"),
        ({"text_temperature": -0.1}, "above 0"),
        ({"gradient_cache_chunk_size": 0}, "gradient_cache_chunk_size is 0"),
        ({"gradient_cache_keep_last": True}, "set gradient_cache_chunk_size, or leave it out"),
        ({"tile_size": -4}, "tile_size is -4"),
        ({"false_negatives": "drop"}, "false_negatives is 'drop'; use one of mask, positive, keep"),
        ({"save_only_model": True}, "save_only_model cannot be used"),
        ({"ignore_data_skip": True}, "other batches"),
        *(({"fully_shard": True, **wrong}, f"{next(iter(wrong))} is .*fully_shard") for wrong in UNSHARDED),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "every stage's model is kept"),
    ],
)
def test_wrong_values_are_refused_with_the_cure(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), **wrong)


def test_a_recipe_brings_its_training_section_and_seed(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["seed=3", "max_grad_norm=0.5", "tile_size=64"])
    arguments = training_arguments(recipe, tmp_path)
    assert (arguments.seed, arguments.max_grad_norm, arguments.tile_size) == (3, 0.5, 64)
    assert arguments.output_dir == str(tmp_path)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what a machine without an accelerator cannot do")
def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fp16 needs a GPU.*use bf16"):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), fp16=True)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_outside_its_range(tmp_path: Path, decay: float) -> None:
    with pytest.raises(ValueError, match=f"ema_decay is {decay}; set a share between 0 and 1"):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), ema_decay=decay)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"report_to names wandb, .*pip install wandb, or leave it out"):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), report_to=["tensorboard", "wandb"])


@pytest.mark.parametrize(("name", "value"), [("label_smoothing_factor", 0.1), ("neftune_noise_alpha", 5.0)])
def test_what_has_no_meaning_here_is_refused_with_the_reason(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be used: it "):
        JinaCLIPTrainingArguments(output_dir=str(tmp_path), **{name: value})


def test_recipe_is_imported_without_torch() -> None:
    """Torch and transformers' Trainer take seconds; only loading a recipe needs them."""
    program = "import sys, trainer_ext.recipe; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
