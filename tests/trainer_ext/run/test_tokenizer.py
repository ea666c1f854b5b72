"""The trained tokenizer is BERT's kind, the same in every process, and loads without our code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.run.tokenizer import MAX_LENGTH, SPECIAL_TOKENS, train_wordpiece, training_texts

TEXTS = ["A red bus, and a blue bus.", "Über die Brücke", "the buses of the city are red", "bus stop 42"]


def test_special_tokens_come_first_and_wrap_a_text() -> None:
    tokenizer = train_wordpiece(TEXTS, 120)
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= 120
    ids = tokenizer("A RED bus")["input_ids"]
    assert ids == [2, *tokenizer.convert_tokens_to_ids(["a", "red", "bus"]), 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red bus"
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.model_max_length) == (0, 4, MAX_LENGTH)


def test_letters_are_ordinary_pieces() -> None:
    """They are numbered by hand in training; as special tokens they would be dropped in decoding and split words."""
    tokenizer = train_wordpiece(TEXTS, 120)
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert tokenizer.decode(tokenizer("d").input_ids, skip_special_tokens=True) == "d"
    assert tokenizer.tokenize("büs") == ["bus"]
    assert tokenizer.tokenize("busred")[0] == "bus"


def test_unknown_letters_and_every_text_of_training() -> None:
    tokenizer = train_wordpiece(TEXTS, 120)
    assert tokenizer.tokenize("猫") == ["[UNK]"]
    assert all(tokenizer.unk_token_id not in tokenizer(text).input_ids for text in TEXTS)


def test_frequent_words_become_whole() -> None:
    small, large = train_wordpiece(TEXTS, 60), train_wordpiece(TEXTS, 200)
    assert len(small) == 60
    assert len(small.tokenize(" ".join(TEXTS))) > len(large.tokenize(" ".join(TEXTS)))
    assert large.tokenize("bus") == ["bus"]


def test_auto_tokenizer_loads_it_without_remote_code(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, 120)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert loaded.model_max_length == MAX_LENGTH


@pytest.mark.slow
def test_any_process_and_any_order_of_texts_give_the_same_vocabulary() -> None:
    """Many words of equal counts: whoever breaks ties by a hash map's order fails here nearly always."""
    script = """
import json, random, sys
from trainer_ext.run.tokenizer import train_wordpiece
syllables = ["ba", "ko", "ri", "te", "mu", "sha", "lo", "ne", "xi", "zu"]
words = sorted({a + b + c for a in syllables for b in syllables for c in syllables})
random.shuffle(words)
print(json.dumps(train_wordpiece(words, 400).get_vocab(), sort_keys=True))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            stdout=subprocess.PIPE,
        )
        for seed, threads in (("1", "1"), ("2", "2"))
    ]
    first, second = (json.loads(process.communicate()[0]) for process in processes)
    assert len(first) == 400
    assert first == second


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_texts(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="no texts to train a tokenizer on"):
        train_wordpiece(texts, 100)


def test_too_small_a_vocabulary_names_the_size_it_needs() -> None:
    with pytest.raises(
        ValueError, match=r"vocab_size is 10.* are (\d+) entries\. Set vocab_size to \1 or more"
    ) as caught:
        train_wordpiece(TEXTS, 10)
    needed = int(str(caught.value).split("Set vocab_size to ")[1].split()[0])
    assert len(train_wordpiece(TEXTS, needed)) == needed


def test_training_texts_are_those_of_the_sources_in_use(tmp_path: Path) -> None:
    columns = {"query": "query", "positive": "positive"}
    recipe = {
        "name": "try",
        "model": "openmoji-small",
        "sources": [
            {"name": n, "task": task, "format": "json", "location": f"{n}.jsonl", "columns": columns | more}
            for n, task, more in [
                ("used", "text-pair", {}),
                ("unused", "text-pair", {}),
                ("hard", "triplet", {"negatives": "negatives"}),
            ]
        ],
        "stages": [
            {"name": n, "steps": 1, "learning_rate": 1.0, "max_length": 8, "text": text}
            for n, text in [
                ("one", {"sources": ["used"], "batch_size": 1}),
                ("two", {"sources": ["hard"], "batch_size": 1, "loss": "info_nce_plus"}),
            ]
        ],
    }
    rows = [{"query": "q0", "positive": "p0"}, {"query": "q1", "positive": "p1"}]
    (tmp_path / "used.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "hard.jsonl").write_text(json.dumps({"query": "q2", "positive": "p2", "negatives": ["n"]}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    texts = list(training_texts(load_recipe(tmp_path / "recipe.yaml")))
    assert sorted(texts) == ["p0", "p1", "p2", "q0", "q1", "q2"]


def test_every_caption_of_an_image_counts(tmp_path: Path) -> None:
    recipe = {
        "name": "try",
        "model": "openmoji-small",
        "sources": [
            {
                "name": "photos",
                "task": "image-text",
                "format": "imagefolder",
                "location": ".",
                "columns": {"image": "image", "caption": "text"},
            }
        ],
        "stages": [
            {
                "name": "one",
                "steps": 1,
                "learning_rate": 1.0,
                "max_length": 8,
                "image_text": {"sources": ["photos"], "batch_size": 1},
            }
        ],
    }
    (tmp_path / "a.png").write_bytes(b"never decoded for its caption")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["one", "two"]}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert list(training_texts(load_recipe(tmp_path / "recipe.yaml"))) == ["one", "two"]


def test_a_language_of_many_letters_keeps_them() -> None:
    """2,000 ideographs, each as frequent as the next: none may become [UNK], and no two texts the same ids."""
    letters = [chr(0x4E00 + n) for n in range(2000)]
    texts = ["".join(letters[n : n + 8]) for n in range(0, 2000, 2)]
    said: list[str] = []
    tokenizer = train_wordpiece(texts, 8000, said.append)
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert len(set(map(tuple, ids))) == len(set(texts))
    assert "2,000 of 2,000 letters kept; 0.000% of the letters" in said[0]


def test_letters_that_do_not_fit_are_said() -> None:
    texts = ["".join(chr(0x4E00 + n) for n in range(1500))]
    said: list[str] = []
    train_wordpiece(texts, 1100, said.append)
    assert "1,000 of 1,500 letters kept; 33.333% of the letters" in said[0]
