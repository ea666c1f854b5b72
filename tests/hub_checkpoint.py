"""Checkpoints to build Hub folders from: a finished run as the trainer leaves it, and a model in the layout of v2."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPImageProcessor,
    JinaCLIPModel,
    JinaCLIPProcessor,
    JinaCLIPTextConfig,
    JinaCLIPVisionConfig,
)
from trainer_ext.evaluation.report import Report
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.folder import RunFolder

# Put together here, so that no scanner takes this file for a leak.
TOKEN = "hf_" + "Abcdefgh1234" * 3


def run_record(recipe: str = "openmoji", *changes: str) -> dict[str, Any]:
    """`run.json` of a run, by default of the demo's recipe, started in a folder that must stay private."""
    loaded = load_recipe(recipe, changes)
    with tempfile.TemporaryDirectory() as place:
        command = ["trainer", "--output_dir", "/home/somebody/secret-project"]
        RunFolder(Path(place) / "run", loaded, command).claim()
        return json.loads((Path(place) / "run" / "run.json").read_text())


def finished_run(golden: Path, folder: Path) -> Path:
    """The golden model, its measurements, and files that must not be published."""
    shutil.copytree(golden / "tiny_model", folder)
    report = Report(folder)
    report.add("before training", {"concepts_short/t2i_r5": 0.031, "words/ndcg10": 0.12})
    report.add("chance", {"concepts_short/t2i_r5": 0.029}, kind="reference")
    report.add("triplets", {"concepts_short/t2i_r5": 0.314, "words/ndcg10": 0.42, "concepts_short@64/t2i_r5": 0.2})
    report.save()
    (folder / "run.json").write_text(json.dumps(run_record()))
    (folder / "optimizer.pt").write_bytes(pickle.dumps({"not": "for the Hub"}))
    return folder


def v2_model(vocab_size: int = 200, **text: Any) -> JinaCLIPModel:
    """The layout of jina-clip-v2, narrow: rotary positions, active adapters, patches that leave a rest."""
    text_config = JinaCLIPTextConfig(
        embed_dim=64, vocab_size=vocab_size, hidden_size=64, num_attention_heads=4, num_hidden_layers=2,
        intermediate_size=96, mlp_type="mlp", position_embedding_type="rotary", type_vocab_size=1, pad_token_id=1,
        lora_adaptations=["one", "two"], default_lora_task="two", **text,
    )  # fmt: skip
    vision = JinaCLIPVisionConfig(
        embed_dim=64, width=64, head_width=16, layers=2, image_size=36, patch_size=8, intp_freq=True, pt_hw_seq_len=4
    )
    model = JinaCLIPModel(JinaCLIPConfig(text_config=text_config, vision_config=vision, projection_dim=64))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def v2_checkpoint(golden: Path, folder: Path, **text: Any) -> Path:
    """That model with the golden tokenizer, saved."""
    tokenizer = JinaCLIPProcessor.from_pretrained(golden / "tiny_model").tokenizer
    v2_model(len(tokenizer), **text).save_pretrained(folder)
    JinaCLIPProcessor(JinaCLIPImageProcessor(size=36), tokenizer).save_pretrained(folder)
    return folder
