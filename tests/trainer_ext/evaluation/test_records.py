"""Records, a picture and a text in one vector, as candidates: the formula, right answers, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
from datasets import List, Value
from PIL import Image

from modeling_jina_clip import fuse_vectors
from tests.trainer_ext.measuring.test_tasks_from_sources import built, pictures
from tests.trainer_ext.source_files import png
from trainer_ext.evaluation.items import Picture, Record, content_of, encode_items, key_of, record_of
from trainer_ext.evaluation.metrics import Metric
from trainer_ext.evaluation.records import among_records
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.tasks import figures_of, image_text_tasks
from trainer_ext.measuring.texts import Instructed, Prompted
from trainer_ext.recipe.problems import RecipeError


def picture(shade: int) -> Picture:
    return Picture(f"shade {shade}", lambda: Image.new("L", (2, 2), shade))


def encode_image(images: list[Image.Image]) -> np.ndarray:
    return np.array([np.random.default_rng(image.getpixel((0, 0))).normal(size=16) for image in images])


def encode_text(texts: list[str]) -> np.ndarray:
    return np.array([np.random.default_rng(list(text.encode())).normal(size=16) for text in texts])


def test_vectors_of_records_are_those_of_their_parts() -> None:
    records = [record_of(picture(n % 3), f"text {n % 4}", [0.0, 0.3, 1.0][n % 3]) for n in range(12)]
    found = encode_items(encode_text, encode_image, [*records, picture(7), "alone"], progress=False)
    assert found.places.keys() == {*records, *map(picture, (0, 1, 2, 7)), *(f"text {n}" for n in range(4)), "alone"}
    expected = [
        fuse_vectors(encode_text([record.text]), encode_image([record.load()]), record.weight)[0] for record in records
    ]
    np.testing.assert_allclose(found.of(records, "test"), expected, atol=1e-6)


def test_what_makes_records_the_same() -> None:
    one = record_of(picture(1), "red", 0.5)
    assert one == record_of(picture(1), "red", 0.5)
    others = [
        record_of(picture(2), "red", 0.5),
        record_of(picture(1), "blue", 0.5),
        record_of(picture(1), "red", 0.4),
        record_of(picture(1), Instructed("red", "query"), 0.5),
        picture(1),
    ]
    assert len({key_of(item) for item in [one, *others]}) == 6
    prompted = record_of(picture(1), Prompted("title: red", "red"), 0.5)
    assert content_of(prompted) == content_of(one) != content_of(others[2])


def slow_ranks(task: RetrievalTask, records: list[Record]) -> list[int]:
    """Place of the best right record of each query, by loops."""
    found = []
    for query, answers in zip(task.queries, task.relevant, strict=True):
        vector = encode_text([query])[0] if isinstance(query, str) else encode_image([query.load()])[0]
        right = {key_of(task.candidates[place]) for place in answers}
        scores = {
            record: float(
                fuse_vectors(encode_text([record.text]), encode_image([record.load()]), record.weight)[0] @ vector
            )
            for record in records
            if query not in (record.text, record.picture)
        }
        best = [score for record, score in scores.items() if record.picture in right]
        if best:
            found.append(1 + sum(score >= max(best) for r, score in scores.items() if r.picture not in right))
    return found


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_ranks_among_records_by_the_slow_way(weight: float) -> None:
    """12 rows: pictures twice, captions shared, ids of two rows."""
    rows = [(n % 9, [f"text {n}", f"word {n % 7}"][: 1 + n % 2]) for n in range(12)]
    images, captions = [picture(shade) for shade, _ in rows], [texts for _, texts in rows]
    ids = [n // 2 for n in range(12)]
    records = [record_of(image, texts[0], weight) for image, texts in zip(images, captions, strict=True)]
    [task, _] = image_text_tasks("t", images, captions, [Metric("mrr")], ids, by=[str(n % 2) for n in range(12)])
    fused = among_records(task, records)
    vectors = encode_items(encode_text, encode_image, fused.items, progress=False)
    slow = slow_ranks(task, records)
    assert len(slow) == len(fused.queries) == len(fused.splits)
    figures = fused.evaluate(vectors)
    assert figures["t/t2i_mrr"] == pytest.approx(np.mean([1 / rank for rank in slow]))
    assert fused.candidates == list(dict.fromkeys(records))


def test_widths_and_precisions_are_of_the_finished_vectors() -> None:
    images, captions = [picture(n) for n in range(20)], [[f"text {n}", f"word {n}"] for n in range(20)]
    records = [record_of(image, texts[0], 0.5) for image, texts in zip(images, captions, strict=True)]
    task = among_records(image_text_tasks("t", images, captions, [Metric("mrr")])[0], records)
    vectors = encode_items(encode_text, encode_image, task.items, progress=False)
    found = figures_of(vectors, [task], [4], ["binary"])
    queries = np.array(encode_text(list(task.queries)))
    rows = fuse_vectors(encode_text([record.text for record in records]), encode_image([r.load() for r in records]))
    for name, left, right in (
        ("t@4/t2i_mrr", queries[:, :4], rows[:, :4]),
        ("t@binary/t2i_mrr", np.sign(queries), np.sign(rows)),
        ("t@4@binary/t2i_mrr", np.sign(queries[:, :4]), np.sign(rows[:, :4])),
    ):
        scores = left @ (right / np.linalg.norm(right, axis=1, keepdims=True)).T
        ranks = (scores >= np.diag(scores)[:, None] - 1e-6).sum(axis=1)
        assert found[name].value == pytest.approx(np.mean(1 / ranks)), name


# --- from sources ------------------------------------------------------------------------------------------------

LISTS = [(10, ["a", "x"]), (10, ["b"]), (20, ["b", "y"]), (30, ["c"])]


def source(folder: Path, ids: list[str] | None = None) -> str:
    rows = [{"image": png(shade), "caption": texts} for shade, texts in LISTS]
    kinds = {"caption": List(Value("string"))}
    if ids is not None:
        rows, kinds = [row | {"id": one} for row, one in zip(rows, ids, strict=True)], kinds | {"id": Value("string")}
    return pictures(folder, rows, **kinds)


def test_further_captions_are_the_queries(tmp_path: Path) -> None:
    """A first caption searches other records of its picture or id: not its own."""
    said: list[str] = []
    [task] = built(tmp_path, "[{name: s, source: p, fuse: 0.5}]", source(tmp_path), said).values()
    assert task.label == "s/t2i"
    assert [(record.text, record.weight) for record in task.candidates] == [(t, 0.5) for t in "abbc"]
    answers = dict(zip(task.queries, zip(task.relevant, task.exclude, strict=True), strict=True))
    assert answers == {"a": ([1], [0]), "x": ([0, 1], []), "b": ([0], [1, 2]), "y": ([2], [])}
    assert said == ["s/t2i: 1 of 5 queries are in all of their records, and left out"]
    said.clear()
    tasks = built(
        tmp_path, "[{name: s, source: p, directions: [i2i, t2i], fuse: 1.0}]", source(tmp_path, [*"ppqq"]), said
    )
    assert list(tasks) == ["s/i2i", "s/t2i"]
    i2i = tasks["s/i2i"]
    assert (i2i.relevant, i2i.exclude) == ([[2], [0, 1, 3], [2]], [[0, 1], [2], [3]])


def test_a_corpus_gives_records_too(tmp_path: Path) -> None:
    [task] = built(tmp_path, "[{name: s, source: p, fuse: 0.5, limit: 2, corpus: p}]", source(tmp_path)).values()
    assert [record.text for record in task.candidates] == ["a", "c", "b", "b"]


def test_no_query_left_is_said_with_the_cure(tmp_path: Path) -> None:
    rows = [{"image": png(n), "caption": f"text {n}"} for n in range(4)]
    with pytest.raises(ValueError, match=r"'s/t2i': no query is left for fuse, .* Give rows a list of captions, of"):
        built(tmp_path, "[{name: s, source: p, fuse: 0.5}]", pictures(tmp_path, rows))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{name: s, source: p, fuse: 1.5}", r"tasks\.0.*fuse: must be less than or equal to 1, got 1\.5"),
        ("{name: s, source: p, fuse: 0.5, directions: [t2i, i2t]}", r"directions: i2t has texts as candidates, but"),
        ("{name: s, source: p, fuse: 0.5, measure: match}", r"fuse: is for retrieval, but this task measures match"),
        ("{name: s, source: t, fuse: 0.5}", r"fuse: needs rows with a picture and a text, but 't' has task text-pair"),
        ("{name: s, source: p, corpus: t, fuse: 0.5}", r"fuse: needs rows with a picture and a text, but 't' has"),
        ("{name: s, mix: [o], fuse: 0.5}, {name: o, source: p}", r"fuse: belongs to a task with a source"),
    ],
)
def test_what_has_no_records_is_named(tmp_path: Path, task: str, message: str) -> None:
    texts = "- {name: t, task: text-pair, format: csv, location: t.csv, columns: {query: q, positive: a}}\n"
    with pytest.raises(RecipeError, match=message):
        built(tmp_path, f"[{task}]", source(tmp_path) + texts)
