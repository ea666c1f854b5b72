"""Teachers for the tiny run."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor
from tests.trainer_ext.tiny_run import MODEL, make_model, make_processor, make_tokenizer


def save(model: JinaCLIPModel, processor: JinaCLIPProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that training starts from."""
    return save(make_model(), make_processor(), tmp_path_factory.mktemp("teachers") / "same")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another width, other numbers for the same words, larger pictures, and dropout that must not count."""
    words = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = words["model"]["vocab"]
    places = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    rest = [word for word in vocabulary if word not in places]
    words["model"]["vocab"] = places | {word: 4 + place for place, word in enumerate(reversed(rest))}
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(words)), **special)
    sizes = {"embed_dim": 24, "hidden_size": 24, "hidden_dropout_prob": 0.5}
    vision = MODEL["vision_config"] | {"embed_dim": 24, "width": 24, "image_size": 24, "patch_dropout": 0.5}
    config = JinaCLIPConfig(text_config=MODEL["text_config"] | sizes, vision_config=vision, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = JinaCLIPModel(config)
    processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=24), tokenizer)
    return save(model, processor, tmp_path_factory.mktemp("teachers") / "other")
