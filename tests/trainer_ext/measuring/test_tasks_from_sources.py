"""Rows of sources become tasks: right answers, classes, splits, prompts, distractors; broken rows; what is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from tests.trainer_ext.own_files import SOURCES, TASKS, few_draws, write_csv, write_files, write_tasks
from tests.trainer_ext.source_files import BROKEN, png
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.sources import DataError
from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.items import Picture, encode_items
from trainer_ext.evaluation.tasks import figures_of
from trainer_ext.measuring import build_tasks, load_task_rows
from trainer_ext.measuring.texts import Instructed
from trainer_ext.recipe.evaluation import load_tasks
from trainer_ext.recipe.problems import RecipeError


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("shop"))


def built(folder: Path, tasks: str, sources: str = SOURCES, said: list[str] | None = None) -> dict[str, Task]:
    content = load_tasks(write_tasks(folder, tasks, sources))
    broken = BrokenRows(None)
    rows = load_task_rows(content.tasks, content.sources, broken)
    say = [].append if said is None else said.append
    found = build_tasks(content.tasks, rows, broken, say, progress=False)
    return {task.label: task for task in found}


def pictures(folder: Path, rows: list[dict], **features: object) -> str:
    """A parquet file of pictures, as a source called p."""
    stored = [row | {"image": {"bytes": row["image"], "path": None}} for row in rows]
    kinds = {"image": Image(), "caption": Value("string")} | features
    Dataset.from_list(stored, features=Features(kinds)).to_parquet(folder / "p.parquet")
    columns = {"image": "image", "caption": "caption"} | ({"id": "id"} if "id" in kinds else {})
    source = {"name": "p", "task": "image-text", "format": "parquet", "location": "p.parquet", "columns": columns}
    return yaml.safe_dump([source])


def test_every_direction_of_a_picture_source(shop: Path) -> None:
    tasks = built(shop, "[{name: shop, source: photos-test, directions: [i2i, t2i, i2t], by: language}]")
    assert list(tasks) == ["shop/i2i", "shop/t2i", "shop/i2t"], "as asked for"
    t2i, i2i = tasks["shop/t2i"], tasks["shop/i2i"]
    assert (len(t2i.queries), len(t2i.candidates)) == (40, 20)
    assert t2i.queries[t2i.queries.index("one red bar")] == "one red bar"
    assert t2i.relevant[t2i.queries.index("one red bar")] == [0, 1, 2, 3, 4], "all pictures of that product"
    assert i2i.relevant[0] == [1, 2, 3, 4]
    assert i2i.exclude[0] == [0]
    assert set(t2i.splits) == {"de", "en"}


def test_equal_pictures_and_captions_are_right_answers_for_each_other(tmp_path: Path) -> None:
    rows = [(10, "a"), (10, "b"), (20, "b"), (30, "c")]
    source = pictures(tmp_path, [{"image": png(shade), "caption": text} for shade, text in rows])
    tasks = built(tmp_path, "[{name: s, source: p, directions: [t2i, i2t, i2i]}]", source, said := [])
    t2i, i2t, i2i = tasks.values()
    assert [sorted(answers) for answers in t2i.relevant] == [[0], [0, 1], [2]]
    assert [sorted(answers) for answers in i2t.relevant] == [[0, 1], [1], [2]]
    assert i2i.relevant == [[1], [0]]
    assert said == ["s/i2i: 1 of 3 pictures have no partner and are no queries"]


def test_no_partner_for_any_picture_is_said_with_the_cure(tmp_path: Path) -> None:
    source = pictures(tmp_path, [{"image": png(shade), "caption": str(shade)} for shade in (10, 20)])
    with pytest.raises(ValueError, match=r"none of the 2 pictures of source 'p' has a partner for i2i.* Map an"):
        built(tmp_path, "[{name: s, source: p, directions: [i2i]}]", source)


def test_pictures_are_decoded_when_they_are_encoded(shop: Path) -> None:
    [picture, *_] = built(shop, "[{name: shop, source: photos-test}]")["shop/t2i"].candidates
    assert isinstance(picture, Picture)
    assert picture.load() is not picture.load(), "none is kept"
    assert picture.load().size == (20, 20)


def test_broken_pictures_are_left_out_within_the_budget_and_named(tmp_path: Path) -> None:
    rows = [{"image": BROKEN if place == 1 else png(place), "caption": f"n{place}"} for place in range(4)]
    source = pictures(tmp_path, rows)
    with pytest.raises(DataError, match=r"p.parquet, row 1, column 'image': the image .* cannot be decoded"):
        built(tmp_path, "[{name: s, source: p}]", source)
    allowed = source.replace("task: image-text", "max_broken_rows: 1\n  task: image-text")
    tasks = built(tmp_path, "[{name: s, source: p}, {name: again, source: p}]", allowed)
    assert [len(task.candidates) for task in tasks.values()] == [3, 3, 3, 3]
    assert tasks["s/t2i"].queries == ["n0", "n2", "n3"]


def test_a_class_that_is_missing_in_a_row_is_a_broken_row(tmp_path: Path) -> None:
    write_files(tmp_path)
    file = tmp_path / "test.jsonl"
    file.write_text(file.read_text().replace('"kind": "red bar"', '"kind": null', 1))
    with pytest.raises(DataError, match=r"test.jsonl, row 0, column 'kind': no value. Fill it or remove the row"):
        built(tmp_path, "[{name: kinds, source: photos-test, classes: kind}]")


def test_classes_may_be_texts_numbers_or_class_labels(shop: Path, tmp_path: Path) -> None:
    tasks = built(
        shop, "[{name: k, source: photos-test, classes: kind}, {name: n, source: photos-test, classes: shelf}]"
    )
    assert tasks["k"].class_names == ["blue bar", "green bar", "red bar", "white bar"]
    assert tasks["n"].class_names == ["1", "2", "3", "4", "5"]
    assert tasks["k"].prompts[0] == ["a photo of a blue bar."]
    rows = [{"image": png(n), "caption": "x", "kind": n % 2} for n in range(4)]
    source = pictures(tmp_path, rows, kind=ClassLabel(names=["cat", "dog"]))
    found = built(tmp_path, "[{name: k, source: p, classes: kind}]", source)["k"]
    assert (found.class_names, found.labels.tolist()) == (["cat", "dog"], [0, 1, 0, 1])


def test_one_class_only_and_columns_that_are_not_there_are_refused(shop: Path) -> None:
    (shop / "one.jsonl").write_text((shop / "test.jsonl").read_text().splitlines()[0] + "\n")
    one = SOURCES.replace("location: test.jsonl", "location: one.jsonl")
    with pytest.raises(ValueError, match="'kind' of source 'photos-test' has one class only, 'red bar', in all 1"):
        built(shop, "[{name: kinds, source: photos-test, classes: kind}]", one)
    with pytest.raises(DataError, match=r"has no column 'kinds' for classes or by. Did you mean 'kind'"):
        built(shop, "[{name: kinds, source: photos-test, classes: kinds}]")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path)
    write_csv(tmp_path / "test.csv", ["question", "answer"], [])
    with pytest.raises(DataError, match=r"Source 'answers-test': .*test.csv holds no rows"):
        built(tmp_path, "[{name: a, source: answers-test}]")


def test_prompts_and_instructions_stand_before_the_texts_of_a_side(shop: Path) -> None:
    prompted = "prompts: {query: 'Q: ', positive: 'A: '}, instructions: {query: retrieval.query}"
    task = built(shop, f"[{{name: a, source: answers-test, {prompted}}}]")["a"]
    assert task.queries[0] == Instructed("Q: one is after", "retrieval.query")
    assert task.candidates[0] == "A: two"
    own = SOURCES.replace("name: answers-test,", "name: answers-test, prompts: {query: 'own: '},")
    assert built(shop, "[{name: a, source: answers-test}]", own)["a"].queries[0] == "own: one is after"


def test_a_limit_takes_rows_from_every_part_and_metrics_leave_out_the_others(shop: Path) -> None:
    task = built(shop, "[{name: a, source: answers-test, limit: 3, metrics: [r5, mrr]}]")["a"]
    assert task.queries == ["one is after", "five is after", "nine is after"]
    assert set(task.chance()) == {"a/r5", "a/mrr"}


def test_a_corpus_gives_more_candidates_of_the_kind_that_is_searched(shop: Path) -> None:
    tasks = built(
        shop,
        "[{name: a, source: answers-test, limit: 2, corpus: answers-test},"
        " {name: s, source: photos-test, limit: 3, corpus: photos-test}]",
    )
    assert tasks["a"].size == "2 queries, 9 candidates"
    assert tasks["s/t2i"].size == "6 queries, 20 candidates"
    assert tasks["s/i2t"].size == "3 queries, 40 candidates"
    with pytest.raises(ValueError, match="Task 's/t2i': its corpus has no picture to add"):
        built(shop, "[{name: s, source: photos-test, corpus: answers-test}]")


def test_of_a_source_with_a_holdout_the_corpus_is_the_whole(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", ["question", "answer"], [[f"question {n}", f"answer {n}"] for n in range(40)])
    source = (
        "[{name: pairs, task: text-pair, format: csv, location: test.csv, holdout: 0.25,"
        " columns: {query: question, positive: answer}}]"
    )
    tasks = built(tmp_path, "[{name: a, source: pairs}, {name: b, source: pairs, corpus: pairs}]", source)
    assert (tasks["a"].size, tasks["b"].size) == ("10 queries, 10 candidates", "10 queries, 40 candidates")
    assert tasks["a"].queries == tasks["b"].queries
    answers = [task.candidates[place] for task in tasks.values() for [place] in task.relevant]
    assert answers == [query.replace("question", "answer") for query in tasks["a"].queries] * 2


def test_triplets_are_measured_in_two_ways_and_their_faults_are_named(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "p": f"p{n}", "n": [f"x{n}", f"y{n}"]} for n in range(3)]
    columns = "{query: q, positive: p, negatives: n}"
    source = f"[{{name: t, task: triplet, format: parquet, location: t.parquet, columns: {columns}}}]"
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    tasks = built(tmp_path, "[{name: h, source: t}, {name: r, source: t, measure: retrieval}]", source)
    assert (tasks["h"].kind, tasks["h"].size) == ("hard-negatives", "3 queries, 1 positive and 2 negatives each")
    assert tasks["r"].size == "3 queries, 9 candidates"
    rows[1]["n"][0] = "p1"
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="Task 'h': row 1 of source 't' has its positive 'p1' among its negatives"):
        built(tmp_path, "[{name: h, source: t}]", source)


def test_wrong_captions_of_pictures_are_measured(tmp_path: Path) -> None:
    """An encoder that knows the shades of the first two pictures prefers their captions."""
    rows = [{"image": png(shade), "caption": f"c{shade}", "negatives": ["x", "y"]} for shade in (10, 20, 30)]
    [source] = yaml.safe_load(pictures(tmp_path, rows, negatives=List(Value("string"))))
    listed = "[{name: wrong, source: p, measure: hard-negatives}]"
    with pytest.raises(RecipeError, match=r"needs wrong captions, but 'p' maps no column negatives\. Add negatives:"):
        load_tasks(write_tasks(tmp_path, listed, yaml.safe_dump([source])))
    source["columns"] |= {"negatives": "negatives"}
    source["prompts"] = {"caption": "a photo: "}
    [task] = built(tmp_path, listed, yaml.safe_dump([source])).values()
    assert task.size == "3 queries, 1 positive and 2 negatives each"
    assert task.negatives[0] == ["a photo: x", "a photo: y"]
    places = {"a photo: c10": 0, "a photo: c20": 1, "a photo: x": 2, "a photo: y": 3, "a photo: c30": 4}
    shades = [0, 1, 2]  # the third picture looks like a wrong caption
    vectors = encode_items(
        lambda texts, **_: np.eye(5)[[places[text] for text in texts]],
        lambda images, **_: np.eye(5)[[shades.pop(0) for _ in images]],
        task.items,
    )
    assert {name: figure.value for name, figure in figures_of(vectors, [task]).items()}["wrong/accuracy"] == 2 / 3


def test_a_mix_is_one_index_of_its_tasks(shop: Path) -> None:
    tasks = built(shop, "[{name: all, mix: [s, a]}, {name: s, source: photos-test}, {name: a, source: answers-test}]")
    assert list(tasks) == ["all", "s/t2i", "s/i2t", "a"], "in the order of the file"
    assert tasks["all"].size == "69 queries, 49 texts and 20 pictures in one index"


def test_scores_and_matches(shop: Path) -> None:
    tasks = built(shop, "[{name: sts, source: sts-test}, {name: m, source: photos-test, measure: match}]")
    assert np.array_equal(tasks["sts"].scores[:5], [0, 1, 2, 3, 0])
    assert tasks["m"].kind == "match"


def test_equal_codes_give_finite_figures_in_every_kind_of_task(shop: Path) -> None:
    """All components positive: one binary code for all, which says nothing, and must not end a run that measures it."""
    tasks = list(built(shop, TASKS).values())
    random = np.random.default_rng(0)

    def encode(items: list) -> np.ndarray:
        return 1.0 + random.random((len(items), 8))

    embeddings = encode_items(encode, encode, (item for task in tasks for item in task.items), progress=False)
    with few_draws():
        found = figures_of(embeddings, tasks, precisions=["int8", "binary"])
    assert {name.partition("/")[0] for name in found} >= {f"{task.name}@binary" for task in tasks}
    assert [name for name, figure in found.items() if not np.isfinite(figure.value)] == []
    assert found["shop@binary/t2i_r5"].value == 0.0, "ties count against the model"
    assert found["match@binary/auroc"].value == 0.5
    assert found["sts@binary/spearman"].value == 0.0
    assert abs(found["match@binary/slope"].value) < 1e-6


def test_pairs_of_pictures_find_each_other(tmp_path: Path) -> None:
    """By id alone: there are no captions that two rows could share. ``classes`` are a column as of any pictures."""
    rows = [{"image": png(10 * n), "caption": "one", "id": f"thing {n // 2}", "tone": "ab"[n % 2]} for n in range(5)]
    listed = yaml.safe_load(pictures(tmp_path, rows, id=Value("string"), tone=Value("string")))
    columns = {"image": "image", "id": "id"}
    sources = yaml.safe_dump([listed[0] | {"task": "image-pair", "columns": columns}])
    said: list[str] = []
    tasks = "[{name: same, source: p, metrics: [map10]}, {name: tones, source: p, classes: tone}]"
    found = built(tmp_path, tasks, sources, said)
    assert list(found) == ["same/i2i", "tones"]
    assert found["same/i2i"].relevant == [[1], [0], [3], [2]]
    assert found["same/i2i"].exclude == [[0], [1], [2], [3]]
    assert len(found["same/i2i"].candidates) == 5
    assert said == ["same/i2i: 1 of 5 pictures have no partner and are no queries"]
    more = "[{name: same, source: p, corpus: p}]"  # pictures that are candidates already
    assert len(built(tmp_path, more, sources)["same/i2i"].candidates) == 5
