"""Search images by text with a model folder, in a process that knows nothing of this repository.

    python -I examples/search_images.py MODEL --images photos/ "a red heart" "flag of France"
    python -I examples/search_images.py MODEL --images table.parquet --sheet found.png "a red heart"

MODEL is a folder written by ``hub_upload.py build``, or a Hub name. ``--images`` is a folder of image files, or a
parquet file with a column ``image`` (names are taken from ``caption`` or ``id``). The best are printed and, if asked,
drawn. What is no picture is passed over and named; copies take one place. Our packages are put out of reach first,
wherever this runs: the model brings the code that opens and encodes.
"""

import argparse
import hashlib
import importlib.util
import io
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

OURS = ("modeling_jina_clip", "trainer_ext", "hub_upload")


def hide_ours() -> None:
    """Make our packages impossible to import, installed or not, so that the model must bring its own code."""
    sys.modules.update(dict.fromkeys(OURS))
    assert not any(importlib.util.find_spec(name) for name in OURS)


def named_files(place: Path) -> Iterable[tuple[str, Path | bytes]]:
    """Files of a folder that have a picture's ending, or the column ``image`` of a parquet file."""
    if place.is_dir():
        paths = [p for p in sorted(place.rglob("*")) if p.suffix.lower() in Image.registered_extensions()]
        files = [path for path in paths if path.is_file()]
        return [(str(path.relative_to(place)).encode(errors="replace").decode(), path) for path in files]
    if place.suffix != ".parquet" or not place.is_file():
        raise ValueError(f"--images {place}: there is no such folder or parquet file.")
    from pyarrow.parquet import ParquetFile

    columns = {name for name in ("image", "caption", "id") if name in ParquetFile(place).schema_arrow.names}
    rows = (row for part in ParquetFile(place).iter_batches(64, columns=[*columns]) for row in part.to_pylist())
    return ((name_of(row), (row.get("image") or {}).get("bytes") or b"") for row in rows)


def name_of(row: dict) -> str:
    caption = row.get("caption") or row.get("id") or "image"
    return str(caption[0] if isinstance(caption, list) else caption)


def opened(files: Iterable, open_image: Callable, left_out: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Each picture once; one line on what cannot be read, of whatever kind its error is."""
    seen = set()
    for name, file in files:
        try:
            with file.open("rb") if isinstance(file, Path) else io.BytesIO(file) as content:
                digest = hashlib.file_digest(content, "sha256").digest()
            if digest in seen:
                continue
            seen.add(digest)
            image = open_image(file)
        except Exception as error:
            left_out.append(f"left out {name}: {one_line(error)}")
            continue
        yield name, image


def one_line(error: Exception) -> str:
    words = " ".join(str(error).split()).removeprefix("image 0: ")  # a place in a batch of one
    return words[:300] or type(error).__name__


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


def encoded(encode: Callable, names: list[str], held: list, left_out: list[str]) -> Iterator[tuple]:
    """Name, image and vector of each; what the model refuses, such as a line of pixels, does not end its batch."""
    try:
        yield from zip(names, held, encode(held), strict=True)
    except Exception as error:
        if len(held) == 1:
            left_out.append(f"left out {names[0]}: {one_line(error)}")
        else:
            for name, image in zip(names, held, strict=True):
                yield from encoded(encode, [name], [image], left_out)


def thumbnail(image: Image.Image, to_rgb: Callable) -> Image.Image:
    """A small square: the picture on white, where it is transparent and beside it."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return ImageOps.pad(Image.fromarray(to_rgb(image)), (192, 192), color="white")


def draw(path: Path, model: str, queries: list[str], found: list[list[tuple[float, str, Image.Image]]]) -> None:
    """A contact sheet: one row of equal cells for a query, best image first, with name and cosine."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(0.4 + 1.9 * max(3, len(found[0])), 0.7 + 2.8 * len(queries)), layout="constrained", dpi=110
    )
    figure.suptitle(f"Images by text, model {model}", fontsize=12, parse_math=False)
    for rows, query, hits in zip(figure.subfigures(len(queries), 1, squeeze=False), queries, found, strict=True):
        rows[0].suptitle(textwrap.shorten(query, 30 * len(hits)), fontsize=11, x=0.01, ha="left", parse_math=False)
        for axes, (score, name, image) in zip(rows[0].subplots(1, len(hits), squeeze=False)[0], hits, strict=True):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            words = " ".join(word if len(word) < 23 else f"{word[:21]}\u2026" for word in name.split())
            words = textwrap.fill(words, 23, max_lines=2, break_long_words=False, placeholder=" \u2026")
            axes.set_xlabel(f"{score:.2f}\n{words}", fontsize=8, parse_math=False)
    figure.savefig(path)


def search(arguments: argparse.Namespace) -> None:
    """Index, search, print and draw."""
    hide_ours()
    files = named_files(arguments.images)
    if isinstance(files, list) and not files:
        raise ValueError(f"--images {arguments.images}: no readable image there.")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(arguments.model, trust_remote_code=True)
    print(f"{', '.join(OURS)} cannot be imported here; the model runs on its own {type(model[0].model).__module__}.")
    code = sys.modules[type(model[0].processor.image_processor).__module__]  # opens files as it does for the model
    encode = partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
    left_out: list[str] = []
    vectors, names, thumbnails, found = [], [], [], []
    for batch in batches(opened(files, code.open_image, left_out)):
        for name, image, vector in encoded(encode, *batch, left_out):
            names.append(name)
            vectors.append(vector)
            thumbnails.append(thumbnail(image, code.to_rgb))
    print(*left_out, sep="\n", end="\n" * bool(left_out), file=sys.stderr)
    if not names:
        raise ValueError(f"--images {arguments.images}: no readable image there; {len(left_out)} left out.")
    for query, scores in zip(arguments.queries, encode(arguments.queries) @ np.stack(vectors).T, strict=True):
        best = np.argsort(-scores, kind="stable")[: arguments.top]
        found.append([(float(scores[place]), names[place], thumbnails[place]) for place in best])
        print(f"\n{query}", *(f"  {score:6.3f}  {name}" for score, name, _ in found[-1]), sep="\n")
    print(f"\n{len(names)} images searched" + f", {len(left_out)} left out" * bool(left_out))
    if arguments.sheet:
        draw(arguments.sheet, Path(arguments.model).resolve().name, arguments.queries, found)
        print(f"contact sheet: {arguments.sheet}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("queries", nargs="+", metavar="query")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or a parquet file")
    parser.add_argument("--top", type=int, default=5, help="how many images a query shows (default 5)")
    parser.add_argument("--sheet", type=Path, help="draw them into this file")
    arguments = parser.parse_args()
    if arguments.sheet and not arguments.sheet.parent.is_dir():
        parser.error(f"--sheet {arguments.sheet}: {arguments.sheet.parent} is no folder")
    if arguments.top < 1:
        parser.error(f"--top {arguments.top}: must be at least 1")
    try:
        search(arguments)
    except (OSError, ValueError, ImportError) as error:  # what a user can mend: one line
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
