"""Statistics of scores and labels, in numpy: correlation, separation, a threshold, a logistic fit, calibration.

They are called a thousand times for one interval, on resampled rows, so a resample in which they are undefined (all
scores equal, one class only) gives the value of scores that say nothing.
"""

import numpy as np

ECE_BINS = 15


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs.

    >>> average_ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[place]


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation; 0 if one side is constant."""
    left, right = first - first.mean(), second - second.mean()
    size = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / size) if size > 0 else 0.0


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of the ranks."""
    return pearson(average_ranks(first), average_ranks(second))


def auroc(scores: np.ndarray, same: np.ndarray) -> float:
    """Probability that a true pair scores above another pair, ties counted half; 0.5 with one class only."""
    right = np.count_nonzero(same)
    wrong = len(same) - right
    if not right or not wrong:
        return 0.5
    return float((average_ranks(scores)[same].sum() - right * (right + 1) / 2.0) / (right * wrong))


def _counts_from_above(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores, highest first; pairs and true pairs that score so high or higher."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return scores[order][ends], ends + 1.0, np.cumsum(same[order])[ends]


def average_precision(scores: np.ndarray, same: np.ndarray) -> float:
    """Precision at each distinct score, weighted by the recall it adds (no interpolation); 0 without a true pair."""
    _, taken, true = _counts_from_above(scores, same)
    return float((np.diff(true, prepend=0) * (true / taken)).sum() / true[-1]) if true[-1] else 0.0


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The score at and above which calling a pair true gives the best F1; the highest of several."""
    values, taken, true = _counts_from_above(scores, same)
    return float(values[np.argmax(2.0 * true / (taken + true[-1]))])


def f1_at(threshold: float, scores: np.ndarray, same: np.ndarray) -> float:
    """F1 of calling pairs true whose score reaches the threshold."""
    called = scores >= threshold
    total = np.count_nonzero(called) + np.count_nonzero(same)
    return 2.0 * np.count_nonzero(called & same) / total if total else 0.0


def logistic_fit(scores: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Slope and offset of P(true) = 1 / (1 + exp(-(slope * score + offset))), by maximum likelihood.

    With Platt's targets instead of 0 and 1 ((n + 1)/(n + 2) and 1/(n + 2)), so that the fit of pairs which a threshold
    separates is finite (Platt 1999, as in scikit-learn's sigmoid calibration). Newton steps, halved until they help.
    """
    right = np.count_nonzero(same)
    target = np.where(same, (right + 1.0) / (right + 2.0), 1.0 / (len(same) - right + 2.0))
    middle, spread = scores.mean(), scores.std()
    spread = spread if spread > 1e-9 else 1.0  # equal scores; their mean may be off by a rounding
    columns = np.stack([(scores - middle) / spread, np.ones_like(scores)], axis=1)
    weights = np.array([0.0, np.log(target.mean() / (1.0 - target.mean()))])

    def loss(at: np.ndarray) -> float:
        z = columns @ at
        return float((np.logaddexp(0.0, z) - target * z).sum())

    for _ in range(100):
        chance = 1.0 / (1.0 + np.exp(-columns @ weights))
        slope = columns.T @ (chance - target)
        curvature = (columns * (chance * (1.0 - chance))[:, None]).T @ columns + 1e-12 * np.eye(2)
        step, now = np.linalg.solve(curvature, slope), loss(weights)
        while loss(weights - step) > now and np.abs(step).max() > 1e-12:
            step /= 2.0
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0] / spread), float(weights[1] - weights[0] * middle / spread)


def mean_class_recall(labels: np.ndarray, hits: np.ndarray) -> float:
    """Mean over the classes that occur of the share of hits among their rows."""
    rows = np.bincount(labels)
    return float((np.bincount(labels, weights=hits)[rows > 0] / rows[rows > 0]).mean())


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """ECE (Guo et al. 2017): mean distance of confidence and accuracy in 15 equal bins (low, high], by rows in each."""
    place = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return float(np.abs(np.bincount(place, weights=confidence - correct)).sum() / len(confidence))
