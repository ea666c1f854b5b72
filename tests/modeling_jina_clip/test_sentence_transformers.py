"""sentence-transformers around the model: its trainer on (image, caption) pairs, pools of processes, prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback

from hub_upload import build

COLOURS = ["red", "green", "blue", "yellow", "purple", "white", "black", "orange"]


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "tiny-clip")


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), colour) for colour in COLOURS]


def pairs() -> Dataset:
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    captions = [f"a {colour} square" for colour in COLOURS]
    return Dataset.from_dict({"image": pictures(), "caption": captions}, features=features)


def accuracy(model: SentenceTransformer) -> float:
    """Share of captions that find their own picture."""
    rows = pairs()
    scores = model.similarity(model.encode(rows["caption"][:]), model.encode(rows["image"][:]))
    return (scores.argmax(dim=1) == torch.arange(len(rows))).float().mean().item()


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.values += [logs["loss"]] if "loss" in logs else []


def train(model: SentenceTransformer, loss: torch.nn.Module, place: Path, steps: int) -> list[float]:
    seen = Losses()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(place), max_steps=steps, per_device_train_batch_size=len(COLOURS), learning_rate=2e-3,
        warmup_steps=3, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=pairs(), loss=loss, callbacks=[seen])
    trainer.train()
    return seen.values


def test_the_trainer_learns_pairs_of_image_and_caption(folder: Path, tmp_path: Path) -> None:
    """Real steps of the real trainer: the loss falls far below chance, and the saved model knows what was learnt."""
    model = load(folder)
    before = accuracy(model)
    losses = train(model, MultipleNegativesRankingLoss(model), tmp_path / "run", steps=40)
    assert losses[0] > 1.0  # chance is log(8) = 2.08
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    assert before < 0.5 < accuracy(model)
    model.save_pretrained(str(tmp_path / "trained"))
    batch = ["a red square", pictures()[0]]
    np.testing.assert_allclose(load(tmp_path / "trained").encode(batch), model.encode(batch), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
        lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=[64, 16]),
    ],
    ids=["cached", "matryoshka"],
)
def test_its_other_losses_learn_too(folder: Path, tmp_path: Path, wrap) -> None:
    model = load(folder)
    losses = train(model, wrap(model), tmp_path / "run", steps=40)
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert accuracy(model) > 0.5


def test_prompts_by_name_stand_before_texts_and_not_before_images(folder: Path) -> None:
    model = load(folder)
    model.prompts = {"query": "find: ", "document": ""}
    image = pictures()[0]
    np.testing.assert_allclose(model.encode_query(["cat"]), model.encode(["find: cat"]), atol=1e-6)
    np.testing.assert_allclose(model.encode_document(["cat"]), model.encode(["cat"]), atol=1e-6)
    np.testing.assert_allclose(
        model.encode(["cat", image], prompt_name="query")[0], model.encode("find: cat"), atol=1e-6
    )
    np.testing.assert_allclose(model.encode_query([image]), model.encode([image]), atol=1e-6)
    assert np.abs(model.encode("find: cat") - model.encode("cat")).max() > 1e-3


def test_truncation_set_when_loading(folder: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", truncate_dim=16)
    assert model.get_embedding_dimension() == 16
    whole = load(folder).encode(["cat", pictures()[0]])
    short = model.encode(["cat", pictures()[0]], normalize_embeddings=True)
    np.testing.assert_allclose(short, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_vectors(folder: Path) -> None:
    """The module is code of the folder: each process has to load it again."""
    model = load(folder)
    inputs = [f"number {n}" for n in range(12)] + pictures()
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        texts = model.encode(inputs[:12], pool=pool, chunk_size=5)
        mixed = model.encode(inputs, pool=pool, chunk_size=7)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(texts, model.encode(inputs[:12]), atol=1e-6)
    np.testing.assert_allclose(mixed, model.encode(inputs), atol=1e-6)
