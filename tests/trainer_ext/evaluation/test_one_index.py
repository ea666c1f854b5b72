"""One index of pictures and texts, against its definition written out over the whole score matrix."""

import numpy as np
import pytest

from trainer_ext.evaluation.items import Embeddings, Picture
from trainer_ext.evaluation.one_index import OneIndexTask
from trainer_ext.evaluation.tasks import image_text_tasks, same_item_task, text_task


def picture(row: int) -> Picture:
    return Picture(f"p{row}", lambda: pytest.fail("not to be decoded"))


PICTURES = [picture(row) for row in range(20)]
CAPTIONS = [[f"caption {row}", f"again {row}"] for row in range(20)]
PAIRS = [(f"question {row}", f"answer {row}") for row in range(15)]


def example(gap: float = 2.0) -> tuple[OneIndexTask, Embeddings]:
    """Texts and pictures that match, but lie in two corners of the space."""
    rng = np.random.default_rng(0)
    tasks = [*image_text_tasks("shop", PICTURES, CAPTIONS), text_task("answers", PAIRS)]
    meaning = rng.normal(size=(20, 8))
    corner = np.eye(10)[8:] * gap
    rows: dict = {}
    for row, (shown, told) in enumerate(zip(PICTURES, CAPTIONS, strict=True)):
        rows[shown] = np.append(meaning[row], [0, 0]) + corner[0]
        for text in told:
            rows[text] = np.append(meaning[row] + 0.4 * rng.normal(size=8), [0, 0]) + corner[1]
    for question, answer in PAIRS:
        own = rng.normal(size=8)
        rows[question], rows[answer] = (np.append(own + 0.3 * rng.normal(size=8), [0, 0]) + corner[1] for _ in range(2))
    vectors = np.stack(list(rows.values())).astype(np.float32)
    return OneIndexTask("one-index", tasks), Embeddings({key: place for place, key in enumerate(rows)}, vectors)


def test_candidates_are_everything_and_only_what_is_wrong_counts_against_the_model():
    task, _ = example()
    assert len(task.pool) == 20 + 40 + 15
    assert task.size == "75 queries, 55 texts and 20 pictures in one index"
    place = {item: index for index, item in enumerate(task.pool)}
    caption = task.task.queries.index("caption 3")
    assert task.task.relevant[caption] == [place[PICTURES[3]]]
    # Itself, and the other caption of its picture.
    assert task.task.exclude[caption] == sorted([place["caption 3"], place["again 3"]])
    shown = task.task.queries.index(PICTURES[3])
    assert task.task.exclude[shown] == [place[PICTURES[3]]]
    question = task.task.queries.index("question 3")
    assert task.task.exclude[question] == [], "a question is no document"
    with_pictures = OneIndexTask(
        "o",
        [
            *image_text_tasks("shop", PICTURES, CAPTIONS),
            same_item_task("shop", PICTURES, [[row // 2] for row in range(20)]),
        ],
    )
    first = 60  # after 40 captions and 20 pictures come the queries that search pictures by picture
    assert with_pictures.task.queries[first] == PICTURES[0]
    captions_of_itself = {with_pictures.pool.index(text) for text in CAPTIONS[0]}
    assert captions_of_itself <= set(with_pictures.task.exclude[first]), "they answer it in another task"


def naive(task: OneIndexTask, embeddings: Embeddings) -> dict[str, np.ndarray]:
    """Place of the first right answer of each query, plain and corrected."""
    queries, pool = embeddings.of(task.task.queries, "q"), embeddings.of(task.pool, "c")
    scores = queries.astype(np.float64) @ pool.T.astype(np.float64)
    texts = np.array([isinstance(item, str) for item in task.pool])
    corrected = scores.copy()
    for kind in (texts, ~texts):
        part = scores[:, kind]
        corrected[:, kind] = (part - part.mean(axis=1, keepdims=True)) / part.std(axis=1, keepdims=True)
    found = {}
    for name, values in (("", scores), ("corrected_", corrected)):
        ranks = []
        for row, line in enumerate(values):
            right = task.task.relevant[row]
            others = [line[c] for c in range(len(line)) if c not in right and c not in task.task.exclude[row]]
            ranks.append(sum(other >= line[right].max() for other in others))
        found[name] = np.array(ranks)
    return found


def test_equals_the_definition_and_the_correction_closes_the_gap():
    task, embeddings = example()
    found = task.evaluate(embeddings)
    for name, ranks in naive(task, embeddings).items():
        for k in (1, 5, 10):
            assert found[f"one-index/{name}r{k}"] == pytest.approx((ranks < k).mean(), abs=1e-9)
        assert found[f"one-index/{name}mrr"] == pytest.approx((1 / (ranks + 1)).mean(), abs=1e-9)
    assert found["one-index[shop/t2i]/r1"] < found["one-index[shop/t2i]/corrected_r1"]
    assert {name.partition("/r1")[0] for name in found if name.endswith("/r1")} == {
        "one-index", "one-index[shop/t2i]", "one-index[shop/i2t]", "one-index[answers]",
    }  # fmt: skip


def test_how_the_vectors_lie_equals_the_definition():
    task, embeddings = example()
    found = task.evaluate(embeddings)
    pool = embeddings.of(task.pool, "c").astype(np.float64)
    texts = np.array([isinstance(item, str) for item in task.pool])
    gap = np.linalg.norm(pool[texts].mean(axis=0) - pool[~texts].mean(axis=0))
    assert found["one-index/modality_gap"] == pytest.approx(gap, abs=1e-6)
    queries = embeddings.of(task.task.queries, "q").astype(np.float64)
    distances = [
        np.mean([((queries[row] - pool[place]) ** 2).sum() for place in right])
        for row, right in enumerate(task.task.relevant)
    ]
    assert found["one-index/alignment"] == pytest.approx(np.mean(distances), abs=1e-6)
    square = ((pool[:, None] - pool[None]) ** 2).sum(axis=2)[np.triu_indices(len(pool), 1)]
    assert found["one-index/uniformity"] == pytest.approx(np.log(np.exp(-2 * square).mean()), abs=1e-5)
    none, vectors = example(gap=0.0)
    assert none.evaluate(vectors)["one-index/modality_gap"] < 0.5 * gap


def test_chance_and_intervals():
    task, embeddings = example()
    chance, figures = task.chance(), task.figures(embeddings)
    assert set(chance) <= set(figures)
    assert set(figures) - set(chance) == {
        name for name in figures if name.rpartition("/")[2] in ("modality_gap", "alignment", "uniformity")
    }
    assert chance["one-index/r1"] == chance["one-index/corrected_r1"] < 0.05
    assert figures["one-index/mrr"].low < figures["one-index/mrr"].value < figures["one-index/mrr"].high
    assert figures["one-index/modality_gap"].low is None


def test_one_kind_alone_is_refused():
    with pytest.raises(ValueError, match="Task 'one': its candidates are all texts; one index needs"):
        OneIndexTask("one", [text_task("answers", PAIRS)])
    to_images, _ = image_text_tasks("shop", PICTURES, CAPTIONS)
    with pytest.raises(ValueError, match="its candidates are all pictures"):
        OneIndexTask("one", [to_images])
