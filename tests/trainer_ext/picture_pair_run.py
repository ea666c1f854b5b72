"""The tiny run with pictures against pictures: of one number in several colours, and two views of one picture."""

from pathlib import Path
from typing import Any

import datasets
import yaml

from tests.trainer_ext.tiny_run import COLOURS, picture, write_data, write_recipe

# With captions, alone, and a stage of texts: each tower is idle in one of them.
STAGES: list[dict[str, Any]] = [
    {
        "name": "captions",
        "steps": 3,
        "learning_rate": 1e-2,
        "max_length": 6,
        "image_text": {"sources": ["pictures"], "batch_size": 4},
        "images": {"sources": ["paired"], "batch_size": 4, "weight": 0.5},
    },
    {
        "name": "alone",
        "steps": 4,
        "learning_rate": 5e-3,
        "max_length": 6,
        "random_resized_crop": [0.5, 1.0],
        "augmentation": {"horizontal_flip": 0.5, "color_jitter": {}},
        "images": {
            "sources": ["paired", "viewed"],
            "batch_size": 4,
            "sampling_alpha": 0.0,
            "temperature": 0.2,
            "label_smoothing": 0.1,
        },
    },
    {
        "name": "texts",
        "steps": 1,
        "learning_rate": 5e-3,
        "max_length": 6,
        "text": {"sources": ["successors"], "batch_size": 4},
    },
]


def write_picture_pairs(folder: Path) -> Path:
    """Data and recipe of the run; of ``paired`` one picture, the last, has an id of its own."""
    write_data(folder)
    items = [(colour, number) for colour in COLOURS for number in range(1, 10)]
    pictures, ids = [picture(*item) for item in items], [f"number {number}" for _, number in items]
    pictures, ids = [*pictures, picture("red", 10)], [*ids, "number 10"]
    table = datasets.Dataset.from_dict({"image": pictures, "id": ids}).cast_column("image", datasets.Image())
    table.to_parquet(folder / "paired.parquet")
    path = write_recipe(folder)
    recipe = yaml.safe_load(path.read_text())
    place = {"task": "image-pair", "location": str(folder / "paired.parquet"), "format": "parquet"}
    recipe["sources"] = [source for source in recipe["sources"] if source["name"] in ("pictures", "successors")]
    recipe["sources"] += [
        {"name": "paired", **place, "columns": {"image": "image", "id": "id"}},
        {"name": "viewed", **place, "columns": {"image": "image"}},
    ]
    path.write_text(yaml.safe_dump(recipe | {"stages": STAGES}, sort_keys=False))
    return path
