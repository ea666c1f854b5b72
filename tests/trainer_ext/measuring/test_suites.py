"""The openmoji suite on small tables of its own, and once on the real ones."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer_ext.demo_data.build import write_table
from trainer_ext.demo_data.cache import prepare
from trainer_ext.demo_data.errors import EmbeddedDataError
from trainer_ext.evaluation.baselines import bm25, chance
from trainer_ext.evaluation.tasks import evaluate
from trainer_ext.measuring import suites
from trainer_ext.measuring.suites import load_suite, picture_task
from trainer_ext.recipe.evaluation import TasksFile, load_tasks
from trainer_ext.recipe.reading import find_resource

LIMITS = {"texts": 1000, "triplets": 300}
TEST_METRICS = {
    f"{table}_{length}/{way}_r{k}"
    for table in ("concepts", "combinations")
    for length in ("short", "long")
    for way in ("t2i", "i2t")
    for k in (1, 5)
} | {
    f"{task}/{metric}"
    for task in ("headword_definition", "definition_example", "definition_definition")
    for metric in ("ndcg10", "r5")
}
TEST_METRICS.add("hard_negatives/accuracy")
VALIDATION_METRICS = {
    name.replace("concepts_", "validation_") if name.startswith("concepts_") else f"validation_{name}"
    for name in TEST_METRICS
    if not name.startswith("combinations_")
}


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 255 - level, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Prepared tables with 6 pictures a split, 40 pairs and 20 triplets; every text begins with its number."""
    folder = tmp_path_factory.mktemp("tables")
    for split, base in (("test_concepts", 0), ("test_combinations", 100), ("validation", 200)):
        for table, captions in (("short_captions", ["", " again"]), ("long_captions", [" told at length"])):
            rows = [
                {
                    "image": {"bytes": png(base + 5 * place), "path": None},
                    "caption": [f"{base + 5 * place}{end}" for end in captions],
                    "id": str(place),
                    "concept": str(place),
                }
                for place in range(6)
            ]
            write_table(folder, table, split, rows)
    for split, mark in (("test", "t"), ("validation", "v")):
        for table in ("headword_definition", "definition_example", "definition_definition"):
            pairs = [
                {"query": f"{n} {mark} q {table}", "positive": f"{n} {mark} p {table}", "headword": "x"}
                for n in range(40)
            ]
            write_table(folder, table, split, pairs)
        triplets = [
            {
                "query": f"{n} {mark} q",
                "positive": f"{n} {mark} p",
                "negatives": [f"{n + 20 + other} {mark} n" for other in range(7)],
                "headword": "x",
            }
            for n in range(20)
        ]
        write_table(folder, "triplets", split, triplets)
    return folder


def vectors(numbers) -> np.ndarray:
    angles = np.array(numbers, dtype=np.float64)[:, None] * [0.01, 0.37]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def encode_text(texts):
    return vectors([int(text.split()[0]) for text in texts])


def encode_image(images):
    return vectors([image.getpixel((0, 0))[0] for image in images])


@pytest.mark.parametrize(("split", "names"), [("test", TEST_METRICS), ("validation", VALIDATION_METRICS)])
def test_a_perfect_model_scores_one_on_every_metric_of_the_issue(tables, split, names):
    metrics = evaluate(encode_text, encode_image, load_suite("openmoji", split, tables), progress=False)
    assert metrics == dict.fromkeys(names, pytest.approx(1.0))


def test_every_metric_has_a_chance_and_every_text_metric_a_bm25(tables):
    tasks = load_suite("openmoji", folder=tables)
    assert set(chance(tasks)) == TEST_METRICS
    assert set(bm25(tasks)) == {name for name in TEST_METRICS if "2" not in name.split("/")[1]}


def test_test_and_validation_read_different_rows(tables):
    items = [
        {
            item if isinstance(item, str) else item.key
            for task in load_suite("openmoji", split, tables)
            for item in task.items
        }
        for split in ("test", "validation")
    ]
    assert items[0]
    assert not items[0] & items[1]


def test_pictures_shared_by_two_tables_are_one_object(tables):
    tasks = {task.label: task for task in load_suite("openmoji", folder=tables)}
    short, long = tasks["concepts_short/t2i"].candidates, tasks["concepts_long/t2i"].candidates
    assert all(left is right for left, right in zip(short, long, strict=True))
    assert len(set(map(id, short))) == 6


def test_a_file_of_tasks_is_a_suite_too(tables, tmp_path):
    text = (find_resource("evaluation", "openmoji")).read_text().replace("name: concepts_short", "name: mine")
    (tmp_path / "own.yaml").write_text(text)
    assert load_suite(str(tmp_path / "own.yaml"), folder=tables)[0].label == "mine/t2i"


def test_sizes_are_capped_and_the_rows_are_the_same_every_time(tables, monkeypatch):
    def load_smaller(name: str) -> TasksFile:
        content = load_tasks(name)
        limits = {LIMITS["texts"]: 10, LIMITS["triplets"]: 4, None: None}
        tasks = [task.model_copy(update={"limit": limits[task.limit]}) for task in content.tasks]
        return content.model_copy(update={"tasks": tasks})

    monkeypatch.setattr(suites, "load_tasks", load_smaller)
    first, second = ({task.label: task for task in load_suite("openmoji", folder=tables)} for _ in range(2))
    assert first["definition_example"].size == "10 queries, 10 candidates"
    assert first["hard_negatives"].size == "4 queries, 1 positive and 7 negatives each"
    numbers = [int(text.split()[0]) for text in first["definition_example"].queries]
    assert (numbers[0], numbers[-1]) == (0, 39), "rows must come from every part of the table"
    assert first["definition_example"].queries == second["definition_example"].queries


def test_the_contact_sheet_shows_the_first_image_search(tables):
    tasks = load_suite("openmoji", folder=tables)
    assert picture_task(tasks).label == "concepts_short/t2i"
    with pytest.raises(ValueError, match=r"None of the 1 tasks searches images: \['headword_definition'\]"):
        picture_task([task for task in tasks if task.label == "headword_definition"])


def test_wrong_names_are_refused_with_the_right_ones(tables, tmp_path):
    with pytest.raises(ValueError, match="no evaluation suite 'openmojis'; choose one of: openmoji"):
        load_suite("openmojis")
    with pytest.raises(ValueError, match="no split 'train' to evaluate on; choose one of: test, validation"):
        load_suite("openmoji", "train", tables)
    with pytest.raises(EmbeddedDataError, match="test_concepts"):
        load_suite("openmoji", folder=tmp_path)


@pytest.mark.slow
def test_real_tables_give_tasks_of_the_promised_size():
    tasks = {task.label: task for task in load_suite("openmoji", folder=prepare(progress=False))}
    assert len(tasks["concepts_short/t2i"].candidates) > 100
    assert len(tasks["combinations_long/i2t"].candidates) > 100
    for name in ("headword_definition", "definition_example", "definition_definition"):
        assert 400 <= len(tasks[name].queries) <= LIMITS["texts"]
    assert len(tasks["hard_negatives"].queries) == LIMITS["triplets"]
    figures = bm25(list(tasks.values()))
    assert all(
        figures[name] > 10 * value for name, value in chance(list(tasks.values())).items() if name.endswith("ndcg10")
    )
