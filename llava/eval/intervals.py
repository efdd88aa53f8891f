"""How sure a score is, and whether two scores differ: intervals and paired tests. Numpy only; no files, no models.

Scores are arrays of one value a question. `clusters` names what questions share, a picture as a rule: questions about
one picture are not independent, so pictures are resampled, not questions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
EXACT_CLUSTERS = 12  # up to 2^12 sign patterns are all tried
BLOCK = 2**22  # random numbers drawn at a time


class Interval(NamedTuple):
    low: float
    high: float


def _sums(values: ArrayLike, clusters: Sequence[object] | None) -> tuple[Array, Array]:
    """Sum and count of each cluster; every value is a cluster of its own without `clusters`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"scores must be a list of at least one number, got shape {array.shape}")
    if clusters is None:
        return array, np.ones_like(array)
    if len(clusters) != len(array):
        raise ValueError(f"{len(array)} scores, but {len(clusters)} cluster names")
    _, index = np.unique([str(name) for name in clusters], return_inverse=True)
    sums: Array = np.bincount(index, weights=array).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentiles of the mean over resampled clusters."""
    sums, counts = _sums(values, clusters)
    generator = np.random.default_rng(seed)
    means, groups = [], len(sums)
    size = max(1, BLOCK // groups)
    for start in range(0, resamples, size):
        drawn = generator.integers(groups, size=(min(size, resamples - start), groups))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(low), float(high))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, after Lentz."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), tiny)
    result = d
    for step in range(1, 500):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            result *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return result


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def t_tail(statistic: float, freedom: float) -> float:
    """Probability that a t-distributed number is farther from 0 than `statistic`, on either side."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + statistic**2))


def t_quantile(confidence: float, freedom: float) -> float:
    """The number that a t-distributed one stays below in size with probability `confidence`."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - confidence else (low, middle)
    return high


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Of the mean over runs, seeds as a rule. One run has no interval: both ends are nan."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Interval(math.nan, math.nan)
    half = t_quantile(confidence, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(float(array.mean()) - half, float(array.mean()) + half)


def ratio_interval(parts: ArrayLike, wholes: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Of mean(parts) / mean(wholes) over runs, after Fieller: those ratios r for which parts - r * wholes cannot be
    told from 0. Both ends are nan for one run, and where the wholes themselves cannot be told from 0."""
    above, below = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    if len(above) < 2:
        return Interval(math.nan, math.nan)
    spread = t_quantile(confidence, len(above) - 1) ** 2 / len(above) * np.cov(above, below)
    squared = float(below.mean() ** 2 - spread[1, 1])
    if squared <= 0:
        return Interval(math.nan, math.nan)
    middle = float(above.mean() * below.mean() - spread[0, 1])
    half = math.sqrt(max(0.0, middle**2 - squared * float(above.mean() ** 2 - spread[0, 0])))
    return Interval((middle - half) / squared, (middle + half) / squared)


def paired_t_test(differences: ArrayLike) -> float:
    """p of no difference, from one difference a seed; nan for fewer than two."""
    array = np.asarray(differences, dtype=np.float64)
    if len(array) < 2:
        return math.nan
    deviation = float(array.std(ddof=1))
    if deviation == 0:
        return 1.0 if array.mean() == 0 else 0.0
    return t_tail(float(array.mean()) / (deviation / math.sqrt(len(array))), len(array) - 1)


def welch_t_test(first: ArrayLike, second: ArrayLike) -> float:
    """p of equal means of two sets of runs that share no seeds; nan if either has fewer than two."""
    arrays = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if min(len(array) for array in arrays) < 2:
        return math.nan
    parts = [float(array.var(ddof=1)) / len(array) for array in arrays]
    difference = float(arrays[0].mean() - arrays[1].mean())
    if sum(parts) == 0:
        return 1.0 if difference == 0 else 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(array) - 1) for part, array in zip(parts, arrays, strict=True))
    return t_tail(difference / math.sqrt(sum(parts)), freedom)


class McNemar(NamedTuple):
    """first_only, second_only: questions that one of the two models alone gets right. p: exact, two-sided."""

    first_only: int
    second_only: int
    p: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """For right or wrong answers of two models to the same questions. Raises ValueError for other scores."""
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"the models answer {len(left)} and {len(right)} questions; they must be the same")
    if not np.isin(np.concatenate([left, right]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test needs scores of 0 and 1; use permutation_test")
    first_only, second_only = int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum())
    count = first_only + second_only
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    tail = sum(math.exp(logs[k] - count * math.log(2)) for k in range(min(first_only, second_only) + 1))
    return McNemar(first_only, second_only, min(1.0, 2 * tail))


def permutation_test(
    differences: ArrayLike, clusters: Sequence[object] | None = None, *, resamples: int = 10_000, seed: int = 0
) -> float:
    """p of no difference, two-sided: the signs of whole clusters are flipped.

    Exact for up to 12 clusters with a difference, else (k + 1) / (n + 1) over random flips.
    """
    sums, _ = _sums(differences, clusters)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum()) - 1e-12
    if len(sums) <= EXACT_CLUSTERS:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((1 - 2 * bits) @ sums) >= observed).mean())
    generator = np.random.default_rng(seed)
    hits, size = 0, max(1, BLOCK // len(sums))
    for start in range(0, resamples, size):
        flips = generator.integers(2, size=(min(size, resamples - start), len(sums)))
        hits += int((np.abs((1 - 2 * flips) @ sums) >= observed).sum())
    return (hits + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that the chance of any false finding stays; nan stays nan."""
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = list(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted
