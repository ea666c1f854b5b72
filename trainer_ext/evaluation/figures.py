"""A figure with its 95% interval, and the paired difference of two models.

Intervals are percentile bootstraps over queries: the queries are drawn anew, with replacement, ``RESAMPLES`` times from
a fixed seed, so equal inputs give equal intervals. Two models measured on the same queries are compared query by query
(the same draws for both), which is much sharper than looking whether their intervals overlap.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SEED = 20
LOW, HIGH = 2.5, 97.5
# Queries drawn at once, over several resamples: 2 MB of places.
DRAWN = 2**18

# Figures that are no share between 0 and 1, and those of which less is better.
NOT_SHARES = frozenset({"median_rank", "threshold", "slope", "offset", "modality_gap", "alignment", "uniformity"})
LESS_IS_BETTER = frozenset({"median_rank", "ece", "modality_gap", "alignment", "uniformity"})


# What may stand before a metric in a figure's name: a direction, and that of ``one_index``.
_DIRECTIONS = ("t2i", "i2t", "i2i")
_BEFORE = (*(f"{direction}_" for direction in _DIRECTIONS), "corrected_")
# What stands before the metric: the task, the part in brackets, and widths and precisions, on either side of the part.
TASK_OF_FIGURE = re.compile(r"(.*?)(?:\[(.*)\])?(?:@([^\[\]]+))?(?:\[(.*)\])?", re.DOTALL)


def metric_of(name: str) -> str:
    """The metric of a figure's name alone.

    >>> metric_of("shop[de]@64/t2i_r5"), metric_of("one-index/t2i_corrected_median_rank")
    ('r5', 'median_rank')
    """
    metric = name.rpartition("/")[2]
    for words in _BEFORE:
        metric = metric.removeprefix(words)
    return metric


def measured_on(name: str) -> str:
    """What a figure is measured on, as ``Task.contents`` names it: the task, its direction, and the part.

    >>> measured_on("shop[de]/t2i_r5"), measured_on("answers@64@int8/r5"), measured_on("one-index[shop/t2i]/r5")
    ('shop/t2i[de]', 'answers', 'one-index[shop/t2i]')
    """
    task, _, metric = name.rpartition("/")
    found = TASK_OF_FIGURE.fullmatch(task)
    assert found is not None  # it takes any text
    base, before, _, after = found.groups()
    part, direction = before if before is not None else after, metric.partition("_")[0]
    return f"{base}{f'/{direction}' if direction in _DIRECTIONS else ''}{'' if part is None else f'[{part}]'}"


def is_share(name: str) -> bool:
    """Whether a figure is shown in percent: all but a few, such as a threshold, and losses.

    >>> is_share("shop/t2i_r5"), is_share("shop/t2i_median_rank"), is_share("validation/loss_text")
    (True, False, False)
    """
    return metric_of(name) not in NOT_SHARES and not _is_loss(name)


def less_is_better(name: str) -> bool:
    """Whether a smaller value is the better one.

    >>> less_is_better("shop/t2i_r5"), less_is_better("validation/loss"), less_is_better("shop/t2i_median_rank")
    (False, True, True)
    """
    return metric_of(name) in LESS_IS_BETTER or _is_loss(name)


def _is_loss(name: str) -> bool:
    return metric_of(name) == "loss" or metric_of(name).startswith("loss_")


@dataclass(frozen=True)
class Figure:
    """A value with the ends of its 95% interval, None where there is none.

    ``samples`` is one value per query, whose mean is ``value``. A figure that is no mean (a median, a correlation) has
    ``draws`` instead: its value for each draw of the queries, the same draws for all figures of as many queries.
    """

    value: float
    low: float | None = None
    high: float | None = None
    samples: np.ndarray | None = None
    draws: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """How much higher the first model's figure is than the second's, with the ends of its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Quantity:
    """What a figure is computed from: one row of numbers per query, and what is computed from such rows.

    ``rows`` is (queries,) or (queries, columns) float64. ``statistic`` of resampled rows gives the interval; None means
    the mean. ``per_query`` is False for what belongs to the task as a whole: it has no interval and no splits.

    >>> Quantity(np.array([1.0, 0.0, 1.0, 1.0])).value
    0.75
    """

    rows: np.ndarray
    statistic: Callable[[np.ndarray], float] | None = None
    per_query: bool = True

    @property
    def value(self) -> float:
        """The figure itself."""
        return float(self.rows.mean() if self.statistic is None else self.statistic(self.rows))

    def among(self, chosen: np.ndarray) -> "Quantity":
        """The same figure of these queries alone."""
        return Quantity(self.rows[chosen], self.statistic, self.per_query)

    def figure(self) -> Figure:
        """The value with its interval."""
        if not self.per_query:
            return Figure(self.value)
        draws = resampled(self.rows, self.statistic)
        if self.statistic is None:
            return Figure(self.value, *_ends(draws), samples=self.rows)
        return Figure(self.value, *_ends(draws), draws=draws)


def interval(rows: np.ndarray, statistic: Callable[[np.ndarray], float] | None = None) -> tuple[float, float]:
    """The ends of the 95% bootstrap interval of ``statistic`` (None: the mean) of ``rows`` along its first axis."""
    return _ends(resampled(rows, statistic))


def resampled(rows: np.ndarray, statistic: Callable[[np.ndarray], float] | None = None) -> np.ndarray:
    """(``RESAMPLES``,) ``statistic`` of rows drawn with replacement; the draws depend on the number of rows alone."""
    random, values = np.random.default_rng(SEED), np.empty(RESAMPLES)
    together = max(1, DRAWN // len(rows))
    for start in range(0, RESAMPLES, together):
        part = values[start : start + together]
        drawn = random.integers(len(rows), size=(len(part), len(rows)))
        if statistic is None or statistic is np.median:
            part[:] = (statistic or np.mean)(rows[drawn], axis=1)
        else:
            part[:] = [statistic(rows[places]) for places in drawn]
    return values


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [LOW, HIGH])
    return float(low), float(high)


def paired_difference(first: Figure, second: Figure) -> Difference:
    """``first`` minus ``second``, of two models on the same queries in the same order.

    Means are compared by their samples; a median or a correlation by its draws, which are the same queries for both.
    Where one of the two has neither, there is no interval.

    Raises:
        ValueError: the two have different numbers of queries.

    >>> ours, theirs = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    >>> paired_difference(Figure(0.75, samples=ours), Figure(0.5, samples=theirs)).value
    0.25
    """
    if first.draws is not None and second.draws is not None and len(first.draws) == len(second.draws):
        return Difference(first.value - second.value, *_ends(first.draws - second.draws))
    if first.samples is None or second.samples is None:
        return Difference(first.value - second.value)
    if len(first.samples) != len(second.samples):
        raise ValueError(
            f"The first figure has {len(first.samples)} queries and the second {len(second.samples)}; a paired "
            "difference needs the same queries. Measure both models on one task."
        )
    low, high = interval(first.samples - second.samples)
    return Difference(first.value - second.value, low, high)
