"""A shop's files to measure on, a tiny Jina CLIP and a tiny text-only peer."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.tiny_run import COLOURS, NUMBERS, make_model, make_processor, make_tokenizer, picture

SOURCES = """
- {name: photos-test, task: image-text, format: json, location: test.jsonl, columns: {image: image, caption: caption, id: product}}
- {name: answers-test, task: text-pair, format: csv, location: test.csv, columns: {query: question, positive: answer}}
- {name: sts-test, task: scored-pair, format: csv, location: sts.csv, columns: {query: a, positive: b, score: score}}
"""  # noqa: E501
# As in docs/evaluation.md.
TASKS = """
- {name: shop, source: photos-test, directions: [t2i, i2t, i2i]}
- {name: answers, source: answers-test}
- {name: sts, source: sts-test}
- {name: kinds, source: photos-test, classes: kind, templates: ["a photo of a {}", "a drawing of a {}"]}
- {name: match, source: photos-test, measure: match}
- {name: one-index, mix: [shop, answers]}
"""


def write_files(folder: Path) -> Path:
    """20 pictures of coloured bars with a product, a kind and a language each; questions; scored pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for colour in COLOURS:
        for number in range(1, 6):
            name = f"{colour}{number}.png"
            picture(colour, number).save(folder / name)
            captions = [f"{NUMBERS[number - 1]} {colour} bar", f"{colour} bar number {NUMBERS[number - 1]}"]
            row = {"image": name, "caption": captions, "product": colour, "kind": f"{colour} bar"}
            rows.append(row | {"language": ["en", "de"][number % 2], "shelf": number})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    follows = [(f"{one} is after", other) for one, other in pairwise(NUMBERS)]
    write_csv(folder / "test.csv", ["question", "answer"], follows)
    write_csv(folder / "sts.csv", ["a", "b", "score"], [(*pair, place % 4) for place, pair in enumerate(follows)])
    return folder


@contextmanager
def few_draws() -> Iterator[None]:
    """Intervals from 30 draws, where a test is about anything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer_ext.evaluation.figures.RESAMPLES", 30)
        yield


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_tasks(folder: Path, tasks: str = TASKS, sources: str = SOURCES, **more: object) -> Path:
    """A file of tasks beside the shop's files."""
    path = folder / "tasks.yaml"
    content = {"sources": yaml.safe_load(sources), "tasks": yaml.safe_load(tasks)}
    path.write_text(yaml.safe_dump({**content, **more}, sort_keys=False))
    return path


def save_ours(folder: Path, seed: int = 0) -> Path:
    """A tiny Jina CLIP; each seed gives other weights."""
    model: JinaCLIPModel = make_model()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * seed * torch.randn(value.shape, generator=random)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def save_peer(folder: Path) -> Path:
    """A tiny BERT that sentence-transformers loads: texts alone, with a prompt for queries."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(folder / "bert")
    make_tokenizer().save_pretrained(folder / "bert")
    # Of a plain BERT folder sentence-transformers makes a model that takes the mean over the tokens.
    made = SentenceTransformer(str(folder / "bert"), prompts={"query": "the number "}, device="cpu")
    made.save_pretrained(str(folder / "peer"))
    return folder / "peer"
