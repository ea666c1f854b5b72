"""Captions that no person wrote, lengths in tokens, and the texts that occur most."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer_ext.tiny_run import make_tokenizer
from trainer_ext.checking.texts import Frequent, TokenCounts, made_by_machine, token_findings, too_short
from trainer_ext.recipe.stages import Stage


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("IMG_0042.JPG", "a file's name"),
        ("holiday (2).webp", "a file's name"),
        ("DSC00012", "a camera's or a phone's number"),
        ("Screenshot 2024-05-01 10.11.12", "a camera's or a phone's number"),
        ("20240501_101112", "a date"),
        ("https://example.org/a.html", "an address"),
        ("d41d8cd98f00b204e9800998ecf8427e", "a hash or an id"),
        ("123e4567-e89b-12d3-a456-426614174000", "a hash or an id"),
        ("Untitled", "a placeholder"),
        ("N/A", "a placeholder"),
        ("An image.", "a placeholder"),
        ("a <b>red</b> bus", "markup"),
        ("bread &amp; butter", "markup"),
        ("a caf\u00c3\u00a9", "text read in a wrong encoding"),
        ("As an AI language model, I cannot see", "a language model's talk"),
        ("The image shows a dog", "a captioning model's opening"),
        ("In this photo a dog runs", "a captioning model's opening"),
        ("shoes shoes shoes shoes", "one word over and over"),
    ],
)
def test_texts_of_machines_are_known(text: str, made: str) -> None:
    assert made_by_machine(text) == made


@pytest.mark.parametrize(
    "text",
    ["a photo of a cat", "dog", "A picture book on a table", "3 < 4", "Sam's nan", "the image of a saint", "猫",
     "a file cabinet", "AT&T building", "Surely not", "bye bye", "www is short for world wide web", "unknown soldier"],
)  # fmt: skip
def test_texts_of_people_are_left_alone(text: str) -> None:
    assert made_by_machine(text) is None
    assert not too_short(text)


def test_questions_and_answers_may_be_what_captions_may_not() -> None:
    assert made_by_machine("https://example.org", caption=False) is None
    assert made_by_machine("<p>yes", caption=False) == "markup"


def test_tokens_are_those_of_the_tokenizer() -> None:
    counts = TokenCounts(make_tokenizer(), limits=[4, 6])
    counts.add(["one red bar", "one", "a bar on a bar", "purple bar"], [10, 11, 12, 13])
    assert counts.lengths == Counter({5: 1, 3: 1, 7: 1, 4: 1})  # [CLS] and [SEP] count
    assert (counts.texts, counts.tokens, counts.unknown) == (4, 11, 1)
    assert (counts.cut(4), counts.cut(6), counts.lost(6)) == (2, 1, 1 / 19)
    assert (counts.quantile(0.5), counts.quantile(1.0)) == (4, 7)
    stages = [Stage(name=f"to {n}", steps=1, learning_rate=1e-3, max_length=n) for n in (4, 6, 8)]
    found = list(token_findings("rows", "text", "caption", counts, stages, lambda row: ("a.csv", row)))
    assert [(one.kind, one.level, one.row) for one in found] == [
        ("cut", "warning", 10), ("cut", "warning", 12), ("unknown", "warning", 13)
    ]  # fmt: skip
    assert found[0].words.startswith("stage 'to 4' cuts 2 of 4 (50.0%) of the caption texts at max_length 4")
    assert "1 of 11 (9.1%) of the tokens" in found[2].words
    assert "'purple bar'" in found[2].words


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(2, 5))
def test_frequent_texts_are_never_lost(texts: list[str], most: int) -> None:
    """Misra and Gries: every text that is more than 1 in most is kept, its count too low by at most that share."""
    frequent = Frequent(most)
    for row, text in enumerate(texts):
        frequent.add(text, row)
    for text, count in Counter(texts).items():
        if count > len(texts) / most:
            assert text in frequent.counts
        if text in frequent.counts:
            assert count - len(texts) / most <= frequent.counts[text] <= count
    assert len(frequent.counts) <= most
