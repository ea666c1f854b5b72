"""Tasks and runner: relevance sets, what is refused, each item encoded once, and that good vectors score well."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from trainer_ext.evaluation import items, search
from trainer_ext.evaluation.tasks import (
    TEXT_METRICS,
    HardNegativeTask,
    RetrievalTask,
    encode_items,
    evaluate,
    image_text_tasks,
    text_task,
)

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (4, 4), COLORS[color])


def encode_image(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images]) + 1.0


def encode_text(texts: list[str]) -> np.ndarray:
    """A text means the colour it names first."""
    return np.stack([np.array(COLORS[text.split()[0]], dtype=np.float32) for text in texts]) + 1.0


def color_tasks() -> list[RetrievalTask]:
    names = list(COLORS)
    return image_text_tasks("colors", [picture(name) for name in names], [[name, f"{name} square"] for name in names])


def test_a_perfect_model_scores_one_in_both_directions():
    metrics = evaluate(encode_text, encode_image, color_tasks(), progress=False)
    assert metrics == {f"colors/{way}_r{k}": 1.0 for way in ("t2i", "i2t") for k in (1, 5)}


def test_truncated_embeddings_are_measured_as_if_encoded_short():
    pairs = [(str(place), str(place + 9)) for place in range(9)]
    vectors = {text: np.random.default_rng(place).normal(size=6) for place, pair in enumerate(pairs) for text in pair}
    tasks = [text_task("words", pairs), HardNegativeTask("hard", ["0", "1"], ["9", "10"], [["11"], ["12"]])]

    def short(dim):
        return lambda texts: np.stack([vectors[text][:dim] + 0.1 * (text > "5") for text in texts])

    found = evaluate(short(6), encode_image, tasks, progress=False, truncate_dims=[2, 6])
    expected = evaluate(short(2), encode_image, tasks, progress=False)
    assert {name.replace("@2", ""): value for name, value in found.items() if "@2/" in name} == expected
    assert {name.replace("@6", ""): value for name, value in found.items() if "@6/" in name} == {
        name: value for name, value in found.items() if "@" not in name
    }
    assert expected != {name: value for name, value in found.items() if "@" not in name}
    with pytest.raises(ValueError, match="truncate_dims holds 7, but the embeddings have 6 dimensions"):
        evaluate(short(6), encode_image, tasks, progress=False, truncate_dims=[7])


def test_an_image_may_have_several_captions_and_a_caption_several_images():
    to_images, to_texts = image_text_tasks(
        "shared", [picture("red"), picture("red"), picture("blue")], [["red", "red dot"], ["red"], ["blue"]]
    )
    assert to_images.queries == ["red", "red dot", "blue"]
    assert to_images.relevant == [[0, 1], [0], [2]]
    assert to_texts.relevant == [[0, 1], [0], [2]]
    metrics = evaluate(encode_text, encode_image, [to_images, to_texts], progress=False)
    # The two red images tie: "red" accepts either, "red dot" only the first, and that tie is a miss at 1.
    # The second image ties "red", which is right, with "red dot", which is not its own: another miss.
    assert metrics["shared/t2i_r1"] == pytest.approx(2 / 3)
    assert metrics["shared/i2t_r1"] == pytest.approx(2 / 3)
    assert metrics["shared/t2i_r5"] == metrics["shared/i2t_r5"] == 1.0


def test_text_task_merges_equal_queries_and_equal_positives():
    task = text_task("words", [("a", "x"), ("b", "y"), ("a", "z"), ("c", "x"), ("a", "x")])
    assert (task.queries, task.candidates) == (["a", "b", "c"], ["x", "y", "z"])
    assert task.relevant == [[0, 2], [1], [0]]
    assert task.size == "3 queries, 3 candidates"


def test_every_distinct_item_is_encoded_once():
    seen = Counter()

    def count_text(texts):
        seen.update(texts)
        return encode_text(texts)

    def count_image(images):
        seen.update(map(id, images))
        return encode_image(images)

    tasks = [*color_tasks(), text_task("same", [("red", "red square"), ("blue", "blue square")])]
    evaluate(count_text, count_image, tasks, progress=False)
    assert len(seen) == 12
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(("score_block", "encode_block"), [(1, 1), (7, 64), (100, 3)])
def test_block_sizes_change_nothing(monkeypatch, score_block, encode_block):
    rng = np.random.default_rng(0)
    vectors = {str(place): rng.normal(size=6) for place in range(90)}
    pairs = [(str(place), str(45 + place)) for place in range(45)]

    def lookup(texts):
        return np.stack([vectors[text] for text in texts])

    whole = evaluate(lookup, encode_image, [text_task("blocks", pairs)], progress=False)
    monkeypatch.setattr(search, "QUERY_BLOCK", score_block)
    monkeypatch.setattr(search, "CANDIDATE_BLOCK", score_block)
    monkeypatch.setattr(items, "ENCODE_BLOCK", encode_block)
    assert evaluate(lookup, encode_image, [text_task("blocks", pairs)], progress=False) == whole
    assert 0 < whole["blocks/ndcg10"] < 1


def test_scale_of_the_vectors_does_not_matter():
    def scaled(texts):
        return encode_text(texts) * np.linspace(0.01, 100, len(texts))[:, None]

    assert evaluate(scaled, encode_image, color_tasks(), progress=False)["colors/t2i_r1"] == 1.0


def broken(value: float, rows: int):
    """An encoder whose first ``rows`` texts in alphabetical order come out as ``value``."""

    def encode(texts):
        vectors = encode_text(texts)
        bad = sorted(f"{name}{end}" for name in COLORS for end in ("", " square"))[:rows]
        vectors[[text in bad for text in texts]] = value
        return vectors

    return encode


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (broken(np.nan, 3), r"colors/t2i, queries: 3 of 8 embeddings are not finite"),
        (broken(np.inf, 1), r"colors/t2i, queries: 1 of 8 embeddings are not finite \(first: 'blue'\)"),
        (broken(0.0, 2), r"colors/t2i, queries: 2 of 8 embeddings have norm zero"),
        (broken(1.0, 8), r"colors/t2i, queries: all 8 of 8 embeddings are the same vector"),
        (lambda texts: np.ones((len(texts), 3)) + 1e-9 * encode_text(texts), r"all 8 of 8 embeddings are the same"),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_refused_with_task_and_count(encoder, message):
    with pytest.raises(ValueError, match=message):
        evaluate(encoder, encode_image, color_tasks(), progress=False)


def test_a_collapsed_image_encoder_is_refused():
    with pytest.raises(ValueError, match=r"colors/t2i, candidates: all 4 of 4 embeddings are the same vector"):
        evaluate(encode_text, lambda images: np.ones((len(images), 3)), color_tasks(), progress=False)


def test_a_collapsed_encoder_is_refused_for_hard_negatives_too():
    task = HardNegativeTask("hard", ["red", "blue"], ["red a", "blue a"], [["green"], ["white"]])
    with pytest.raises(ValueError, match=r"hard, queries: all 2 of 2"):
        evaluate(lambda texts: np.ones((len(texts), 3)), encode_image, [task], progress=False)


@pytest.mark.parametrize("shape", [(8,), (7, 3), (8, 1, 3)])
def test_an_encoder_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"encode_text returned shape .* for 8 items"):
        evaluate(lambda texts: np.ones(shape), encode_image, color_tasks(), progress=False)


def test_texts_and_images_of_different_width_are_refused():
    with pytest.raises(ValueError, match=r"widths \[2, 3\]"):
        evaluate(lambda texts: encode_text(texts)[:, :2], encode_image, color_tasks(), progress=False)


def test_hard_negatives_count_only_strict_wins():
    task = HardNegativeTask(
        "hard",
        queries=["red", "green", "blue", "white"],
        positives=["red a", "green a", "blue a", "blue b"],
        negatives=[["blue", "white"], ["green b", "red"], ["red", "white"], ["green", "white a"]],
    )
    # green: a negative ties with the positive; white: a negative is better than the positive
    assert evaluate(encode_text, encode_image, [task], progress=False) == {"hard/accuracy": 0.5}
    assert task.chance() == {"hard/accuracy": pytest.approx(1 / 3)}
    assert task.size == "4 queries, 1 positive and 2 negatives each"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: text_task("t", [("a", "x"), ("", "y"), (" ", "z")]), "Task 't': 2 of 3 queries are empty"),
        (lambda: text_task("t", []), "Task 't': 0 of 0 queries are empty"),
        (lambda: image_text_tasks("t", [picture("red")], [[""]]), "1 of 1 queries are empty"),
        (lambda: image_text_tasks("t", [picture("red")] * 2, [["red"], []]), r"query 1 has the answers \[\]"),
        (lambda: RetrievalTask("t", ["a"], ["x"], [[1]], TEXT_METRICS), r"answers \[1\].* between 0 and 0"),
        (lambda: RetrievalTask("t", ["a"], ["x"], [[-1]], TEXT_METRICS), r"answers \[-1\]"),
        (lambda: RetrievalTask("t", ["a"], ["x"], [], TEXT_METRICS), "1 queries but 0 sets of answers"),
        (lambda: HardNegativeTask("t", ["a"], ["x"], [["y", "x"]]), "row 0 has its positive 'x' among its negatives"),
        (lambda: HardNegativeTask("t", ["a", "b"], ["x", "y"], [["p"], ["p", "q"]]), r"2 lists of \[1, 2\] negatives"),
        (lambda: HardNegativeTask("t", ["a"], ["x"], [[]]), r"1 lists of \[0\] negatives"),
        (lambda: HardNegativeTask("t", ["a"], ["x", "y"], [["p"]]), "1 queries, 2 positives"),
        (lambda: HardNegativeTask("t", ["a"], ["x"], [["  "]]), "1 of 3 texts are empty"),
    ],
)  # fmt: skip
def test_bad_tasks_are_refused_before_any_model_runs(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_progress_is_shown_on_stderr_and_can_be_switched_off(capsys):
    encode_items(encode_text, encode_image, ["red", "blue"], progress=False)
    assert capsys.readouterr().err == ""
    encode_items(encode_text, encode_image, ["red", "blue"], progress=True)
    assert "evaluating" in capsys.readouterr().err
