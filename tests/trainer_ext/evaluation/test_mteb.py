"""The same figures as MTEB, offline, on tasks made of local data: through sentence-transformers and its own client."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformer

from hub_upload import build
from trainer_ext.evaluation.classification import ClassificationTask
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.similarity import SimilarityTask
from trainer_ext.evaluation.tasks import RetrievalTask, Task
from trainer_ext.evaluation.tasks import evaluate as ours

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.slow  # importing all of MTEB takes long

METRICS = (*(Metric("recall", k) for k in (1, 5, 10)), Metric("ndcg", 10), Metric("map", 10), Metric("mrr", 10))
THEIR_NAMES = {"ndcg10": "ndcg_at_10", "map10": "map_at_10", "mrr10": "mrr_at_10"} | {
    f"r{k}": f"recall_at_{k}" for k in (1, 5, 10)
}
COLOURS = ["red", "green", "blue", "yellow", "purple", "white", "black", "orange", "cyan", "brown"]
WORDS = [f"{size} {colour} {thing}" for size in ("big", "small") for colour in COLOURS for thing in ("cat", "bus")]


@pytest.fixture(scope="module")
def folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "tiny-clip")


@pytest.fixture(scope="module", params=["sentence-transformers", "client"])
def model(request: pytest.FixtureRequest, folder: Path):
    """MTEB's two ways to this model: its wrapper of SentenceTransformer, and the class it has for Jina CLIP."""
    if request.param == "client":
        from mteb.models.model_implementations.jina_clip import JinaCLIPModel

        client = JinaCLIPModel(str(folder), revision=None, device="cpu")
        client.mteb_model_meta = mteb.get_model_meta("jinaai/jina-clip-v1")
        return client
    wrapper = mteb.models.SentenceTransformerEncoderWrapper(
        SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    )
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    return wrapper


def encode(model) -> Callable[[list], np.ndarray]:
    inner = model.model
    return lambda items: np.asarray(
        inner.encode(items)
        if isinstance(inner, SentenceTransformer)
        else (inner.encode_text if isinstance(items[0], str) else inner.encode_image)(items)
    )


def local(base: type, name: str, kind: str, modalities: list[str], data: dict, **extra):
    """A task of MTEB over data given here."""
    score = {"STS": "cosine_spearman", "ZeroShotClassification": "accuracy"}.get(kind, "ndcg_at_10")

    class Local(base):
        metadata = mteb.TaskMetadata(
            name=name, description=name, reference=None, type=kind, category="t2i" if "image" in modalities else "t2t",
            modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score,
            dataset={"path": "none/none", "revision": "0"}, date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="", prompt=None,
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs) -> None:
            self.dataset, self.data_loaded = data, True

    for key, value in extra.items():
        setattr(Local, key, value)
    return Local()


def theirs(model, task) -> dict[str, float]:
    result = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 8}, show_progress_bar=False)
    [scores] = result.task_results[0].scores["test"]
    return scores


def measured(model, task: Task) -> dict[str, float]:
    found = ours(encode(model), encode(model), [task], progress=False)
    return {name.rpartition("/")[2]: value for name, value in found.items()}


def retrieval_data(queries: Dataset, corpus: Dataset, relevant: list[list[int]]) -> dict:
    judged = {f"q{row}": {f"d{place}": 1 for place in own} for row, own in enumerate(relevant)}
    return {"default": {"test": {"corpus": corpus, "queries": queries, "relevant_docs": judged, "top_ranked": None}}}


def ids(kind: str, count: int) -> list[str]:
    return [f"{kind}{row}" for row in range(count)]


def assert_equal_retrieval(found: dict[str, float], expected: dict[str, float]) -> None:
    """MTEB rounds all but MRR to five places."""
    for name, their_name in THEIR_NAMES.items():
        value = found[name] if name == "mrr10" else round(found[name], 5)
        assert value == pytest.approx(expected[their_name], abs=1e-6), name
    assert 0 < found["ndcg10"] < 1


def test_texts_by_text(model) -> None:
    relevant = [[row, (row + 7) % 40] for row in range(40)]
    documents = [f"{text}, seen by day" for text in WORDS]
    task = RetrievalTask("t", WORDS, documents, relevant, METRICS)
    corpus = Dataset.from_dict({"id": ids("d", 40), "text": documents, "title": [""] * 40})
    queries = Dataset.from_dict({"id": ids("q", 40), "text": WORDS})
    data = retrieval_data(queries, corpus, relevant)
    expected = theirs(model, local(mteb.abstasks.AbsTaskRetrieval, "LocalTexts", "Retrieval", ["text"], data))
    assert_equal_retrieval(measured(model, task), expected)


def pictures() -> list[Image.Image]:
    images = [Image.new("RGB", (24, 18), colour) for colour in COLOURS]
    for place, image in enumerate(images):
        image.paste("white", (place, place // 2, place + 5, place // 2 + 8))
    return images


def test_images_by_text(model) -> None:
    images, captions = pictures(), [f"a {colour} square" for colour in COLOURS]
    relevant = [[row, (row + 3) % 10] for row in range(10)]
    features = Features({"id": Value("string"), "image": ImageFeature()})
    corpus = Dataset.from_dict({"id": ids("d", 10), "image": images}, features=features)
    data = retrieval_data(Dataset.from_dict({"id": ids("q", 10), "text": captions}), corpus, relevant)
    kind = local(mteb.abstasks.AbsTaskRetrieval, "LocalImages", "Any2AnyRetrieval", ["text", "image"], data)
    task = RetrievalTask("t", captions, corpus["image"][:], relevant, METRICS)
    assert_equal_retrieval(measured(model, task), theirs(model, kind))


def test_similarity_of_texts(model) -> None:
    # No pair stands there twice, turned round: MTEB's products give such pairs cosines that differ by rounding.
    firsts, seconds = WORDS, [WORDS[(place + 7) % 40] for place in range(40)]
    gold = [float(len(set(a.split()) & set(b.split()))) for a, b in zip(firsts, seconds, strict=True)]
    data = {"test": Dataset.from_dict({"sentence1": firsts, "sentence2": seconds, "score": gold})}
    expected = theirs(model, local(mteb.abstasks.AbsTaskSTS, "LocalSTS", "STS", ["text"], data))
    found = measured(model, SimilarityTask("s", firsts, seconds, gold))
    assert found["spearman"] == pytest.approx(expected["cosine_spearman"], abs=1e-6)
    assert found["pearson"] == pytest.approx(expected["cosine_pearson"], abs=1e-6)


def test_zero_shot_classification(model) -> None:
    images, labels = pictures() * 2, [*range(10), *(place // 2 for place in range(10))]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    data = {"test": Dataset.from_dict({"image": images, "label": labels}, features=features)}
    prompts = [f"a picture in {colour}" for colour in COLOURS]
    kind = local(
        mteb.abstasks.AbsTaskZeroShotClassification, "LocalKinds", "ZeroShotClassification", ["text", "image"], data,
        get_candidate_labels=lambda self: prompts,
    )  # fmt: skip
    found = measured(model, ClassificationTask("c", images, labels, COLOURS, ["a picture in {}"]))
    expected = theirs(model, kind)
    assert found["acc1"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert found["mean_class_recall"] == pytest.approx(expected["recall"], abs=1e-6)
