"""Small sources with one planted fault each, in any kind of file, and recipes that read them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from PIL import Image

from tests.trainer_ext.tiny_run import NUMBERS
from trainer_ext.checking.findings import Finding, FindingLog
from trainer_ext.checking.scan import AllBroken, SourceScan, open_source, scan
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

# Sentences that share no five letters in a row, or few: no two are nearly equal.
WORDS = ["river", "candle", "mountain", "pepper", "violin", "harbour", "sparrow", "lantern", "meadow", "glacier"]
VERBS = ["carries", "watches", "paints", "repairs", "forgets", "follows", "measures", "answers", "borrows", "hides"]


def sentence(number: int) -> str:
    first, second = WORDS[number % 10], WORDS[(number // 10 + 3 * number + 1) % 10]
    return f"{NUMBERS[number % 7]} {first} {VERBS[(number * 7 + number // 10) % 10]} {second} {number}"


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Coarse coloured patches: no two seeds look alike."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def picture_rows(count: int) -> list[dict[str, Any]]:
    """Clean rows: a picture and a caption each."""
    return [{"image": encoded(picture(n)), "caption": sentence(n)} for n in range(count)]


def pair_rows(count: int) -> list[dict[str, Any]]:
    return [{"query": f"what about {sentence(n)}", "positive": f"{sentence(n + 500)} of course"} for n in range(count)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As parquet (pictures as bytes) or as JSON lines, by the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        Dataset.from_list(list(rows)).to_parquet(path)
    return path


def source(path: Path | str, columns: Sequence[str], name: str = "rows", **changes: Any) -> Source:
    tasks = {"image": "image-text", "negatives": "triplet", "score": "scored-pair"}
    task = next((tasks[column] for column in columns if column in tasks), "text-pair")
    format = "json" if str(path).endswith(".jsonl") else "parquet"
    return Source(
        name=name, task=task, location=str(path), format=format, columns={key: key for key in columns}, **changes
    )


def scanned(source: Source, tokenizer: Any = None, stages: Sequence[Stage] = ()) -> tuple[SourceScan, FindingLog]:
    """One pass over a source, and what was said of its rows."""
    broken, log = AllBroken(None), FindingLog(None, shown=1000)
    rows = open_source(source, 0, broken)
    return scan(source, rows, broken, tokenizer, stages, log), log


def said(log: FindingLog) -> list[Finding]:
    return [finding for group in log.shown.values() for finding in group]


def places(findings: Sequence[Finding]) -> list[tuple[str, str | None, int | None, str | None]]:
    """Kind, file's name, row and column of each."""
    return sorted((one.kind, one.file and Path(one.file).name, one.row, one.column) for one in findings)


def write_recipe(folder: Path, sources: Sequence[Source], sides: dict[str, Any], **changes: Any) -> Path:
    """A recipe of one stage over sources, with the tiny run's model and tokenizer in ``folder``."""
    stage = {"name": "only", "steps": 2, "learning_rate": 1e-3, "max_length": 12, **sides}
    content = {
        "name": "planted",
        "model": str(folder / "model.json"),
        "tokenizer": str(folder / "tokenizer"),
        "sources": [one.model_dump(mode="json", exclude_defaults=True) for one in sources],
        "stages": [stage],
        **changes,
    }
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
