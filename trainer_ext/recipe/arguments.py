"""Which top-level keys of a recipe are training arguments: ``JinaCLIPTrainingArguments``, and who may set what.

1. ``JinaCLIPTrainingArguments``: ``transformers.TrainingArguments`` with the defaults and options of joint contrastive
   training, checked against each other.
2. Tables of arguments that a recipe may not set. What changes from stage to stage (steps, learning rate, warm-up, batch
   sizes) belongs to the recipe's stages: ``SAID_ELSEWHERE``.
3. ``split_training``: a recipe's top level becomes its own keys and its training arguments, each checked by type.

Imports torch and transformers' Trainer, so ``recipe`` imports it when a recipe is loaded.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging, strtobool

from trainer_ext.recipe.problems import Problem, reason, shorten
from trainer_ext.recipe.schema import FalseNegatives

logger = logging.get_logger(__name__)

# accelerate would ignore its FSDP on a CPU without a word, and on a GPU torch stops at the scalar logit_scale.
_NO_FSDP = (
    "accelerate's FSDP cannot shard the model's scalar logit_scale; write `fully_shard: true` into the recipe instead, "
    "which shards weights, gradients and optimizer state over the processes"
)
# Optimizers tested with sharded weights. Others work on plain tensors, or on statistics of whole weights.
_SHARDED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")
# Arguments of the base class that contradict what this trainer promises, with the reason.
CONTRADICTIONS = {
    "load_best_model_at_end": "a later stage's model would be thrown away; every stage's model is kept in stages/",
    "save_only_model": "a run could not be resumed; delete the checkpoints after the run instead",
    "ignore_data_skip": "a resumed run would see other batches than an uninterrupted one",
    "fsdp": _NO_FSDP,
    "label_smoothing_factor": "it smooths a classifier's labels, and there are none here; the losses would not see it",
    "neftune_noise_alpha": "it was made for language models that answer, and never tried with embeddings; use dropout",
}
# What ``report_to`` may name, and the package that brings it.
_PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}

# Graphs of one model: with and without gradients, texts and images, each stage's patch dropout, batches of one row.
COMPILED_GRAPHS = 64


def keep_compiled() -> None:
    """Compile for all shapes at once, and never go back to uncompiled code in the middle of a run.

    dynamo gives up after 8 graphs, which texts and images in several stages exceed. The passes of a gradient cache
    would then differ: compiled code draws other random numbers, and uncompiled texts leave out their padding.
    """
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "true"  # the base class sets the backend in the same way
    torch._dynamo.config.recompile_limit = max(COMPILED_GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@dataclass
class JinaCLIPTrainingArguments(TrainingArguments):
    """Arguments of ``JinaCLIPTrainer``. Optimizer defaults are those of arXiv 2405.20204, section 3.

    A machine without an accelerator trains on its CPU, also when ``bf16`` asks for autocast.

    >>> arguments = JinaCLIPTrainingArguments(output_dir="out", gradient_cache_chunk_size=32)
    >>> arguments.adam_beta2, arguments.weight_decay, arguments.text_temperature
    (0.98, 0.025, 0.05)
    """

    if TYPE_CHECKING:
        output_dir: str  # the base class replaces a None

    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.025
    # One pass over the plan, which is as long as all stages together.
    num_train_epochs: float = 1.0
    # The joint batch is a nested dict; none of its keys is a parameter of the model's forward.
    remove_unused_columns: bool = False
    # Several forwards share one backward; DDP's search for unused parameters allows only one.
    ddp_find_unused_parameters: bool = False
    logging_steps: float = 10
    # Each joint step checks its loss and stops the run; the base class would replace a NaN by the mean so far.
    logging_nan_inf_filter: bool = False
    # The newest checkpoint, and the one before it in case the newest is damaged.
    save_total_limit: int | None = 2

    text_temperature: float = field(
        default=0.05, metadata={"help": "Fixed temperature of the text losses; the image-text one is trained."}
    )
    gradient_cache_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Embed this many rows at a time (more if texts are short) and keep no other activations."},
    )
    gradient_cache_keep_last: bool = field(
        default=False,
        metadata={
            "help": "Embed the last chunk of each input once, not twice; all of them are then in memory together."
        },
    )
    tile_size: int | None = field(
        default=None, metadata={"help": "Compute losses in square tiles of this many rows, never the whole matrix."}
    )
    false_negatives: FalseNegatives = field(
        default="mask",
        metadata={"help": "Another row's target that is true as well: leave it out, share with it, or keep it."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep an exponential moving average of the weights with this decay, e.g. 0.999."},
    )

    fully_shard: bool = field(
        default=False,
        metadata={"help": "Shard weights, gradients and optimizer state over the processes (FSDP2), where DDP copies."},
    )

    def __post_init__(self) -> None:
        if self.fully_shard:
            self._check_sharding()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise ValueError(
                "fp16 needs a GPU: half precision has too little range without its gradient scaler; use bf16"
            )
        super().__post_init__()
        self._check_integrations()
        if self.torch_compile:
            keep_compiled()
        for name, words in CONTRADICTIONS.items():
            if getattr(self, name):
                raise ValueError(f"{name} cannot be used: {words}")
        if strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
            raise ValueError(f"`accelerate launch` asks for FSDP, which cannot be used: {_NO_FSDP}")
        choices = get_args(FalseNegatives)
        if self.false_negatives not in choices:
            raise ValueError(f"false_negatives is {self.false_negatives!r}; use one of {', '.join(choices)}")
        if not self.text_temperature > 0:
            raise ValueError(f"text_temperature is {self.text_temperature}; it divides the cosines, so set it above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"ema_decay is {self.ema_decay}; set a share between 0 and 1 such as 0.999, or leave it out"
            )
        if self.ema_decay is not None and self.deepspeed:
            raise ValueError("ema_decay averages whole weights, which DeepSpeed cuts into pieces; leave it out")
        if self.fully_shard and self.world_size == 1:
            logger.warning("fully_shard has a single process to shard over, so its weights stay whole; start several")
        if self.gradient_cache_keep_last and self.gradient_cache_chunk_size is None:
            raise ValueError("gradient_cache_keep_last needs chunks; set gradient_cache_chunk_size, or leave it out")
        for name in ("gradient_cache_chunk_size", "tile_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; set a number of rows of at least 1, or leave it out")

    def _check_integrations(self) -> None:
        """Check that what ``report_to`` names is installed; the base class checks only after the model is made."""
        named = [name for name in self.report_to or () if name in _PACKAGES]
        missing = set(named).difference(get_available_reporting_integrations() if named else ())
        if missing:
            raise ImportError(
                f"report_to names {', '.join(sorted(missing))}, which cannot be imported; install it with: pip install "
                f"{' '.join(_PACKAGES[name] for name in sorted(missing))}, or leave it out of report_to"
            )

    def _check_sharding(self) -> None:
        """Refuse options that need whole weights, or that were never tested with sharded ones."""
        reasons = {
            "ema_decay": "it averages whole weights, which are cut into pieces",
            **dict.fromkeys(
                ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
                "compiled towers were never tried with weights that come and go",
            ),
            "deepspeed": "it shards the weights itself",
            "save_on_each_node": "the whole weights are put together on the main process alone",
            "fp16": "its gradient scaler was never tried with sharded gradients; use bf16",
        }
        for name, words in reasons.items():
            if value := getattr(self, name):
                raise ValueError(f"{name} is {value} and fully_shard is on: {words}; leave out one of the two")
        optimizer = getattr(self.optim, "value", self.optim)
        if optimizer not in _SHARDED_OPTIMIZERS:
            raise ValueError(
                f"optim is {optimizer}, which was never tried with fully_shard; use one of "
                f"{', '.join(_SHARDED_OPTIMIZERS)}, or leave out fully_shard"
            )


# --- a recipe's top-level keys -------------------------------------------------------------------------------------

# Arguments of the base class that have another place in a recipe; ``load_recipe`` names it.
SAID_ELSEWHERE = {
    "output_dir": "--output_dir on the command line",
    "resume_from_checkpoint": "--resume on the command line",
    "data_seed": "the recipe's own `seed`",
    "learning_rate": "stages.N.learning_rate",
    "lr_scheduler_type": "stages.N.schedule",
    "lr_scheduler_kwargs": "stages.N.schedule",
    "warmup_steps": "stages.N.warmup_steps",
    "max_steps": "stages.N.steps",
    "num_train_epochs": "stages.N.steps",
    "per_device_train_batch_size": "stages.N.image_text.batch_size and stages.N.text.batch_size",
    "auto_find_batch_size": "stages.N.image_text.batch_size and stages.N.text.batch_size",
    "train_sampling_strategy": "the recipe's sources and their weights",
    "eval_on_start": "`evaluation`, which always measures before training and after each stage",
    "metric_for_best_model": "`evaluation.keep_best`",
    "greater_is_better": "`evaluation.keep_best`, which knows of which figures less is better",
}
# Arguments of the base class that a recipe may not set, with the reason.
_FIXED = {
    "dataloader_drop_last": "no row is dropped: an epoch's last batch goes on into the next epoch",
    "remove_unused_columns": "the trainer sets it",
    "label_names": "the trainer sets it",
    "hub_token": "a recipe is copied into the run's folder; log in with `hf auth login` instead",
}


@cache
def training_fields() -> dict[str, Any]:
    """Name and type of every training argument."""
    hints = get_type_hints(JinaCLIPTrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(JinaCLIPTrainingArguments) if field.init}


@cache
def refused_fields() -> dict[str, str]:
    """Training arguments that are errors at the top of a recipe, each with what to do instead."""
    elsewhere = {name: f"it is said by {place}" for name, place in SAID_ELSEWHERE.items()}
    return {**elsewhere, **CONTRADICTIONS, **_FIXED, "training": "write its keys at the top level of the recipe"}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    annotation = training_fields()[name]
    options = get_args(annotation)
    if any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        # "one of these words, or any text": without the texts a misspelt word is found here.
        annotation = reduce(or_, [option for option in options if option is not str])
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))


def split_training(tree: dict[str, Any], own_fields: set[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Move the training arguments out of ``tree``, a recipe's top level whose own keys are ``own_fields``.

    Keys that are neither stay in ``tree``, to be refused with the recipe's other unknown keys.
    """
    training: dict[str, Any] = {}
    problems: list[Problem] = []
    unknown = [key for key in tree if isinstance(key, str) and (key not in own_fields or key == "training")]
    for key in unknown:
        if key in refused_fields():
            value = tree.pop(key)
            problems.append((key, f"cannot be set here (value {shorten(value)}): {refused_fields()[key]}."))
        elif key in training_fields():
            value = tree.pop(key)
            try:
                # Strict for booleans only: True must not pass as the number 1, but "5" or 5 for 5.0 is harmless.
                training[key] = _adapter(key).validate_python(value, strict=isinstance(value, bool))
            except ValidationError as error:
                problems.append((key, f"{reason(error.errors()[0]['msg'])}, got {shorten(value)}."))
    return training, problems
