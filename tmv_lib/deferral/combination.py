"""One probability from several members' calibrated logits, in the way that validation prefers."""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from tmv_lib.deferral.doubt import log_odds, mean_difference
from tmv_lib.statistics.arrays import FloatArray, IntArray, as_binary
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.logistic import fit_logistic
from tmv_lib.statistics.resampling import patient_folds

WAYS = ("first_member", "mean_probability", "mean_logit", "stacking")  # simplest first
PRIOR_SD = 0.5  # of an intercept and weights about the mean logit


class Choice(NamedTuple):
    """The way of least cross-validated negative log-likelihood, that of each way, and what choosing gains.

    times_chosen: by the outer folds of the nested cross-validation, whose patients the choice there has not seen; gain:
    in negative log-likelihood per case over the first member alone, below 0 where choosing is better.
    """

    way: str
    nll: dict[str, float]
    times_chosen: dict[str, int]
    gain: Estimate


def fit_stack(y_true: ArrayLike, logits: ArrayLike, *, weights: ArrayLike | None = None) -> FloatArray:
    """Intercept and a weight per member (1 + members,) of logit P(y = 1) = a + sum_m b_m z_m.

    Shrunk by a Normal prior of standard deviation 0.5 about the mean logit (a = 0, b_m = 1 / members), so that few
    patients give the mean and many what they show. weights: (n,) or (rows, n), which gives (rows, 1 + members).
    """
    z = np.asarray(logits, dtype=float)
    design = np.column_stack([np.ones(len(z)), z])
    w = np.ones(len(z)) if weights is None else weights
    centre = [0.0, *np.full(z.shape[1], 1 / z.shape[1])]
    fitted = fit_logistic(design, as_binary(y_true), weights=w, ridge=1 / PRIOR_SD**2, centre=centre)
    return fitted[0] if np.ndim(w) == 1 else fitted


def combine(logits: ArrayLike, *, way: str, stack: ArrayLike) -> FloatArray:
    """The ensemble's probability (n,) from calibrated logits (n, members), the first member's in the first column."""
    z = np.asarray(logits, dtype=float)
    if way == "first_member":
        return expit(z[:, 0])
    if way == "mean_probability":
        return expit(z).mean(axis=1)
    if way == "mean_logit":
        return expit(z.mean(axis=1))
    intercept, *slopes = np.asarray(stack, dtype=float)
    return expit(intercept + z @ slopes)


def choose(
    y_true: ArrayLike, logits: ArrayLike, *, groups: ArrayLike, n_folds: int, n_foldings: int, rng: np.random.Generator
) -> Choice:
    """Choose a way by patient-grouped cross-validation of the negative log-likelihood, judged by a nested one.

    logits: (n, members), each calibrated in the same manner and on other patients than the case's own. Of equal ways
    the simplest is taken; one member alone leaves no choice.
    """
    if np.shape(logits)[1] == 1:
        alone = float(_nll(as_binary(y_true), combine(logits, way=WAYS[0], stack=())).mean())
        return Choice(WAYS[0], {WAYS[0]: alone}, {}, Estimate(0.0, 0.0, 0.0))
    y, z, patient = as_binary(y_true), np.asarray(logits, dtype=float), np.asarray(groups)
    cut = partial(patient_folds, n_folds=n_folds, rng=rng)
    losses = np.mean([_losses(y, z, cut(y, patient)) for _ in range(n_foldings)], axis=0)
    gains, chosen = np.zeros(y.size), dict.fromkeys(WAYS, 0)
    for _ in range(n_foldings):
        outer = cut(y, patient)
        for k in range(n_folds):
            out, rest = outer == k, outer != k
            inner = _losses(y[rest], z[rest], cut(y[rest], patient[rest]))
            way = WAYS[_least(inner)]
            chosen[way] += 1
            applied = combine(z[out], way=way, stack=fit_stack(y[rest], z[rest]))
            gains[out] += (_nll(y[out], applied) - _nll(y[out], expit(z[out, 0]))) / n_foldings
    nll = dict(zip(WAYS, losses.mean(axis=1).tolist(), strict=True))
    return Choice(WAYS[_least(losses)], nll, chosen, mean_difference(gains, patient))


def cross_fitted(
    y_true: ArrayLike, logits: ArrayLike, *, groups: ArrayLike, way: str, n_folds: int, rng: np.random.Generator
) -> FloatArray:
    """The ensemble's probability (n,) of the cases that a stack is fitted on, each by what other patients fitted."""
    y, z = as_binary(y_true), np.asarray(logits, dtype=float)
    if way != "stacking":
        return combine(z, way=way, stack=())
    return _stacked(y, z, patient_folds(y, groups, n_folds=n_folds, rng=rng))


def _stacked(y: FloatArray, z: FloatArray, fold: IntArray) -> FloatArray:
    stacks = fit_stack(y, z, weights=fold != np.arange(fold.max() + 1)[:, None])
    own = stacks[fold]
    return expit(own[:, 0] + (own[:, 1:] * z).sum(axis=1))


def _losses(y: FloatArray, z: FloatArray, fold: IntArray) -> FloatArray:
    """Negative log-likelihood (ways, n) of each case, nothing fitted on its own patient."""
    fixed = [_nll(y, combine(z, way=way, stack=())) for way in WAYS[:3]]
    return np.stack([*fixed, _nll(y, _stacked(y, z, fold))])


def _least(losses: FloatArray) -> int:
    mean = losses.mean(axis=1)
    return int(np.flatnonzero(mean <= mean.min() + 1e-9)[0])


def _nll(y: FloatArray, y_prob: FloatArray) -> FloatArray:
    return np.logaddexp(0, (1 - 2 * y) * log_odds(y_prob))
