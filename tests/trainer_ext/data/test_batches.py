"""The joint batch: each column padded on its own, by the stage's own lengths and sizes, with ids for duplicates."""

import pickle
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPProcessor
from trainer_ext.data.batches import JointCollator, JointDataset, stable_ids
from trainer_ext.data.plan import JointBatchPlan, Key
from trainer_ext.recipe.schema import Side, Source
from trainer_ext.recipe.stages import Stage
from trainer_ext.run.tokenizer import train_wordpiece
from trainer_ext.training.embedding import InputEmbedder

SENTENCE = "a red bus on the long way home and then some more words to fill every row of this test"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def processor() -> JinaCLIPProcessor:
    return JinaCLIPProcessor(JinaCLIPImageProcessor(size=16), train_wordpiece([" ".join(WORDS)], 200))


def stages() -> list[Stage]:
    first = Stage(name="first", steps=1, learning_rate=1.0, max_length=6)
    return [first, Stage(name="second", steps=1, learning_rate=1.0, max_length=64, image_size=24)]


def key(side: str, index: int, stage: int = 0, source: str = "s") -> Key:
    return Key(step=0, stage=stage, side=side, source=source, epoch=0, index=index)


def image_row(index: int, caption: str, stage: int = 0, **more: Any) -> dict[str, Any]:
    picture = Image.new("RGB", (20, 30 + index), (index, 0, 0))
    row = {"image": picture, "image_label": f"bytes/{index}", "caption": caption}
    return {**row, "key": key("image_text", index, stage, "photos"), **more}


def pair_row(index: int, query: str, positive: str, stage: int = 0, **more: Any) -> dict[str, Any]:
    return {"query": query, "positive": positive, "key": key("text", index, stage, "pairs"), **more}


def words(count: int) -> str:
    return " ".join(WORDS[:count])


def test_sides_are_padded_on_their_own(processor: JinaCLIPProcessor) -> None:
    rows = [
        image_row(0, words(1), stage=1),
        image_row(1, words(2), stage=1),
        pair_row(2, words(3), words(12), stage=1, negatives=[words(4), words(5)]),
        pair_row(3, words(1), words(9), stage=1, negatives=[words(7), words(6)]),
        pair_row(4, words(1), words(9), stage=1, negatives=[words(1), words(1)]),
    ]
    batch = JointCollator(processor, stages())(rows)
    assert batch["stage"] == 1
    assert batch["sources"] == {"image_text": "photos", "text": "pairs"}
    assert batch["image_text"]["input_ids"].shape == (2, 2 + 2)  # words, [CLS] and [SEP]
    assert batch["image_text"]["pixel_values"].shape == (2, 3, 24, 24)
    assert batch["text"]["query"]["input_ids"].shape == (3, 3 + 2)
    assert batch["text"]["positive"]["input_ids"].shape == (3, 12 + 2)
    assert batch["text"]["negatives"]["input_ids"].shape == (6, 7 + 2)
    assert batch["text"]["negatives"]["attention_mask"].sum(1).tolist() == [n + 2 for n in (4, 5, 7, 6, 1, 1)]
    tokenizer = processor.tokenizer
    flat = tokenizer.batch_decode(batch["text"]["negatives"]["input_ids"], skip_special_tokens=True)
    assert flat == [words(n) for n in (4, 5, 7, 6, 1, 1)]


def test_stage_decides_length_and_size(processor: JinaCLIPProcessor) -> None:
    for stage, tokens, size in ((0, 6, 16), (1, 17, 24)):
        rows = [image_row(0, words(15), stage), pair_row(1, words(15), words(2), stage)]
        batch = JointCollator(processor, stages())(rows)
        assert batch["image_text"]["input_ids"].shape == (1, tokens)
        assert batch["text"]["query"]["input_ids"].shape == (1, tokens)
        assert batch["image_text"]["pixel_values"].shape[-1] == size
        assert batch["text"]["query"]["input_ids"][0, -1] == processor.tokenizer.sep_token_id


@pytest.mark.parametrize("stage", [0, 1])
def test_tensors_are_those_of_the_processor(processor: JinaCLIPProcessor, stage: int) -> None:
    """Padding is done here, for speed; the processor's own is the measure. 12 words are cut in stage 0."""
    lengths, size = (12, 2, 5), stages()[stage].image_size or 16
    rows = [image_row(index, words(count), stage) for index, count in enumerate(lengths)]
    rows += [pair_row(index, words(count), words(1), stage) for index, count in enumerate(lengths)]
    made = JointCollator(processor, stages())(rows)
    expected = processor(
        text=[words(count) for count in lengths],
        images=[row["image"] for row in rows[:3]],
        size=size,
        padding=True,
        truncation=True,
        max_length=stages()[stage].max_length,
        return_tensors="pt",
    )
    images = processor.image_processor
    pixels = InputEmbedder(images.mean, images.std, torch.device("cpu")).normalized(made["image_text"]["pixel_values"])
    assert torch.equal(pixels, expected["pixel_values"])
    for name in ("input_ids", "attention_mask"):
        torch.testing.assert_close(made["image_text"][name], expected[name], rtol=0, atol=0)
    for name in ("input_ids", "attention_mask"):
        torch.testing.assert_close(made["text"]["query"][name], expected[name], rtol=0, atol=0)


def test_one_side_alone(processor: JinaCLIPProcessor) -> None:
    collator = JointCollator(processor, stages())
    assert collator([image_row(0, "a")]).keys() == {"stage", "sources", "image_text"}
    text = collator([pair_row(0, "a", "red")])
    assert text.keys() == {"stage", "sources", "text"}
    assert text["text"].keys() == {"query", "positive", "query_ids", "positive_ids"}


def test_ids_show_equal_texts_and_equal_images(processor: JinaCLIPProcessor) -> None:
    rows = [
        image_row(0, "a bus", id="A"),
        image_row(1, "red", id="B"),
        image_row(2, "a bus", id="A"),
        pair_row(3, "red", "home", negatives=["way", "home"]),
        pair_row(4, "way", "home", negatives=["a bus", "red"]),
    ]
    batch = JointCollator(processor, stages())(rows)
    images, captions = batch["image_text"]["image_ids"], batch["image_text"]["text_ids"]
    text = batch["text"]
    assert {ids.dtype for ids in (images, captions, text["query_ids"], text["negative_ids"])} == {torch.int64}
    assert images[0] == images[2] != images[1]
    assert captions[0] == captions[2] != captions[1]
    assert text["positive_ids"][0] == text["positive_ids"][1] == text["negative_ids"][1]
    assert text["negative_ids"].tolist() == stable_ids(["way", "home", "a bus", "red"]).tolist()
    assert text["query_ids"][0] == captions[1]  # one name space for all texts


def test_ids_of_text_rows_declare_duplicates(processor: JinaCLIPProcessor) -> None:
    rows = [pair_row(n, words(n + 1), words(n + 2), id=name) for n, name in enumerate([7, "8", "7"])]
    ids = JointCollator(processor, stages())(rows)["text"]["row_ids"]
    assert (ids[0] == ids[2], ids[0] == ids[1], ids.dtype) == (True, False, torch.int64)
    assert "row_ids" not in JointCollator(processor, stages())([pair_row(0, "a", "b")])["text"]


def test_images_without_ids_are_their_content(processor: JinaCLIPProcessor) -> None:
    rows = [image_row(index, "a", image_label=label) for index, label in enumerate(["bytes/1", "bytes/2", "bytes/1"])]
    ids = JointCollator(processor, stages())(rows)["image_text"]["image_ids"]
    assert ids[0] == ids[2] != ids[1]


def test_ids_never_change() -> None:
    """They are compared between processes, so they may not depend on Python's hash seed."""
    assert stable_ids(["cat", "Küche"]).tolist() == [3429664268601861939, 7998807268776284890]
    assert stable_ids([]).shape == (0,)


def test_workers_make_the_same_batches(processor: JinaCLIPProcessor) -> None:
    """Plan, rows and collator as the trainer joins them, with the rows made in other processes."""
    pictures = [Image.new("RGB", (20, 20), (level, 0, 0)) for level in range(10)]
    tables = {
        "photos": Dataset.from_dict(
            {"image": pictures, "caption": [[words(n), words(n + 5)] for n in range(1, 11)]},
            features=Features({"image": ImageFeature(), "caption": List(Value("string"))}),
        ),
        "pairs": Dataset.from_dict({"query": WORDS, "positive": WORDS[::-1]}),
    }
    task_columns = {
        "photos": ("image-text", {"image": "image", "caption": "caption"}),
        "pairs": ("text-pair", {"query": "query", "positive": "positive"}),
    }
    sources = [
        Source(name=name, task=task, location="x", format="parquet", columns=columns)
        for name, (task, columns) in task_columns.items()
    ]
    sides = {
        "image_text": Side(sources=["photos"], batch_size=4),
        "text": Side(sources=["pairs"], batch_size=3),
    }
    run = [stage.model_copy(update=sides) for stage in stages()]
    plan = JointBatchPlan(run, sources, {name: len(table) for name, table in tables.items()}, seed=3)
    rows, collator = JointDataset(sources, tables, seed=3), JointCollator(processor, run)
    here = [collator(rows.__getitems__(plan.keys(batch))) for batch in range(len(plan))]
    # Pickled, as workers that are started anew would get them.
    rows, collator = pickle.loads(pickle.dumps((rows, collator)))  # noqa: S301  # our own bytes
    there = list(DataLoader(rows, batch_sampler=plan, collate_fn=collator, num_workers=2))
    assert [batch["stage"] for batch in there] == [0, 1]
    for one, other in zip(here, there, strict=True):
        assert one.pop("sources") == other.pop("sources") == {"image_text": "photos", "text": "pairs"}
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def contrasted_stage(loss: str) -> Stage:
    side = {"sources": ["photos"], "batch_size": 2, "loss": loss}
    return Stage(name="only", steps=1, learning_rate=1.0, max_length=64, image_text=side)


def test_negative_captions_are_tokens_for_the_loss_that_takes_them(processor: JinaCLIPProcessor) -> None:
    rows = [
        image_row(0, words(3), negatives=[words(4), words(9)]),
        image_row(1, words(5), negatives=[words(1), words(3)]),
    ]
    side = JointCollator(processor, [contrasted_stage("info_nce_plus")])(rows)["image_text"]
    assert side["negatives"]["input_ids"].shape == (4, 9 + 2)
    assert side["negatives"]["attention_mask"].sum(1).tolist() == [n + 2 for n in (4, 9, 1, 3)]
    assert side["negative_ids"].tolist() == stable_ids([words(n) for n in (4, 9, 1, 3)]).tolist()
    assert side["negative_ids"][3] == side["text_ids"][0]
    plain = JointCollator(processor, [contrasted_stage("info_nce")])(rows)["image_text"]
    assert plain.keys() == side.keys() - {"negatives", "negative_ids"}


def test_another_caption_of_the_picture_is_no_negative_of_it() -> None:
    """It counts as the drawn caption, which the loss leaves out; negatives get the caption's prompt."""
    columns = {"image": "i", "caption": "c", "negatives": "n"}
    source = Source(
        name="s", task="image-text", location="x", format="parquet", columns=columns, prompts={"caption": "a photo: "}
    )
    stored = {"caption": ["a dog", "one dog"], "negatives": ["a cat", "one dog"], "key": key("image_text", 0)}
    row = JointDataset([source], {}, seed=1)._finished(source, stored)
    assert row["caption"] in ("a photo: a dog", "a photo: one dog")
    assert row["negatives"] == ["a photo: a cat", row["caption"]]
