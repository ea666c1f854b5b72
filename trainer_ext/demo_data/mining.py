"""Hard negatives: for each training pair, seven texts that BM25 ranks near its positive.

Only texts of the positive's own kind are searched (definitions for definitions, examples for examples), so that the
form of a text does not give a negative away. The search text is query and positive together: a headword alone matches
few definitions.
"""

from dataclasses import dataclass

from trainer_ext.demo_data.dictionary import Pair, text_key
from trainer_ext.demo_data.errors import require
from trainer_ext.demo_data.splits import draw

NEGATIVES = 7
POOL_SIZE = 25_000
_CANDIDATES = 24
_NEARLY_THE_SAME = 0.5


@dataclass(frozen=True)
class Triplet:
    """A pair and its hard negatives, hardest first."""

    query: str
    positive: str
    negatives: list[str]
    headword: str


class Miner:
    """A BM25 index over the positives of training pairs: ``POOL_SIZE`` of them, drawn by the seed, to keep it quick."""

    def __init__(self, pool: list[Pair]) -> None:
        self._bm25s = require("bm25s")
        texts = {text_key(row.positive): row.positive for row in pool}
        (drawn,) = draw(texts, min(1.0, POOL_SIZE / max(1, len(texts))))
        self._keys = [key for key in texts if key in drawn]
        self._texts = [texts[key] for key in self._keys]
        self._owners: dict[str, set[str]] = {}
        for row in pool:
            self._owners.setdefault(text_key(row.positive), set()).add(text_key(row.headword))
        self._index = self._bm25s.BM25(backend="numpy")
        self._index.index(self._tokens(self._texts), show_progress=False)

    def _tokens(self, texts: list[str]) -> object:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)

    def mine(self, rows: list[Pair], threads: int) -> list[Triplet]:
        """A triplet for each row that has enough valid negatives.

        A negative is never the positive or the query, another text of the same headword, or a text that may well be
        right: one whose words are mostly the positive's.
        """
        if len(self._texts) < _CANDIDATES:
            return []
        searches = self._tokens([f"{row.query} {row.positive}" for row in rows])
        found = self._index.retrieve(
            searches, k=_CANDIDATES, show_progress=False, n_threads=threads, backend_selection="numpy"
        )
        triplets = []
        for row, hits, scores in zip(rows, found.documents, found.scores, strict=True):
            # A score of zero is no match at all: such a text is not hard.
            negatives = self._valid(row, [int(hit) for hit, score in zip(hits, scores, strict=True) if score > 0])
            if len(negatives) == NEGATIVES:
                triplets.append(Triplet(row.query, row.positive, negatives, row.headword))
        return triplets

    def _valid(self, row: Pair, hits: list[int]) -> list[str]:
        own = {text_key(row.query), text_key(row.positive)}
        words, headword = set(text_key(row.positive).split()), text_key(row.headword)
        negatives: list[str] = []
        for hit in hits:
            key = self._keys[hit]
            other = set(key.split())
            alike = len(words & other) / max(1, len(words | other))
            right = alike > _NEARLY_THE_SAME or other <= words
            if key not in own and headword not in self._owners[key] and not right:
                negatives.append(self._texts[hit])
        return negatives[:NEGATIVES]
