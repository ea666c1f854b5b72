"""What the study's arms share, made once: a vocabulary, a pre-trained text tower, shares of tables."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from examples import pretrain_text_tower
from trainer_ext.demo_data import load_table, prepare
from trainer_ext.files import write_json
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.tokenizer import train_wordpiece, training_texts

HERE = Path(__file__).parent
SEED = 42


def data_names(overrides: Sequence[str]) -> list[str]:
    """The names after ``{data}/``, in their order.

    >>> data_names(["tokenizer={data}/tokenizer", "initialize.text={data}/tower"])
    ['tokenizer', 'tower']
    """
    return list(dict.fromkeys(name for text in overrides for name in re.findall(r"\{data\}/([\w.-]+)", text)))


def make_vocabulary(path: Path, recipe: str, size: int) -> None:
    """A vocabulary of all texts of a recipe."""
    train_wordpiece(training_texts(load_recipe(HERE / recipe)), size).save_pretrained(path)


def make_masked_lm(path: Path, recipe: str, steps: int) -> None:
    """A text tower after masked language modelling; its vocabulary is that of ``make_vocabulary``."""
    shutil.rmtree(path, ignore_errors=True)
    pretrain_text_tower.main([str(HERE / recipe), str(path), "--steps", str(steps)])


def make_rows(path: Path, table: str, split: str, share: float) -> None:
    """A share of a table's rows, drawn by a fixed seed."""
    rows = load_table(prepare(), table, split)
    kept = np.sort(np.random.default_rng(SEED).permutation(len(rows))[: round(share * len(rows))])
    rows.select(kept).to_parquet(path)


def make_preset(path: Path, preset: str, width: int) -> None:
    """A preset whose towers and embedding have another width, with as wide heads and the same ratios."""
    content = json.loads(find_resource("models", preset).read_text(encoding="utf-8"))
    text, vision = content["text_config"], content["vision_config"]
    factor = width / vision["width"]
    text |= {key: round(text[key] * factor) for key in ("embed_dim", "hidden_size", "intermediate_size")}
    text["num_attention_heads"] = max(1, round(text["num_attention_heads"] * factor))
    vision |= {"embed_dim": width, "width": width}
    write_json(path, content | {"projection_dim": width})


MAKERS: dict[str, Callable[..., None]] = {
    "vocabulary": make_vocabulary,
    "masked_lm": make_masked_lm,
    "rows": make_rows,
    "preset": make_preset,
}
