"""A training run small enough for any test: 3 stages over pictures of coloured bars and sentences about numbers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TrainerCallback

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import training_arguments
from trainer_ext.training.trainer import JinaCLIPTrainer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "white": (250, 250, 250)}
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
FILLERS = ["a", "bar", "on", "is", "after", "before", "number", "the", "not"]
NEGATIVES = 3

MODEL = {
    "text_config": {
        "embed_dim": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    },
    "vision_config": {
        "embed_dim": 16,
        "width": 16,
        "head_width": 8,
        "layers": 1,
        "image_size": 16,
        "patch_size": 4,
        "patch_dropout": 0.1,
    },
    "projection_dim": 16,
}

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "stages": [
        {
            "name": "pairs",
            "steps": 3,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "max_length": 6,
            "patch_dropout": 0.25,
            "image_text": {"sources": ["pictures"], "batch_size": 4},
            "text": {"sources": ["successors", "predecessors"], "batch_size": 4},
        },
        {
            "name": "larger",
            "steps": 2,
            "learning_rate": 5e-3,
            "max_length": 12,
            "image_size": 24,
            "image_text": {"sources": ["pictures"], "batch_size": 4},
            "text": {"sources": ["successors"], "batch_size": 4},
        },
        {
            "name": "hard",
            "steps": 3,
            "learning_rate": 2e-3,
            "schedule": "linear",
            "max_length": 12,
            "patch_dropout": 0.0,
            "image_text": {"sources": ["pictures"], "batch_size": 4},
            "text": {"sources": ["triplets"], "batch_size": 4, "loss": "info_nce_plus"},
        },
    ],
    "logging_steps": 1,
    "save_steps": 2,
    "disable_tqdm": True,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *NUMBERS, *FILLERS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)


def make_processor() -> JinaCLIPProcessor:
    return JinaCLIPProcessor(JinaCLIPImageProcessor(size=16), make_tokenizer())


def make_model(dropout: float = 0.1, patch_dropout: float = 0.1, sizes: dict[str, Any] = MODEL) -> JinaCLIPModel:
    """The tiny model, the same weights at every call; or one of other ``sizes``."""
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return JinaCLIPModel(
            JinaCLIPConfig(
                text_config=sizes["text_config"] | dropouts,
                vision_config=sizes["vision_config"] | {"patch_dropout": patch_dropout},
                projection_dim=16,
            )
        )


def picture(colour: str, number: int) -> Image.Image:
    """``number`` bars of a colour on black, 20 x 20."""
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    for bar in range(number):
        pixels[:, 2 * bar] = COLOURS[colour]
    return Image.fromarray(pixels)


def write_data(folder: Path) -> None:
    """The sources as parquet, the model preset and the tokenizer of the tiny run."""
    pictures = [(colour, number) for colour in COLOURS for number in range(1, 10)]
    follows = [f"{number} is after" for number in NUMBERS[:-1]]
    precedes = [f"{number} is before" for number in NUMBERS[1:]]
    tables: dict[str, dict[str, Any]] = {
        "pictures": {
            "image": [picture(*item) for item in pictures],
            "caption": [[f"{NUMBERS[n - 1]} {c} bar", f"{c} bar number {NUMBERS[n - 1]}"] for c, n in pictures],
            "tags": [[c, "single"] if n == 1 else [c] for c, n in pictures],
        },
        "contrasted": {
            "image": [picture(*item) for item in pictures],
            "caption": [f"{NUMBERS[n - 1]} {c} bar" for c, n in pictures],
            "negatives": [[f"{c} bar not {NUMBERS[n - 1]}", f"not {NUMBERS[n - 1]} {c} bar"] for c, n in pictures],
        },
        "successors": {"query": follows, "positive": NUMBERS[1:]},
        "predecessors": {"query": precedes, "positive": NUMBERS[:-1]},
        "triplets": {
            "query": follows,
            "positive": NUMBERS[1:],
            "negatives": [[f"not {NUMBERS[(i + k) % 10]}" for k in range(NEGATIVES)] for i in range(len(follows))],
        },
        "scored": {"query": follows, "positive": NUMBERS[:-1], "score": [float(i % 4) for i in range(len(follows))]},
    }
    for name, columns in tables.items():
        table = datasets.Dataset.from_dict(columns)
        if "image" in columns:
            table = table.cast_column("image", datasets.Image())
        table.to_parquet(folder / f"{name}.parquet")
    JinaCLIPConfig(**MODEL).to_json_file(folder / "model.json", use_diff=False)
    make_tokenizer().save_pretrained(folder / "tokenizer")


def write_recipe(folder: Path) -> Path:
    """The recipe file of the tiny run, beside its data."""
    tasks = {"pictures": "image-text", "contrasted": "image-text", "triplets": "triplet", "scored": "scored-pair"}
    columns = {
        "image-text": {"image": "image", "caption": "caption"},
        "text-pair": {"query": "query", "positive": "positive"},
        "triplet": {"query": "query", "positive": "positive", "negatives": "negatives"},
        "scored-pair": {"query": "query", "positive": "positive", "score": "score"},
    }
    sources = []
    for name in ("pictures", "successors", "predecessors", "triplets", "scored", "contrasted"):
        task = tasks.get(name, "text-pair")
        location = str(folder / f"{name}.parquet")
        mapped = columns[task] | ({"negatives": "negatives"} if name == "contrasted" else {})
        sources.append({"name": name, "task": task, "location": location, "format": "parquet", "columns": mapped})
    places = {"model": str(folder / "model.json"), "tokenizer": str(folder / "tokenizer")}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **places, "sources": sources}, sort_keys=False))
    return path


def deep_preset(folder: Path, text: int = 4, image: int = 4) -> Path:
    """A preset of the tiny model with more layers."""
    towers = {"text_config": {"num_hidden_layers": text}, "vision_config": {"layers": image}}
    sizes = {name: MODEL[name] | changes for name, changes in towers.items()}
    path = folder / f"deep-{text}-{image}.json"
    path.write_text(json.dumps(MODEL | sizes))
    return path


def sizes_of(model: str) -> dict[str, Any]:
    """Those of a preset from ``deep_preset``; the tiny model's for any other."""
    path = Path(model)
    return json.loads(path.read_text()) if path.name.startswith("deep-") else MODEL


class RunFactory:
    """Makes trainers of the tiny run, each into a folder and with recipe overrides of its own."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.sources = load_recipe(recipe).sources
        self.tables = load_sources(self.sources)

    def __call__(
        self,
        output_dir: Path,
        *overrides: str,
        dropout: float = 0.1,
        callbacks: Sequence[TrainerCallback] = (),
        evaluate_fn: Callable[[Any, Any], dict[str, float]] | None = None,
    ) -> JinaCLIPTrainer:
        recipe = load_recipe(self.recipe, overrides)
        changed = [source for source in recipe.sources if source not in self.sources]
        return JinaCLIPTrainer(
            model=make_model(dropout, sizes=sizes_of(recipe.model)),
            args=training_arguments(recipe, output_dir),
            recipe=recipe,
            train_dataset=self.tables | load_sources(changed),
            processing_class=make_processor(),
            evaluate_fn=evaluate_fn,
            callbacks=list(callbacks),
        )


def trained(trainer: JinaCLIPTrainer, resume_from: Path | None = None) -> JinaCLIPTrainer:
    """Train at once: a trainer seeds the random numbers when it is made, so the next one must wait for it."""
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    return trainer


def entries_of(trainer: JinaCLIPTrainer) -> list[dict[str, Any]]:
    """The log entries, without the last one, which depends on the clock."""
    return [entry for entry in trainer.state.log_history if "train_runtime" not in entry]


def assert_same_weights(left: JinaCLIPModel, right: JinaCLIPModel) -> None:
    """Equal to the last bit, name by name."""
    left_state, right_state = left.state_dict(), right.state_dict()
    assert left_state.keys() == right_state.keys()
    different = [name for name in left_state if not torch.equal(left_state[name], right_state[name])]
    assert different == []
