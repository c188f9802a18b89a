"""Tests of two models on the same cases, adjustments for their number, and intervals of proportions."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtr, ndtri

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite
from tmv_lib.statistics.ranking import positions

Z_95 = float(ndtri(0.975))  # two-sided 95 % of a standard Normal


class Interval(NamedTuple):
    """A 95 % interval."""

    low: Any
    high: Any


class DeLong(NamedTuple):
    """AUROC of a minus AUROC of b, its z statistic, two-sided p-value and 95 % interval."""

    difference: float
    z: float
    p_value: float
    low: float
    high: float


def delong_test(y_true: ArrayLike, score_a: ArrayLike, score_b: ArrayLike) -> DeLong:
    """Test that two scores of the same cases have the same AUROC (DeLong et al. 1988; sorted as Sun & Xu 2014).

    y_true (n,) in {0, 1} with at least two cases a class; scores (n,) finite. Cases are taken as independent:
    where patients have several images the patient bootstrap decides. Scores that rank alike differ by 0 with
    p = 1. Raises ValueError where the scores differ but the variance is 0 (two scores that separate the
    classes perfectly and opposed, say), because no statistic exists then.
    """
    y = as_binary(y_true)
    a = as_finite(score_a, name="score_a", n=y.size)
    b = as_finite(score_b, name="score_b", n=y.size)
    m, n = int(y.sum()), int((1 - y).sum())
    if min(m, n) < 2:
        raise ValueError(f"DeLong needs at least 2 cases of each class, found {m} positive and {n} negative")

    # d_i = n (V10_a - V10_b) over the m positives, e_j = m (V01_b - V01_a) over the n negatives: exact half-integers
    d = _midplaces(a[y == 1], among=a[y == 0]) - _midplaces(b[y == 1], among=b[y == 0])
    e = _midplaces(a[y == 0], among=a[y == 1]) - _midplaces(b[y == 0], among=b[y == 1])
    # theta_a - theta_b = mean d / n, variance = var(d) / (n^2 m) + var(e) / (m^2 n)
    difference = float(d.mean() / n)
    error = float(np.sqrt(d.var(ddof=1) / m / n**2 + e.var(ddof=1) / n / m**2))
    if error == 0 and difference != 0:
        raise ValueError(f"AUROCs differ by {difference:g} but the DeLong variance is 0: no test statistic exists")
    z = difference / error if error > 0 else 0.0
    p_value = float(2 * ndtr(-abs(z)))
    return DeLong(difference, z, p_value, difference - Z_95 * error, difference + Z_95 * error)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value from the discordant counts: b only the first errs, c only the second.

    Under the null, b of b + c is Binomial(b + c, 1/2); without a discordant pair p = 1.

    >>> mcnemar_exact(1, 9)
    0.021484375
    """
    if b < 0 or c < 0 or b != int(b) or c != int(c):
        raise ValueError(f"discordant counts must be whole numbers of at least 0, found {b} and {c}")
    return min(1.0, 2 * float(bdtr(min(b, c), int(b + c), 0.5)))


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values (m,) adjusted for their number (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = as_finite(p_values, name="p_values", low=0, high=1)
    order = np.argsort(p, kind="stable")
    # p~_(k) = min(1, max_{j <= k} (m - j + 1) p_(j))
    stepped = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def holm_distinct(p_values: ArrayLike, tests: Sequence[Hashable]) -> FloatArray:
    """Holm's adjustment of p-values (m,) in which equal names in `tests` (m,) are one test, counted once.

    >>> holm_distinct([0.01, 0.01, 0.03], ["a", "a", "b"]).tolist()
    [0.02, 0.02, 0.03]
    """
    place: dict[Hashable, int] = {}
    which = [place.setdefault(test, len(place)) for test in tests]
    _, first = np.unique(which, return_index=True)
    return holm(np.asarray(p_values, dtype=float)[first])[which]


def wilson_interval(k: ArrayLike, n: ArrayLike) -> Interval:
    """95 % interval of a proportion, k successes of n trials (Wilson 1927); numbers, or arrays of one shape.

    >>> [round(float(bound), 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    successes, trials = np.asarray(k, dtype=float), np.asarray(n, dtype=float)
    if not ((trials >= 1).all() and (successes >= 0).all() and (successes <= trials).all()):
        raise ValueError("a proportion needs n of at least 1 and k between 0 and n")
    share = successes / trials
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    centre = share + Z_95**2 / (2 * trials)
    spread = Z_95 * np.sqrt(share * (1 - share) / trials + Z_95**2 / (4 * trials**2))
    scale = 1 + Z_95**2 / trials
    # at 0 and n one end is the share itself, which rounding would miss
    low = np.where(successes == 0, 0.0, np.maximum((centre - spread) / scale, 0))
    high = np.where(successes == trials, 1.0, np.minimum((centre + spread) / scale, 1))
    return Interval(low[()], high[()])


def _midplaces(values: FloatArray, *, among: FloatArray) -> FloatArray:
    """For each value, how many of `among` are smaller, an equal one counting half."""
    smaller, up_to = positions(values, among=np.sort(among))
    return (smaller + up_to) / 2
