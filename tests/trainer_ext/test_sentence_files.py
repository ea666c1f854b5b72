"""A run's folder and the Hub folder built from it: the same files for sentence-transformers, and the same vectors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from hub_upload import build
from modeling_jina_clip import JinaCLIPModel
from tests.hub_checkpoint import v2_checkpoint
from tests.trainer_ext.tiny_run import make_model, make_processor
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.start import initial_model, training_arguments
from trainer_ext.training.trainer import JinaCLIPTrainer

TEXTS = ["a red circle", "Vier grüne Quadrate", "word " * 30]
INSTRUCTIONS = {"retrieval.query": "Represent the query: ", "matching": "Vergleiche für: "}
FILES = [
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Normalize/config.json",
    "custom_st.py",
]  # fmt: skip


def saved_by_a_run(recipe_file: Path, start: Path, folder: Path, *overrides: str) -> Path:
    """The model folder that a run from ``start`` writes, before its first step."""
    recipe = load_recipe(recipe_file, [f"model={start}", "tokenizer=null", *overrides])
    model, processor = initial_model(recipe)
    trainer = JinaCLIPTrainer(
        model=model,
        args=training_arguments(recipe, folder),
        recipe=recipe,
        train_dataset=load_sources(recipe.used_sources()),
        processing_class=processor,
    )
    trainer.save_model(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def folders(golden: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a model with task instructions, in the layout of v2: as a run saves it, and built for the Hub."""
    place = tmp_path_factory.mktemp("v2")
    start = v2_checkpoint(golden, place / "start", task_instructions=INSTRUCTIONS, default_instruction_task="matching")
    run = saved_by_a_run(tiny_recipe, start, place / "run")
    return run, build(run, place / "hub")


def test_both_folders_have_the_same_files(folders: tuple[Path, Path]) -> None:
    run, hub = folders
    for name in FILES:
        assert (run / name).read_bytes() == (hub / name).read_bytes(), name
    assert "Vergleiche für: " in (run / "config_sentence_transformers.json").read_text(encoding="utf-8")


def test_both_folders_give_the_same_vectors(folders: tuple[Path, Path]) -> None:
    """Queries with their instruction, documents and plain texts with the default one, pictures without any."""
    run, hub = (SentenceTransformer(str(path), trust_remote_code=True, device="cpu") for path in folders)
    model = JinaCLIPModel.from_pretrained(folders[0]).eval()
    expected = {
        "encode": model.encode_text(TEXTS, task="matching"),
        "encode_document": model.encode_text(TEXTS, task="matching"),
        "encode_query": model.encode_text(TEXTS, task="retrieval.query"),
    }
    assert np.abs(expected["encode"] - expected["encode_query"]).max() > 1e-3
    for name, vectors in expected.items():
        found = getattr(run, name)(TEXTS)
        assert np.array_equal(found, getattr(hub, name)(TEXTS)), name
        np.testing.assert_allclose(found, vectors, atol=1e-5, err_msg=name)
    for task in INSTRUCTIONS:
        found = run.encode(TEXTS, prompt_name=task)
        assert np.array_equal(found, hub.encode(TEXTS, prompt_name=task)), task
        np.testing.assert_allclose(found, model.encode_text(TEXTS, task=task), atol=1e-5, err_msg=task)
    image = Image.new("RGB", (40, 30), "red")
    assert np.array_equal(run.encode([image, *TEXTS]), hub.encode([image, *TEXTS]))


def test_an_adapter_keeps_the_instructions_too(tiny_recipe: Path, tmp_path: Path) -> None:
    model = make_model()
    model.config.text_config.task_instructions = INSTRUCTIONS
    model.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    run = saved_by_a_run(tiny_recipe, tmp_path / "start", tmp_path / "run", "lora={r: 2, alpha: 8}")
    hub = build(run, tmp_path / "hub")
    for name in FILES:
        assert (run / "adapter" / name).read_bytes() == (run / name).read_bytes() == (hub / name).read_bytes(), name
    assert INSTRUCTIONS["retrieval.query"] in (hub / "config_sentence_transformers.json").read_text()
