"""What a decision or a probability is worth on labelled cases.

One threshold rule holds everywhere: positive when the score is strictly above the threshold. `weights` as in
`tmv_lib.statistics.arrays`: (n,) gives one figure, (resamples, n) one figure a row.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tmv_lib.statistics.arrays import FloatArray, IntArray, as_binary, as_finite, as_weights, require_both_classes
from tmv_lib.statistics.logistic import fit_logistic

RIDGE = 0.01  # a Normal prior of standard deviation 10 on shift and slope, about the identity


class ConfusionCounts(NamedTuple):
    """True negatives, false positives, false negatives, true positives: whole numbers, or sums of weights."""

    tn: Any
    fp: Any
    fn: Any
    tp: Any


class PerPatient(NamedTuple):
    """Truth in {0, 1}, mean logit and name of each patient (patients,), in the order of first appearance."""

    y_true: IntArray
    logit: FloatArray
    patient_id: NDArray[Any]


def per_patient(y_true: ArrayLike, logit: ArrayLike, patient_id: ArrayLike) -> PerPatient:
    """One entry a patient from y_true (n,) in {0, 1}, logit (n,) finite and patient_id (n,), for a clinic decides on
    patients.

    The logit is the mean over the patient's images (log-odds pooling: the odds' geometric mean). Images of one
    patient tell nearly the same thing twice, so that their sum would be surer than they are, and a mean of
    probabilities would let one sure image drown in several unsure ones. A patient is positive if any image is: mixed
    patients, in whom one image shows the disease and another does not, count as positive. Raises ValueError for a
    missing name.

    >>> per_patient([0, 1, 0], [-1.0, 2.0, -2.0], ["b", "a", "b"]).logit.tolist()
    [-1.5, 2.0]
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    patient, names = pd.factorize(np.asarray(patient_id))
    if patient.size != y.size or (patient < 0).any():
        raise ValueError(
            f"patient_id must name the patient of every case ({y.size}), found {(patient >= 0).sum()} names"
        )
    positive = np.bincount(patient, weights=y) > 0
    return PerPatient(positive.astype(np.intp), np.bincount(patient, weights=z) / np.bincount(patient), names)


def confusion_counts(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> ConfusionCounts:
    """Count cases by truth and decision, both (n,) in {0, 1}; one class only is allowed.

    >>> confusion_counts([0, 0, 1, 1], [0, 1, 1, 1])
    ConfusionCounts(tn=1, fp=1, fn=0, tp=2)
    """
    y = as_binary(y_true)
    decided = as_binary(y_pred, name="y_pred", n=y.size)
    w = as_weights(weights, n=y.size)
    cells = [w @ cell for cell in ((1 - y) * (1 - decided), (1 - y) * decided, y * (1 - decided), y * decided)]
    return ConfusionCounts(*(map(int, cells) if weights is None else cells))


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Share of cases decided rightly, in [0, 1]."""
    tn, fp, fn, tp = confusion_counts(y_true, y_pred, weights=weights)
    return (tn + tp) / (tn + fp + fn + tp)


def sensitivity(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Share of the positives decided positive, in [0, 1]. Raises ValueError without a positive case."""
    _, _, fn, tp = confusion_counts(y_true, y_pred, weights=weights)
    return _share(tp, tp + fn, of="positive cases")


def specificity(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Share of the negatives decided negative, in [0, 1]. Raises ValueError without a negative case."""
    tn, fp, _, _ = confusion_counts(y_true, y_pred, weights=weights)
    return _share(tn, tn + fp, of="negative cases")


def precision(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Positive predictive value, the share of right ones among the decisions for positive, in [0, 1].

    It holds at the prevalence of these cases alone: at another, Bayes' rule gives another value for the same
    sensitivity and specificity. Raises ValueError without such a decision.
    """
    _, fp, _, tp = confusion_counts(y_true, y_pred, weights=weights)
    return _share(tp, tp + fp, of="decisions for positive")


def negative_predictive_value(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Share of right ones among the decisions for negative, in [0, 1], at the prevalence of these cases alone.

    Raises ValueError without such a decision.
    """
    tn, _, fn, _ = confusion_counts(y_true, y_pred, weights=weights)
    return _share(tn, tn + fn, of="decisions for negative")


def f1_score(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Harmonic mean of precision and sensitivity, 2 tp / (2 tp + fp + fn), in [0, 1].

    Raises ValueError where neither a case nor a decision is positive.
    """
    _, fp, fn, tp = confusion_counts(y_true, y_pred, weights=weights)
    return _share(2 * tp, 2 * tp + fp + fn, of="positive cases or decisions")


def operating_point(y_true: ArrayLike, score: ArrayLike, *, sensitivity: float) -> float:
    """The largest threshold t at which `score > t` reaches a sensitivity in (0, 1] on these cases.

    It lies one floating-point step below the score of the last positive case needed, because the rule is
    strict. y_true (n,) in {0, 1}, score (n,) finite. Raises ValueError without a positive case.

    >>> threshold = operating_point([0, 1, 1, 1, 1], [0.5, 0.2, 0.6, 0.7, 0.8], sensitivity=0.75)
    >>> threshold < 0.6, round(threshold, 9)
    (True, 0.6)
    """
    y = as_binary(y_true)
    s = as_finite(score, name="score", n=y.size)
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must lie in (0, 1], found {sensitivity}")
    descending = np.sort(s[y == 1])[::-1]
    if descending.size == 0:
        raise ValueError("an operating point needs positive cases, found none")
    reached = np.arange(1, descending.size + 1) / descending.size
    return float(np.nextafter(descending[np.searchsorted(reached, sensitivity)], -np.inf))


def brier_score(y_true: ArrayLike, y_prob: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Mean squared distance of the probability to the truth, in [0, 1] (Brier 1950)."""
    y = as_binary(y_true)
    p = as_finite(y_prob, name="y_prob", n=y.size, low=0, high=1)
    w = as_weights(weights, n=y.size)
    return w @ (p - y) ** 2 / w.sum(axis=-1)


def negative_log_likelihood(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Mean negative log-likelihood in nats, at least 0, from the logit (n,), so that a sure case stays finite.

    >>> float(negative_log_likelihood([0], [1000.0]))
    1000.0
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    w = as_weights(weights, n=y.size)
    # -log sigma(z) for y = 1 and -log sigma(-z) for y = 0
    return w @ np.logaddexp(0, (1 - 2 * y) * z) / w.sum(axis=-1)


def logistic_miscalibration(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """What a wrong shift and slope of the logit cost, in nats a case, at least 0 (Cox 1958).

    NLL(z) - min over a, b of NLL(a + b z). On n cases it comes out too large by about 1 / n, two fitted numbers at
    half a unit of log-likelihood each, whatever the model: the difference of two models is not biased, unlike that of
    ECE, whose bias depends on where the scores lie. It sees no bend that a line does not mend. A weak ridge about
    a = 0, b = 1 keeps the best line finite where the logits separate the classes. Raises ValueError for one class.
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    given = as_weights(weights, n=y.size)
    require_both_classes(y, given)
    w = np.atleast_2d(given)
    line = fit_logistic(np.column_stack([np.ones(y.size), z]), y, weights=w, ridge=RIDGE, centre=[0.0, 1.0])
    logits = z, line[:, :1] + line[:, 1:] * z
    unmended, mended = ((w * np.logaddexp(0, (1 - 2 * y) * one)).sum(axis=1) for one in logits)
    saved = np.maximum(unmended - mended, 0) / w.sum(axis=1)
    return saved if given.ndim == 2 else saved[0]


def _share(part: Any, whole: Any, *, of: str) -> Any:
    """part / whole, or ValueError where there is nothing to take a share of."""
    if not np.all(np.asarray(whole) > 0):
        raise ValueError(f"a share of the {of} needs at least one, found none")
    return part / whole
