"""Search images by text with a model folder, in a process that knows nothing of this repository.

    python -I examples/search_images.py MODEL --images photos/ "a red heart" "flag of France"
    python -I examples/search_images.py MODEL --images table.parquet --sheet found.png "a red heart"

MODEL is a folder written by ``hub_upload.py build``, or a Hub name. ``--images`` is a folder of image files, or a
parquet file with a column ``image`` (names are taken from ``caption`` or ``id``). The best images are printed and
drawn. Our packages are put out of reach first, wherever this runs: the model has to bring its own code.
"""

import argparse
import importlib.util
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

OURS = ("modeling_jina_clip", "trainer_ext", "hub_upload")


def hide_ours() -> None:
    """Make our packages impossible to import, installed or not, so that the model must bring its own code."""
    sys.modules.update(dict.fromkeys(OURS))
    assert not any(importlib.util.find_spec(name) for name in OURS)


def read_images(place: Path) -> Iterator[tuple[str, Image.Image]]:
    """Named images of a folder, unreadable files left out with a warning, or of a parquet file; one at a time."""
    if place.is_dir():
        for path in sorted(path for path in place.rglob("*") if path.suffix.lower() in Image.registered_extensions()):
            try:
                with Image.open(path) as image:
                    yield str(path.relative_to(place)), ImageOps.exif_transpose(image).convert("RGB")
            except (UnidentifiedImageError, OSError) as error:
                warnings.warn(f"left out {path}: {error}", stacklevel=2)
    elif place.suffix == ".parquet" and place.is_file():
        from datasets import load_dataset

        for row in load_dataset("parquet", data_files=str(place), split="train", streaming=True):
            yield name_of(row), row["image"].convert("RGB")
    else:
        sys.exit(f"--images {place}: there is no such folder or parquet file.")


def batches(images: Iterable[tuple[str, Image.Image]]) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Names and images, 16 at a time or fewer where they are large: no more are held at full size."""
    names, held = [], []
    for name, image in images:
        names, held = [*names, name], [*held, image]
        if len(held) == 16 or sum(image.width * image.height for image in held) > 32_000_000:
            yield names, held
            names, held = [], []
    if held:
        yield names, held


def name_of(row: dict) -> str:
    caption = row.get("caption") or row.get("id") or "image"
    return caption if isinstance(caption, str) else caption[0]


def draw(path: Path, queries: list[str], found: list[list[tuple[float, str, Image.Image]]]) -> None:
    """A contact sheet: one row a query, best image first, with name and cosine."""
    from matplotlib.figure import Figure

    top = len(found[0])
    figure = Figure(figsize=(2.6 + 1.7 * top, 2.2 * len(queries)), layout="constrained", dpi=110)
    grid = figure.add_gridspec(len(queries), top + 1, width_ratios=[1.5, *[1] * top])
    for line, (query, hits) in enumerate(zip(queries, found, strict=True)):
        label = figure.add_subplot(grid[line, 0], frame_on=False, xticks=[], yticks=[])
        label.text(0, 0.5, textwrap.fill(query, 20, max_lines=6), va="center", fontsize=11, parse_math=False)
        for column, (score, name, image) in enumerate(hits, start=1):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"{score:.2f}  {textwrap.fill(name, 22, max_lines=2)}", fontsize=8, parse_math=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("queries", nargs="+", metavar="query")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or a parquet file")
    parser.add_argument("--top", type=int, default=5, help="how many images a query shows (default 5)")
    parser.add_argument("--sheet", type=Path, default=Path("search.png"), help="where to draw them (search.png)")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top {arguments.top}: must be at least 1")
    hide_ours()
    images = read_images(arguments.images)
    first = next(images, None) or sys.exit(f"--images {arguments.images}: no readable image there.")

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(arguments.model, trust_remote_code=True)
    print(f"{', '.join(OURS)} cannot be imported here; the model runs on its own {type(model[0].model).__module__}.")
    encode = partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
    vectors, names, thumbnails, found = [], [], [], []
    for some, held in batches(chain([first], images)):
        vectors, names = [*vectors, encode(held)], [*names, *some]
        thumbnails += [ImageOps.contain(image, (192, 192)) for image in held]
    for query, scores in zip(arguments.queries, encode(arguments.queries) @ np.concatenate(vectors).T, strict=True):
        best = np.argsort(-scores)[: arguments.top]
        found.append([(float(scores[place]), names[place], thumbnails[place]) for place in best])
        print(f"\n{query}", *(f"  {score:6.3f}  {name}" for score, name, _ in found[-1]), sep="\n")
    draw(arguments.sheet, arguments.queries, found)
    print(f"\n{len(names)} images searched; contact sheet: {arguments.sheet}")


if __name__ == "__main__":
    main()
