"""What the page searches: vectors and thumbnails of pictures, vectors of texts. ``indexing`` puts them in."""

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from kept_index import Entry
from picture_files import BATCH, Opener
from PIL import Image
from sentence_transformers import SentenceTransformer

KINDS = ["images", "texts"]
MAX_SIZE = "20mb"  # of an uploaded file
MAX_UPLOADS = 500  # pictures that one visitor may add
# Characters of one text. The model reads ``max_seq_length`` tokens, rarely more than 8 characters each; what is left of
# a longer text would only cost time.
CHARACTERS, OF_A_TOKEN = 10_000, 8


class Item(NamedTuple):
    """A text, or a picture with its file's name, caption and thumbnail. ``key`` is the hash of the content."""

    name: str
    caption: str = ""
    thumbnail: bytes = b""
    key: str = ""

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.thumbnail))


Hit = tuple[float, str, Item]  # score, kind, item


class Index:
    """Vectors of pictures and texts, searched by cosine at any Matryoshka dimension.

    An index never changes; adding gives a new one. So visitors begin with one index and add to their own.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.dim, self.opener = model, model.get_embedding_dimension(), Opener(model)
        self.characters = min(CHARACTERS, OF_A_TOKEN * (model.max_seq_length or CHARACTERS))
        self.items: dict[str, list[Item]] = {kind: [] for kind in KINDS}
        self.vectors = {kind: np.empty((0, self.dim), np.float32) for kind in KINDS}

    def encode(self, things: list) -> np.ndarray:
        return self.model.encode(things, normalize_embeddings=True, batch_size=BATCH, show_progress_bar=False)

    def with_items(self, kind: str, vectors: list[np.ndarray], items: list[Item]) -> "Index":
        """This index and these items of a kind."""
        new = Index(self.model)
        new.items = self.items | {kind: self.items[kind] + items}
        rows = np.stack(vectors).astype(np.float32) if vectors else np.empty((0, self.dim), np.float32)
        new.vectors = self.vectors | {kind: np.concatenate([self.vectors[kind], rows])}
        return new

    def entries(self) -> dict[str, Entry]:
        """Everything by its content, as it is kept for the next start."""
        pairs = [
            (item, vector) for kind in KINDS for item, vector in zip(self.items[kind], self.vectors[kind], strict=True)
        ]
        return {item.key: (vector, item.thumbnail) for item, vector in pairs}

    def too_long(self, text: str) -> str:
        """What is wrong with the length of a text, or nothing."""
        if len(text) <= self.characters:
            return ""
        return f"{len(text):,} characters; at most {self.characters:,} are read: shorten it"

    def query(self, text: str, image: Image.Image | None, image_share: float) -> np.ndarray:
        """One vector of a text, an image, or the weighted sum of both.

        Raises:
            ValueError: neither, or a text that is too long.
        """
        parts = [part for part in (text.strip(), image) if part]
        if not parts:
            raise ValueError("type a text, choose a picture, or both")
        if problem := self.too_long(text):
            raise ValueError(f"the text has {problem}")
        vectors = self.encode(parts)
        return vectors[0] if len(parts) == 1 else (1 - image_share) * vectors[0] + image_share * vectors[1]

    def search(self, query: np.ndarray, kinds: Iterable[str], dim: int, correct: bool, top: int) -> list[Hit]:
        """The best items as (score, kind, item), best first.

        Texts lie nearer to texts than pictures do (the modality gap), so a cosine ranks all of one kind before the
        other. ``correct`` counts a score in standard deviations above the mean of its kind instead.
        """
        found = []
        for kind in kinds:
            scores = unit(self.vectors[kind][:, :dim]) @ unit(query[:dim])
            if correct and len(scores):
                scores = (scores - scores.mean()) / (scores.std() + 1e-6)
            best = np.argsort(-scores, kind="stable")[:top]
            found += [(float(scores[place]), kind, self.items[kind][place]) for place in best]
        return sorted(found, key=lambda hit: -hit[0])[:top]

    def similar(self, key: str, kinds: Iterable[str], dim: int, correct: bool, top: int) -> tuple[str, list[Hit]]:
        """The name of the picture with this key, and what is most like it, itself left out; nothing is encoded.

        Raises:
            ValueError: there is no such picture.
        """
        place = next((place for place, item in enumerate(self.items["images"]) if item.key == key), None)
        if place is None:
            raise ValueError("that picture is not here any more")
        hits = self.search(self.vectors["images"][place], kinds, dim, correct, top + 1)
        return self.items["images"][place].name, [hit for hit in hits if hit[2].key != key][:top]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
