"""Retrieval against the field's own tools on the same vectors: TREC's evaluation and CLIP Benchmark's recall."""

import numpy as np
import pytest
import torch

from tests.source_imports import ROOT
from trainer_ext.evaluation.items import Embeddings, Picture, key_of
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.tasks import ALL_HITS, ALL_RECALLS, RetrievalTask, image_text_tasks

EXACT = 1e-6


def drawn(queries: int, candidates: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Vectors, with one to six right answers near each query and a little noise."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(candidates, 16))
    relevant = [sorted(rng.choice(candidates, rng.integers(1, 7), replace=False).tolist()) for _ in range(queries)]
    asked = np.stack([documents[row].mean(axis=0) for row in relevant]) + 0.35 * rng.normal(size=(queries, 16))
    vectors = np.concatenate([asked, documents])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:queries], vectors[queries:], relevant


def test_equals_trec_eval_query_by_query():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    queries, documents, relevant = drawn(150, 400)
    names, texts = [f"q{row}" for row in range(150)], [f"d{row}" for row in range(400)]
    embeddings = Embeddings(
        {name: row for row, name in enumerate(names + texts)}, np.concatenate([queries, documents]).astype(np.float32)
    )
    metrics = (*ALL_RECALLS, Metric("ndcg", 5), Metric("map", 5))
    figures = RetrievalTask("t", names, texts, relevant, metrics).figures(embeddings)
    scores = queries @ documents.T
    judged = {name: {texts[place]: 1 for place in row} for name, row in zip(names, relevant, strict=True)}
    run = {name: dict(zip(texts, row.tolist(), strict=True)) for name, row in zip(names, scores, strict=True)}
    measures = {"ndcg_cut.5,10", "map_cut.5,10", "recall.1,5,10", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    pairs = {"mrr": "recip_rank"} | {f"r{k}": f"recall_{k}" for k in (1, 5, 10)}
    pairs |= {f"{ours}{k}": f"{theirs}_cut_{k}" for ours, theirs in (("ndcg", "ndcg"), ("map", "map")) for k in (5, 10)}
    for ours, theirs in pairs.items():
        expected = np.array([found[name][theirs] for name in names])
        np.testing.assert_allclose(figures[f"t/{ours}"].samples, expected, atol=EXACT, err_msg=ours)
        assert figures[f"t/{ours}"].value == pytest.approx(expected.mean(), abs=EXACT)
        assert 0.05 < expected.mean() < 0.95, "the comparison must not be between trivial values"
    best = [
        1 + min(np.argsort(-row).tolist().index(place) for place in own)
        for row, own in zip(scores, relevant, strict=True)
    ]
    assert figures["t/median_rank"].value == np.median(best)


def recall_at_k(scores: torch.Tensor, right: torch.Tensor, k: int) -> torch.Tensor:
    """CLIP Benchmark's recall_at_k, from its definition: the share of a row's right columns among its k best."""
    best = torch.topk(scores, k, dim=1).indices
    return right.gather(1, best).sum(dim=1) / right.sum(dim=1)


def theirs(monkeypatch: pytest.MonkeyPatch):
    """The package's own function where `make peers` has put it, else its definition alone."""
    monkeypatch.syspath_prepend(ROOT / ".peers")
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as own
    except ImportError:
        return recall_at_k
    return own


def test_several_captions_a_picture_are_counted_as_clip_benchmark_does(monkeypatch):
    rng = np.random.default_rng(4)
    pictures = [Picture(f"p{row}", lambda: pytest.fail("vectors are there already")) for row in range(80)]
    captions = [[f"caption {row} {one}" for one in range(rng.integers(1, 6))] for row in range(80)]
    owner = torch.tensor([row for row, own in enumerate(captions) for _ in own])
    shown = rng.normal(size=(80, 12))
    told = shown[owner] + 1.6 * rng.normal(size=(len(owner), 12))
    items = [*pictures, *(text for own in captions for text in own)]
    vectors = np.concatenate([shown, told]).astype(np.float32)
    embeddings = Embeddings({key_of(item): row for row, item in enumerate(items)}, vectors)
    ours: dict[str, float] = {}
    for task in image_text_tasks("shop", pictures, captions, ALL_HITS):
        ours |= task.evaluate(embeddings)

    unit = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1)
    scores = unit[80:] @ unit[:80].T
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[torch.arange(len(scores)), owner] = True
    for k in (1, 5, 10):
        for recall in (recall_at_k, theirs(monkeypatch)):
            images = (recall(scores, right, k) > 0).float().mean().item()
            texts = (recall(scores.T, right.T, k) > 0).float().mean().item()
            assert ours[f"shop/t2i_r{k}"] == pytest.approx(images, abs=EXACT)
            assert ours[f"shop/i2t_r{k}"] == pytest.approx(texts, abs=EXACT)
        assert 0.2 < images < texts < 1
