"""Ranking metrics, intervals that resample patients, and tests of two models on the same cases.

`weights`, wherever it appears, has shape (n,) and gives one figure, or (resamples, n) and gives one figure a
row. A whole number as weight means that the case occurs so many times.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from scipy.stats import rankdata

from tmv_lib.statistics.arrays import FloatArray, IntArray, as_binary, as_finite, as_weights, require_both_classes


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of each pair of rows, (n, cells) each; average ties; NaN where a row is constant."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    product = (centred[0] * centred[1]).sum(1)
    return np.divide(product, scale, out=np.full(len(a), np.nan), where=scale > 0)


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
    below, up_to = positions(s[positive], among=s[negative])
    cumulative = cumulative_weights(w[..., negative])
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
    _, last = positions(-s[positive], among=-s[descending])
    w_positive = w[..., positive]
    true_positives = cumulative_weights((w * y)[..., descending])[..., last]
    flagged = cumulative_weights(w[..., descending])[..., last]
    # a positive of weight 0 above every weighted case has 0 / 0, and counts nothing
    precision = true_positives / np.where(flagged > 0, flagged, 1)
    return (w_positive * precision).sum(axis=-1) / w_positive.sum(axis=-1)


def positions(values: FloatArray, *, among: FloatArray) -> tuple[IntArray, IntArray]:
    """For each value, how many of the sorted `among` are smaller, and how many are smaller or equal."""
    return np.searchsorted(among, values, side="left"), np.searchsorted(among, values, side="right")


def cumulative_weights(weights: FloatArray) -> FloatArray:
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


class UpperBound(NamedTuple):
    """AUROC, and the upper end of its 95 % interval: the truth lies above it once in 40."""

    auroc: float
    high: float


def auroc_with_upper_bound(y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike) -> UpperBound:
    """AUROC of logit (n,) with a one-sided 97.5 % upper bound that counts patients, groups (n,), and not images.

    The variance of DeLong et al. (1988), summed by patient (Obuchowski 1997), with Student's t of one degree of freedom
    less than the rarer class has patients: ours, as a Normal bound is false for a handful of positives. Where a class
    has one patient there is no bound, and `high` is 1. A bound below 0.5 says that the scores rank the wrong way.
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    require_both_classes(y, np.ones(y.size))
    patient, _ = pd.factorize(np.asarray(groups), sort=True)
    if patient.size != y.size or (patient < 0).any():
        raise ValueError(f"groups must name the patient of every case ({y.size}), found {(patient >= 0).sum()} names")
    found = float(auroc(y, z))
    deviation, fewest = np.zeros(patient.max() + 1), y.size
    for label in (0, 1):
        own, other = z[y == label], np.sort(z[y != label])
        # share of the other class on the right side of each case, and what it adds to the AUROC's deviation
        below = (np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")) / (2 * other.size)
        share = below if label else 1 - below
        n_patients = np.unique(patient[y == label]).size
        fewest = min(fewest, n_patients)
        spread = np.sqrt(n_patients / max(n_patients - 1, 1)) / own.size
        deviation += np.bincount(patient[y == label], weights=spread * (share - found), minlength=deviation.size)
    if fewest < 2:
        return UpperBound(found, 1.0)
    high = found + stdtrit(fewest - 1, 0.975) * np.sqrt((deviation**2).sum())
    return UpperBound(found, float(min(high, 1.0)))
