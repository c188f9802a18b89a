"""Reliability without bins: the CORP decomposition and curve (Dimitriadis, Gneiting & Jordan 2021)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from tmv_lib.calibration.errors import LEVELS, as_probabilities, by_level, require_draws
from tmv_lib.statistics.arrays import FloatArray, IntArray, as_weights


class Corp(NamedTuple):
    """The Brier score as miscalibration - discrimination + uncertainty, each at least 0; one a row of weights."""

    miscalibration: Any
    discrimination: Any
    uncertainty: Any


class CorpCurve(NamedTuple):
    """One entry a distinct probability, ascending: the recalibrated one, cases, and the 95 % consistency band."""

    y_prob: FloatArray
    recalibrated: FloatArray
    n: IntArray
    low: FloatArray
    high: FloatArray


def corp_decomposition(y_true: ArrayLike, y_prob: ArrayLike, *, weights: ArrayLike | None = None) -> Corp:
    """Exact decomposition of the Brier score (CORP: Dimitriadis, Gneiting & Jordan 2021).

    With x the isotonic (PAV) recalibration of p: MCB = S(p) - S(x), DSC = S(ybar) - S(x), UNC = S(ybar), so
    that S(p) = MCB - DSC + UNC. One class only is allowed: UNC and DSC are then 0. Floats, or arrays
    (resamples,) for weights (resamples, n).
    """
    y, p = as_probabilities(y_true, y_prob)
    w = as_weights(weights, n=y.size)
    order, starts = by_level(p)
    n, positives = (np.add.reduceat(part[..., order], starts, axis=-1) for part in (w, w * y))
    total = w.sum(axis=-1)
    prevalence = positives.sum(axis=-1) / total

    def explained(k: tuple[int, ...]) -> float:
        drawn = n[k] > 0
        x = isotonic_regression(positives[k][drawn] / n[k][drawn], weights=n[k][drawn]).x
        # x averages y within each PAV block, so S(ybar) - S(x) = mean (x - ybar)^2
        return float(n[k][drawn] @ (x - prevalence[k]) ** 2 / total[k])

    discrimination = np.reshape([explained(k) for k in np.ndindex(total.shape)], total.shape)[()]
    uncertainty = prevalence * (1 - prevalence)
    miscalibration = w @ (p - y) ** 2 / total - uncertainty + discrimination
    return Corp(np.maximum(miscalibration, 0), discrimination, uncertainty)


def corp_curve(y_true: ArrayLike, y_prob: ArrayLike, *, n_draws: int = 1000, rng: np.random.Generator) -> CorpCurve:
    """Reliability without bins: the isotonic (PAV) recalibration of p, and where it would lie under calibration.

    The consistency band holds 95 % of the curves of labels drawn as y ~ Bernoulli(p), point by point (Dimitriadis,
    Gneiting & Jordan 2021): at a given probability, a curve outside speaks against calibration. More than 4,096
    distinct probabilities are merged within cells of width 1/4096, at their mean. One class only is allowed.
    """
    y, p = as_probabilities(y_true, y_prob)
    require_draws(n_draws)
    order, starts = by_level(p, at_most=LEVELS)
    n = np.diff(starts, append=p.size)
    level, share = (np.add.reduceat(values[order], starts) / n for values in (p, y))
    drawn = rng.binomial(n, level, size=(n_draws, n.size)) / n
    recalibrated, *curves = (isotonic_regression(row, weights=n).x for row in (share, *drawn))
    return CorpCurve(level, recalibrated, n, *np.quantile(curves, [0.025, 0.975], axis=0))
