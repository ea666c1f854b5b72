"""Pre-train the text tower of a recipe by masked language modelling, as the paper's text tower was, and start from it.

    python examples/pretrain_text_tower.py openmoji outputs/text-tower --steps 400
    python -m trainer_ext openmoji --output_dir outputs/from-tower initialize.text=outputs/text-tower tokenizer=null

Sizes, tokenizer and texts are the recipe's own: for ``openmoji`` the definitions of a dictionary. Training is the
``Trainer`` of transformers with its own collator; nothing here is special to Jina CLIP but the model class.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

from modeling_jina_clip import JinaCLIPTextForMaskedLM
from trainer_ext.commands.guard import guarded
from trainer_ext.files import refuse_unwritable
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import initial_model
from trainer_ext.run.tokenizer import training_texts

MASKED = 0.3  # the share of tokens to guess: JinaBERT's (arXiv 2310.19923), twice BERT's


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe file, or the name of a packaged one, for example openmoji")
    parser.add_argument("out", type=Path, help="a new folder for the tower and its tokenizer")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=128, help="texts of a step (default 128)")
    parser.add_argument("--max_length", type=int, default=64, help="tokens of a text, the rest is cut (default 64)")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true", help="mixed precision, where the processor has it")
    options = parser.parse_args(arguments)
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; give a new folder")
    if options.steps < 1 or options.batch_size < 1:
        parser.error(f"--steps {options.steps} --batch_size {options.batch_size}: both must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    refuse_unwritable(options.out, "the new folder")
    recipe = load_recipe(options.recipe)
    set_seed(recipe.seed)
    start, processor = initial_model(recipe)
    tokenizer = processor.tokenizer
    if tokenizer.mask_token is None:
        sys.exit("error: the recipe's tokenizer has no mask token; use one with, or `tokenizer: {vocab_size: N}`")

    texts = sorted(set(training_texts(recipe)))
    random.Random(recipe.seed).shuffle(texts)
    held_out = max(1, min(500, len(texts) // 20))
    texts = texts[: held_out + options.steps * options.batch_size]
    encoded = tokenizer(texts, truncation=True, max_length=options.max_length, return_special_tokens_mask=True)
    rows = [
        {"input_ids": ids, "special_tokens_mask": special}
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]
    model = JinaCLIPTextForMaskedLM(start.config.text_config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            options.out,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            # An evaluation has the logits of all tokens, training those of the hidden ones alone.
            per_device_eval_batch_size=max(1, round(options.batch_size * MASKED)),
            learning_rate=options.learning_rate,
            warmup_steps=options.steps // 10,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),  # said, or mixed precision would be refused there
            logging_steps=max(1, options.steps // 20),
            save_strategy="no",
            prediction_loss_only=True,  # or the logits of all held-out texts would be kept
            report_to=[],
            seed=recipe.seed,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED),
        train_dataset=rows[held_out:],
        eval_dataset=rows[:held_out],
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model()  # weights, configuration and tokenizer
    print(f"cross-entropy of masked tokens in {held_out} held-out texts: {before:.2f} before, {after:.2f} after")
    print(f"start from it: python -m trainer_ext {options.recipe} initialize.text={options.out} tokenizer=null ...")


if __name__ == "__main__":
    sys.exit(guarded(main))
