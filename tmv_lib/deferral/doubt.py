"""What lowers a certainty: signals of doubt whose weight is learned on validation and can never be negative.

The base is `tmv_lib.deferral.certainty`, the price-weighted margin of a calibrated probability p. Its decision is wrong
with log odds eta0 (that of 1 - p or of p). Doubt adds to them and never takes away:

    eta = eta0 + sum_k w_k d_k,   w_k >= 0,   d_k in [0, 1],   certainty = 1 - stake expit(eta)

d_k is how far signal k lies above its median on validation, as a share of the way to the largest value there: what is
usual changes nothing, and what lies beyond validation counts as the largest seen. A learned certainty without these
bounds is surest about what it has never seen.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from tmv_lib.deferral import costs as deferral
from tmv_lib.statistics.arrays import FloatArray, as_binary
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.resampling import clustered_standard_error, patient_folds
from tmv_lib.statistics.tests import Z_95

# In the order in which they may enter: fixed beforehand, so that choosing among them costs no errors of validation.
KINDS = {
    "disagreement": "the members disagree",
    "mutual_information": "unsure under dropout",
    "instability": "unstable explanation",
    "border_reliance": "the answer rests on the image's border",
    "distance": "far from the training images",
}
ERRORS_PER_WEIGHT = 10  # patients with an error that one weight needs (Peduzzi et al. 1996)
PRIOR_SD = 2.0  # of a weight: the whole range of a signal multiplies the odds of an error by about e^2
LEAST_PROBABILITY = 1e-6  # log odds stay finite
LEAST_SPREAD = 1e-5  # of a signal: what single precision leaves of a logit
LEAST_ADDED = 0.05  # log odds that a doubt must add to be a reason beside a margin that is too small
SHARE_OF_LARGEST = 0.5  # of the largest contribution that makes another one a reason, too

Ranges = dict[str, tuple[float, float]]


class LearnedDoubt(NamedTuple):
    """Weights of doubt, and whether they were shown to pay.

    weights: by kind, at least 0; those that validation cannot carry are left out. used: both differences lie below 0
    with their whole interval. n_errors: patients with an error. against: the cost per case of the learned certainty
    minus that of `margin`, by the same rule, and of `plain_margin` |2p - 1|, at the same number of referrals, each
    out of fold; empty where nothing could be learned. certainty: out of fold where it is used, else the margin, (n,).
    """

    weights: dict[str, float]
    used: bool
    n_errors: int
    against: dict[str, Estimate]
    certainty: FloatArray


def ranges_of(signals: pd.DataFrame) -> Ranges:
    """Median and largest value of each signal that varies among these cases; a signal may lack some values."""
    ends = {str(name): (float(column.median()), float(column.max())) for name, column in signals.items()}
    return {name: (low, high) for name, (low, high) in ends.items() if high - low > LEAST_SPREAD}


def doubts(signals: pd.DataFrame, ranges: Ranges) -> pd.DataFrame:
    """Doubt of each kind in [0, 1], a column per kind of `KINDS` that `ranges` knows.

    A signal is named after its kind, or kind and member (`distance_resnet50`); of several members the one that doubts
    most counts. A missing value is no doubt.

    >>> table = pd.DataFrame({"distance_a": [1.0, 3.0, 9.0], "distance_b": [0.0, np.nan, 0.0]})
    >>> doubts(table, {"distance_a": (1.0, 5.0), "distance_b": (0.0, 1.0)})["distance"].tolist()
    [0.0, 0.5, 1.0]
    """
    scaled = pd.DataFrame(
        {name: ((signals[name] - low) / (high - low)).clip(0, 1).fillna(0) for name, (low, high) in ranges.items()}
    )
    own = {kind: [name for name in ranges if _is_of(name, kind)] for kind in KINDS}
    return pd.DataFrame({kind: scaled[names].max(axis=1) for kind, names in own.items() if names}, index=signals.index)


def weighed(ranges: Ranges, weights: dict[str, float]) -> Ranges:
    """The ranges of the signals whose kind has a weight."""
    return {name: ends for name, ends in ranges.items() if any(_is_of(name, kind) for kind in weights)}


def _is_of(signal: str, kind: str) -> bool:
    return signal == kind or signal.startswith(f"{kind}_")


def lowered(
    y_prob: ArrayLike, doubt: pd.DataFrame, weights: dict[str, float], *, cost_fn: float, cost_fp: float
) -> FloatArray:
    """The certainty (n,) in [0, 1] of probabilities (n,) under doubt, never above `deferral.certainty`."""
    margin = deferral.certainty(y_prob, cost_fn=cost_fn, cost_fp=cost_fp)
    if not weights:
        return margin
    eta, stake = _odds_and_stake(np.asarray(y_prob, dtype=float), cost_fn=cost_fn, cost_fp=cost_fp)
    added = doubt[list(weights)].to_numpy() @ np.array(list(weights.values()))
    return np.minimum(margin, np.clip(1 - stake * expit(eta + added), 0, 1))


def reasons(doubt: pd.DataFrame, weights: dict[str, float], *, close: ArrayLike) -> list[str]:
    """Why each case is deferred, in words: a margin too small (`close`, (n,) boolean), and the doubts that weighed.

    Of the doubts those are named that added at least half as much as the largest one, the largest first; beside a
    margin that is too small by itself, those alone that moved the odds by 5 % or more. What argued for deciding, or
    hardly for deferring, is no reason.
    """
    added = doubt[list(weights)].to_numpy() * np.array(list(weights.values()))
    largest = added.max(axis=1, initial=0)
    words = []
    if not weights:
        return ["close to the decision boundary" if near else "" for near in np.asarray(close, dtype=bool).tolist()]
    for near, row, most in zip(np.asarray(close, dtype=bool), added, largest, strict=True):
        named = [
            KINDS[kind]
            for value, kind in sorted(zip(row, weights, strict=True), key=lambda pair: -pair[0])
            if value > (LEAST_ADDED if near else 0) and value >= SHARE_OF_LARGEST * most
        ]
        words.append("; ".join((["close to the decision boundary"] if near else []) + named))
    return words


def learn(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    doubt: pd.DataFrame,
    *,
    groups: ArrayLike,
    refer: Callable[[FloatArray], NDArray[np.bool_]],
    review: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    n_folds: int,
    n_foldings: int,
    rng: np.random.Generator,
) -> LearnedDoubt:
    """Learn the weights of doubt from the errors of validation, and use them only if that is shown to save cost.

    Logistic regression of the error with eta0 as offset, weights at least 0 with a half-normal prior. The first kinds
    in the order of `KINDS` enter, one for every ten patients with an error in a training part of the cross-validation,
    and as many in the end. Cross-fitted by patient, `n_foldings` times, and compared by what the policy costs at these
    prices with the margin and with |2p - 1|; the costs of the foldings are averaged, not the certainties, whose mean
    would be better than any one in use.

    y_true, y_prob: (n,), y_prob calibrated on other patients. doubt: (n, kinds) as `doubts` gives it. groups: (n,)
    patients. refer: which cases certainties (n,) hand over, (n,): those below a threshold, or as many as a budget has.
    review: price of a referral, a number or (n,).
    """
    prices = {"cost_fn": cost_fn, "cost_fp": cost_fp}
    y = as_binary(y_true)
    p, patient = np.asarray(y_prob, dtype=float), pd.factorize(np.asarray(groups))[0]
    margin = deferral.certainty(p, **prices)
    cost = deferral.error_cost(y, deferral.cheapest_decision(p, **prices), **prices)
    error, price = (cost > 0).astype(float), np.broadcast_to(np.asarray(review, dtype=float), y.shape)
    n_errors = np.unique(patient[error == 1]).size
    doubt = doubt.iloc[:, : int(n_errors * (1 - 1 / n_folds)) // ERRORS_PER_WEIGHT]
    weights = _fit(p, doubt, error, **prices)
    if not weights or np.unique(patient[error == 0]).size < n_folds:
        return LearnedDoubt({}, False, n_errors, {}, margin)

    costs: dict[str, list[FloatArray]] = {"margin": [], "plain_margin": []}
    certainties = np.empty((n_foldings, y.size))
    by_margin, plain = np.where(refer(margin), price, cost), deferral.least_certain(np.abs(2 * p - 1))
    for row in certainties:
        fold = patient_folds(error, groups, n_folds=n_folds, rng=rng)
        for k in range(n_folds):
            inside, out = fold != k, fold == k
            fitted = _fit(p[inside], doubt[inside], error[inside], **prices)
            row[out] = lowered(p[out], doubt[out], fitted, **prices)
        referred = refer(row)
        learned = np.where(referred, price, cost)
        costs["margin"].append(learned - by_margin)
        costs["plain_margin"].append(learned - np.where(plain <= referred.sum(), price, cost))
    against = {name: mean_difference(np.mean(rows, axis=0), patient) for name, rows in costs.items()}
    used = all(one.high is not None and one.high < 0 for one in against.values())
    return LearnedDoubt(weights, used, n_errors, against, certainties.mean(axis=0) if used else margin)


def mean_difference(values: FloatArray, groups: ArrayLike) -> Estimate:
    """Mean of values (n,) with the Normal 95 % interval of a mean over patients, cases of one patient kept together."""
    centre, error = float(values.mean()), clustered_standard_error(values, groups)
    return Estimate(centre, centre - Z_95 * error, centre + Z_95 * error)


def log_odds(y_prob: ArrayLike) -> FloatArray:
    """Log odds (n,) of probabilities (n,), at most those of one in a million."""
    return np.asarray(logit(np.clip(y_prob, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)))


def _odds_and_stake(p: FloatArray, *, cost_fn: float, cost_fp: float) -> tuple[FloatArray, FloatArray]:
    """Log odds that the cheapest decision is wrong, and what it then costs as a share of R_max, both (n,)."""
    positive = deferral.cheapest_decision(p, cost_fn=cost_fn, cost_fp=cost_fp) == 1
    indifferent = deferral.indifference(cost_fn, cost_fp)
    return log_odds(np.where(positive, 1 - p, p)), np.where(positive, 1 / (1 - indifferent), 1 / indifferent)


def _fit(p: FloatArray, doubt: pd.DataFrame, error: FloatArray, *, cost_fn: float, cost_fp: float) -> dict[str, float]:
    if doubt.empty:
        return {}
    eta0, _ = _odds_and_stake(p, cost_fn=cost_fn, cost_fp=cost_fp)
    x = doubt.to_numpy()

    # sum_i [ln(1 + exp(eta_i)) - e_i eta_i] + |w|^2 / (2 sd^2)
    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        eta = eta0 + x @ w
        value = np.logaddexp(0, eta).sum() - error @ eta + w @ w / (2 * PRIOR_SD**2)
        return value, x.T @ (expit(eta) - error) + w / PRIOR_SD**2

    kinds = list(doubt)
    fitted = minimize(loss, np.zeros(len(kinds)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(kinds)).x
    return dict(zip(kinds, fitted.tolist(), strict=True))
