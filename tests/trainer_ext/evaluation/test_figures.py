"""Intervals against scipy's bootstrap and the normal law, and paired differences."""

import numpy as np
import pytest
from scipy import stats

from trainer_ext.evaluation import figures
from trainer_ext.evaluation.figures import RESAMPLES, Figure, Quantity, interval, paired_difference
from trainer_ext.evaluation.statistics import spearman


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    rows = np.random.default_rng(0).normal(size=400) ** 2
    theirs = stats.bootstrap((rows,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=1).confidence_interval
    normal = stats.norm.interval(0.95, rows.mean(), rows.std() / np.sqrt(len(rows)))
    ours = interval(rows)
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)
    assert ours == pytest.approx(normal, abs=0.1 * width)
    assert ours == interval(rows), "the draws are the same every time"


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    rows = np.random.default_rng(0).normal(size=50)
    expected = [*interval(rows), *interval(rows, np.median)]
    assert interval(rows, np.mean) == pytest.approx(expected[:2], abs=1e-12), "the mean is a statistic like others"
    monkeypatch.setattr(figures, "DRAWN", 120)
    assert [*interval(rows), *interval(rows, np.median)] == pytest.approx(expected, abs=1e-12)


def test_a_statistic_is_compared_by_the_same_draws():
    """As scipy's bootstrap of both at once; the intervals of the two alone overlap."""
    rng = np.random.default_rng(5)
    truth = rng.normal(size=300)
    first, second = (np.stack([truth + spread * rng.normal(size=300), truth], axis=1) for spread in (0.6, 0.9))
    both = [Quantity(rows, lambda pairs: spearman(pairs[:, 0], pairs[:, 1])).figure() for rows in (first, second)]
    found = paired_difference(*both)

    def difference(one: np.ndarray, other: np.ndarray, right: np.ndarray) -> float:
        return spearman(one, right) - spearman(other, right)

    theirs = stats.bootstrap(
        (first[:, 0], second[:, 0], truth), difference, n_resamples=RESAMPLES, method="percentile", paired=True,
        vectorized=False, rng=1,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)
    assert found.low > 0
    assert found.high - found.low < 0.8 * (both[0].high - both[1].low)
    same = paired_difference(both[0], both[0])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_mean_by_samples_and_by_draws_is_the_same():
    rng = np.random.default_rng(6)
    first, second = rng.random(70), rng.random(70)
    by_samples = paired_difference(Quantity(first).figure(), Quantity(second).figure())
    mean = lambda rows: float(rows.mean())  # noqa: E731
    by_draws = paired_difference(Quantity(first, mean).figure(), Quantity(second, mean).figure())
    assert (by_draws.low, by_draws.high) == pytest.approx((by_samples.low, by_samples.high), abs=1e-12)


def test_a_statistic_has_its_own_interval_and_no_samples():
    rows = np.random.default_rng(1).normal(size=301)
    figure = Quantity(rows, lambda values: float(np.median(values))).figure()
    theirs = stats.bootstrap((rows,), np.median, n_resamples=RESAMPLES, method="percentile", rng=2).confidence_interval
    assert (figure.low, figure.high) == pytest.approx((theirs.low, theirs.high), abs=0.05)
    assert figure.samples is None
    assert figure.value == np.median(rows)
    whole = Quantity(np.array([3.0]), per_query=False).figure()
    assert (whole.value, whole.low, whole.high, whole.samples) == (3.0, None, None, None)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        low, high = interval((rng.random(60) < 0.3).astype(float))
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 100


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(3)
    hard = rng.random(500)
    first, second = (hard < 0.62).astype(float), (hard < 0.58).astype(float)  # the same queries are hard for both
    both = [Quantity(rows).figure() for rows in (first, second)]
    difference = paired_difference(*both)
    assert difference.value == pytest.approx(first.mean() - second.mean())
    assert 0 < difference.low < difference.value < difference.high
    assert both[0].low < both[1].high, "the intervals themselves overlap"
    same = paired_difference(both[0], both[0])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_what_cannot_be_paired():
    assert paired_difference(Figure(5.0), Figure(3.0)) == paired_difference(
        Figure(5.0), Figure(3.0, samples=np.ones(2))
    )
    assert paired_difference(Figure(5.0), Figure(3.0)).low is None
    with pytest.raises(ValueError, match="has 2 queries and the second 3"):
        paired_difference(Figure(1.0, samples=np.ones(2)), Figure(1.0, samples=np.ones(3)))
