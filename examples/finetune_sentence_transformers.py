"""Fine-tune a model on (image, caption) pairs with the trainer of sentence-transformers, and measure before and after.

    python examples/finetune_sentence_transformers.py MODEL OUT
    python examples/finetune_sentence_transformers.py MODEL OUT --images my_pictures/

MODEL is a folder of ``hub_upload.py build`` or a Hub name; OUT is a new folder for the result, which
``SentenceTransformer(OUT, trust_remote_code=True)`` loads. The pairs are drawings of OpenMoji and their names
(``pip install '.[demo]'``), or a folder of pictures with a ``metadata.csv`` (columns ``file_name`` and
``text``), of which every tenth is kept out for measuring. Text retrieval is forgotten this way: see
``examples/finetune_folder.py`` for a mix that keeps it.
"""

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss

from trainer_ext.commands.guard import guarded
from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.cache import prepare


def embedded_pairs() -> tuple[Dataset, Dataset]:
    """Drawings with their first name; the concepts of the second table are in no row of the first."""
    folder = prepare()
    tables = (load_table(folder, "short_captions", split) for split in ("train_concepts", "test_concepts"))
    # A batch counts every other caption as wrong, so each may occur once.
    return tuple(distinct(table.select_columns(["image", "caption"]).map(first_name)) for table in tables)


def first_name(row: dict) -> dict:
    return {"caption": row["caption"][0]}


def folder_pairs(folder: Path) -> tuple[Dataset, Dataset]:
    """Pictures of a folder with ``metadata.csv``; every tenth is for measuring."""
    if not (folder / "metadata.csv").is_file():
        sys.exit(f"--images {folder}: there is no {folder / 'metadata.csv'} with the columns file_name,text.")
    rows = load_dataset("imagefolder", data_dir=str(folder), split="train")
    if "text" not in rows.column_names or len(rows) < 20:
        sys.exit(f"--images {folder}: needs a column text and 20 pictures; has {rows.column_names}, {len(rows)} rows.")
    rows = distinct(rows.select_columns(["image", "text"]).rename_column("text", "caption"))
    kept_out = set(range(0, len(rows), 10))
    return rows.select([row for row in range(len(rows)) if row not in kept_out]), rows.select(sorted(kept_out))


def distinct(rows: Dataset) -> Dataset:
    places = {caption: place for place, caption in reversed(list(enumerate(rows["caption"])))}
    return rows.select(sorted(places.values()))


def recalls(model: SentenceTransformer, rows: Dataset) -> dict[str, float]:
    """Percent of captions whose picture is among the first 1, 5 and 10, and the other way round."""
    images, texts = ([*rows[column]] for column in ("image", "caption"))
    scores = model.similarity(model.encode(texts), model.encode(images))
    found = {}
    for name, table in (("text to image", scores), ("image to text", scores.T)):
        ranks = (table > table.diagonal()[:, None]).sum(dim=1)
        found |= {f"{name} R@{top}": 100 * (ranks < top).float().mean().item() for top in (1, 5, 10)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("out", type=Path, help="new folder for the fine-tuned model")
    parser.add_argument("--images", type=Path, help="folder of pictures with metadata.csv (default: OpenMoji)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default 100)")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in a step (default 64)")
    parser.add_argument("--mini_batch_size", type=int, default=32, help="pairs in memory at a time (default 32)")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="peak learning rate (default 2e-4)")
    parser.add_argument("--matryoshka_dims", type=int, nargs="*", help="lengths at which vectors shall work, too")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; name a new folder")
    train, test = folder_pairs(options.images) if options.images else embedded_pairs()
    print(f"{len(train)} pairs to learn, {len(test)} to measure", flush=True)

    model = SentenceTransformer(options.model, trust_remote_code=True)
    before = recalls(model, test)
    loss: torch.nn.Module = CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.mini_batch_size)
    if options.matryoshka_dims:
        dims = [model.get_embedding_dimension(), *options.matryoshka_dims]
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=dims)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.out / "run"), max_steps=options.steps, per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate, warmup_steps=max(1, options.steps // 10), logging_steps=10,
        save_strategy="no", report_to="none", dataloader_drop_last=len(train) >= options.batch_size, seed=42,
    )  # fmt: skip
    SentenceTransformerTrainer(model, arguments, train_dataset=train, loss=loss).train()
    after = recalls(model, test)
    model.save_pretrained(str(options.out))

    print(f"\n{'percent':20} {'before':>7} {'after':>7}")
    for name, value in before.items():
        print(f"{name:20} {value:7.1f} {after[name]:7.1f}")
    print(f"\ndone: the fine-tuned model is in {options.out}")


if __name__ == "__main__":
    sys.exit(guarded(main))
