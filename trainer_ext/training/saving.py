"""What a trainer writes and reads back: checkpoints, whole models, and the optimizer of a sharded model.

``SavingTrainer`` is the half of ``JinaCLIPTrainer`` that handles folders.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.files import keep_newest, partial_path, publish, seal
from trainer_ext.losses.joint import JointObjective
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.sentence_files import write_sentence_files
from trainer_ext.training.ema import WeightAverage
from trainer_ext.training.lora import ADAPTER_FOLDER, has_lora, load_adapter, save_adapter, save_merged
from trainer_ext.training.sharding import is_sharded, load_optimizer_state, whole_copy, whole_optimizer_state


class SavingTrainer(Trainer):
    """A ``Trainer`` that writes folders whole or not at all, with whole weights even if the model is sharded."""

    args: JinaCLIPTrainingArguments
    model: JinaCLIPModel
    processing_class: JinaCLIPProcessor
    objective: JointObjective
    average: WeightAverage | None = None
    _inside_whole_model = False

    @contextmanager
    def whole_model(self) -> Iterator[JinaCLIPModel]:
        """Inside the block ``self.model``, which it yields, has whole weights, on the main process only.

        If sharded, entering gathers the full weights, so every process must enter. Otherwise, or when nested, a no-op.
        """
        if self._inside_whole_model or not is_sharded(self.model):
            yield self.model
            return
        trained, whole = self.model, whole_copy(self.model)
        if whole is not None:
            whole.processor = self.processing_class
            self.model = whole
        self._inside_whole_model = True
        try:
            yield self.model
        finally:
            self.model, self._inside_whole_model = trained, False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The base class's, with whole weights. If sharded, all processes call it, or are inside ``whole_model``."""
        with self.whole_model():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The base class's checkpoint, under another name until it is whole."""
        run = Path(self.args.output_dir)
        target = run / f"checkpoint-{self.state.global_step}"
        staging = partial_path(target)
        if self.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                if self.average is not None:
                    self.average.save(staging / target.name)
                seal(staging / target.name)
                publish(staging / target.name, target)
        finally:
            self.args.output_dir = str(run)
            if self.is_world_process_zero():  # on a full disk this frees what the attempt has written
                shutil.rmtree(staging, ignore_errors=True)
        if self.is_world_process_zero():
            keep_newest(run, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def save_average(self, output_dir: str) -> None:
        """Save the model with averaged weights as ``save_model`` saves the trained one."""
        assert self.average is not None, "there is no average without ema_decay"
        trained, self.model = self.model, self.average.model
        try:
            self.save_model(output_dir)
        finally:
            self.model = trained

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Model and processor, without the pickle of the arguments, which is never read."""
        # A fast tokenizer keeps the length and padding of its last call, and would save them.
        self.processing_class.tokenizer.backend_tokenizer.no_truncation()
        self.processing_class.tokenizer.backend_tokenizer.no_padding()
        folder = Path(output_dir or self.args.output_dir)
        if has_lora(self.model) and self.args.should_save:
            save = save_adapter if folder.name.startswith(PREFIX_CHECKPOINT_DIR) else save_merged
            save(self.model, folder)
            self.processing_class.save_pretrained(folder)
        elif not has_lora(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            self.objective.save(folder)
            write_sentence_files(folder, self.model.config)
            if (folder / ADAPTER_FOLDER).is_dir():
                self.processing_class.save_pretrained(folder / ADAPTER_FOLDER)
                write_sentence_files(folder / ADAPTER_FOLDER, self.model.config)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights, and the parameters of the objective."""
        if has_lora(self.model):
            load_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))
        self.objective.load(resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """If sharded: the files of an ordinary run, with the optimizer's state gathered from all processes."""
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None  # it and the scheduler are made before the first step
        assert self.lr_scheduler is not None
        state = whole_optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """If sharded: each process takes its share of the file, which an ordinary run may have written as well."""
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        stored = [
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        ]
        assert self.optimizer is not None  # it and the scheduler are made before their state is loaded
        assert self.lr_scheduler is not None
        load_optimizer_state(self.optimizer, stored[0])
        self.lr_scheduler.load_state_dict(stored[1])
