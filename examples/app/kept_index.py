"""An index kept between starts: vectors and thumbnails by the content of their files, in one safetensors file.

It belongs to one model, known by the hash of its weights and settings: with another one everything is encoded anew.
What was renamed is found again, what was deleted is forgotten.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FILE = ".jina-clip-index.safetensors"  # hidden, so that it is no picture of the folder
FORMAT = "1"

Entry = tuple[np.ndarray, bytes]  # a vector and a thumbnail; the thumbnail of a text is empty


def model_hash(model: Any) -> str:
    """A hash of what decides the vectors: weights, processor, tokenizer and width."""
    module, found = model[0], hashlib.sha256()
    for name, weight in sorted(module.model.state_dict().items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    found.update(module.processor.image_processor.to_json_string().encode())
    found.update(module.tokenizer.backend_tokenizer.to_str().encode())
    found.update(f"{model.max_seq_length} {model.get_embedding_dimension()}".encode())
    return found.hexdigest()


class KeptIndex:
    """The entries of an earlier start. ``problem`` says in a line why there are none, if a file was there."""

    def __init__(self, folder: Path, model: str, dim: int) -> None:
        self.path, self.model, self.problem = folder / FILE, model, ""
        self.entries: dict[str, Entry] = {}
        if self.path.is_file():
            try:
                self._read(dim)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                self.entries, self.problem = {}, f"{self.path} is made anew: {' '.join(str(error).split())}"

    def _read(self, dim: int) -> None:
        with safe_open(self.path, "np") as file:
            stored = file.metadata() or {}
            if stored.get("format") != FORMAT or stored.get("model") != self.model:
                raise ValueError("it belongs to another model or version")
            keys = json.loads(stored["keys"])
            vectors, ends, thumbnails = (file.get_tensor(name) for name in ("vectors", "ends", "thumbnails"))
        if vectors.shape != (len(keys), dim) or ends.shape != (len(keys),) or not np.isfinite(vectors).all():
            raise ValueError("its parts do not fit each other")
        begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        for key, vector, begin, end in zip(keys, vectors, begins.tolist(), ends.tolist(), strict=True):
            self.entries[key] = vector, thumbnails[begin:end].tobytes()

    def write(self, entries: dict[str, Entry]) -> None:
        """Keep these entries and no others: whole or not at all."""
        if entries.keys() == self.entries.keys():
            return
        pictures = [thumbnail for _, thumbnail in entries.values()]
        tensors = {
            "vectors": np.stack([vector for vector, _ in entries.values()]).astype(np.float32),
            "ends": np.cumsum([len(thumbnail) for thumbnail in pictures], dtype=np.int64),
            "thumbnails": np.frombuffer(b"".join(pictures) or b"\0", np.uint8),
        }
        about = {"format": FORMAT, "model": self.model, "keys": json.dumps(list(entries))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{FILE}.{uuid.uuid4().hex}")
        try:
            partial.write_bytes(save(tensors, metadata=about))  # readable by others, as files are
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        self.entries = entries
