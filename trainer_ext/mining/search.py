"""Candidates for each query, best first, within the rank range and below the margins.

The search is ``mine_hard_negatives`` of sentence-transformers, so that ranks, margins and the cross-encoder mean what
its documentation says. It is called for a block of queries at a time:

1. all candidates are scored; the right answers, and what is too near them (``absolute_margin``, ``relative_margin``,
   or a score that is no match), are taken out;
2. the first ``range_min`` of the rest are passed over, those after ``range_max`` are not seen;
3. with a cross-encoder the candidates are scored anew by it before the margins: they count in its scores.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from trainer_ext.mining.cache import WorkCache
from trainer_ext.mining.pairs import Pairs
from trainer_ext.mining.retrievers import Scorer

# Scores of a block in memory: 512 MB.
_BLOCK_SCORES = 2**27
_MOST_QUERIES = 4096
# A cross-encoder reads each query with each candidate: small blocks show that it goes on, and lose little if stopped.
_MOST_RESCORED = 64


class Window(NamedTuple):
    """Which ranks are candidates, and how far below the right answer they must score; None: no such margin."""

    range_min: int
    range_max: int
    absolute_margin: float | None
    relative_margin: float | None


class Found(NamedTuple):
    """Of one query: the scores of its right answers, and its candidates, best first, with their scores."""

    right_scores: list[float]
    candidates: list[int]
    scores: list[float]


@dataclass(frozen=True)
class CrossEncoderByNumber:
    """A cross-encoder that is given numbers, as texts, in place of query and candidate."""

    model: Any
    pairs: Pairs

    def predict(self, sentences: Sequence[tuple[str, str]], **options: Any) -> torch.Tensor:
        """(pairs,) scores of the texts that the numbers stand for; numbers beyond the last candidate are padding."""
        numbers = [(int(query), int(number)) for query, number in sentences]
        there = [place for place, (_, number) in enumerate(numbers) if number < len(self.pairs.candidates)]
        texts = [(self.pairs.queries[numbers[p][0]], self.pairs.candidates[numbers[p][1]]) for p in there]
        scores = torch.full((len(numbers),), -torch.inf)
        scores[there] = self.model.predict(texts, show_progress_bar=False, **options).float().cpu()
        return scores


def search(
    pairs: Pairs,
    scorer: Scorer,
    window: Window,
    cross_encoder: CrossEncoderByNumber | None,
    cache: WorkCache,
    key: str,
    progress: bool,
) -> Iterator[Found]:
    """What is found for each query, in their order.

    Args:
        key: stands for all that the result depends on, in the cache.
    """
    size = max(1, min(_MOST_QUERIES, _BLOCK_SCORES // len(pairs.candidates)))
    size = size if cross_encoder is None else min(size, _MOST_RESCORED)
    with tqdm(total=len(pairs.queries), desc="mining", unit="query", disable=not progress) as bar:
        for start in range(0, len(pairs.queries), size):
            queries = range(start, min(start + size, len(pairs.queries)))

            def mined(queries: range = queries) -> list[Found]:
                return _mined(pairs, scorer, window, cross_encoder, queries)

            for found in cache.value(f"mined-{key}-{start}-{size}", mined):
                yield Found(*found)
            bar.update(len(queries))


def _mined(
    pairs: Pairs, scorer: Scorer, window: Window, cross_encoder: CrossEncoderByNumber | None, queries: range
) -> list[Found]:
    from sentence_transformers.util import mine_hard_negatives

    anchors = [(query, number) for query in queries for number in pairs.rights[query]]
    # Older versions of the library want range_max candidates beside the right answers. Where there are fewer, padding
    # that is never found stands in.
    last = min(window.range_max, len(pairs.candidates))
    most = max(len(pairs.rights[query]) for query in queries)
    corpus = max(len(pairs.candidates), last + most)
    scorer.padded_to(corpus)
    least = scorer.least if cross_encoder is None else None
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # a bar a block is no progress
        rows = mine_hard_negatives(
            Dataset.from_dict({
                "anchor": [str(query) for query, _ in anchors],
                "positive": [str(number) for _, number in anchors],
            }),
            cast(Any, scorer),  # it answers what the library asks a model
            anchor_column_name="anchor",
            positive_column_name="positive",
            corpus=[str(number) for number in range(corpus)],
            cross_encoder=cast(Any, cross_encoder),
            range_min=window.range_min,
            range_max=last,
            min_score=least,
            absolute_margin=window.absolute_margin,
            relative_margin=window.relative_margin,
            num_negatives=last - window.range_min,
            output_format="labeled-list",
            output_scores=True,
            verbose=False,
        )  # fmt: skip
    found: dict[int, Found] = {}
    for anchor, numbers, scores in zip(rows["anchor"], rows["positive"], rows["scores"], strict=True):
        of_query = found.setdefault(int(anchor), Found([], [int(number) for number in numbers[1:]], scores[1:]))
        of_query.right_scores.append(scores[0])
    return [found.get(query, Found([], [], [])) for query in queries]
