"""Ranking metrics, intervals that resample patients, and tests of two models on the same cases.

`weights`, wherever it appears, has shape (n,) and gives one figure, or (resamples, n) and gives one figure a
row. A whole number as weight means that the case occurs so many times.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

ROUNDING = 1e-12  # closer than this two figures are equal: sums in another order differ in the last digits
Z_95 = float(ndtri(0.975))  # two-sided 95 % of a standard Normal
CELLS_AT_ONCE = 2**15  # (resamples, cases) matrices are cut to 256 KiB, which stay in the cache: half the time


class Interval(NamedTuple):
    """A 95 % interval."""

    low: Any
    high: Any


class Bootstrap(NamedTuple):
    """The 95 % percentile interval and the (n_resamples,) figures that it was read from."""

    low: float
    high: float
    samples: FloatArray

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the figure is `null`, in [2 / (B + 1), 1] for B resamples.

        p = min(1, 2 (1 + min(#{samples <= null}, #{samples >= null})) / (1 + B)): twice the smaller tail, a resample
        equal to `null` counting on both sides. It turns the percentile interval round (p <= 0.05 about where that
        leaves `null` out) and is as right as the interval is: where few patients tell two models apart, too small,
        and without meaning for a figure that is biased in resamples (ECE).
        """
        beyond = self.samples - null
        tail = min((beyond <= ROUNDING).sum(), (beyond >= -ROUNDING).sum())
        return float(min(1.0, 2 * (1 + tail) / (1 + self.samples.size)))


class DeLong(NamedTuple):
    """AUROC of a minus AUROC of b, its z statistic, two-sided p-value and 95 % interval."""

    difference: float
    z: float
    p_value: float
    low: float
    high: float


def as_binary(values: ArrayLike, *, name: str = "y_true", n: int | None = None) -> FloatArray:
    """One-dimensional 0s and 1s as float64; `n`, where given, is the length that `y_true` asks for."""
    array = as_finite(values, name=name, n=n)
    strangers = array[(array != 0) & (array != 1)]
    if strangers.size:
        raise ValueError(f"{name} must hold 0 and 1 only, found {strangers[0]}")
    return array


def as_finite(
    values: ArrayLike, *, name: str, n: int | None = None, low: float = -np.inf, high: float = np.inf
) -> FloatArray:
    """One-dimensional finite numbers in [low, high] as float64, never empty."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, found shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one case, found none")
    if n is not None and array.size != n:
        raise ValueError(f"{name} must hold one value a case ({n}), found {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, found {array[~np.isfinite(array)][0]}")
    if array.min() < low or array.max() > high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], found {array.min():g} to {array.max():g}")
    return array


def as_weights(weights: ArrayLike | None, *, n: int) -> FloatArray:
    """Non-negative weights (n,) or (resamples, n), each row with a positive sum; ones where none are given."""
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=float)
    if array.ndim not in (1, 2) or array.shape[-1] != n:
        raise ValueError(f"weights must have shape ({n},) or (resamples, {n}), found {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all() and (array.sum(axis=-1) > 0).all()):
        raise ValueError("weights must be finite, at least 0, and not all 0 for a resample")
    return array


def require_both_classes(y: FloatArray, weights: FloatArray) -> None:
    """Raise ValueError unless both classes carry weight in every resample."""
    if not ((weights @ y > 0).all() and (weights @ (1 - y) > 0).all()):
        raise ValueError("both classes are needed, found one class only")


def auroc(y_true: ArrayLike, score: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Area under the ROC curve in [0, 1]: the chance that a positive outranks a negative, a tie counting half.

    y_true (n,) in {0, 1}, score (n,) finite, larger meaning more positive. Returns a float, or an array
    (resamples,) for weights (resamples, n). Raises ValueError where one class carries no weight.

    >>> float(auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    y = as_binary(y_true)
    s = as_finite(score, name="score", n=y.size)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)

    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    negative = negative[np.argsort(s[negative], kind="stable")]
    # AUROC = sum_i w_i [W(s_j < s_i) + W(s_j = s_i) / 2] / (W+ W-), i over positives, W weights of negatives j
    below, up_to = _positions(s[positive], among=s[negative])
    cumulative = _cumulative(w[..., negative])
    w_positive = w[..., positive]
    beaten = (cumulative[..., below] + cumulative[..., up_to]) / 2
    return (w_positive * beaten).sum(axis=-1) / (w_positive.sum(axis=-1) * cumulative[..., -1])


def average_precision(y_true: ArrayLike, score: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Average precision in [0, 1]: the mean over positives of the precision at their own score.

    Cases of equal score enter together; no interpolation (the same rule as scikit-learn's). y_true (n,) in
    {0, 1}, score (n,) finite. Returns a float, or an array (resamples,) for weights (resamples, n). Raises
    ValueError where one class carries no weight.

    >>> round(float(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    y = as_binary(y_true)
    s = as_finite(score, name="score", n=y.size)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)

    descending = np.argsort(-s, kind="stable")
    positive = np.flatnonzero(y == 1)
    # AP = sum_i w_i W+(s_j >= s_i) / W(s_j >= s_i) / W+, i over positives
    _, last = _positions(-s[positive], among=-s[descending])
    w_positive = w[..., positive]
    true_positives = _cumulative((w * y)[..., descending])[..., last]
    flagged = _cumulative(w[..., descending])[..., last]
    # a positive of weight 0 above every weighted case has 0 / 0, and counts nothing
    precision = true_positives / np.where(flagged > 0, flagged, 1)
    return (w_positive * precision).sum(axis=-1) / w_positive.sum(axis=-1)


def bootstrap(
    metric: Callable[..., Any],
    *arrays: ArrayLike,
    groups: ArrayLike,
    n_resamples: int,
    rng: np.random.Generator,
    stratify: ArrayLike | None = None,
) -> Bootstrap:
    """95 % percentile interval of a metric, resampling patients with replacement.

    metric is called as metric(*arrays, weights=w) with w (batch, n), the number of times each case was drawn,
    and returns (batch,). groups (n,) names the patient of each case; rows of one patient are drawn together.
    With stratify (n,), usually y_true, patients of one class are resampled within that class, and patients
    with both form a stratum of their own, so that every resample holds both classes. A metric that returns a
    difference of two models gives the paired interval. Raises ValueError for fewer than two patients.
    """
    patient, stratum = _patients(groups, stratify)
    if stratum.size < 2:
        raise ValueError(f"a bootstrap needs at least 2 patients, found {stratum.size}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, found {n_resamples}")
    if any(np.shape(array)[:1] != patient.shape for array in arrays):
        raise ValueError(f"arrays and groups must have one row a case ({patient.size})")

    strata = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    batch = max(1, CELLS_AT_ONCE // patient.size)
    samples = []
    for start in range(0, n_resamples, batch):
        counts = np.zeros((min(batch, n_resamples - start), stratum.size))
        for members in strata:
            drawn = rng.integers(members.size, size=(len(counts), members.size))
            drawn += members.size * np.arange(len(counts))[:, None]
            counts[:, members] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        figures = np.asarray(metric(*arrays, weights=counts[:, patient]), dtype=float)
        if figures.shape != (len(counts),):
            raise ValueError(f"metric must return one figure a resample ({len(counts)},), found {figures.shape}")
        samples.append(figures)
    figures = np.concatenate(samples)
    low, high = np.quantile(figures, [0.025, 0.975])
    return Bootstrap(float(low), float(high), figures)


def patient_folds(y_true: ArrayLike, groups: ArrayLike, *, n_folds: int, rng: np.random.Generator) -> IntArray:
    """A fold in 0 ... n_folds - 1 for each case (n,): a patient lies in one fold, classes are spread evenly.

    Patients are dealt out in random order, first those of one class, then of the other, then the mixed ones,
    so that folds differ by at most one patient. Raises ValueError for fewer patients than folds, or n_folds <
    2.
    """
    patient, stratum = _patients(groups, as_binary(y_true))
    if not 2 <= n_folds <= stratum.size:
        raise ValueError(f"n_folds must lie between 2 and the number of patients ({stratum.size}), found {n_folds}")
    shuffled = rng.permutation(stratum.size)
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold = np.empty(stratum.size, dtype=np.intp)
    fold[dealt] = np.arange(stratum.size) % n_folds
    return fold[patient]


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


def _patients(groups: ArrayLike, stratify: ArrayLike | None) -> tuple[IntArray, IntArray]:
    """The patient of each case (n,) and the stratum of each patient: its class, or -1 for more than one class."""
    patient, names = pd.factorize(np.asarray(groups), sort=True)
    if patient.size == 0 or (patient < 0).any():
        raise ValueError("groups must name the patient of every case, found none or a missing name")
    if stratify is None:
        return patient, np.zeros(len(names), dtype=np.intp)
    label, _ = pd.factorize(np.asarray(stratify), sort=True)
    if label.size != patient.size:
        raise ValueError(f"groups must name one patient a case ({label.size}), found {patient.size}")
    lowest, highest = np.full(len(names), label.size), np.full(len(names), -1)
    np.minimum.at(lowest, patient, label)
    np.maximum.at(highest, patient, label)
    return patient, np.where(lowest == highest, lowest, -1)


def _positions(values: FloatArray, *, among: FloatArray) -> tuple[IntArray, IntArray]:
    """For each value, how many of the sorted `among` are smaller, and how many are smaller or equal."""
    return np.searchsorted(among, values, side="left"), np.searchsorted(among, values, side="right")


def _midplaces(values: FloatArray, *, among: FloatArray) -> FloatArray:
    """For each value, how many of `among` are smaller, an equal one counting half."""
    smaller, up_to = _positions(values, among=np.sort(among))
    return (smaller + up_to) / 2


def _cumulative(weights: FloatArray) -> FloatArray:
    """Cumulative sums along the last axis, with a leading 0."""
    sums = np.zeros((*weights.shape[:-1], weights.shape[-1] + 1))
    np.cumsum(weights, axis=-1, out=sums[..., 1:])
    return sums


def rank_among(values: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Share of the reference values (m,) that lie below each value (n,), in [0, 1].

    >>> rank_among([0.0, 2.5], [1, 2, 3, 4]).tolist()
    [0.0, 0.5]
    """
    ordered = np.sort(as_finite(reference, name="reference"))
    return np.searchsorted(ordered, as_finite(values, name="values"), side="left") / ordered.size
