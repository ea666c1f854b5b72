"""Which score is a match? True pairs against other pairs, with a threshold and a probability for each cosine."""

from collections.abc import Sequence

import numpy as np

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, key_of, refuse_empty
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.similarity import cosines
from trainer_ext.evaluation.statistics import auroc, average_precision, best_threshold, f1_at, logistic_fit

# True pairs that `match_task` takes at most, drawn evenly: more do not move a threshold.
MOST_PAIRS = 10_000


class MatchTask(Task):
    """Tell true pairs from others by the cosine of ``firsts[i]`` and ``seconds[i]``; ``same[i]`` says if it is true.

    One half of the firsts fits ``threshold`` (best F1) and the logistic ``slope`` and ``offset``: a pair is true with
    probability 1 / (1 + exp(-(slope x cosine + offset))). On the other half ``auroc``, ``ap`` and, at the threshold,
    ``f1`` are reported. ``ap``, ``f1`` and the probability hold for the share of true pairs given here: among a million
    candidates a cosine means less.
    """

    kind = "match"

    def __init__(
        self, name: str, firsts: Sequence[Item], seconds: Sequence[Item], same: Sequence[bool], seed: int = 0
    ) -> None:
        self.name = name
        self.firsts, self.seconds, self.same = list(firsts), list(seconds), np.array(same, dtype=bool)
        refuse_empty(name, "firsts", self.firsts)
        refuse_empty(name, "seconds", self.seconds)
        if not len(self.firsts) == len(self.seconds) == len(self.same):
            raise ValueError(
                f"Task {name!r}: {len(self.firsts)} firsts, {len(self.seconds)} seconds and {len(self.same)} labels; "
                "every pair needs one of each."
            )
        place: dict = {}
        group = np.array([place.setdefault(key_of(item), len(place)) for item in self.firsts])
        order = np.random.default_rng(seed).permutation(len(place))
        self.fitted = np.isin(group, order[: len(place) // 2])
        self._refuse_one_class(np.arange(len(self.same)), "")

    def _refuse_one_class(self, chosen: np.ndarray, group: str) -> None:
        for half, here in (("fitted", chosen[self.fitted[chosen]]), ("reported", chosen[~self.fitted[chosen]])):
            true = int(self.same[here].sum())
            if true in (0, len(here)):
                raise ValueError(
                    f"Task {self.label!r}{group and f' [{group}]'}: its {half} half has {true} true pairs among "
                    f"{len(here)}; each half of the firsts needs true pairs and others. Give more pairs."
                )

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.firsts, *self.seconds]

    @property
    def size(self) -> str:
        """How many pairs of each kind, for the report."""
        return f"{self.same.sum()} true and {(~self.same).sum()} other pairs, half of them to fit the threshold"

    @property
    def answers(self) -> list[np.ndarray]:
        """Which pairs are true, and which half they are in."""
        return [self.same, self.fitted]

    @property
    def queries_count(self) -> int:
        """Every pair has its cosine."""
        return len(self.firsts)

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Fitted and reported figures of the cosine similarity of these embeddings."""
        for group, chosen in self._groups().items():
            self._refuse_one_class(chosen, group)
        scores = cosines(embeddings, self.label, self.firsts, self.seconds)
        rows = np.stack([scores, self.same, self.fitted], axis=1)
        return {
            "auroc": Quantity(rows, lambda pairs: auroc(*_half(pairs, fitted=False))),
            "ap": Quantity(rows, lambda pairs: average_precision(*_half(pairs, fitted=False))),
            "f1": Quantity(rows, lambda pairs: f1_at(_threshold(pairs), *_half(pairs, fitted=False))),
            "threshold": Quantity(rows, _threshold),
            "slope": Quantity(rows, lambda pairs: logistic_fit(*_half(pairs, fitted=True))[0], per_query=False),
            "offset": Quantity(rows, lambda pairs: logistic_fit(*_half(pairs, fitted=True))[1], per_query=False),
        }

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """Random scores: the best threshold calls every pair true. What is fitted has no expectation."""
        reported = chosen[~self.fitted[chosen]]
        share = float(self.same[reported].mean()) if len(reported) else 0.0
        return {"auroc": 0.5, "ap": share, "f1": 2.0 * share / (1.0 + share)}


def match_task(name: str, task: RetrievalTask, seed: int = 0) -> MatchTask:
    """The true pairs of a retrieval task, and for each another candidate of its query, drawn from a fixed seed.

    A query whose candidates are all right gives true pairs alone.
    """
    random = np.random.default_rng(seed)
    pairs = [(query, answer) for query, answers in enumerate(task.relevant) for answer in answers]
    if len(pairs) > MOST_PAIRS:
        pairs = [pairs[place] for place in sorted(random.choice(len(pairs), MOST_PAIRS, replace=False))]
    firsts, seconds, same = [], [], []
    for query, answer in pairs:
        closed = set(task.relevant[query]) | set(task.exclude[query] if task.exclude is not None else ())
        firsts.append(task.queries[query])
        seconds.append(task.candidates[answer])
        same.append(True)
        if len(closed) < len(task.candidates):
            other = int(random.integers(len(task.candidates) - len(closed)))
            for taken in sorted(closed):  # the place among those left becomes a place among all
                other += taken <= other
            firsts.append(task.queries[query])
            seconds.append(task.candidates[other])
            same.append(False)
    return MatchTask(name, firsts, seconds, same, seed)


def _half(rows: np.ndarray, fitted: bool) -> tuple[np.ndarray, np.ndarray]:
    chosen = rows[rows[:, 2] == fitted]
    return chosen[:, 0], chosen[:, 1] == 1


def _threshold(rows: np.ndarray) -> float:
    return best_threshold(*_half(rows, fitted=True))
