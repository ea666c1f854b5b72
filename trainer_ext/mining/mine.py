"""Mining, the whole of it:

1. a retriever is made ready: BM25, or the vectors of a model (``retrievers``);
2. it ranks candidates for each query, within the rank range and below the margins (``search``);
3. of those, what may well be right is left out (``trainer_ext.negatives.Judge``);
4. a query with enough of them has its hardest ``negatives``; one without is left out, with the main reason.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trainer_ext.mining.cache import WorkCache, digest, folder_digest
from trainer_ext.mining.pairs import Pairs
from trainer_ext.mining.retrievers import BM25, Bm25Scorer, Scorer, model_folder, vector_scorer
from trainer_ext.mining.search import CrossEncoderByNumber, Found, Window, search
from trainer_ext.negatives import Judge

BROKEN_PICTURE = "picture that cannot be decoded"
_SHOWN = 20


@dataclass(frozen=True)
class MiningSettings:
    """How negatives are mined.

    ``retriever`` is "bm25" or the folder of a model, whose texts are cut at ``max_length`` tokens.
    ``negatives`` is how many each row gets. The rank range and the margins are those of ``mine_hard_negatives``: of the
    candidates that a right answer beats by the margins, the first ``range_min`` are passed over, and no rank from
    ``range_max`` on is looked at. An absolute margin of 0 lets no negative score above the right answer; None is none.
    ``near_equal`` is the share of common words above which a candidate counts as a right answer.
    ``cross_encoder`` is a folder; candidates are then scored anew by it, and the margins count in its scores.
    ``cache`` is a folder that keeps vectors and mined blocks.

    Raises:
        ValueError: a value out of its range.

    >>> MiningSettings(retriever="bm25", negatives=0)
    Traceback (most recent call last):
    ValueError: --negatives 0: must be at least 1
    """

    retriever: str
    negatives: int = 7
    range_min: int = 0
    range_max: int = 100
    absolute_margin: float | None = 0.0
    relative_margin: float | None = None
    near_equal: float = 0.8
    cross_encoder: str | None = None
    max_length: int | None = None
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        least = {"negatives": 1, "range_min": 0, "max_length": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"--{name} {value}: must be at least {bound}")
        if self.range_max < self.range_min + self.negatives:
            raise ValueError(
                f"--range_max {self.range_max}: leaves {max(0, self.range_max - self.range_min)} ranks after"
                f" --range_min {self.range_min}, fewer than --negatives {self.negatives}. Raise it."
            )
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise ValueError(f"--{name} {value}: must be a finite number")
        if not 0 < self.near_equal <= 1:
            raise ValueError(f"--near_equal {self.near_equal}: must be a share above 0 and at most 1")
        if self.max_length is not None and self.retriever == BM25:
            raise ValueError("--max_length is for a model: BM25 reads texts whole. Leave it out.")


@dataclass(frozen=True)
class MinedRow:
    """A query with its hardest negatives and their scores; ``right_scores`` are those of its right answers."""

    query: int
    right_scores: list[float]
    negatives: list[int]
    scores: list[float]

    def margins(self, right_score: float) -> list[float]:
        """By how much a right answer beats each negative."""
        return [right_score - score for score in self.scores]


@dataclass(frozen=True)
class Mined:
    """Queries that have negatives, in the data's order, and the account of all others.

    ``has_margins``: a model has scored right answers and negatives, and each row of the table has one right answer, so
    their differences teach. BM25's scores tell too little.
    """

    pairs: Pairs
    rows: list[MinedRow]
    summary: dict[str, Any]
    has_margins: bool


def mine(pairs: Pairs, settings: MiningSettings, progress: bool = True) -> Mined:
    """Mine hard negatives for all queries.

    The same pairs and settings give the same rows on the same machine and versions, stopped in between or not.

    Raises:
        ValueError: too few candidates, a retriever or cross-encoder that is no such folder or cannot read pictures.
        ImportError: a library that is not installed, with the cure.
    """
    _enough(pairs, settings)
    cache = WorkCache(None if settings.cache is None else Path(settings.cache).expanduser())
    reader, read_by = _cross_encoder(pairs, settings)
    if settings.retriever == BM25:
        return mine_by(Bm25Scorer(pairs), pairs, settings, reader=reader, cache=cache, key=read_by, progress=progress)
    folder = model_folder(settings.retriever, "--retriever")
    scorer, broken = vector_scorer(pairs, folder, settings.max_length, cache, progress)
    made_by = folder_digest(folder)
    key = digest(made_by, read_by, settings.max_length, dict(pairs.prompts))
    mined = mine_by(scorer, pairs, settings, broken, reader, cache, key, progress)
    mined.summary["retriever_sha256"] = made_by
    return mined


def mine_by(
    scorer: Scorer,
    pairs: Pairs,
    settings: MiningSettings,
    broken: Collection[int] = (),
    reader: CrossEncoderByNumber | None = None,
    cache: WorkCache | None = None,
    key: str | None = None,
    progress: bool = False,
) -> Mined:
    """Mine with a scorer that is ready; ``settings.retriever`` is only its name.

    Args:
        broken: queries without a picture.
        key: names the scorer and the cross-encoder in the cache.
    """
    window = Window(settings.range_min, settings.range_max, settings.absolute_margin, settings.relative_margin)
    content = [pairs.queries, pairs.candidates, pairs.rights, pairs.pictures is None]
    name = digest(key, type(scorer).__name__, version("sentence-transformers"), list(window), content)
    account = _Account(pairs, settings, scorer.below_words)
    rows = []
    for query, found in enumerate(search(pairs, scorer, window, reader, cache or WorkCache(None), name, progress)):
        row = account.judged(query, found, query in broken)
        rows += [] if row is None else [row]
    by_model = reader is not None or not isinstance(scorer, Bm25Scorer)
    has_margins = by_model and (pairs.pictures is None or all(len(pairs.rights[row.query]) == 1 for row in rows))
    return Mined(pairs, rows, account.summary(rows, has_margins), has_margins)


def _enough(pairs: Pairs, settings: MiningSettings) -> None:
    needed = settings.range_min + settings.negatives + 1
    if len(pairs.candidates) < needed:
        raise ValueError(
            f"{len(pairs.candidates):,} different candidates are fewer than {needed:,}: --negatives"
            f" {settings.negatives} after --range_min {settings.range_min}, and the right answer. Lower them, or mine"
            " in more rows."
        )


def _cross_encoder(pairs: Pairs, settings: MiningSettings) -> tuple[CrossEncoderByNumber | None, str | None]:
    if settings.cross_encoder is None:
        return None, None
    if pairs.pictures is not None:
        raise ValueError(
            f"--cross_encoder {settings.cross_encoder}: reads texts, but the queries are pictures. Leave it out."
        )
    if settings.absolute_margin is None and settings.relative_margin is None:
        raise ValueError(
            f"--cross_encoder {settings.cross_encoder}: checks negatives by a margin in its scores, and there is none."
            " Give --absolute_margin or --relative_margin."
        )
    folder = model_folder(settings.cross_encoder, "--cross_encoder")
    from sentence_transformers import CrossEncoder

    return CrossEncoderByNumber(CrossEncoder(str(folder)), pairs), folder_digest(folder)


class _Account:
    """Judges what was found for each query, and counts what becomes of it."""

    def __init__(self, pairs: Pairs, settings: MiningSettings, below_words: str) -> None:
        self._pairs, self._settings = pairs, settings
        self._judge = Judge(pairs.candidates, pairs.candidate_ids, settings.near_equal)
        self._at_margin = below_words
        self._found = Counter[int]()
        self._removed = Counter[str]()
        self._reasons = Counter[str]()
        self._examples: list[dict[str, Any]] = []

    def judged(self, query: int, found: Found, broken: bool) -> MinedRow | None:
        """The query's row; None if it has too few negatives."""
        pairs, wanted = self._pairs, self._settings.negatives
        if broken:
            self._leave_out(query, 0, BROKEN_PICTURE)
            return None
        rights = [pairs.candidates[number] for number in pairs.rights[query]]
        text = pairs.queries[query] if pairs.pictures is None else None
        negatives, removed = self._judge.of(found.candidates, text, rights, pairs.query_ids[query])
        ranks = min(self._settings.range_max, len(pairs.candidates) - len(rights)) - self._settings.range_min
        removed[self._at_margin] = max(0, ranks - len(found.candidates))
        self._removed += removed
        if len(negatives) < wanted:
            self._leave_out(query, len(negatives), removed.most_common(1)[0][0])
            return None
        self._found[wanted] += 1
        of = dict(zip(found.candidates, found.scores, strict=True))
        chosen = negatives[:wanted]
        return MinedRow(query, found.right_scores, chosen, [of[number] for number in chosen])

    def _leave_out(self, query: int, count: int, reason: str) -> None:
        self._found[count] += 1
        self._reasons[reason] += 1
        if len(self._examples) < _SHOWN:
            row = self._pairs.first_rows[query]
            number = self._pairs.numbers[row] if self._pairs.numbers else row
            shown = {"row": number, "query": self._pairs.queries[query][:200]}
            self._examples.append(shown | {"negatives": count, "reason": reason})

    def summary(self, rows: list[MinedRow], has_margins: bool) -> dict[str, Any]:
        """The account as JSON has it."""
        pairs, wanted = self._pairs, self._settings.negatives
        settings = {name: value for name, value in asdict(self._settings).items() if name != "cache"}
        return {
            "settings": settings,
            "rows_read": pairs.rows,
            "queries": len(pairs.queries),
            "candidates": len(pairs.candidates),
            "queries_with_negatives": len(rows),
            "queries_by_negatives_found": {
                f"{count} or more" if count == wanted else str(count): self._found[count]
                for count in sorted(self._found)
            },
            "queries_left_out": dict(self._reasons.most_common()),
            "queries_left_out_examples": self._examples,
            "candidates_removed": {name: count for name, count in self._removed.most_common() if count},
            "scores": {
                "right": _spread([score for row in rows for score in row.right_scores]),
                "negative": _spread([score for row in rows for score in row.scores]),
            },
            **({"margins": _spread(_all_margins(rows))} if has_margins else {}),
        }


def _all_margins(rows: list[MinedRow]) -> list[float]:
    return [margin for row in rows for right in row.right_scores for margin in row.margins(right)]


def _spread(scores: list[float]) -> Mapping[str, float | None]:
    names = ("mean", "median", "least", "most")
    if not scores:
        return dict.fromkeys(names)
    figures = (np.mean(scores), np.median(scores), np.min(scores), np.max(scores))
    return {name: round(float(figure), 6) for name, figure in zip(names, figures, strict=True)}
