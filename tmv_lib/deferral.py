"""Which cases go to a doctor, and what that costs.

Costs are in one unit, that of whoever pays: `cost_fn` of a missed positive, `cost_fp` of a false alarm, `review` of one
referral: a number, or one a case (n,) where the doctor's own expected errors are in it (`referral_cost`).
`R_max = cost_fn cost_fp / (cost_fn + cost_fp)` is the most that the cheaper decision can be expected to cost.

The automatic decision is the one that is cheaper in expectation, p > cost_fp / (cost_fn + cost_fp), and not p > 0.5:
the certainty below is built on its expected cost, and with any other decision a case could be called certain and
decided at the higher price. With equal costs the two are the same. With unequal costs part of what a policy saves
comes from this cut-off and not from referrals: the policy with threshold 0 shows how much.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.preprocessing import StandardScaler

from tmv_lib.statistics import FloatArray, as_binary, as_finite, as_weights, patient_folds

BoolArray = NDArray[np.bool_]

_LEAST_PROBABILITY = 1e-6  # log odds stay finite
_LEAST_SPREAD = 1e-5  # of a signal: what single precision leaves of a logit


def certainty(y_prob: ArrayLike, *, cost_fn: float, cost_fp: float) -> FloatArray:
    """kappa in [0, 1]: 1 where deciding is expected to cost nothing, 0 where it costs the most it can.

    With equal costs kappa = |2p - 1|. y_prob (n,) in [0, 1], calibrated: the costs of a probability that is not
    are not the expected ones.

    >>> certainty([0.0, 0.35, 0.5, 0.75], cost_fn=1, cost_fp=1).round(2).tolist()
    [1.0, 0.3, 0.0, 0.5]
    """
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    # rho = min(c_FN p, c_FP (1 - p)) / R_max = min(p / p*, (1 - p) / (1 - p*)),  kappa = 1 - rho
    indifferent = _indifference(cost_fn, cost_fp)
    return np.clip(1 - np.minimum(p / indifferent, (1 - p) / (1 - indifferent)), 0, 1)


def cheapest_decision(y_prob: ArrayLike, *, cost_fn: float, cost_fp: float) -> NDArray[np.intp]:
    """1 where calling the case positive is expected to cost less than calling it negative, else 0; (n,)."""
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    # c_FP (1 - p) < c_FN p
    return (p > _indifference(cost_fn, cost_fp)).astype(np.intp)


def decide(kappa: ArrayLike, *, threshold: float) -> BoolArray:
    """True where the case is deferred: kappa < threshold, both in [0, 1]. Threshold 0 defers nobody.

    >>> decide([0.2, 0.3, 0.4], threshold=0.3).tolist()
    [True, False, False]
    """
    kappa = as_finite(kappa, name="kappa", low=0, high=1)
    _check_share("threshold", threshold)
    return kappa < threshold


def chow_review_price(threshold: float, *, cost_fn: float, cost_fp: float) -> float:
    """The review price at which `decide` with this threshold costs least, (1 - t) R_max (Chow 1970)."""
    _check_share("threshold", threshold)
    return (1 - threshold) * cost_fn * _indifference(cost_fn, cost_fp)


def chow_threshold(
    review: float, *, cost_fn: float, cost_fp: float, sensitivity: float = 1.0, specificity: float = 1.0
) -> float:
    """The threshold at which a referral is expected to cost what the automatic decision costs, in [0, 1].

    Of the case of least certainty, p = p*, with a doctor of this sensitivity and specificity in [0, 1]: a referral
    costs review + R_max (2 - sensitivity - specificity), the decision R_max, so that t = sensitivity + specificity - 1
    - review / R_max (Youden's index, less the price). With a perfect doctor this is Chow's rule for every case.
    0: deferral never pays, for no case is a decision expected to cost more than a referral.

    >>> round(chow_threshold(0.25, cost_fn=5, cost_fp=1), 3), chow_threshold(1, cost_fn=5, cost_fp=1)
    (0.7, 0.0)
    """
    _as_review(review, n=1)
    _check_share("sensitivity", sensitivity)
    _check_share("specificity", specificity)
    most = cost_fn * _indifference(cost_fn, cost_fp)
    return float(np.clip(sensitivity + specificity - 1 - review / most, 0, 1))


def referral_cost(
    y_true: ArrayLike, *, cost_fn: float, cost_fp: float, review: float, sensitivity: float, specificity: float
) -> FloatArray:
    """What a referral of each case is expected to cost: the review, and the errors of the doctor who reads it; (n,).

    sensitivity, specificity: of the doctor on deferred cases, in [0, 1]; 1 is a doctor who does not err.

    >>> referral_cost([1, 0], cost_fn=5, cost_fp=1, review=0.25, sensitivity=0.9, specificity=0.8).round(2).tolist()
    [0.75, 0.45]
    """
    y_true = as_binary(y_true)
    _check_costs(cost_fn, cost_fp)
    _check_share("sensitivity", sensitivity)
    _check_share("specificity", specificity)
    missed, alarmed = cost_fn * (1 - sensitivity) * y_true, cost_fp * (1 - specificity) * (1 - y_true)
    return _as_review(review, n=y_true.size) + missed + alarmed


def error_cost(y_true: ArrayLike, y_pred: ArrayLike, *, cost_fn: float, cost_fp: float) -> FloatArray:
    """What deciding each case automatically did cost: cost_fn, cost_fp or 0; (n,)."""
    y_true = as_binary(y_true)
    y_pred = as_binary(y_pred, name="y_pred", n=y_true.size)
    _check_costs(cost_fn, cost_fp)
    return cost_fn * y_true * (1 - y_pred) + cost_fp * (1 - y_true) * y_pred


def failure_cost(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
    deferred: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Any:
    """Mean cost of a case: (cost_fn FN + cost_fp FP + review D) / n, FN and FP among the decided, D the deferred.

    y_true, y_pred, deferred: (n,) of 0 and 1; nobody is deferred where `deferred` is left out.
    weights: (n,) or (resamples, n), as in `tmv_lib.statistics`.

    Returns a float, or an array (resamples,).

    >>> costs = {"cost_fn": 5, "cost_fp": 1, "review": 0.25}
    >>> float(failure_cost([1, 1, 0, 0], [0, 0, 1, 0], deferred=[1, 0, 0, 0], **costs))  # (0.25 + 5 + 1 + 0) / 4
    1.5625
    """
    cost = error_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp)
    price = _as_review(review, n=cost.size)
    if deferred is not None:
        cost = np.where(as_binary(deferred, name="deferred", n=cost.size) == 1, price, cost)
    weights = as_weights(weights, n=cost.size)
    return weights @ cost / weights.sum(axis=-1)


def break_even_review_price(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    deferred: ArrayLike,
    *,
    cost_fn: float,
    cost_fp: float,
    sensitivity: float = 1.0,
    specificity: float = 1.0,
) -> float:
    """The review price at which deferring these cases costs as much as deciding all: cost avoided per referral.

    sensitivity, specificity: of the doctor who reads them. Below 0 where the doctor's errors on these cases cost more
    than the automatic ones: no price pays then. Raises ValueError where nobody is deferred.
    """
    costs = {"cost_fn": cost_fn, "cost_fp": cost_fp}
    cost = error_cost(y_true, y_pred, **costs)
    cost = cost - referral_cost(y_true, review=0, sensitivity=sensitivity, specificity=specificity, **costs)
    mask = as_binary(deferred, name="deferred", n=cost.size) == 1
    if not mask.any():
        raise ValueError("no case is deferred: there is no price at which referrals break even")
    return float(cost[mask].mean())


def threshold_sweep(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    kappa: ArrayLike,
    *,
    thresholds: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
) -> pd.DataFrame:
    """One row a threshold: what is decided, how well, and what the policy costs. The decision is the cheapest one.

    Returns columns `threshold`, `coverage`, `deferral_rate`, `selective_risk`, `sensitivity` and `specificity` of
    the decided cases (empty where no such case is decided), `errors_left`, `errors_avoided` (counts),
    `failure_cost`.
    """
    y_true = as_binary(y_true)
    y_pred = cheapest_decision(as_finite(y_prob, name="y_prob", n=y_true.size), cost_fn=cost_fn, cost_fp=cost_fp)
    kappa = as_finite(kappa, name="kappa", n=y_true.size, low=0, high=1)
    thresholds = as_finite(thresholds, name="thresholds", low=0, high=1)
    price = _as_review(review, n=y_true.size)

    missed, alarmed = y_true * (1 - y_pred), (1 - y_true) * y_pred
    order = np.argsort(kappa)
    per_case = np.stack([np.ones(y_true.size), y_true, missed, alarmed, price])[:, order]
    below = np.concatenate([np.zeros((5, 1)), per_case.cumsum(axis=1)], axis=1)
    deferred = below[:, np.searchsorted(kappa[order], thresholds, side="left")]
    n_decided, positives, misses, alarms, _ = below[:, -1:] - deferred
    negatives, errors, n = n_decided - positives, misses + alarms, y_true.size

    return pd.DataFrame(
        {
            "threshold": thresholds,
            "coverage": n_decided / n,
            "deferral_rate": deferred[0] / n,
            "selective_risk": _share(errors, n_decided),
            "sensitivity": _share(positives - misses, positives),
            "specificity": _share(negatives - alarms, negatives),
            "errors_left": errors.astype(int),
            "errors_avoided": (missed.sum() + alarmed.sum() - errors).astype(int),
            "failure_cost": (cost_fn * misses + cost_fp * alarms + deferred[4]) / n,
        }
    )


def cost_optimal_threshold(sweep: pd.DataFrame) -> float:
    """The threshold of a `threshold_sweep` with the least failure cost; where several have it, the smallest."""
    cheapest = sweep[sweep["failure_cost"] <= sweep["failure_cost"].min() + 1e-12]
    return float(cheapest["threshold"].min())


def threshold_for_budget(kappa: ArrayLike, *, budget: float) -> float:
    """The largest threshold in [0, 1] that defers at most the share `budget` in [0, 1] of these cases."""
    kappa = as_finite(kappa, name="kappa", low=0, high=1)
    _check_share("budget", budget)
    affordable = int(budget * kappa.size + 1e-9)  # 0.29 * 100 falls just short of 29
    return 1.0 if affordable == kappa.size else float(np.sort(kappa)[affordable])


def random_deferral_cost(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    deferral_rate: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
) -> FloatArray:
    """Expected failure cost when this share of cases is deferred by lot: (1 - r) cost of deciding all + r review.

    deferral_rate: (k,) in [0, 1]. Returns (k,).
    """
    rate = as_finite(deferral_rate, name="deferral_rate", low=0, high=1)
    everything = failure_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp, review=review)
    return (1 - rate) * everything + rate * float(np.asarray(review, dtype=float).mean())


def oracle_deferral_cost(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    deferral_rate: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
) -> FloatArray:
    """Failure cost when the cases are deferred first whose referral saves most: no policy can do better.

    deferral_rate: (k,) in [0, 1]; a share that is no whole number of cases mixes its two neighbours. Returns (k,).
    """
    rate = as_finite(deferral_rate, name="deferral_rate", low=0, high=1)
    cost = error_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp)
    saved = np.sort(cost - _as_review(review, n=cost.size))[::-1]
    left = cost.sum() - np.append(0, np.cumsum(saved))  # left[D]: to pay with D referrals
    return np.interp(rate * cost.size, np.arange(cost.size + 1), left) / cost.size


def net_benefit(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    odds: float,
    referral: ArrayLike = 0.0,
    deferred: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Any:
    """Net benefit (Vickers & Elkin 2006) with deferral: true positives a case, less what they were bought with.

    (TP - odds FP) / n - (what the referrals cost) / n, in true positives a case. A referral counts as found by a
    doctor who does not err, less `referral`: its cost over cost_fn, a number or one a case, the doctor's own expected
    errors in it. With odds = cost_fp / cost_fn it equals prevalence - failure cost / cost_fn.

    odds: p / (1 - p) of the threshold probability, > 0: the false alarms that one missed positive is worth, inverted.
    Returns a float, or an array (resamples,).
    """
    y_true = as_binary(y_true)
    y_pred = as_binary(y_pred, name="y_pred", n=y_true.size)
    if not 0 < odds < np.inf:
        raise ValueError(f"odds must be positive and finite, found {odds}")
    price = _as_review(referral, n=y_true.size)
    benefit = y_true * y_pred - odds * (1 - y_true) * y_pred
    if deferred is not None:
        benefit = np.where(as_binary(deferred, name="deferred", n=y_true.size) == 1, y_true - price, benefit)
    weights = as_weights(weights, n=y_true.size)
    return weights @ benefit / weights.sum(axis=-1)


class CompleteSignals(NamedTuple):
    """Signals without gaps, and how many values each lacked.

    table: the signals, a missing value replaced by the median of the cases fitted on, and behind them a column
        `missing_<signal>` of 0 and 1 for each signal that is missing there for some.
    n_missing: of each signal with gaps, among all cases.
    absent: signals that no case fitted on has, or of which all have the same but for rounding; they are left out.
    medians, gaps: what `fill_signals` needs to do the same to new cases.
    """

    table: pd.DataFrame
    n_missing: dict[str, int]
    absent: list[str]
    medians: dict[str, float]
    gaps: list[str]


def complete_signals(signals: pd.DataFrame, *, fitted: BoolArray) -> CompleteSignals:
    """Say where a signal is missing instead of guessing what it would have been; `fitted` (n,) marks the cases to learn
    from.

    Where a signal is missing for the reason that makes a case doubtful (a constant map has no stability), the extra
    column lets `learned_certainty` find that out; where it is missing for no reason, its coefficient stays near 0.
    """
    # a network that says the same of every image differs by rounding alone, and a regression would blow that up
    absent = [name for name in signals if not signals.loc[fitted, name].std(ddof=0) > _LEAST_SPREAD]
    kept = signals.drop(columns=absent)
    missing = kept.isna()
    medians = {str(name): float(value) for name, value in kept[fitted].median().items()}
    gaps = [str(name) for name in kept.columns[missing[fitted].any()]]
    n_missing = {str(name): int(count) for name, count in missing.sum().items() if count}
    return CompleteSignals(fill_signals(kept, medians=medians, gaps=gaps), n_missing, absent, medians, gaps)


def fill_signals(signals: pd.DataFrame, *, medians: dict[str, float], gaps: list[str]) -> pd.DataFrame:
    """The signals that `medians` names, a missing one replaced by its median, and a column `missing_<signal>` of 0 and
    1 for each one in `gaps`.
    """
    kept = signals[list(medians)]
    return kept.fillna(medians).assign(**{f"missing_{name}": kept[name].isna().astype(float) for name in gaps})


class LearnedCertainty(NamedTuple):
    """A certainty that looks at more than the probability, and whether that pays.

    coefficients: (2 + signals,) what is added to the log odds of an error that the probability implies: a constant,
        then per standard deviation of these log odds themselves and of each signal. All 0 is the margin, `certainty`.
    out_of_fold: (n,) kappa of the cases fitted on, each from the other folds, averaged over the foldings.
    cost_difference, standard_error: mean cost of a case, learned minus margin, averaged over the foldings and over all
        review prices from 0 to R_max, and its standard error over patients; None where nothing could be fitted.
    beats_margin: the difference lies more than one standard error below 0; where it does not, keep the margin.
    reason: the same in words.
    """

    scaler: StandardScaler
    coefficients: FloatArray
    cost_fn: float
    cost_fp: float
    out_of_fold: FloatArray
    cost_difference: float | None
    standard_error: float | None
    beats_margin: bool
    reason: str

    def kappa(self, y_prob: ArrayLike, signals: ArrayLike) -> FloatArray:
        """The learned certainty of new cases, (n,) in [0, 1]."""
        return learned_certainty_of(y_prob, signals, self.weights, cost_fn=self.cost_fn, cost_fp=self.cost_fp)

    @property
    def weights(self) -> FloatArray:
        """The coefficients a unit of each regressor instead of a standard deviation, (2 + signals,)."""
        slopes = self.coefficients[1:] / self.scaler.scale_
        return np.append(self.coefficients[0] - slopes @ self.scaler.mean_, slopes)


def learned_certainty_of(
    y_prob: ArrayLike, signals: ArrayLike, weights: ArrayLike, *, cost_fn: float, cost_fp: float
) -> FloatArray:
    """kappa of new cases (n,) in [0, 1] by the weights (2 + k,) of a `LearnedCertainty`; signals (n, k), finite."""
    cases = _describe(y_prob, signals, cost_fn=cost_fn, cost_fp=cost_fp)
    constant, *slopes = np.asarray(weights, dtype=float)
    if len(slopes) != cases.design.shape[1]:
        raise ValueError(f"weights must be {1 + cases.design.shape[1]} numbers, found {1 + len(slopes)}")
    return _kappa(cases, cases.log_odds + constant + cases.design @ slopes)


def learned_certainty(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    signals: ArrayLike,
    *,
    groups: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    n_folds: int,
    n_foldings: int,
    rng: np.random.Generator,
) -> LearnedCertainty:
    """Learn from further signals how likely the cheapest decision is to be wrong, on the scale of `certainty`.

    Logistic regression of the error with the log odds that the probability implies as offset, and a standard normal
    prior on every coefficient of the standardised signals: with little evidence it falls back on the margin, with
    much it recalibrates and goes beyond it. Cross-fitted by patient. Both certainties are compared by what Chow's
    rule costs with them, averaged over all review prices, a proper score of the expected cost; the learned one is
    preferred only if it is cheaper by more than one standard error (Breiman et al. 1984). How the folds are cut moves
    that difference by as much as its standard error; it is averaged over several ways to cut them.

    y_true, y_prob: (n,), y_prob calibrated on other cases or out-of-fold.
    signals: (n, k) numbers, finite: disagreement, mutual information, distance to the training images, what the maps
        tell.
    groups: (n,) patients. With errors, or correct cases, from fewer patients than folds the margin is kept.
    n_folds, n_foldings: folds by patient, and how many ways to cut them are averaged over; at least 2 and 1.

    A certificate needs cases other than these: fitted and certified on the same ones it does not hold.
    """
    cases = _describe(y_prob, signals, cost_fn=cost_fn, cost_fp=cost_fp)
    margin = certainty(y_prob, cost_fn=cost_fn, cost_fp=cost_fp)
    y_pred = cheapest_decision(y_prob, cost_fn=cost_fn, cost_fp=cost_fp)
    cost = error_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp)
    error = (cost > 0).astype(float)
    if n_foldings < 1:
        raise ValueError(f"n_foldings must be at least 1, found {n_foldings}")
    foldings = [patient_folds(error, groups, n_folds=n_folds, rng=rng) for _ in range(n_foldings)]
    patient, _ = pd.factorize(np.asarray(groups))

    if lacking := _lacking(error, patient, n_folds=n_folds):
        scaler, no_change = StandardScaler().fit(cases.design), np.zeros(1 + cases.design.shape[1])
        return LearnedCertainty(scaler, no_change, cost_fn, cost_fp, margin, None, None, False, lacking)

    most = cost_fn * _indifference(cost_fn, cost_fp)
    kappas = np.empty((n_foldings, margin.size))
    for kappa, fold in zip(kappas, foldings, strict=True):
        for held_out in range(n_folds):
            outside = fold == held_out
            kappa[outside] = _learned_kappa(cases.rows(outside), *_fit(cases.rows(~outside), error[~outside]))
    # the mean of the costs, not the cost of the mean: an average of certainties would be better than any one in use
    costs = np.mean([_cost_over_prices(kappa, cost, most=most) for kappa in kappas], axis=0)
    change, out_of_fold = costs - _cost_over_prices(margin, cost, most=most), kappas.mean(axis=0)
    difference, deviation = _mean_over_patients(change, patient)
    beats = difference < -deviation
    reason = (
        f"cost of a case {difference:+.4f} against the margin (standard error {deviation:.4f}): "
        f"the {'learned certainty beats the margin' if beats else 'margin is kept'}"
    )
    return LearnedCertainty(*_fit(cases, error), cost_fn, cost_fp, out_of_fold, difference, deviation, beats, reason)


class _Cases(NamedTuple):
    """The cheapest decision of each case: implied log odds of its error, cost of it / R_max, (n, 1 + k) regressors."""

    log_odds: FloatArray
    stake: FloatArray
    design: FloatArray

    def rows(self, mask: BoolArray) -> "_Cases":
        return _Cases(self.log_odds[mask], self.stake[mask], self.design[mask])


def _describe(y_prob: ArrayLike, signals: ArrayLike, *, cost_fn: float, cost_fp: float) -> _Cases:
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    signals = np.asarray(signals, dtype=float)
    if signals.ndim != 2 or len(signals) != p.size or not np.isfinite(signals).all():
        raise ValueError(f"signals must be finite and of shape ({p.size}, k), found shape {signals.shape}")
    positive = cheapest_decision(p, cost_fn=cost_fn, cost_fp=cost_fp) == 1
    indifferent = _indifference(cost_fn, cost_fp)
    p_error = np.clip(np.where(positive, 1 - p, p), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    log_odds = logit(p_error)
    stake = np.where(positive, 1 / (1 - indifferent), 1 / indifferent)
    return _Cases(log_odds, stake, np.column_stack([log_odds, signals]))


def _lacking(error: FloatArray, patient: NDArray[np.intp], *, n_folds: int) -> str:
    """What there is too little of to learn from, in words; empty where there is enough."""
    for kind, mask in (("errors", error == 1), ("correct cases", error == 0)):
        found = np.unique(patient[mask]).size
        if found < n_folds:
            return f"{mask.sum()} {kind} from {found} patients, at least {n_folds} patients needed: the margin is kept"
    return ""


def _fit(cases: _Cases, error: FloatArray) -> tuple[StandardScaler, FloatArray]:
    scaler = StandardScaler().fit(cases.design)
    x = np.column_stack([np.ones(error.size), scaler.transform(cases.design)])

    # sum_i [ln(1 + exp(eta_i)) - e_i eta_i] + |b|^2 / 2,  eta_i = log_odds_i + b.x_i
    def loss(b: FloatArray) -> tuple[float, FloatArray]:
        eta = cases.log_odds + x @ b
        value = np.logaddexp(0, eta).sum() - error @ eta + b @ b / 2
        return value, x.T @ (expit(eta) - error) + b

    return scaler, minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS").x


def _learned_kappa(cases: _Cases, scaler: StandardScaler, coefficients: FloatArray) -> FloatArray:
    return _kappa(cases, cases.log_odds + coefficients[0] + scaler.transform(cases.design) @ coefficients[1:])


def _kappa(cases: _Cases, eta: FloatArray) -> FloatArray:
    # kappa = 1 - (cost of the error / R_max) P(error),  eta the log odds of the error
    return np.clip(1 - cases.stake * expit(eta), 0, 1)


def _cost_over_prices(kappa: FloatArray, cost: FloatArray, *, most: float) -> FloatArray:
    """Cost of each case under Chow's rule, averaged over review prices d = (1 - t) most with t uniform in [0, 1]."""
    # int_0^1 [d(t) 1(kappa < t) + cost 1(kappa >= t)] dt
    return most * (1 - kappa) ** 2 / 2 + cost * kappa


def _mean_over_patients(values: FloatArray, patient: NDArray[np.intp]) -> tuple[float, float]:
    """Mean of a case, and its standard error with the cases of one patient kept together."""
    mean = values.mean()
    totals = np.bincount(patient, weights=values - mean)
    return float(mean), float(np.sqrt(totals.size / (totals.size - 1) * (totals**2).sum()) / values.size)


def _indifference(cost_fn: float, cost_fp: float) -> float:
    """p*, the probability at which both decisions are expected to cost the same; R_max = cost_fn p*."""
    _check_costs(cost_fn, cost_fp)
    return cost_fp / (cost_fn + cost_fp)


def _check_costs(cost_fn: float, cost_fp: float) -> None:
    for name, cost in (("cost_fn", cost_fn), ("cost_fp", cost_fp)):
        if not 0 < cost < np.inf:
            raise ValueError(f"{name} must be positive and finite, found {cost}")


def _as_review(review: ArrayLike, *, n: int) -> FloatArray:
    """The price of each referral (n,), from one number or one a case."""
    price = np.asarray(review, dtype=float)
    if price.shape not in ((), (n,)):
        raise ValueError(f"review must be a number or one value a case ({n}), found shape {price.shape}")
    if not ((price >= 0) & (price < np.inf)).all():
        raise ValueError(f"review must be at least 0 and finite, found {price[~((price >= 0) & (price < np.inf))][0]}")
    return np.broadcast_to(price, n)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], found {value}")


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, not a number where whole is 0, which a table shows as empty."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
