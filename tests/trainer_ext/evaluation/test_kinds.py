"""Similarity, classification and match against scipy and scikit-learn on the same vectors, and what they refuse."""

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats
from sklearn import metrics as theirs

from trainer_ext.evaluation import classification, statistics
from trainer_ext.evaluation.classification import ClassificationTask
from trainer_ext.evaluation.items import Embeddings, Item, key_of
from trainer_ext.evaluation.match import MatchTask, match_task
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.similarity import SimilarityTask
from trainer_ext.evaluation.tasks import ALL_HITS, same_item_task

EXACT = 1e-6


def embeddings_of(items: list[Item], vectors: np.ndarray) -> Embeddings:
    return Embeddings({key_of(item): place for place, item in enumerate(items)}, vectors.astype(np.float32))


def pairs(count: int, noise: float, seed: int = 0) -> tuple[list[str], list[str], Embeddings, np.ndarray]:
    """Texts whose vectors lie nearer the less noise they have, and the cosine of each pair."""
    rng = np.random.default_rng(seed)
    firsts, seconds = [f"a{row}" for row in range(count)], [f"b{row}" for row in range(count)]
    left = rng.normal(size=(count, 16))
    right = left + noise * rng.normal(size=(count, 16)) * rng.random((count, 1))
    vectors = np.concatenate([left, right])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return firsts, seconds, embeddings_of(firsts + seconds, vectors), (units[:count] * units[count:]).sum(axis=1)


def test_similarity_equals_scipy():
    firsts, seconds, embeddings, cosine = pairs(300, 3.0)
    noise = np.random.default_rng(1).normal(scale=0.2, size=300)
    gold = np.round(9 * (cosine + noise) ** 3)  # many equal scores, and no straight line
    found = SimilarityTask("sts", firsts, seconds, gold).evaluate(embeddings)
    assert found["sts/spearman"] == pytest.approx(stats.spearmanr(cosine, gold).statistic, abs=EXACT)
    assert found["sts/pearson"] == pytest.approx(stats.pearsonr(cosine, gold).statistic, abs=EXACT)
    assert 0.3 < found["sts/spearman"] < 0.95
    assert found["sts/spearman"] != pytest.approx(found["sts/pearson"], abs=1e-3)


def test_similarity_has_intervals_and_splits():
    firsts, seconds, embeddings, cosine = pairs(200, 3.0)
    task = SimilarityTask("sts", firsts, seconds, cosine + np.random.default_rng(1).normal(scale=0.2, size=200))
    task.splits = ["de", "en"] * 100
    figures = task.figures(embeddings)
    assert set(figures) == {f"sts{group}/{name}" for group in ("", "[de]", "[en]") for name in ("spearman", "pearson")}
    assert all(figure.low < figure.value < figure.high for figure in figures.values())
    english = SimilarityTask("sts", firsts[1::2], seconds[1::2], task.scores[1::2]).evaluate(embeddings)
    assert figures["sts[en]/spearman"].value == english["sts/spearman"]
    assert task.chance() == dict.fromkeys(figures, 0.0)


CLASSES = ["cat", "dog", "bus", "tree", "sea", "red", "blue"]
TEMPLATES = ["a photo of a {}", "a drawing of a {}"]


def classified(count: int = 210, noise: float = 2.5) -> tuple[ClassificationTask, Embeddings, np.ndarray]:
    """A task, its vectors, and (images, classes) cosines from the definition."""
    rng = np.random.default_rng(0)
    labels = rng.choice(7, size=count, p=np.array([6, 5, 4, 3, 2, 1, 1]) / 22)
    images = [Image.new("RGB", (2, 2)) for _ in range(count)]
    task = ClassificationTask("kinds", images, labels.tolist(), CLASSES, TEMPLATES, logit_scale=1.5)
    centres = rng.normal(size=(7, 12))
    texts = np.repeat(centres, 2, axis=0) + 0.3 * rng.normal(size=(14, 12))
    shown = centres[labels] + noise * rng.normal(size=(count, 12))
    units = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    means = units.reshape(7, 2, 12).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    scores = shown / np.linalg.norm(shown, axis=1, keepdims=True) @ means.T
    return task, embeddings_of(task.items, np.concatenate([shown, texts])), scores


@pytest.mark.parametrize("block", [13, 1024])
def test_classification_equals_scikit_learn_and_the_definition_of_ece(monkeypatch, block):
    monkeypatch.setattr(classification, "IMAGE_BLOCK", block)
    task, embeddings, scores = classified()
    found = task.evaluate(embeddings)
    guess = scores.argmax(axis=1)
    assert found["kinds/acc1"] == pytest.approx(theirs.accuracy_score(task.labels, guess), abs=EXACT)
    assert found["kinds/acc5"] == pytest.approx(theirs.top_k_accuracy_score(task.labels, scores, k=5), abs=EXACT)
    assert found["kinds/mean_class_recall"] == pytest.approx(
        theirs.balanced_accuracy_score(task.labels, guess), abs=EXACT
    )
    odds = np.exp(np.exp(1.5) * scores)
    confidence = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs((guess == task.labels)[inside].mean() - confidence[inside].mean())
    assert found["kinds/ece"] == pytest.approx(error, abs=EXACT)
    assert 0.4 < found["kinds/acc1"] < found["kinds/acc5"] < 1
    assert found["kinds/ece"] > 0.02


def test_classification_without_a_scale_has_no_calibration_and_ties_are_misses():
    task, embeddings, _ = classified()
    task.logit_scale = None
    assert set(task.evaluate(embeddings)) == {"kinds/acc1", "kinds/acc5", "kinds/mean_class_recall"}
    assert task.chance() == {"kinds/acc1": 1 / 7, "kinds/acc5": 5 / 7, "kinds/mean_class_recall": 1 / 7}
    images = [Image.new("RGB", (2, 2)) for _ in range(2)]
    tied = ClassificationTask("tied", images, [0, 1], ["a", "b", "c"])
    vectors = np.array([[1, 0], [0.9, 0.1], [1, 0], [1, 0], [0, 1]])
    assert tied.evaluate(embeddings_of(tied.items, vectors))["tied/acc1"] == 0.0


def matched(noise: float = 4.0) -> tuple[MatchTask, Embeddings]:
    firsts, seconds, embeddings, _ = pairs(400, noise)
    retrieval = RetrievalTask("shop", firsts, seconds, [[row] for row in range(400)], ALL_HITS)
    return match_task("match", retrieval), embeddings


def test_match_equals_scikit_learn_on_the_reported_half():
    task, embeddings = matched()
    found = task.evaluate(embeddings)
    left, right = embeddings.of(task.firsts, "test"), embeddings.of(task.seconds, "test")
    scores = (left.astype(np.float64) * right).sum(axis=1)
    fit, rest = task.fitted, ~task.fitted
    assert found["match/auroc"] == pytest.approx(theirs.roc_auc_score(task.same[rest], scores[rest]), abs=EXACT)
    assert found["match/ap"] == pytest.approx(theirs.average_precision_score(task.same[rest], scores[rest]), abs=EXACT)
    precision, recall, thresholds = theirs.precision_recall_curve(task.same[fit], scores[fit])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found["match/threshold"] == pytest.approx(thresholds[f1[:-1].argmax()], abs=EXACT)
    called = scores[rest] >= found["match/threshold"] - 1e-9
    assert found["match/f1"] == pytest.approx(theirs.f1_score(task.same[rest], called), abs=EXACT)
    assert 0.8 < found["match/auroc"] < 0.999
    assert 0.7 < found["match/f1"] < 0.999


def test_the_logistic_fit_is_the_maximum_of_platts_likelihood():
    task, embeddings = matched()
    found = task.evaluate(embeddings)
    left, right = embeddings.of(task.firsts, "test"), embeddings.of(task.seconds, "test")
    scores, same = (left * right).sum(axis=1)[task.fitted].astype(np.float64), task.same[task.fitted]
    true = same.sum()
    target = np.where(same, (true + 1) / (true + 2), 1 / (len(same) - true + 2))

    def loss(at):
        z = at[0] * scores + at[1]
        return (np.logaddexp(0, z) - target * z).sum()

    best = optimize.minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-9})
    assert (found["match/slope"], found["match/offset"]) == pytest.approx(best.x, rel=1e-4)
    assert loss([found["match/slope"], found["match/offset"]]) <= best.fun + 1e-9
    separable = statistics.logistic_fit(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert np.isfinite(separable).all()
    assert separable[0] > 0


def test_match_pairs_are_drawn_the_same_every_time_and_halves_share_no_first():
    task, embeddings = matched()
    again, _ = matched()
    assert (task.firsts, task.seconds) == (again.firsts, again.seconds)
    assert (task.fitted == again.fitted).all()
    assert task.same.sum() == (~task.same).sum() == 400
    partner = dict(zip((f"a{row}" for row in range(400)), (f"b{row}" for row in range(400)), strict=True))
    assert all((partner[a] == b) == same for a, b, same in zip(task.firsts, task.seconds, task.same, strict=True))
    halves = [{first for first, fit in zip(task.firsts, task.fitted, strict=True) if fit == half} for half in (0, 1)]
    assert not halves[0] & halves[1]
    figures = task.figures(embeddings)
    assert figures["match/auroc"].low < figures["match/auroc"].value < figures["match/auroc"].high
    assert figures["match/threshold"].low <= figures["match/threshold"].value <= figures["match/threshold"].high
    assert task.chance() == {"match/auroc": 0.5, "match/ap": 0.5, "match/f1": pytest.approx(2 / 3)}


def test_other_pairs_are_never_right_nor_excluded():
    items = [f"text {row}" for row in range(12)]
    task = match_task("m", same_item_task("t", items, [[row // 3] for row in range(12)]))
    for first, second, same in zip(task.firsts, task.seconds, task.same, strict=True):
        assert first != second
        assert (int(first[5:]) // 3 == int(second[5:]) // 3) == same


IMAGE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SimilarityTask("s", ["a"], ["b"], [1.0, 2.0]), "1 firsts, 1 seconds and 2 scores"),
        (lambda: SimilarityTask("s", ["a", "b"], ["c", "d"], [1.0, np.nan]), "pair 1 has the score nan"),
        (lambda: SimilarityTask("s", ["a", "b"], ["c", "d"], [2.0, 2.0]), "all 2 scores are 2; a correlation needs"),
        (lambda: SimilarityTask("s", ["a", " "], ["c", "d"], [2.0, 1.0]), "1 of 2 firsts are empty"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [1, 1], ["a", "b"]), "all 2 images are of one class, 'b'"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [0, 2], ["a", "b"]), "image 1 has the label 2; use 0 to 1"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [0], ["a", "b"]), "2 images but 1 labels"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [0, 1], ["a", "a"]), "the class 'a' is named twice"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [0, 1], ["a", "b"], ["photo"]), "template 'photo' needs one {}"),
        (lambda: ClassificationTask("c", [IMAGE] * 2, [0, 1], ["a", "b"], []), "at least one template"),
        (lambda: ClassificationTask("c", [], [], ["a", "b"]), "0 of 0 images are empty"),
        (lambda: MatchTask("m", ["a", "b"], ["c", "d"], [True, True]), "half has 1 true pairs among 1; each half"),
        (lambda: MatchTask("m", ["a", "b"], ["c"], [True, True]), "2 firsts, 1 seconds and 2 labels"),
        (lambda: same_item_task("i", [IMAGE] * 3, [["a"], ["b"], []]), "none of its 3 items shares an id or a caption"),
    ],
)  # fmt: skip
def test_bad_tasks_are_refused_before_any_model_runs(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_vectors_that_say_nothing_are_refused():
    task, embeddings, _ = classified(20)
    task.name = "kinds"
    constant = Embeddings(embeddings.places, np.ones_like(embeddings.rows))
    with pytest.raises(ValueError, match=r"kinds, images: all 20 of 20 embeddings are the same vector"):
        task.evaluate(constant)
    firsts, seconds, vectors, cosine = pairs(20, 1.0)
    vectors.rows[3] = np.nan
    with pytest.raises(ValueError, match=r"sts, firsts: 1 of 20 embeddings are not finite \(first: 'a3'\)"):
        SimilarityTask("sts", firsts, seconds, cosine).evaluate(vectors)
