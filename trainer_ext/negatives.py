"""Hard negatives, the part that the demo's data and ``mine`` share: a BM25 index, and which texts are surely wrong.

1. ``Bm25`` ranks texts for a search, by the library ``bm25s``.
2. ``Judge`` goes through what a retriever found for a query, best first, and leaves out what may well be right: a
   false negative teaches the model to push a right answer away.

Standard library, numpy and bm25s only.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))

# Why a candidate is no negative of a query, as ``Judge`` counts it.
SAME_TEXT = "same text as the query or a right answer"
SAME_ID = "same id as the query"
NEAR_EQUAL = "nearly the text of a right answer"
REPEATED = "same text as a harder negative"


def text_key(text: str) -> str:
    """What two texts must share to count as the same: their letters and digits, whatever the case and punctuation.

    >>> text_key("A Roe;  a deer.") == text_key("a roe, a deer")
    True
    """
    if text.isascii():
        return " ".join(text.lower().translate(_PUNCTUATION).split())
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def nearly_equal(text: str, right: str, share: float) -> bool:
    """Whether ``text`` may well be right where ``right`` is; both are keys of ``text_key``.

    It is if more than ``share`` of the words of both are common to them, or if it has no word of its own: "a dog" is
    right wherever "a dog and a cat" is.

    >>> nearly_equal("a red apple", "one red apple", 0.5), nearly_equal("a red apple", "a green apple", 0.5)
    (False, False)
    >>> nearly_equal("a dog", "a dog and a cat", 0.5), nearly_equal("a big red apple", "a red apple", 0.5)
    (True, True)
    """
    words, others = set(right.split()), set(text.split())
    if not others:  # signs alone
        return False
    return len(words & others) / len(words | others) > share or others <= words


class Judged(NamedTuple):
    """Numbers of a query's negatives, hardest first, and how many candidates were left out, by reason."""

    negatives: list[int]
    left_out: Counter[str]


class Judge:
    """Tells which of ``texts`` may be negatives of a query.

    Args:
        texts: the candidates.
        ids: of each text, what it belongs to: a headword, a product; texts of one id are right for each other.
        near_equal: share of common words above which a text counts as the same as a right one.

    >>> judge = Judge(["a red car", "A red car!", "a car", "two boats"], [["1"], ["2"], ["3"], ["4"]], near_equal=0.8)
    >>> judge.of([0, 1, 2, 3], query="what is red?", rights=["a red car"], ids={"1"}).negatives
    [3]
    """

    def __init__(self, texts: Sequence[str], ids: Sequence[Collection[str]], near_equal: float) -> None:
        self._keys = [_key(text) for text in texts]
        self._ids = ids
        self._near_equal = near_equal

    def of(self, found: Iterable[int], query: str | None, rights: Sequence[str], ids: Collection[str]) -> Judged:
        """The negatives among the texts ``found``, which are numbers, best first.

        Args:
            query: None if it is no text.
            rights: all right answers of the query.
            ids: what the query belongs to.
        """
        right_keys = [_key(text) for text in rights]
        own = {*right_keys, *([] if query is None else [_key(query)])}
        taken: set[str] = set()
        negatives, left_out = [], Counter[str]()
        for number in found:
            key = self._keys[number]
            if key in own:
                left_out[SAME_TEXT] += 1
            elif any(one in ids for one in self._ids[number]):
                left_out[SAME_ID] += 1
            elif any(nearly_equal(key, right, self._near_equal) for right in right_keys):
                left_out[NEAR_EQUAL] += 1
            elif key in taken:
                left_out[REPEATED] += 1
            else:
                taken.add(key)
                negatives.append(number)
        return Judged(negatives, left_out)


def _key(text: str) -> str:
    """The text's key; of one without letters and digits the text itself."""
    return text_key(text) or text


class Bm25:
    """A BM25 index over texts (``bm25s``: Lucene's formula, k1 1.5, b 0.75, English stop words).

    Raises:
        ImportError: ``bm25s`` is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("BM25 needs the package 'bm25s': pip install '.[demo]'") from error
        self._bm25s = bm25s
        self._size = len(texts)
        self._index = bm25s.BM25(backend="numpy")
        self._index.index(self._tokens(texts), show_progress=False)

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self._bm25s.tokenize(list(texts), stopwords="en", show_progress=False)

    def top(self, searches: Sequence[str], k: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best texts of each search: their numbers and scores, both (searches, k)."""
        found = self._index.retrieve(
            self._tokens(searches), k=k, show_progress=False, n_threads=threads, backend_selection="numpy"
        )
        return found.documents, found.scores

    def scores(self, searches: Sequence[str]) -> np.ndarray:
        """(searches, texts) float32; a search without a known word scores 0 everywhere."""
        rows = self._bm25s.tokenize(list(searches), stopwords="en", return_ids=False, show_progress=False)
        return np.stack([self._index.get_scores(row) if row else np.zeros(self._size, np.float32) for row in rows])
