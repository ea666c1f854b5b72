"""MTEB evaluates the model through its own wrapper, offline, on tasks defined here: texts by text, images by text."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformer

from hub_upload import build

mteb = pytest.importorskip("mteb")
abstasks = pytest.importorskip("mteb.abstasks")
SentenceTransformerEncoderWrapper = pytest.importorskip("mteb.models").SentenceTransformerEncoderWrapper
pytestmark = pytest.mark.slow  # importing all of MTEB takes long

COLOURS = ["red", "green", "blue", "yellow", "purple", "white"]


def task(name: str, corpus: Dataset, queries: Dataset, category: str, modalities: list[str]):
    """A retrieval task of MTEB in which document i answers query i."""
    kind = "Any2AnyRetrieval" if "image" in modalities else "Retrieval"

    class Local(abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=name, description=name, reference=None, type=kind,
            category=category, modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", dataset={"path": "none/none", "revision": "0"}, date=None, domains=None,
            task_subtypes=None, license=None, annotations_creators=None, dialect=None, sample_creation=None,
            bibtex_citation="", prompt=None,
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs) -> None:
            relevant = {row: {row: 1} for row in queries["id"]}
            split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


def ids(count: int) -> list[str]:
    return [f"{number}" for number in range(count)]


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "tiny-clip")
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def expected_ndcg(queries: np.ndarray, documents: np.ndarray) -> float:
    """nDCG@10 with one right answer per query: 1 / log2(1 + rank)."""
    scores = queries @ documents.T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    return float(np.mean(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)))


def evaluate(model: SentenceTransformer, one_task) -> float:
    wrapper = SentenceTransformerEncoderWrapper(model)
    # Of a repository MTEB reads the modalities from sentence_bert_config.json; of an object it assumes texts alone.
    kinds = {"modalities": ["text", "image"]}
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update=kinds)
    result = mteb.evaluate(wrapper, one_task, cache=None, encode_kwargs={"batch_size": 4}, show_progress_bar=False)
    [scores] = result.task_results[0].scores["test"]
    return scores["ndcg_at_10"]


def test_texts_by_text(model: SentenceTransformer) -> None:
    words = ["a cat on the beach", "two dogs", "the red bus", "green leaves of a tree", "night"]
    corpus = Dataset.from_dict({"id": ids(5), "text": [f"{text}, seen by day" for text in words], "title": [""] * 5})
    queries = Dataset.from_dict({"id": ids(5), "text": words})
    found = evaluate(model, task("LocalTexts", corpus, queries, "t2t", ["text"]))
    expected = expected_ndcg(model.encode(words), model.encode(corpus["text"][:]))
    assert found == pytest.approx(expected, abs=1e-4)


def test_images_by_text(model: SentenceTransformer) -> None:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    features = Features({"id": Value("string"), "image": ImageFeature()})
    corpus = Dataset.from_dict({"id": ids(6), "image": pictures}, features=features)
    captions = [f"a {colour} square" for colour in COLOURS]
    queries = Dataset.from_dict({"id": ids(6), "text": captions})
    found = evaluate(model, task("LocalImages", corpus, queries, "t2i", ["text", "image"]))
    assert found == pytest.approx(expected_ndcg(model.encode(captions), model.encode(pictures)), abs=1e-4)
