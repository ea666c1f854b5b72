"""Sentences of captions, and which captions a step sees: rules, odds, and that ways of reading make no difference."""

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer_ext.source_files import picture_source, png
from tests.trainer_ext.tiny_run import make_processor, picture
from trainer_ext.data.augmentation import row_generator
from trainer_ext.data.batches import JointCollator, JointDataset, stable_ids
from trainer_ext.data.captions import drawn_captions, sentences
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.schema import ShortCaption, Side, Source
from trainer_ext.recipe.stages import Augmentation, Stage

SPLIT = {
    "A red bus. It is parked.": ["A red bus.", "It is parked."],
    "a red bus. it is parked.": ["a red bus.", "it is parked."],
    "A bus approx. three metres long.": ["A bus approx. three metres long."],
    "It is 3.5 m high. No. 5 of Dr. Lee and J. R. Smith.": ["It is 3.5 m high.", "No. 5 of Dr. Lee and J. R. Smith."],
    "Is it red? No. It is blue!": ["Is it red?", "No.", "It is blue!"],
    'He said "Stop." Then she went (slowly). Bye': ['He said "Stop."', "Then she went (slowly).", "Bye"],
    '"Stop!" he said.': ['"Stop!" he said.'],
    "Wait... what? And then…  It ended!!": ["Wait... what?", "And then…", "It ended!!"],
    "see e.g. this one. or that": ["see e.g. this one.", "or that"],
    "一只红色的公共汽车。它停着！「是吗？」": ["一只红色的公共汽车。", "它停着！", "「是吗？」"],
    "यह एक बिल्ली है। यह सो रही है।": ["यह एक बिल्ली है।", "यह सो रही है।"],
    "A title without a stop\n\nA text of\ntwo lines.": ["A title without a stop", "A text of\ntwo lines."],
    "1. A dog\n\n2. A cat": ["1. A dog", "2. A cat"],
    "a red bus": ["a red bus"],
    "...": ["..."],
    "  ": [""],
}


@pytest.mark.parametrize("text", SPLIT)
def test_sentences_end_where_readers_end_them(text: str) -> None:
    assert sentences(text) == SPLIT[text]


WORDS = st.lists(st.text(st.sampled_from("abcdefgh"), min_size=2, max_size=6), min_size=1, max_size=5)


@given(st.lists(st.tuples(WORDS, st.sampled_from([".", "!", "?", "?!", "…"])), min_size=1, max_size=6))
def test_sentences_that_were_joined_come_apart_again(parts: list[tuple[list[str], str]]) -> None:
    """Each begins with a capital and ends with a long word: none of the exceptions applies."""
    whole = [" ".join(["X" + words[0], *words[1:], "endings"]) + sign for words, sign in parts]
    assert sentences(" ".join(whole)) == whole
    assert sentences("\n ".join(whole)) == whole


@settings(max_examples=200)
@given(st.text(st.sampled_from('aB1 .!?…。\n"(’)') | st.characters(), max_size=60))
def test_no_word_is_lost_and_none_is_cut(text: str) -> None:
    found = sentences(text)
    assert len(found) >= 1
    assert "".join("".join(found).split()) == "".join(text.split())
    if len(found) > 1:
        assert all(any(letter.isalpha() for letter in one) for one in found[:-1])
    assert all(one == one.strip() for one in found)


@pytest.mark.parametrize("piece", [".", "a. ", "1. ", "a.b. ", '."', "\n", "\n ", "。", "( ", "A dog. "])
def test_long_texts_take_no_time(piece: str) -> None:
    """Linear: a text of 200,000 signs is a matter of a second, not of minutes."""
    begin = time.process_time()
    sentences(piece * (200_000 // len(piece)))
    assert time.process_time() - begin < 5


# --- the draw ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 2**32))
def test_whole_rounds_first(captions: int, count: int, seed: int) -> None:
    known = [f"c{place}" for place in range(captions)]
    found = drawn_captions(known, count, np.random.default_rng(seed))
    assert len(found) == count
    for start in range(0, count, captions):  # within a round nothing comes twice
        part = found[start : start + captions]
        assert len(set(part)) == len(part)
    assert set(Counter(found).values()) <= {count // captions, count // captions + 1}


def test_each_caption_is_in_each_slot_alike() -> None:
    """The last one too."""
    seen = [Counter[str]() for _ in range(2)]
    for seed in range(3000):
        for slot, text in zip(seen, drawn_captions(["a", "b", "c"], 2, np.random.default_rng(seed)), strict=True):
            slot[text] += 1
    assert all(abs(slot[text] - 1000) < 105 for slot in seen for text in "abc")  # four deviations


def make_source(**changes: Any) -> Source:
    columns = {"image": "image", "caption": "caption"}
    return Source(name="photos", task="image-text", location="x", format="parquet", columns=columns, **changes)


def make_stage(**keys: Any) -> Stage:
    side = Side(sources=["photos"], batch_size=2, **keys)
    return Stage(name="only", steps=1, learning_rate=1e-3, max_length=30, image_text=side)


def key(index: int, epoch: int = 0, stage: int = 0) -> Key:
    return Key(step=0, stage=stage, side="image_text", source="photos", epoch=epoch, index=index)


CAPTIONS = [["One red bar. It is on two.", "Three bars."], ["four"], ["five is six. Seven. Eight. Nine. Ten."]]


def rows_of(*stages: Stage, **changes: Any) -> JointDataset:
    table = Dataset.from_dict({"image": list(range(3)), "caption": CAPTIONS})
    return JointDataset([make_source(**changes)], {"photos": table}, seed=7, stages=stages)


def test_one_caption_is_drawn_as_ever() -> None:
    """By the hash of seed, source, epoch and row alone, whatever the stage says of one."""
    for rows in (rows_of(), rows_of(make_stage()), rows_of(make_stage(captions_per_image=1))):
        for epoch in range(9):
            label = f"7/photos/{epoch}/0".encode()
            place = int.from_bytes(hashlib.blake2b(label, digest_size=8).digest()) % 2
            assert rows[key(0, epoch)]["caption"] == CAPTIONS[0][place]
            assert rows[key(1, epoch)]["caption"] == "four"


@pytest.mark.parametrize("split", [None, "sentences"])
def test_several_are_drawn_as_written_down(split: str | None) -> None:
    rows = rows_of(make_stage(captions_per_image=4, split_captions=split), prompts={"caption": "a photo: "})
    for index, texts in enumerate(CAPTIONS):
        known = texts if split is None else [one for text in texts for one in sentences(text)]
        for epoch in range(5):
            found = rows[key(index, epoch)]["caption"]
            expected = drawn_captions(known, 4, row_generator(7, key(index, epoch), "captions"))
            assert found == ["a photo: " + text for text in expected]
    choices = {tuple(rows[key(2, epoch)]["caption"]) for epoch in range(20)}
    assert (len(choices) == 1) == (split is None)


def test_one_sentence_is_drawn_of_all_captions() -> None:
    rows = rows_of(make_stage(split_captions="sentences"))
    found = Counter(rows[key(0, epoch)]["caption"] for epoch in range(300))
    assert found.keys() == {"One red bar.", "It is on two.", "Three bars."}
    assert min(found.values()) > 70


@pytest.mark.parametrize("several", [1, 2])
def test_the_short_caption_is_the_first_sentence_of_the_first_caption(several: int) -> None:
    stage = make_stage(captions_per_image=several, short_caption=ShortCaption(principal_components=2))
    rows, without = rows_of(stage, prompts={"caption": "a photo: "}), rows_of(make_stage(captions_per_image=several))
    for index, first in enumerate(["One red bar.", "four", "five is six."]):
        for epoch in range(3):
            row = rows[key(index, epoch)]
            assert row["short_caption"] == f"a photo: {first}"
            drawn = without[key(index, epoch)]["caption"]
            assert row["caption"] == (f"a photo: {drawn}" if several == 1 else [f"a photo: {one}" for one in drawn])
    assert "short_caption" not in without[key(0)]


def test_stages_may_differ() -> None:
    stages = make_stage(), make_stage(captions_per_image=2), Stage(name="t", steps=1, learning_rate=1e-3, max_length=9)
    rows = rows_of(*stages)
    assert [type(rows[key(0, stage=stage)]["caption"]) for stage in range(3)] == [str, list, str]


def test_streams_draw_alike_at_every_reading(tmp_path: Path) -> None:
    """A stream's rows have epochs and numbers of their own; the draw is a function of those."""
    texts = [f"Shade {n} of ten. It is grey. So it is." for n in range(9)]
    images = [{"bytes": png(n), "path": None} for n in range(9)]
    Dataset.from_dict({"image": images, "text": texts}).cast_column("image", Image()).to_parquet(tmp_path / "p.parquet")
    source = picture_source(tmp_path / "p.parquet", streaming=True, shuffle_buffer=4)
    stage = make_stage(captions_per_image=2, split_captions="sentences")
    stage = stage.model_copy(update={"image_text": stage.image_text.model_copy(update={"sources": [source.name]})})
    keys = [key(place)._replace(source=source.name) for place in range(30)]
    read = [
        JointDataset([source], load_sources([source], 1), seed=1, stages=[stage]).__getitems__(chosen)
        for chosen in (keys, keys[9:])
    ]
    assert [row["caption"] for row in read[0]][9:] == [row["caption"] for row in read[1]]
    assert all(len(set(row["caption"])) == 2 for row in read[0])
    assert len({(row["image_label"], *row["caption"]) for row in read[0]}) > 12


# --- in a batch --------------------------------------------------------------------------------------------------


def image_row(place: int, caption: Any, epoch: int = 0) -> dict[str, Any]:
    return {"image": picture("red", place + 1), "image_label": str(place), "caption": caption, "key": key(place, epoch)}


def test_tensors_are_flat_row_by_row() -> None:
    rows = [image_row(0, ["one red bar", "three"]), image_row(1, ["four five", "a bar"])]
    side = JointCollator(make_processor(), [make_stage(captions_per_image=2)])(rows)["image_text"]
    assert side["input_ids"].shape == (4, 5)
    assert side["attention_mask"].sum(dim=1).tolist() == [5, 3, 4, 4]
    assert side["text_ids"].tolist() == stable_ids(["one red bar", "three", "four five", "a bar"]).tolist()
    assert side["pixel_values"].shape[0] == len(side["image_ids"]) == 2


def test_each_of_several_changes_by_numbers_of_its_own() -> None:
    """The first of several changes as the only one does: augmentation's draws have the place in their label."""
    text = "one two three four five six seven eight"
    stages = [
        make_stage(captions_per_image=count).model_copy(update={"augmentation": Augmentation(word_swap=0.5)})
        for count in (1, 3)
    ]
    alone, three = (
        JointCollator(make_processor(), [stage], seed=3)([image_row(0, caption)])["image_text"]["input_ids"]
        for stage, caption in zip(stages, (text, [text] * 3), strict=True)
    )
    assert alone[0].tolist() == three[0].tolist()
    assert len({tuple(ids.tolist()) for ids in three}) == 3


def test_a_short_caption_is_a_column_of_its_own() -> None:
    """Padded and changed by itself, its prompt whole."""
    stage = make_stage(short_caption=ShortCaption(principal_components=1))
    changed = stage.model_copy(update={"augmentation": Augmentation(word_deletion=0.9)})
    rows = [image_row(0, "a one red bar on two"), image_row(1, "a bar is five")]
    for row, short in zip(rows, ("a one red bar", "a bar"), strict=True):
        row |= {"short_caption": short, "prompts": {"caption": "a "}}
    plain, deleted = (JointCollator(make_processor(), [one])(rows)["image_text"] for one in (stage, changed))
    assert plain["short_caption"]["attention_mask"].sum(dim=1).tolist() == [6, 4]
    assert plain["short_text_ids"].tolist() == stable_ids(["a one red bar", "a bar"]).tolist()
    assert deleted["short_text_ids"].tolist() == plain["short_text_ids"].tolist()
    assert deleted["short_caption"]["attention_mask"].sum(dim=1).tolist() == [4, 4]
    assert (deleted["short_caption"]["input_ids"][:, 1] == plain["short_caption"]["input_ids"][0, 1]).all()
