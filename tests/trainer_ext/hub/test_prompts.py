"""Task instructions (jina-clip-v2) in a Hub folder: sentence-transformers applies the same ones as the model does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from hub_upload import build, verify
from modeling_jina_clip import JinaCLIPModel
from tests.hub_checkpoint import v2_checkpoint

TEXTS = ["a red circle", "Vier grüne Quadrate", "photo.jpg", "word " * 30]
QUERY, PASSAGE, MATCHING = "Represent the query for search: ", "Represent the text: ", "Compare: "
V2 = {"task_instructions": {"retrieval.query": QUERY}}
ALL = {"retrieval.query": QUERY, "retrieval.passage": PASSAGE, "matching/all": MATCHING}


def load(golden: Path, tmp_path: Path, **text: Any) -> tuple[SentenceTransformer, JinaCLIPModel, Path]:
    folder = build(v2_checkpoint(golden, tmp_path / "model", **text), tmp_path / "hub")
    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    return encoder, JinaCLIPModel.from_pretrained(folder).eval(), folder


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < 1e-5)


def test_instructions_of_v2_are_the_prompts(golden: Path, tmp_path: Path) -> None:
    """As published: an instruction for queries, none for documents, none by default."""
    encoder, model, folder = load(golden, tmp_path, **V2)
    plain, query = model.encode_text(TEXTS), model.encode_text(TEXTS, task="retrieval.query")
    assert not same(plain, query)
    assert same(encoder.encode(TEXTS), plain)
    assert same(encoder.encode_document(TEXTS), plain)
    assert same(encoder.encode_query(TEXTS), query)
    assert same(encoder.encode(TEXTS, prompt_name="retrieval.query"), query)
    image = Image.new("RGB", (40, 30), "red")
    mixed = encoder.encode([*TEXTS, image], prompt_name="query")
    assert same(mixed, np.concatenate([query, model.encode_image([image])]))
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"retrieval.query": QUERY, "query": QUERY, "document": ""}
    assert settings["default_prompt_name"] is None


@pytest.mark.parametrize(
    ("default", "query", "document"),
    [
        (None, "retrieval.query", "retrieval.passage"),
        ("matching/all", "retrieval.query", "retrieval.passage"),
        ("retrieval.query", "retrieval.query", "retrieval.passage"),
    ],
)
def test_every_task_and_the_default_one(
    golden: Path, tmp_path: Path, default: str | None, query: str, document: str
) -> None:
    encoder, model, _ = load(golden, tmp_path, task_instructions=ALL, default_instruction_task=default)
    assert same(encoder.encode(TEXTS), model.encode_text(TEXTS))
    for task in ALL:
        assert same(encoder.encode(TEXTS, prompt_name=task), model.encode_text(TEXTS, task=task)), task
    assert same(encoder.encode_query(TEXTS), model.encode_text(TEXTS, task=query))
    assert same(encoder.encode_document(TEXTS), model.encode_text(TEXTS, task=document))


def test_a_role_without_a_task_has_the_default_unless_it_is_the_other_roles(golden: Path, tmp_path: Path) -> None:
    only = {"matching": MATCHING}
    encoder, model, _ = load(golden, tmp_path / "1", task_instructions=only, default_instruction_task="matching")
    for found in (encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)):
        assert same(found, model.encode_text(TEXTS))
    encoder, model, _ = load(golden, tmp_path / "2", **V2, default_instruction_task="retrieval.query")
    assert same(encoder.encode_query(TEXTS), model.encode_text(TEXTS))
    assert not same(encoder.encode_document(TEXTS), model.encode_text(TEXTS))


@pytest.mark.slow
def test_verify_compares_every_task(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layout of v2 through the whole of `verify`."""
    folder = build(v2_checkpoint(golden, tmp_path / "model", task_instructions=ALL), tmp_path / "hub")
    assert verify(folder) == []
    shown = capsys.readouterr().out
    for task in ALL:
        assert f"SentenceTransformer/task {task} (5, 64)" in shown
        assert f"AutoModel, AutoProcessor/task {task} (5, 64)" in shown
