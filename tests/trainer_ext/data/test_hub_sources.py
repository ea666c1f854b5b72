"""Data sets of the Hub, by the real client from a hub on 127.0.0.1: pinned, streaming or not.

The client reads its address and whether it may connect when it is imported, so each case is a process of its own.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub import LoopbackHub
from tests.source_imports import ROOT
from tests.trainer_ext.source_files import pair_source, pairs, png, write_tar
from trainer_ext.recipe.recipe import Recipe

READ = """
import json, sys
from trainer_ext.data.formats import DataError
from trainer_ext.data.sources import load_source, load_sources
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe import Source
answers = []
for settings in json.load(sys.stdin):
    source = Source(**settings)
    try:
        rows = load_sources([source], seed=1)[source.name]
        if isinstance(rows, SourceStream):
            found = [row.row for row in rows.read(range(5))]
        else:
            found = rows.to_list() if "image" not in rows.column_names else list(rows)
        for row in found:
            if "image" in row:
                row["image"] = row["image"].getpixel((0, 0))[0]
                row.pop("image_label", None)
        answers.append(found)
    except DataError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*.jsonl
  - split: test
    path: plain/test.jsonl
- config_name: other
  data_files: other.jsonl
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackHub, list[str]]]:
    """A data set with two configurations and two commits, the second with other texts; and pictures in a tar file."""
    tar = tmp_path_factory.mktemp("tar") / "0.tar"
    write_tar(tar, [(str(n), {"png": png(n), "txt": f"shade {n}".encode()}) for n in range(5)])
    files = {
        "README.md": CARD,
        "plain/train-0.jsonl": lines(pairs(0, 3)),
        "plain/train-1.jsonl": lines(pairs(3, 2)),
        "plain/test.jsonl": lines(pairs(90, 2)),
        "other.jsonl": lines(pairs(70, 1)),
    }
    with LoopbackHub() as server:
        first = server.add_dataset("me/things", files)
        second = server.add_dataset("me/things", files | {"plain/train-0.jsonl": lines(pairs(50, 3))})
        third = server.add_dataset("me/pictures", {"train-0.tar": tar.read_bytes()})
        csv = {"train.csv": b"q,a\n00005,TRUE\n1.50,null\n7,x\n8,y\n9,z\n", "test.csv": b"q,a,other\n1,2,3\n"}
        fourth = server.add_dataset("me/table", csv)
        packed = {"train.csv.gz": gzip.compress(csv["train.csv"])}
        fifth = server.add_dataset("me/packed", packed)
        sixth = server.add_dataset("me/nulls", {"train.jsonl": b"null\n" + lines(pairs(0, 3))})
        captions = "file_name,text\n" + "".join(f"{n}.png,shade {n}\n" for n in range(5))
        folder = {f"train/{n}.png": png(n) for n in range(5)} | {"train/metadata.csv": captions.encode()}
        seventh = server.add_dataset("me/folder", folder)
        yield server, [first, second, third, fourth, fifth, sixth, seventh]


def read(server: LoopbackHub, folder: Path, sources: list[dict[str, Any]]) -> list[Any]:
    environment = os.environ | {
        "HF_ENDPOINT": server.endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0", "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ], env=environment, input=json.dumps(sources), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def of_hub(revision: str, config: str = "plain", **changes: Any) -> dict[str, Any]:
    return pair_source("me/things", "hub", revision=revision, config=config, **changes).model_dump()


def test_data_sets_are_read_at_their_commit(hub: tuple[LoopbackHub, list[str]], tmp_path: Path) -> None:
    server, [first, second, third, fourth, *_] = hub
    place = {"location": "me/pictures", "config": None}
    pictures = of_hub(third) | place | {"task": "image-text", "columns": {"image": "png", "caption": "txt"}}
    answers = read(
        server,
        tmp_path,
        [
            of_hub(first),
            of_hub(second),
            of_hub(first, split="test"),
            of_hub(second, streaming=True),
            pictures,
            pictures | {"streaming": True},
            of_hub(first, split="validation"),
            of_hub(first, split="validation", streaming=True),
            of_hub(first, "plane"),
            of_hub("0" * 40),
            of_hub(first, columns={"query": "question", "positive": "a"}),
            of_hub(fourth) | {"location": "me/table", "config": None},
            of_hub(fourth, streaming=True) | {"location": "me/table", "config": None},
        ],
    )
    expected = [[{"query": f"question {n}", "positive": f"answer {n}"} for n in numbers]
                for numbers in ([0, 1, 2, 3, 4], [50, 51, 52, 3, 4], [90, 91])]  # fmt: skip
    assert answers[:3] == expected
    assert sorted(answers[3], key=lambda row: expected[1].index(row)) == expected[1]
    shades = [{"image": n, "caption": f"shade {n}"} for n in range(5)]
    assert answers[4] == shades
    assert sorted(answers[5], key=lambda row: row["image"]) == shades
    place = f"Source 'pairs': me/things at {first}"
    assert answers[6] == answers[7] == f"{place} has no split 'validation'. Its splits are train, test."
    assert answers[8].startswith(f"{place} cannot be read from the Hub: BuilderConfig 'plane' not found.")
    assert answers[9].startswith(f"Source 'pairs': me/things at {'0' * 40} cannot be read from the Hub: ")
    assert answers[10].startswith(f"{place} has no column 'question' for query. ")
    cells = [("00005", "TRUE"), ("1.50", "null"), ("7", "x"), ("8", "y"), ("9", "z")]
    for rows in answers[11:]:
        assert sorted((row["query"], row["positive"]) for row in rows) == cells


@pytest.mark.slow
def test_data_sets_that_are_read_in_another_way_or_refused(hub: tuple[LoopbackHub, list[str]], tmp_path: Path) -> None:
    server, [*_, packed, nulls, folder] = hub
    table = of_hub(packed) | {"location": "me/packed", "config": None}
    rows = of_hub(nulls) | {"location": "me/nulls", "config": None}
    pictures = of_hub(folder) | {"location": "me/folder", "config": None, "task": "image-text"}
    pictures |= {"columns": {"image": "image", "caption": "text"}}
    streaming = {"streaming": True}
    answers = read(server, tmp_path, [table, table | streaming, rows, rows | streaming, pictures, pictures | streaming])
    for answer in answers[:2]:
        assert "train.csv.gz is a compressed CSV file, which is not read" in answer
    for answer in answers[2:4]:  # pyarrow's reader would take the process down
        assert "holds lines that are no objects" in answer
    shades = [{"image": n, "caption": f"shade {n}"} for n in range(5)]
    assert sorted(answers[4], key=lambda row: row["image"]) == shades
    assert "is a folder of picture files, which does not stream" in answers[5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revision": None}, "sources.0.revision: None does not pin the data. Give the commit, 40 hex digits"),
        ({"revision": "main"}, "sources.0.revision: 'main' does not pin the data."),
        ({"location": "things"}, "sources.0.location: 'things' is not a data set of the Hub: expected owner/name."),
        ({"format": "json"}, "sources.0.revision: is for format hub; json has no such thing."),
        ({"shuffle_buffer": 9}, "sources.0.shuffle_buffer: is for streaming sources"),
        ({"prompts": {"negatives": "x"}}, "sources.0.prompts.negatives: task text-pair has prompts for query and"),
        (
            {"streaming": True},
            "stages.0.text.sampling_alpha: must be 0, got 1.0: the number of rows of pairs is not",
        ),
    ],
)
def test_what_the_recipe_refuses(changes: dict[str, Any], words: str) -> None:
    other = pair_source("x.csv", "csv", name="other").model_dump()
    side = {"sources": ["pairs", "other"], "batch_size": 2}
    stage = {"name": "only", "steps": 1, "learning_rate": 1e-3, "max_length": 8, "text": side}
    tree = {"name": "run", "model": "openmoji-small", "sources": [of_hub("a" * 40) | changes, other], "stages": [stage]}
    with pytest.raises(ValueError, match=r"pairs|sources") as caught:
        Recipe.model_validate(tree)
    assert words in str(caught.value)
