"""Hard negatives: for each training pair, seven texts that BM25 ranks near its positive.

Only texts of the positive's own kind are searched (definitions for definitions, examples for examples), so that the
form of a text does not give a negative away. The search text is query and positive together: a headword alone matches
few definitions. Index and judgement are those of ``python -m trainer_ext mine`` (``trainer_ext.negatives``).
"""

from dataclasses import dataclass

from trainer_ext.demo_data.dictionary import Pair
from trainer_ext.demo_data.splits import draw
from trainer_ext.negatives import Bm25, Judge, text_key

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
        texts = {text_key(row.positive): row.positive for row in pool}
        (drawn,) = draw(texts, min(1.0, POOL_SIZE / max(1, len(texts))))
        keys = [key for key in texts if key in drawn]
        owners: dict[str, set[str]] = {}
        for row in pool:
            owners.setdefault(text_key(row.positive), set()).add(text_key(row.headword))
        self._texts = [texts[key] for key in keys]
        self._judge = Judge(self._texts, [owners[key] for key in keys], _NEARLY_THE_SAME)
        self._index = Bm25(self._texts)

    def mine(self, rows: list[Pair], threads: int) -> list[Triplet]:
        """A triplet for each row that has enough valid negatives.

        A negative is never the positive or the query, another text of the same headword, or a text that may well be
        right: one whose words are mostly the positive's.
        """
        if len(self._texts) < _CANDIDATES:
            return []
        documents, scores = self._index.top([f"{row.query} {row.positive}" for row in rows], _CANDIDATES, threads)
        triplets = []
        for row, hits, of_hits in zip(rows, documents, scores, strict=True):
            # A score of zero is no match at all: such a text is not hard.
            found = [int(hit) for hit, score in zip(hits, of_hits, strict=True) if score > 0]
            judged = self._judge.of(found, row.query, [row.positive], {text_key(row.headword)})
            negatives = [self._texts[number] for number in judged.negatives[:NEGATIVES]]
            if len(negatives) == NEGATIVES:
                triplets.append(Triplet(row.query, row.positive, negatives, row.headword))
        return triplets
