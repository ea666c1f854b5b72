"""``JinaCLIPTrainer``: ``transformers.Trainer`` for joint contrastive training in stages.

One optimizer step, one hop a line:

1. the plan names the rows of each side (``data.plan``); the collator makes tensors of them (``data.batches``);
2. each column is embedded by the wrapped model, in chunks if a gradient cache is asked for (``losses.gradient_cache``);
3. the embeddings of all processes are gathered and compared, by each side's loss (``losses.joint``);
4. their weighted sum goes back to ``transformers.Trainer.training_step``;
5. ``StageCallback`` freezes what the stage does not train, clamps the temperature and handles stage boundaries.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.pictures import PictureReader
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.record import SourceRecord
from trainer_ext.data.sources import Rows, planned_rows
from trainer_ext.data.taught_batches import collator_of
from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.recipe.problems import raise_problems
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.training.earlier_layers import LayeredEmbedder, apart
from trainer_ext.training.ema import WeightAverage
from trainer_ext.training.embedding import InputEmbedder, chunks_of, encoder_inputs
from trainer_ext.training.lora import has_lora
from trainer_ext.training.model_parts import unreached_parameters
from trainer_ext.training.monitoring import (
    KEPT,
    RATES,
    FiniteGradientsCallback,
    HealthCallback,
    NonFiniteError,
    StagePrinterCallback,
    StageProgressCallback,
    ThroughputCallback,
)
from trainer_ext.training.optimization import decay_parameter_names, peak_learning_rate, split_groups, stage_scheduler
from trainer_ext.training.saving import SavingTrainer
from trainer_ext.training.sharding import ShardedModel, is_sharded, shard_model, whole_parameter
from trainer_ext.training.stages import StageCallback, model_problems
from trainer_ext.training.switches import unchanged_randomness
from trainer_ext.training.teacher import far_margins, teacher_of

Evaluate = Callable[[JinaCLIPModel, Any], dict[str, float]]


class JinaCLIPTrainer(SavingTrainer):
    """Trains a ``JinaCLIPModel`` through all stages of a recipe in one ``train()``.

    Takes the arguments of ``transformers.Trainer``, of which these have a meaning of their own:

    Args:
        recipe: the stages to run and the sources they draw from.
        train_dataset: rows of each source, by its name.
        processing_class: the ``JinaCLIPProcessor`` that makes tensors of rows and is saved with the model.
        broken_rows: what was left out while the sources were read; listed in the run's folder with what is met later.
        evaluate_fn: called with (model, processor) at each stage's end; its figures are logged as ``eval_NAME``.

    Example::

        recipe = load_recipe("openmoji")
        trainer = JinaCLIPTrainer(
            model, training_arguments(recipe, "out"), recipe=recipe, train_dataset=rows, processing_class=processor
        )
        trainer.train()
    """

    # compute_loss returns the mean over a micro-batch; the base class divides by the number of accumulated ones.
    loss_is_scaled_for_ga = False
    train_dataset: Mapping[str, Rows]

    def __init__(
        self,
        *args: Any,
        recipe: Recipe,
        processing_class: JinaCLIPProcessor,
        evaluate_fn: Evaluate | None = None,
        broken_rows: BrokenRows | None = None,
        **kwargs: Any,
    ) -> None:
        self.teacher = teacher_of(recipe)
        processors = processing_class, self.teacher and self.teacher.processor
        self._pictures = PictureReader(recipe, *processors)
        kwargs.setdefault("data_collator", collator_of(recipe.stages, recipe.seed, *processors, recipe.teacher))
        if evaluate_fn is not None:  # it brings its own data, but the base class insists on some
            kwargs.setdefault("eval_dataset", {})
        super().__init__(*args, processing_class=processing_class, **kwargs)  # type: ignore[misc]  # *args is short
        self.recipe = recipe
        self.evaluate_fn = evaluate_fn
        self.args.learning_rate = peak_learning_rate(recipe.stages)
        self.args.max_steps = sum(stage.steps for stage in recipe.stages)
        self.objective = JointObjective(
            self.args.text_temperature,
            self.args.tile_size,
            self.args.false_negatives,
            recipe.stages,
            recipe.matryoshka,
            recipe.teacher,
        ).to(self.args.device)
        patch_dropout = self.model.config.vision_config.patch_dropout
        self._stage_callback = StageCallback(recipe.stages, patch_dropout, self.objective, recipe.lora)
        self._stage_callback.prepare(self.model)
        self._check_objective()
        images = processing_class.image_processor
        embed = InputEmbedder(images.mean, images.std, self.args.device)
        self._embed = LayeredEmbedder(embed, self.model, recipe, lambda: self.state.global_step)
        self.source_record = SourceRecord(self.args.output_dir, recipe.stages, broken_rows or BrokenRows(None))
        self.source_record.attach(self.train_dataset)
        self.add_callback(self.source_record)
        self._terms: dict[str, Tensor] = {}
        self._batches, self._stage_name = 0, recipe.stages[0].name
        self._chance_of: int | None = None
        self._health, self._throughput = HealthCallback(recipe.stages), ThroughputCallback()
        for callback in (self._stage_callback, FiniteGradientsCallback(), self._health, self._throughput):
            self.add_callback(callback)
        self.average: WeightAverage | None = None
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.model, self.args.ema_decay)
            self.add_callback(self.average)
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        self.add_callback(StagePrinterCallback if self.args.disable_tqdm else StageProgressCallback)

    def get_train_dataloader(self) -> DataLoader:
        """One loader over the whole run, not prepared by accelerate: the plan gives each process its own share."""
        stages = self.recipe.stages
        plan = JointBatchPlan(
            stages,
            self.recipe.sources,
            planned_rows(self.recipe.sources, self.train_dataset),
            seed=self.recipe.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            gradient_accumulation_steps=self.args.gradient_accumulation_steps,
        )
        # Fewer steps than planned: a run that has stopped early, whose end is the end of the data to the base class.
        steps = self.args.max_steps * self.args.gradient_accumulation_steps
        batches = plan if steps >= len(plan) else list(islice(plan, steps))
        return DataLoader(
            JointDataset(
                self.recipe.sources,
                self.train_dataset,
                self.recipe.seed,
                self.source_record.broken,
                self._pictures,
                stages,
            ),
            batch_sampler=batches,  # type: ignore[arg-type]  # torch says list and needs a sequence
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            # Older versions of transformers have no such argument.
            multiprocessing_context=getattr(self.args, "dataloader_multiprocessing_context", None),
            pin_memory=self.args.dataloader_pin_memory,
            # Its own generator: the loader's draws must not move the random numbers of dropout.
            generator=torch.Generator().manual_seed(self.recipe.seed),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of a joint batch, as its own stage defines them."""
        stage = self.recipe.stages[inputs["stage"]]
        self.source_record.note(stage.name, inputs["sources"])
        self._stage_callback.before_forward(self.model, inputs["stage"])
        known: dict[str, Any] = {}
        if self.teacher is not None:
            with self.accelerator.autocast():  # as the model's forward
                known = {"teacher": self.teacher(inputs["teacher"], self.args)}
        embeddings = known | self._embeddings(model, inputs)
        loss, terms = self.objective(stage, inputs, embeddings)
        self._note(stage.name, terms)
        self._throughput.count(inputs)
        if self._chance_of != inputs["stage"]:
            chance = self.objective.chance(stage, inputs, embeddings)
            self._health.chance = {name: self.accelerator.reduce(x, "mean").item() for name, x in chance.items()}
            self._chance_of = inputs["stage"]
        if not torch.isfinite(loss):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            raise NonFiniteError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} (stage {stage.name}; {figures}; "
                f"sources {inputs['sources']}). {KEPT}"
            )
        return (loss, embeddings) if return_outputs else loss

    def _prepare_input(self, data: Any) -> Any:
        """Only the ids, which the losses read, move to the device now; tokens and pixels follow chunk by chunk."""
        if isinstance(data, Mapping):
            return {name: data[name] if name in _STAYS_ON_HOST else self._prepare_input(data[name]) for name in data}
        return super()._prepare_input(data)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of a micro-batch, with gradients for what its stage trains."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._stage_callback.after_backward(self.args, self.model, inputs["stage"])
        return loss

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader | None = None) -> nn.Module:
        """When sharded: autocast as always, but not DDP, which accelerate puts around what it prepares for training."""
        if training and model is self.model and is_sharded(self.model):
            return ShardedModel(self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True))
        return super()._wrap_model(model, training, dataloader)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay by number of dimensions."""
        return decay_parameter_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The base class's groups cut by learning rate, and one for the objective's parameters: no weight decay.

        The model is sharded here, since the optimizer has to take the shares as its parameters. By now a resumed run
        has its weights.
        """
        if self.args.fully_shard and self.args.world_size > 1 and not is_sharded(self.model):
            shard_model(self.model, self.args.device)
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            split_groups(optimizer, (model or self.model).named_parameters(), self.recipe.stages)
        parameters = list(self.objective.parameters())
        if made and parameters:
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Learning rates of all stages, one after the other."""
        if self.lr_scheduler is None:
            made = optimizer or self.optimizer
            assert made is not None  # create_optimizer comes first
            self.lr_scheduler = stage_scheduler(made, self.recipe.stages)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the stage, the mean of every loss term since the last line, and the speed, which is shown but not kept.

        A resumed run keeps the history of the uninterrupted one, and the speed depends on the clock.
        """
        if "loss" in logs and self._batches:
            means = torch.stack(list(self._terms.values())) / self._batches
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= dict(zip(self._terms, means.tolist(), strict=True)) | {"stage": self._stage_name}
            self._terms, self._batches = {}, 0
            counts, seconds = self._throughput.take()
            counts = self.accelerator.reduce(torch.tensor(counts, device=self.args.device)).tolist()
            logs |= {name: count / seconds for name, count in zip(RATES, counts, strict=True)}
        super().log(logs, start_time)
        for name in RATES:
            self.state.log_history[-1].pop(name, None)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures of ``evaluate_fn``, measured by the main process and sent to all; training is not affected.

        Callbacks find the trainer's model whole as well, on the main process, and may save it there.
        """
        figures: list[dict[str, float]] = [{}]
        with unchanged_randomness(), self.whole_model() as model:
            if self.evaluate_fn is not None:
                if self.is_world_process_zero():
                    model.to(self.args.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
                    figures = [self.evaluate_fn(model, self.processing_class)]
                broadcast_object_list(figures)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures[0].items()}
            if metrics:
                self.log(dict(metrics))  # a copy: the base class adds the epoch
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _check_objective(self) -> None:
        """Check that losses and pictures fit the model, and that the losses work with the way it is wrapped."""
        problems = [*model_problems(self.recipe, self.model.config), *far_margins(self.recipe, self.train_dataset)]
        raise_problems(f"recipe {self.recipe.name}", problems)
        if self.args.fully_shard and (self.recipe.lora is not None or has_lora(self.model)):
            raise ValueError(
                f"lora is {self.recipe.lora} and fully_shard is on: adapters are made and saved with whole weights; "
                "leave out one of the two. With LoRA the optimizer is small already"
            )
        if self.args.fully_shard and self.is_deepspeed_enabled:
            raise ValueError("fully_shard is on and so is DeepSpeed, which shards the weights itself; leave one out")
        names = [name for name, _ in self.objective.named_parameters()]
        if names and self.is_deepspeed_enabled:
            raise ValueError(
                f"the losses train parameters of their own ({', '.join(names)}), which DeepSpeed would not save; use "
                "DDP or fully_shard, or fixed temperatures and losses without parameters, such as info_nce"
            )

    def _embeddings(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """(rows, dim) of each column of a joint batch, and the temperature of the image-text side; see ``apart``."""
        columns = encoder_inputs(inputs)
        temperature = partial(self._temperature, columns=columns)
        size = self.args.gradient_cache_chunk_size
        if size is None:
            vectors = {name: self._embed(model, column) for name, column in columns.items()}
            return apart(vectors | {"temperature": temperature(None)})
        # Every chunk is a collective of a sharded model: all processes must have as many.
        equal_rows = is_sharded(self.model)
        chunks = chunks_of(columns, size, self.model.config.vision_config.patch_size, equal_rows)
        embed = partial(self._embed, model)
        chunked = {name: Chunks(embed, pieces) for name, (pieces, _) in chunks.items()}
        chunked["temperature"] = Chunks(temperature, [None])
        embeddings = cached_embeddings(
            chunked, no_sync=getattr(model, "no_sync", None), keep_last=self.args.gradient_cache_keep_last
        )
        orders = {name: order.to(self.args.device) for name, (_, order) in chunks.items() if order is not None}
        return apart(embeddings | {name: embeddings[name][order] for name, order in orders.items()})

    def _temperature(self, chunk: None, columns: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The trained temperature; DDP waits for a gradient of every parameter, so that of an idle tower are zeros."""
        temperature = clamped_temperature(whole_parameter(self.model.logit_scale))
        if self.args.world_size > 1 and not is_sharded(self.model):
            temperature = temperature + sum(0.0 * one.sum() for one in unreached_parameters(self.model, columns))
        return temperature

    def _note(self, stage_name: str, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one micro-batch to the running sums, on the device."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value
        self._batches += 1
        self._stage_name = stage_name


# Tensors of a joint batch that stay on the host until they are embedded (``InputEmbedder``).
_STAYS_ON_HOST = frozenset({"pixel_values", "input_ids", "attention_mask"})
