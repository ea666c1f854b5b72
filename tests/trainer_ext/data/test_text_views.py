"""Texts without pairs: two views of each, the words that are repeated, the loss by hand, and what is refused."""

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from tests.trainer_ext.recipe_trees import base, problems, put
from tests.trainer_ext.tiny_run import NUMBERS, RunFactory, make_model, make_processor
from trainer_ext.checking.plan_shares import make_plan
from trainer_ext.data.augmentation import with_repeats
from trainer_ext.data.batches import JointCollator, JointDataset, stable_ids
from trainer_ext.data.formats import DataError
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_source, load_sources, planned_rows
from trainer_ext.losses.joint import JointObjective
from trainer_ext.mining.pairs import read_pairs
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import Recipe, load_recipe, recipe_differences
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import LoraSpec
from trainer_ext.run.tokenizer import training_texts
from trainer_ext.training.embedding import encoder_inputs
from trainer_ext.training.stages import equal_view_problems

TEXT = [f"sources.successors.{change}" for change in ("task=text", "columns={text: query}")]
REPEATS = [*TEXT, "sources.successors.repeat_words=0.5"]


def rows_of(recipe: Recipe, epoch: int = 0, count: int = 9) -> list[dict[str, Any]]:
    dataset = JointDataset(recipe.sources, load_sources(recipe.sources), recipe.seed)
    return dataset.__getitems__([Key(0, 0, "text", "successors", epoch, row) for row in range(count)])


# --- the words ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=30), st.floats(0.01, 1), st.integers(0, 2**32))
def test_repeated_words_stand_beside_themselves(words: list[str], share: float, seed: int) -> None:
    text = "  ".join(words)
    found = with_repeats(text, share, np.random.default_rng(seed))
    assert with_repeats(text, share, np.random.default_rng(seed)) == found
    more = len(found.split()) - len(words)
    assert 0 <= more <= min(len(words), max(2, int(share * len(words))))
    assert (found == text) == (more == 0)
    runs = [(word, len(list(group))) for word, group in groupby(words)]
    longer = [(word, len(list(group))) for word, group in groupby(found.split())]
    assert [word for word, _ in longer] == [word for word, _ in runs]
    assert all(one <= other <= 2 * one for (_, one), (_, other) in zip(runs, longer, strict=True))


def test_how_many_and_which_words_are_drawn_evenly() -> None:
    words = [f"word{n}" for n in range(10)]
    counts, chosen = Counter(), Counter()
    for seed in range(6000):
        found = Counter(with_repeats(" ".join(words), 0.35, np.random.default_rng(seed)).split())
        counts[sum(found.values()) - 10] += 1
        chosen.update(word for word, times in found.items() if times == 2)
    assert set(counts) == {0, 1, 2, 3}
    assert all(abs(count / 6000 - 0.25) < 0.03 for count in counts.values())
    assert all(abs(chosen[word] / 6000 - 0.15) < 0.02 for word in words)  # 1.5 of 10 words on average


# --- rows and batches --------------------------------------------------------------------------------------------


def test_a_text_is_its_own_pair(tiny_recipe: Path) -> None:
    rows = rows_of(load_recipe(tiny_recipe, TEXT))
    assert [row["query"] for row in rows] == [f"{number} is after" for number in NUMBERS[:-1]]
    assert all(row["positive"] == row["query"] and "text" not in row for row in rows)


def test_repeats_are_drawn_anew_in_each_epoch_and_alike_for_all(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, REPEATS)
    first, again, later = rows_of(recipe), rows_of(recipe), rows_of(recipe, epoch=1)
    assert first == again
    assert [row["query"] for row in first] == [row["query"] for row in later]
    assert [row["positive"] for row in first] != [row["positive"] for row in later]
    assert any(row["positive"] != row["query"] for row in first)
    other = rows_of(load_recipe(tiny_recipe, [*REPEATS, "seed=8"]))
    assert [row["positive"] for row in first] != [row["positive"] for row in other]
    streamed = load_recipe(tiny_recipe, [*REPEATS, "sources.successors.streaming=true", *ALONE])
    dataset = JointDataset(streamed.sources, load_sources(streamed.sources, streamed.seed), streamed.seed)
    rows = dataset.__getitems__([Key(0, 0, "text", "successors", 0, place) for place in range(9)])
    assert sorted(row["positive"] for row in rows) == sorted(row["positive"] for row in first)


ALONE = [f"stages.{stage}.text.sources=[successors]" for stage in range(2)]


def test_prompts_stay_whole_and_ids_are_of_the_texts(tiny_recipe: Path) -> None:
    prompts = ["sources.successors.prompts={text: 'number: '}", "stages.0.augmentation={word_deletion: 0.9}"]
    recipe = load_recipe(tiny_recipe, [*REPEATS, *prompts])
    rows = rows_of(recipe)
    assert all(row["query"].startswith("number: ") and row["positive"].startswith("number: ") for row in rows)
    assert all("number: " not in row["positive"].removeprefix("number: ") for row in rows)
    collate = JointCollator(make_processor(), recipe.stages, recipe.seed)
    shown = collate._shown(
        {name: [row[name] for row in rows] for name in ("query", "positive")}, rows, recipe.stages[0]
    )
    assert all(text.startswith("number: ") for texts in shown.values() for text in texts)
    side = collate(rows)["text"]
    assert side["query_ids"].equal(stable_ids([row["query"] for row in rows]))


def test_the_loss_is_simcse_by_hand(tiny_recipe: Path) -> None:
    """Cross-entropy over the cosines of two views; a text that is there twice is no negative of itself."""
    recipe = load_recipe(tiny_recipe, [*REPEATS, "stages.0.image_text=null", "stages.0.text.directions=forward"])
    rows = [*rows_of(recipe), rows_of(recipe, epoch=1, count=1)[0]]
    batch = JointCollator(make_processor(), recipe.stages, recipe.seed)(rows)
    model = make_model(dropout=0.3).train()
    vectors = {name: model(**inputs, pooled_only=True).text_embeds for name, inputs in encoder_inputs(batch).items()}
    assert not torch.allclose(vectors["query"][0], vectors["query"][9])  # the same text, another dropout mask
    loss, _ = JointObjective(0.05)(recipe.stages[0], batch, {**vectors, "temperature": torch.tensor(0.07)})
    scores = normalize(vectors["query"], dim=1) @ normalize(vectors["positive"], dim=1).T / 0.05
    scores[0, 9] = scores[9, 0] = -torch.inf
    torch.testing.assert_close(loss, cross_entropy(scores, torch.arange(10)))


def test_a_side_mixes_texts_and_pairs(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, REPEATS)
    counts = planned_rows(recipe.sources, load_sources(recipe.used_sources()))
    taken = make_plan(recipe, counts).source_counts()["text"]
    assert taken["successors"] > 0
    assert taken["predecessors"] > 0
    assert "one is after" in set(training_texts(recipe))


# --- what is refused ---------------------------------------------------------------------------------------------


def test_equal_views_are_refused_unless_something_tells_them_apart(
    make_trainer: RunFactory, tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError, match=r"stages\.0\.text\.sources: 'successors' has texts without pairs, whose two v"
    ):
        make_trainer(tmp_path, *TEXT, dropout=0.0)
    config = make_model(dropout=0.0).config
    alike = load_recipe(tiny_recipe, TEXT)
    assert [place for place, _ in equal_view_problems(alike, config)] == [f"stages.{n}.text.sources" for n in range(2)]
    words = [f"stages.{stage}.augmentation={{word_swap: 0.1}}" for stage in range(2)]
    lora = alike.model_copy(update={"lora": LoraSpec(dropout=0.1)})
    for recipe in (load_recipe(tiny_recipe, REPEATS), load_recipe(tiny_recipe, [*TEXT, *words]), lora):
        assert list(equal_view_problems(recipe, config)) == []
    assert list(equal_view_problems(alike, make_model(dropout=0.1).config)) == []


REFUSED = [
    ({"holdout": 0.1}, r"holdout: is to measure on, and texts without pairs have no right answers\. Take it out\."),
    ({"repeat_words": 1.5}, r"repeat_words: must be less than or equal to 1, got 1\.5\."),
    ({"prompts": {"query": "q: "}}, r"prompts\.query: task text has prompts for text\."),
    ({"columns": {"query": "q"}}, r"columns\.text: is required by task text\. Add it: text: THE DATA'S COLUMN NAME\."),
]


@pytest.mark.parametrize(("changes", "line"), REFUSED)
def test_keys_that_texts_cannot_have(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    tree = base()
    tree["sources"][1] |= {"task": "text", "columns": {"text": "q"}, **changes}
    found = problems(tmp_path, tree)
    assert any(re.search(line, one) for one in found), found


def test_pairs_repeat_no_words_and_other_losses_take_no_texts(tmp_path: Path) -> None:
    [line] = problems(tmp_path, put(base(), "sources.1.repeat_words", 0.3))
    assert line.endswith("repeat_words: is for texts without pairs; task text-pair has pairs. Take it out.")
    tree = base()
    tree["sources"].append({**tree["sources"][1], "name": "lone", "task": "text", "columns": {"text": "q"}})
    [line] = problems(tmp_path, put(tree, "stages.1.text.sources", ["lone"]))
    assert "'lone' has task text, but text with loss info_nce_plus needs task triplet." in line
    tree["stages"][1]["text"]["sources"] = ["hard"]
    tasks = [{"name": "t", "source": "lone"}, {"name": "m", "mix": ["t"]}]
    first, second = problems(tmp_path, tree | {"evaluation": {"tasks": tasks}})
    assert "(t).source: 'lone' has texts without pairs, so no right answers. Name a source of pairs." in first
    assert "(m).mix: 't' is no retrieval task" in second


def test_rows_without_a_text_are_named_and_nothing_is_mined(tmp_path: Path) -> None:
    rows = [{"t": "a red bar"}, {"t": " "}, {"t": "a blue bar"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(name="lone", task="text", format="json", location=str(tmp_path / "t.jsonl"), columns={"text": "t"})
    with pytest.raises(DataError, match=r"row 1, column 't': empty text\. Fill it or remove the row\."):
        load_source(source)
    assert load_source(source.model_copy(update={"max_broken_rows": 1}))["text"] == ["a red bar", "a blue bar"]
    with pytest.raises(DataError, match=r"has task text, but negatives are mined for sources of task text-pair or"):
        read_pairs(source)


def test_recipes_without_them_resume(tiny_recipe: Path) -> None:
    plain = load_recipe(tiny_recipe)
    assert "repeat_words" not in json.dumps(recipe_differences(plain, plain.model_copy(update={"sources": []})))
    told = recipe_differences(load_recipe(tiny_recipe, TEXT), load_recipe(tiny_recipe, REPEATS))
    assert told == ["sources.1.repeat_words: absent -> 0.5"]
