"""Vectors kept in a folder of the user's: what a model has encoded once is not encoded again.

A vector is found by the model's fingerprint and the item's content: a text with its instruction, or a picture's bytes.
Files are ``FOLDER/FINGERPRINT/HASH.safetensors``, each with ``keys`` (n, 16) uint8 and ``vectors`` (n, dim) float32,
written whole or not at all every ``KEEP_EVERY`` items, so that an evaluation that was stopped goes on where it was.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes
from tqdm.auto import tqdm

from trainer_ext.evaluation.items import Embeddings, Item, Picture, encode_items, key_of, parted, with_records
from trainer_ext.files import write_whole
from trainer_ext.measuring.models import Encoders, instruction_of

# Items after which vectors are written; a multiple of the blocks in which they are encoded, so that batches stay equal.
KEEP_EVERY = 8192
_KEY_BYTES = 16


@dataclass
class VectorCache:
    """The vectors of one model in ``folder``; ``encoded`` and ``read`` count items of the last ``embeddings``."""

    folder: Path
    model: Encoders
    encoded: int = 0
    read: int = 0
    _files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder) / self.model.fingerprint
        self._files = sorted(self.folder.glob("*.safetensors"))

    def embeddings(self, items: Iterable[Item], progress: bool = True) -> Embeddings:
        """The vectors of all distinct items: those that are kept are read, the others encoded and kept."""
        distinct, records = parted(items)
        ordered = _in_order(distinct.values())
        contents = [_content_key(item) for item in ordered]
        wanted = {content: place for place, content in enumerate(contents)}
        rows, done = self._read(wanted, len(ordered))
        missing = np.flatnonzero(~done).tolist()
        self.encoded, self.read = len(missing), len(ordered) - len(missing)
        with tqdm(total=len(missing), desc="encoding", unit="item", leave=False, disable=not progress) as bar:
            for start in range(0, len(missing), KEEP_EVERY):
                places = missing[start : start + KEEP_EVERY]
                vectors = self._encode([ordered[place] for place in places], bar)
                rows = np.empty((len(ordered), vectors.shape[1]), np.float32) if rows is None else rows
                rows[places] = vectors
                self._keep([contents[place] for place in places], vectors)
        if rows is None:
            raise ValueError("there is nothing to encode: the tasks have no items")
        places_of: dict[Hashable, int] = {key_of(item): place for place, item in enumerate(ordered)}
        return with_records(Embeddings(places_of, rows), records)

    def _encode(self, items: Sequence[Item], bar: tqdm) -> np.ndarray:
        def encode_text(texts: list[str]) -> np.ndarray:
            vectors = self.model.encode_text(texts)
            bar.update(len(texts))
            return vectors

        def encode_image(images: list[Image.Image]) -> np.ndarray:
            assert self.model.encode_image is not None  # tasks with pictures were left out
            vectors = self.model.encode_image(images)
            bar.update(len(images))
            return vectors

        found = encode_items(encode_text, encode_image, items, progress=False)
        return found.rows[[found.places[key_of(item)] for item in items]]

    def _read(self, wanted: dict[bytes, int], count: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Vectors of the items that are kept, in their places; and which those are."""
        rows, done = None, np.zeros(count, bool)
        for file in self._files:
            try:
                with safe_open(file, framework="numpy") as kept:
                    keys = kept.get_tensor("keys")
                    pairs = [(row, wanted[key]) for row, key in enumerate(map(bytes, keys)) if key in wanted]
                    if not pairs:
                        continue
                    vectors = kept.get_tensor("vectors")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{file} cannot be read ({error}). Delete it; its vectors are then encoded anew."
                ) from error
            rows = np.empty((count, vectors.shape[1]), np.float32) if rows is None else rows
            source, target = np.array(pairs).T
            rows[target], done[target] = vectors[source], True
        return rows, done

    def _keep(self, contents: Sequence[bytes], vectors: np.ndarray) -> None:
        name = hashlib.blake2b(b"".join(contents), digest_size=16).hexdigest()
        keys = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, _KEY_BYTES)
        content = safetensors_bytes({"keys": keys, "vectors": np.ascontiguousarray(vectors, np.float32)})
        file = self.folder / f"{name}.safetensors"
        write_whole(file, content)
        if file not in self._files:
            self._files.append(file)


def _in_order(items: Iterable[Item]) -> list[Item]:
    """As ``encode_items`` orders them: texts by length, longest first, then pictures."""
    items = list(items)
    texts = sorted((item for item in items if isinstance(item, str)), key=len, reverse=True)
    return [*texts, *(item for item in items if not isinstance(item, str))]


def _content_key(item: Item) -> bytes:
    if isinstance(item, Picture):
        content = f"picture\0{item.key}"
    elif isinstance(item, str):
        content = f"text\0{instruction_of(item) or ''}\0{item}"
    else:
        raise TypeError("a PIL image has no key to keep its vector by; give a Picture")
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
