"""Builds all tables into an empty folder: drawings, text pairs, captions, triplets, in this order.

The order keeps the splits clean: held-out captions are known before the dictionary is split, and held-out texts are
known before anything for training is written. One parquet file per table and split, written and read by ``datasets``.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as parquet
from datasets import Dataset, Features, Image, List, Value
from tqdm.auto import tqdm

from trainer_ext.demo_data.captions import Glossary, compose, vocabulary
from trainer_ext.demo_data.dictionary import Tables, build_pairs, read_senses
from trainer_ext.demo_data.drawings import Drawing, read_drawings
from trainer_ext.demo_data.errors import EmbeddedDataError
from trainer_ext.demo_data.mining import Miner, Triplet
from trainer_ext.demo_data.splits import SEED, draw, split_drawings
from trainer_ext.negatives import text_key

_TEXT = Value("string")
_CAPTIONED = Features({"image": Image(), "caption": List(_TEXT), "id": _TEXT, "concept": _TEXT})
_PAIRS = Features({"query": _TEXT, "positive": _TEXT, "headword": _TEXT})
_TRIPLETS = Features({"query": _TEXT, "positive": _TEXT, "negatives": List(_TEXT), "headword": _TEXT})

FEATURES: dict[str, Features] = {
    "short_captions": _CAPTIONED,
    "long_captions": _CAPTIONED,
    "headword_definition": _PAIRS,
    "definition_example": _PAIRS,
    "definition_definition": _PAIRS,
    "triplets": _TRIPLETS,
}


def write_table(folder: Path, table: str, split: str, rows: Iterable[dict[str, Any]]) -> int:
    """Write ``rows`` to ``folder/table/split.parquet`` and return their number."""
    dataset = Dataset.from_list(list(rows), features=FEATURES[table])
    (folder / table).mkdir(exist_ok=True)
    dataset.to_parquet(folder / table / f"{split}.parquet")
    return len(dataset)


def load_table(folder: Path | str, table: str, split: str) -> Dataset:
    """One split of one table of a prepared ``folder``; images come as PIL pictures.

    The file is memory mapped, not converted, so nothing is written anywhere.

    Raises:
        EmbeddedDataError: no such table or split, naming those there are, or an unreadable file.
    """
    path = Path(folder) / table / f"{split}.parquet"
    if not path.is_file():
        there = sorted(f"{found.parent.name}/{found.stem}" for found in Path(folder).glob("*/*.parquet"))
        raise EmbeddedDataError(f"No table {table}/{split} in {folder}. There are: {', '.join(there) or 'none'}")
    try:
        return Dataset(parquet.read_table(path, memory_map=True))
    except (OSError, ValueError) as error:
        raise EmbeddedDataError(
            f"Cannot read {path}: {error}. Delete the folder {folder} and prepare it again"
        ) from error


TRIPLET_ROWS = {"train": 3000, "validation": 250, "test": 500}
_TRIPLET_SOURCES = ("headword_definition", "definition_example")
_TRAINING = ("train", "train_concepts")
_STEPS = 5


def build(folder: Path, progress: bool) -> dict[str, Any]:
    """Write every table into ``folder`` and return what the manifest says about them."""
    bar = tqdm(total=_STEPS, desc="Preparing the embedded data", unit="step", disable=not progress)
    with bar, _quiet_datasets():
        _begin(bar, "drawings")
        drawings, merged = read_drawings(progress)
        short, held_out_captions = distinct_captions(split_drawings(drawings))

        _begin(bar, "dictionary")
        senses, dictionary_counts = read_senses()
        captions = {text_key(name) for drawing in drawings for name in drawing.names}
        pairs = build_pairs(senses, captions, held_out_captions)

        _begin(bar, "captions")
        for name in _TRAINING:
            short[name] = _without(short[name], pairs.held_out_texts)
        glossary = Glossary.of(senses, pairs, vocabulary(drawings))
        tables = {
            "short_captions": {name: [_short(drawing) for drawing in group] for name, group in short.items()},
            "long_captions": {name: _long(group, glossary, name) for name, group in short.items()},
        }

        _begin(bar, "hard negatives")
        texts: dict[str, dict[str, list[Any]]] = {**pairs.rows, "triplets": mine_triplets(pairs.rows)}
        tables |= {table: _as_rows(splits) for table, splits in texts.items()}

        _begin(bar, "writing")
        counts = {
            table: {name: write_table(folder, table, name, part) for name, part in splits.items()}
            for table, splits in tables.items()
        }
    figures = {
        "named": len(drawings) + merged,
        "identical_merged": merged,
        "concepts": len({drawing.concept for drawing in drawings}),
        "held_out_variants_left_out": len(drawings)
        - sum(len(group) for name, group in short.items() if name != "train_concepts"),
    }
    return {"seed": SEED, "rows": counts, "drawings": figures, "dictionary": dictionary_counts}


def _begin(bar: tqdm, step: str) -> None:
    bar.set_postfix_str(step, refresh=False)
    bar.update()


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silence the progress bars of ``datasets`` inside; ours are shown instead."""
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


def distinct_captions(split: dict[str, list[Drawing]]) -> tuple[dict[str, list[Drawing]], set[str]]:
    """The same split where no held-out caption occurs twice, and the keys of all held-out captions.

    A picture whose captions all belong to others already is left out.
    """
    taken: set[str] = set()
    result = dict(split)
    for name in ("test_concepts", "test_combinations", "validation"):
        kept = []
        for drawing in split[name]:
            free = _without([drawing], taken)
            kept.extend(free)
            taken |= {text_key(caption) for one in free for caption in one.names}
        result[name] = kept
    return result, taken


def _without(drawings: Iterable[Drawing], texts: set[str]) -> list[Drawing]:
    """Drawings without the captions in ``texts``; without any caption left a drawing goes too."""
    kept = (drawing.renamed([name for name in drawing.names if text_key(name) not in texts]) for drawing in drawings)
    return [drawing for drawing in kept if drawing.names]


def mine_triplets(pairs: Tables) -> dict[str, list[Triplet]]:
    """Triplets of each split; the negatives are texts of the same split, so that nothing held out meets training."""
    threads = os.cpu_count() or 1
    triplets: dict[str, list[Triplet]] = {name: [] for name in TRIPLET_ROWS}
    for source in _TRIPLET_SOURCES:
        for split, wanted in TRIPLET_ROWS.items():
            miner = Miner(pairs[source][split])
            rows = {f"{row.query}\n{row.positive}": row for row in pairs[source][split]}
            (chosen,) = draw(rows, min(1.0, wanted / max(1, len(rows))))
            triplets[split].extend(miner.mine([row for key, row in rows.items() if key in chosen], threads))
    return triplets


def _as_rows(splits: dict[str, list[Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(row) for row in rows] for name, rows in splits.items()}


def _image_row(drawing: Drawing, captions: list[str]) -> dict[str, Any]:
    image = {"bytes": drawing.png, "path": None}
    return {"image": image, "caption": captions, "id": drawing.id, "concept": drawing.concept}


def _short(drawing: Drawing) -> dict[str, Any]:
    return _image_row(drawing, drawing.names)


def _long(drawings: list[Drawing], glossary: Glossary, split: str) -> list[dict[str, Any]]:
    variants = 2 if split in _TRAINING else 1
    return [_image_row(drawing, compose(drawing, glossary, variants)) for drawing in drawings]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest; it comes last, so a folder that has one is complete."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
