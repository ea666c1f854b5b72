"""A loss or a gradient that is no number ends the run, before it reaches a weight."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer_ext.sharding import whole_tensor

# What the reader of the error can count on, and do.
KEPT = (
    "No weight was changed by it, and the checkpoints of earlier steps are kept. Try a smaller learning rate, a longer "
    "warm-up or bf16 instead of fp16, and go on from a stage's folder or a checkpoint"
)


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the run stops before it reaches a weight."""


class FiniteGradientsCallback(TrainerCallback):
    """Stops the run before a NaN gradient reaches the weights; with fp16 the gradient scaler skips such steps."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Check the norm of all gradients; of sharded ones every process sees the whole norm, so that all stop."""
        if args.fp16:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.isfinite(whole_tensor(torch.nn.utils.get_total_norm(gradients))):
            named = [(name, parameter.grad) for name, parameter in model.named_parameters()]
            names = [n for n, grad in named if grad is not None and not torch.isfinite(whole_tensor(grad)).all()]
            raise NonFiniteError(
                f"gradients are not finite at step {state.global_step + 1} ({len(names)} tensors: "
                f"{', '.join(names[:3])}). {KEPT}"
            )
