"""What ranks candidates for a query: BM25, or the vectors of a model. Both give scores by number.

``mine_hard_negatives`` of sentence-transformers asks a model for vectors of texts and for their similarities. A
``Scorer`` answers in the model's place: texts are numbers written as texts, and the "vector" of one is the number
itself. So pictures can be queries, BM25 can be the model, and vectors can come from the cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from trainer_ext.mining.cache import WorkCache, digest, folder_digest
from trainer_ext.mining.pairs import Pairs
from trainer_ext.negatives import Bm25

BM25 = "bm25"
# Encoded, and kept in the cache, at once.
_ENCODED_AT_ONCE = 1024


class Scorer(ABC):
    """Scores of queries against all candidates, under the names that ``mine_hard_negatives`` calls.

    It scores one block of queries at a time, and keeps the last one: the score of a right answer is then the very
    number that it has among the candidates.
    """

    # The least score that is a match; None if all are.
    least: float | None = None
    # Why the search itself left a candidate out.
    below_words = "score above a right answer, or within the margin below it"

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._block: tuple[dict[int, int], torch.Tensor] = ({}, torch.empty(0))
        self._columns = 0

    @abstractmethod
    def scores(self, queries: Sequence[int]) -> torch.Tensor:
        """(queries, candidates) float32 on the CPU."""

    def padded_to(self, columns: int) -> None:
        """Score this many candidates from now on; those that are not there score minus infinity."""
        self._columns = columns

    def encode_query(self, numbers: Sequence[str], **_: Any) -> np.ndarray:
        """The numbers in place of vectors, (numbers, 1)."""
        return np.array([[int(number)] for number in numbers])

    encode_document = encode_query

    def similarity(self, queries: np.ndarray, candidates: Any) -> torch.Tensor:
        """(queries, candidates and padding) scores; ``candidates`` are all of them, in their order."""
        numbers = queries[:, 0].tolist()
        scores = self.scores(numbers)
        padding = scores.new_full((len(numbers), max(0, self._columns - scores.shape[1])), -torch.inf)
        scores = torch.cat([scores, padding], dim=1) if padding.shape[1] else scores
        self._block = ({number: row for row, number in enumerate(numbers)}, scores)
        return scores

    def similarity_pairwise(self, queries: np.ndarray, candidates: np.ndarray) -> torch.Tensor:
        """(pairs,) scores of queries of the last block, each with one candidate."""
        rows, scores = self._block
        return scores[[rows[number] for number in queries[:, 0].tolist()], candidates[:, 0].tolist()]


class VectorScorer(Scorer):
    """Cosines of unit vectors; (queries, width) and (candidates, width) float32."""

    def __init__(self, queries: np.ndarray, candidates: np.ndarray) -> None:
        super().__init__()
        place = "cuda" if torch.cuda.is_available() else "cpu"
        self._queries, self._candidates = (torch.from_numpy(vectors).to(place) for vectors in (queries, candidates))

    def scores(self, queries: Sequence[int]) -> torch.Tensor:
        return (self._queries[list(queries)] @ self._candidates.T).cpu()


class Bm25Scorer(Scorer):
    """BM25 of the query and its right answers, taken together as one search text, against the candidates.

    A short query alone matches few texts. With its right answers it finds those that share their words, and the right
    answers themselves stand at the top, so that margins mean something.
    """

    least = float(np.finfo(np.float32).tiny)  # a score of zero is no word in common
    below_words = "no word in common, or score within the margin"

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self._pairs = pairs
        self._index = Bm25(pairs.candidates)

    def scores(self, queries: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self._index.scores([self._search(query) for query in queries]))

    def _search(self, query: int) -> str:
        words = [] if self._pairs.pictures is not None else [self._pairs.queries[query]]
        return " ".join([*words, *(self._pairs.candidates[number] for number in self._pairs.rights[query])])


# --- a model -----------------------------------------------------------------------------------------------------


def model_folder(name: str | Path, option: str) -> Path:
    """The folder of a model that sentence-transformers can load.

    Raises:
        ValueError: no such folder, or one without the model's files.
    """
    folder = Path(name).expanduser()
    words = f"{option} {name!s}"
    if not folder.is_dir():
        more = f" or {BM25!r}" if option == "--retriever" else ""
        raise ValueError(
            f"{words}: there is no such folder. Give the folder of a model{more}; one of the Hub is downloaded first:"
            f" hf download {name} --local-dir FOLDER"
        )
    needed = "modules.json" if option == "--retriever" else "config.json"
    if not (folder / needed).is_file():
        raise ValueError(
            f"{words}: the folder has no {needed}, so sentence-transformers cannot load it. Give a finished run, a"
            " folder of `hub_upload.py build`, or any model that it has saved."
        )
    return folder


def load_model(folder: Path, max_length: int | None) -> Any:
    """The model in ``folder``, with texts cut at ``max_length`` tokens (None: at its own limit)."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True)
    if max_length is not None:
        model.max_seq_length = max_length
    return model


def vector_scorer(
    pairs: Pairs, folder: Path, max_length: int | None, cache: WorkCache, progress: bool
) -> tuple[VectorScorer, set[int]]:
    """Encode queries and candidates; also returns the queries whose picture cannot be decoded.

    The source's prompts are put before the texts, as in training. Without them the model's own for queries and
    documents are used, where it has any.

    Raises:
        ValueError: pictures, and a model that encodes none.
    """
    model = load_model(folder, max_length)
    encoder = _Encoder([folder_digest(folder), max_length], cache, progress)

    def documents(numbers: Sequence[int]) -> np.ndarray:
        return _encoded(model.encode_document, [pairs.candidates[n] for n in numbers], pairs.prompts.get(column))

    def queries(numbers: Sequence[int]) -> np.ndarray:
        return _encoded(model.encode_query, [pairs.queries[n] for n in numbers], pairs.prompts.get("query"))

    def pictures(numbers: Sequence[int]) -> np.ndarray:
        opened = list(pairs.open_pictures(numbers))
        there = [place for place, picture in enumerate(opened) if picture is not None]
        vectors = np.full((len(opened), model.get_embedding_dimension()), np.nan, np.float32)
        if there:
            vectors[there] = _encoded(model.encode, [opened[place] for place in there], None)
        return vectors

    if pairs.pictures is None:
        column = "positive"
        of_queries = encoder.run(queries, "query", pairs.queries, pairs.prompts.get("query"))
    elif model.supports("image"):
        column = "caption"
        of_queries = encoder.run(pictures, "picture", pairs.queries, None)
    else:
        raise ValueError(
            f"--retriever {folder} has no image tower, but source {pairs.pictures.source.name!r} has pictures. Give a"
            f" model for pictures and texts, or {BM25!r}, which compares captions."
        )
    of_candidates = encoder.run(documents, "candidate", pairs.candidates, pairs.prompts.get(column))
    broken = set(np.flatnonzero(np.isnan(of_queries[:, 0])).tolist())
    return VectorScorer(np.nan_to_num(of_queries), of_candidates), broken


def _encoded(method: Callable[..., Any], items: list[Any], prompt: str | None) -> np.ndarray:
    """(items, width) unit vectors. One call a block: a vector then depends on nothing beyond its block."""
    vectors = np.asarray(
        method(items, prompt=prompt, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False),
        dtype=np.float32,
    )
    unusable = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
    if len(unusable):
        first = items[int(unusable[0])]
        shown = repr(first[:60]) if isinstance(first, str) else "a picture"
        raise ValueError(
            f"--retriever gives {len(unusable):,} of {len(items):,} inputs no direction (first: {shown}). Give a model"
            " whose vectors are finite and not zero."
        )
    return vectors


class _Encoder:
    """Encodes by blocks, each kept in the cache under the model, the prompt and its items."""

    def __init__(self, model: list[Any], cache: WorkCache, progress: bool) -> None:
        self._model, self._cache, self._progress = model, cache, progress

    def run(
        self, encode: Callable[[Sequence[int]], np.ndarray], role: str, items: Sequence[str], prompt: str | None
    ) -> np.ndarray:
        """(items, width) float32. A block with an item that cannot be encoded is not kept: its row is told again."""
        blocks: list[np.ndarray] = []
        with tqdm(total=len(items), desc=f"encoding: {role}", unit="item", disable=not self._progress) as bar:
            for start in range(0, len(items), _ENCODED_AT_ONCE):
                numbers = range(start, min(start + _ENCODED_AT_ONCE, len(items)))
                name = digest(self._model, role, prompt, [items[number] for number in numbers])
                blocks.append(self._cache.array(f"vectors-{name}", partial(encode, numbers)))
                bar.update(len(numbers))
        return np.concatenate(blocks)
