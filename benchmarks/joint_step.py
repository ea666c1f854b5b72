"""The joint step with a gradient cache: against sentence-transformers, and bf16 autocast against fp32.

    python benchmarks/joint_step.py                       # fp32, width 256, against SentenceTransformerTrainer
    python benchmarks/joint_step.py --compare bf16        # our step at widths 128 to 768

One step is ``--rows`` pictures with captions and as many text pairs, cut into chunks of ``--chunk`` rows, with data
loading and optimizer. SentenceTransformerTrainer does the same pairs on the same towers (same weights, loaded from a
folder built from ours) with CachedMultipleNegativesRankingLoss and the same chunks: one batch of each data set in turn,
two accumulated batches a step, so that both trainers update the weights equally often. Blocks of steps are interleaved.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from joint_runs import SOURCES, interleave, joint_recipe, our_trainer, preset, start, table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from trainer_ext.hub.build import build
from trainer_ext.recipe.recipe import Recipe

COLUMNS = {SOURCES[0]: ("image", "caption"), SOURCES[1]: ("query", "positive")}


def st_rows(tables: dict[str, Any]) -> dict[str, Dataset]:
    """The same rows in the columns that sentence-transformers takes: two each, one caption a picture."""
    found = {}
    for name, columns in COLUMNS.items():
        rows = tables[name].select_columns(list(columns))
        if "caption" in columns:
            rows = rows.map(lambda row: {"caption": row["caption"][0]})
        found[name] = rows
    return found


def st_trainer(folder: Path, attention: str, recipe: Recipe, options: argparse.Namespace, tables: dict[str, Any]):
    """Their trainer on our towers."""
    model = SentenceTransformer(
        str(folder), trust_remote_code=True, device="cpu", model_kwargs={"attn_implementation": attention}
    )
    model.max_seq_length = recipe.stages[0].max_length
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder.parent / "st"),
        max_steps=options.steps,
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=2,
        multi_dataset_batch_sampler="round_robin",
        learning_rate=1e-4,
        optim=str(options.optimizer),
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.chunk)
    return SentenceTransformerTrainer(model, arguments, train_dataset=st_rows(tables), loss=loss)


def against_sentence_transformers(options: argparse.Namespace, folder: Path) -> None:
    """Theirs, ours, and ours with the last chunks kept, for each attention backend."""
    path = preset(options.width, folder)
    trainers: dict[str, Any] = {}
    for attention in options.attention:
        settings = [f"attn_implementation={attention}", "bf16=false", f"gradient_cache_chunk_size={options.chunk}"]
        recipe = joint_recipe(path, options.rows, options.steps, *settings)
        model, processor, tables = start(recipe)
        options.optimizer = recipe.training.get("optim", "adamw_torch_fused")
        model.save_pretrained(folder / attention / "model")
        processor.save_pretrained(folder / attention / "model")
        build(folder / attention / "model", folder / attention / "hub")
        theirs = st_trainer(folder / attention / "hub", attention, recipe, options, tables)
        trainers[f"sentence-transformers, {attention}"] = theirs
        trainers[f"ours, {attention}"] = our_trainer(recipe, folder / attention / "out", model, processor, tables)
        recipe = joint_recipe(path, options.rows, options.steps, *settings, "gradient_cache_keep_last=true")
        trainers[f"ours, {attention}, keep_last"] = our_trainer(recipe, folder / attention / "kept", *start(recipe))
    times = interleave(trainers, options.rounds)
    title = f"fp32, width {options.width}, {options.rows} + {options.rows} pairs, chunks of {options.chunk}"
    table(times, 2 * options.rows, title)


def against_fp32(options: argparse.Namespace, folder: Path) -> None:
    """Our step in fp32 and under bf16 autocast, at each width."""
    for width in options.widths:
        trainers = {}
        for name, bf16 in (("fp32", "false"), ("bf16 autocast", "true")):
            recipe = joint_recipe(
                preset(width, folder), options.rows, options.steps, f"bf16={bf16}",
                f"attn_implementation={options.attention[-1]}", f"gradient_cache_chunk_size={options.chunk}",
            )  # fmt: skip
            trainers[name] = our_trainer(recipe, folder / f"{width}-{name}", *start(recipe))
        title = (
            f"width {width}, {options.attention[-1]}, {options.rows} + {options.rows} pairs, chunks of {options.chunk}"
        )
        table(interleave(trainers, options.rounds), 2 * options.rows, title)


def main() -> None:
    """Time what was asked for and print one table each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compare", choices=["sentence-transformers", "bf16"], default="sentence-transformers")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 768])
    parser.add_argument("--attention", nargs="+", default=["sdpa"])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="of one block; the first of each is not counted")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        compare = against_fp32 if options.compare == "bf16" else against_sentence_transformers
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
