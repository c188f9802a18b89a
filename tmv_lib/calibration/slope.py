"""Calibration slope, calibration-in-the-large and temperature of a logit."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit
from scipy.special import logit as log_odds

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite, as_weights, require_both_classes
from tmv_lib.statistics.logistic import fit_logistic

TEMPERATURE_LOW, TEMPERATURE_HIGH = 0.01, 100.0


def calibration_slope(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Slope b of logit P(y = 1) = a + b z by maximum likelihood (Cox 1958); 1 is perfect, below 1 overconfident.

    Returns a float, or (resamples,) for weights (resamples, n). Raises ValueError for one class only, a
    constant logit, and logits that separate the classes (the slope is then infinite).
    """
    y, z, w = weighted_logits(y_true, logit, weights)

    for row in np.atleast_2d(w) > 0:
        negative, positive = z[row & (y == 0)], z[row & (y == 1)]
        if np.ptp(z[row]) == 0:
            raise ValueError("a calibration slope needs at least two different logits, found one")
        if negative.max() <= positive.min() or positive.max() <= negative.min():
            raise ValueError("the logits separate the classes: the calibration slope is infinite")
    scale = np.abs(z).max()
    slopes = fit_logistic(np.column_stack([np.ones(y.size), z / scale]), y, weights=w)[:, 1] / scale
    return slopes if w.ndim == 2 else slopes[0]


def calibration_in_the_large(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Intercept a of logit P(y = 1) = a + z, slope held at 1 (Van Calster et al. 2016); 0 is perfect.

    Above 0 the model promises too few positives. Returns a float, or (resamples,) for weights (resamples, n).
    Raises ValueError for one class only.
    """
    y, z, w = weighted_logits(y_true, logit, weights)

    def intercept(row: FloatArray) -> float:
        # sum_i w_i (sigma(a + z_i) - y_i) = 0; each extreme logit, moved to the prevalence, brackets the root
        prevalence = log_odds(row @ y / row.sum())
        low, high = prevalence - z.max() - 1, prevalence - z.min() + 1
        # far logits leave a flat stretch between them, which can take more than the usual 100 steps
        return brentq(lambda a: row @ (expit(a + z) - y), low, high, maxiter=1000)

    return np.apply_along_axis(intercept, -1, w)[()]


def fit_temperature(y_true: ArrayLike, logit: ArrayLike) -> float:
    """Temperature T that minimises the negative log-likelihood of logit / T (Guo et al. 2017).

    T lies in [0.01, 100]. It is 0.01 where the sign of the logit separates the classes (any sharper is
    better), and 100 where the logit does not help (any flatter is better). Raises ValueError for one class
    only, or zero logits.
    """
    y, z, w = weighted_logits(y_true, logit, None)
    if not z.any():
        raise ValueError("logit must not be 0 everywhere: every temperature fits alike")
    return _best_temperature(y, z, w)


def _best_temperature(y: FloatArray, z: FloatArray, w: FloatArray) -> float:
    # d NLL / d (1/T) = sum_i w_i z_i (sigma(z_i / T) - y_i), which falls as T grows
    def gradient(log_temperature: float) -> float:
        return float((w * z) @ (expit(z * np.exp(-log_temperature)) - y))

    low, high = np.log(TEMPERATURE_LOW), np.log(TEMPERATURE_HIGH)
    if gradient(low) <= 0:
        return TEMPERATURE_LOW
    if gradient(high) >= 0:
        return TEMPERATURE_HIGH
    return float(np.exp(brentq(gradient, low, high, xtol=1e-12)))


def weighted_logits(
    y_true: ArrayLike, logit: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Truth, logit and weights, checked; both classes are there."""
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)
    return y, z, w
