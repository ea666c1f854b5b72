"""A task seen from near: which queries are best and worst, their ranks, their pictures, and how cosines lie."""

import base64
import io

import numpy as np
from PIL import Image

from tests.trainer_ext.report.samples import colors
from trainer_ext.evaluation.items import Picture
from trainer_ext.evaluation.tasks import RetrievalTask, encode_items
from trainer_ext.report.gallery import details_of, task_details
from trainer_ext.report.thumbnails import SIDE, on_white


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_worst_query_comes_first_and_its_right_answer_stands_behind():
    (to_images, _), embeddings = colors()
    details = task_details(to_images, to_images.details(embeddings, 5), "mine")
    assert (details.task, details.model, details.candidates) == ("colors/t2i", "mine", 8)
    worst = details.worst[0]
    assert (worst.query.text, worst.rank) == ("number 7", 8)
    assert [shown.right for shown in worst.results] == [False] * 5 + [True]
    assert (worst.results[-1].rank, worst.results[-1].score) == (8, None)
    assert [shown.rank for shown in worst.results[:5]] == [1, 2, 3, 4, 5]


def test_the_best_queries_find_their_answer_first_and_no_query_is_in_both_lists():
    (to_images, to_texts), embeddings = colors()
    for details in details_of([to_images, object(), to_texts], embeddings):
        assert len(details.best) == len(details.worst) == 4
        assert all(entry.rank == 1 and entry.results[0].right for entry in details.best)
        queries = [entry.query for entry in [*details.best, *details.worst]]
        assert len({query.text or query.image for query in queries}) == 8


def test_ranks_are_those_of_a_plain_sort():
    (to_images, _), embeddings = colors()
    details = to_images.details(embeddings, 5)
    scores = embeddings.of(to_images.queries, "q") @ embeddings.of(to_images.candidates, "c").T
    plain = [
        min(int((row > row[a] + 1e-6).sum()) for a in answers)
        for row, answers in zip(scores, to_images.relevant, strict=True)
    ]
    shown = task_details(to_images, details, queries=16)
    assert {entry.query.text: entry.rank for entry in [*shown.best, *shown.worst]}.items() <= {
        text: rank + 1 for text, rank in zip(to_images.queries, plain, strict=True)
    }.items()


def test_histograms_count_every_pair_once():
    (to_images, _), embeddings = colors()
    true, other = task_details(to_images, to_images.details(embeddings, 5)).histograms
    assert (true.label, other.label) == ("true pairs", "other pairs")
    assert (sum(true.counts), sum(other.counts)) == (16, 16 * 8 - 16)


def test_pictures_are_small_jpegs_of_both_directions_on_white():
    tasks, embeddings = colors()
    to_images, to_texts = details_of(tasks, embeddings)
    assert to_texts.best[0].query.image is not None
    picture = decoded(to_images.best[0].results[0].image)
    assert (picture.format, max(picture.size)) == ("JPEG", SIDE)
    assert on_white(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_lazy_picture_is_opened_only_where_it_is_shown():
    opened = []

    def load(number: int) -> Image.Image:
        opened.append(number)
        return Image.new("RGB", (4, 4), (number, 0, 0))

    pictures = [Picture(str(number), lambda number=number: load(number)) for number in range(60)]
    task = RetrievalTask("many", [f"{n}" for n in range(60)], pictures, [[n] for n in range(60)], (), prefix="t2i_")

    def vectors(numbers):
        return np.array([[np.cos(n / 20), np.sin(n / 20)] for n in numbers])

    embeddings = encode_items(
        lambda texts: vectors(map(int, texts)),
        lambda images: vectors([image.getpixel((0, 0))[0] for image in images]),
        task.items,
        progress=False,
    )
    opened.clear()
    details_of([task], embeddings)
    assert 0 < len(opened) <= 8 * 6, "eight queries with up to six pictures each"


def test_a_task_of_one_query_has_a_best_one_alone():
    task = RetrievalTask("one", ["a"], ["b", "c"], [[0]], ())
    embeddings = encode_items(lambda texts: np.eye(3)[: len(texts)], lambda _: np.eye(3), task.items, progress=False)
    details = task_details(task, task.details(embeddings, 5))
    assert len(details.best) == 1
    assert details.worst == []
