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
from scipy.stats import rankdata

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite, as_weights

BoolArray = NDArray[np.bool_]

NEVER = -1.0  # in place of a certainty: a case that no threshold lets through


def certainty(y_prob: ArrayLike, *, cost_fn: float, cost_fp: float) -> FloatArray:
    """Certainty in [0, 1]: 1 where deciding is expected to cost nothing, 0 where it costs the most it can.

    With equal costs it is |2p - 1|. y_prob (n,) in [0, 1], calibrated: the costs of a probability that is not
    are not the expected ones.

    >>> certainty([0.0, 0.35, 0.5, 0.75], cost_fn=1, cost_fp=1).round(2).tolist()
    [1.0, 0.3, 0.0, 0.5]
    """
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    # rho = min(c_FN p, c_FP (1 - p)) / R_max = min(p / p*, (1 - p) / (1 - p*)),  certainty = 1 - rho
    indifferent = indifference(cost_fn, cost_fp)
    return np.clip(1 - np.minimum(p / indifferent, (1 - p) / (1 - indifferent)), 0, 1)


def cheapest_decision(y_prob: ArrayLike, *, cost_fn: float, cost_fp: float) -> NDArray[np.intp]:
    """1 where calling the case positive is expected to cost less than calling it negative, else 0; (n,)."""
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    # c_FP (1 - p) < c_FN p
    return (p > indifference(cost_fn, cost_fp)).astype(np.intp)


def decide(certainty: ArrayLike, *, threshold: float) -> BoolArray:
    """True where the case is deferred: certainty < threshold in [0, 1]. Threshold 0 defers nobody but those of `NEVER`.

    certainty (n,) in [0, 1], or `NEVER`.

    >>> decide([NEVER, 0.2, 0.3, 0.4], threshold=0.3).tolist()
    [True, True, False, False]
    """
    certainty = as_finite(certainty, name="certainty", low=NEVER, high=1)
    _require_share("threshold", threshold)
    return certainty < threshold


def chow_review_price(threshold: float, *, cost_fn: float, cost_fp: float) -> float:
    """The review price at which `decide` with this threshold costs least, (1 - t) R_max (Chow 1970)."""
    _require_share("threshold", threshold)
    return (1 - threshold) * cost_fn * indifference(cost_fn, cost_fp)


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
    _require_share("sensitivity", sensitivity)
    _require_share("specificity", specificity)
    most = cost_fn * indifference(cost_fn, cost_fp)
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
    _require_costs(cost_fn, cost_fp)
    _require_share("sensitivity", sensitivity)
    _require_share("specificity", specificity)
    missed, alarmed = cost_fn * (1 - sensitivity) * y_true, cost_fp * (1 - specificity) * (1 - y_true)
    return _as_review(review, n=y_true.size) + missed + alarmed


def error_cost(y_true: ArrayLike, y_pred: ArrayLike, *, cost_fn: float, cost_fp: float) -> FloatArray:
    """What deciding each case automatically did cost: cost_fn, cost_fp or 0; (n,)."""
    y_true = as_binary(y_true)
    y_pred = as_binary(y_pred, name="y_pred", n=y_true.size)
    _require_costs(cost_fn, cost_fp)
    return cost_fn * y_true * (1 - y_pred) + cost_fp * (1 - y_true) * y_pred


def case_costs(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
    deferred: ArrayLike | None = None,
) -> FloatArray:
    """What each case costs (n,): its referral where it is `deferred`, else the error of its decision, if it is one."""
    cost = error_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp)
    price = _as_review(review, n=cost.size)
    if deferred is None:
        return cost
    return np.where(as_binary(deferred, name="deferred", n=cost.size) == 1, price, cost)


def failure_cost(y_true: ArrayLike, y_pred: ArrayLike, *, weights: ArrayLike | None = None, **costs: Any) -> Any:
    """Mean cost of a case: (cost_fn FN + cost_fp FP + review D) / n, FN and FP among the decided, D the deferred.

    costs: the prices and `deferred` as in `case_costs`. weights: (n,) or (resamples, n), as in
    `tmv_lib.statistics.arrays`. Returns a float, or an array (resamples,).

    >>> costs = {"cost_fn": 5, "cost_fp": 1, "review": 0.25}
    >>> float(failure_cost([1, 1, 0, 0], [0, 0, 1, 0], deferred=[1, 0, 0, 0], **costs))  # (0.25 + 5 + 1 + 0) / 4
    1.5625
    """
    cost = case_costs(y_true, y_pred, **costs)
    weights = as_weights(weights, n=cost.size)
    return weights @ cost / weights.sum(axis=-1)


def break_even_review_price(avoided: ArrayLike, deferred: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """The review price at which deferring these cases costs as much as deciding all: cost avoided per referral.

    An average over the deferred: the case at the threshold breaks even at `chow_review_price`. avoided: what each case
    costs where it is decided, less the doctor's expected errors in it, (n,). Below 0 where these cost more: no price
    pays then. weights: (n,) or (resamples, n), as in `tmv_lib.statistics.arrays`. Returns a float, or an array
    (resamples,). Raises ValueError where nobody is deferred.
    """
    avoided = as_finite(avoided, name="avoided")
    counted = as_weights(weights, n=avoided.size) * as_binary(deferred, name="deferred", n=avoided.size)
    if not counted.sum(axis=-1).all():
        raise ValueError("no case is deferred: there is no price at which referrals break even")
    return counted @ avoided / counted.sum(axis=-1)


def threshold_for_budget(certainty: ArrayLike, *, budget: float) -> float:
    """The largest threshold in [0, 1] that defers at most the share `budget` in [0, 1] of these cases.

    Those of `NEVER` are deferred whatever the budget, and count towards it.
    """
    certainty = as_finite(certainty, name="certainty", low=NEVER, high=1)
    _require_share("budget", budget)
    affordable = int(budget * certainty.size + 1e-9)  # 0.29 * 100 falls just short of 29
    return 1.0 if affordable == certainty.size else max(0.0, float(np.sort(certainty)[affordable]))


def deferral_costs_at(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    deferral_rate: ArrayLike,
    cost_fn: float,
    cost_fp: float,
    review: ArrayLike,
) -> dict[str, FloatArray]:
    """Failure cost (k,) when these shares of the cases are deferred, by lot and by an oracle, whom no policy undercuts.

    `random` is what to expect, (1 - r) cost of deciding all + r review; `oracle` defers the cases first whose referral
    saves most, and a share that is no whole number of cases mixes its two neighbours. deferral_rate: (k,) in [0, 1].
    """
    rate = as_finite(deferral_rate, name="deferral_rate", low=0, high=1)
    cost = error_cost(y_true, y_pred, cost_fn=cost_fn, cost_fp=cost_fp)
    price = _as_review(review, n=cost.size)
    left = cost.sum() - np.append(0, np.cumsum(np.sort(cost - price)[::-1]))  # left[D]: to pay with D referrals
    return {
        "random": (1 - rate) * cost.mean() + rate * price.mean(),
        "oracle": np.interp(rate * cost.size, np.arange(cost.size + 1), left) / cost.size,
    }


def indifference(cost_fn: float, cost_fp: float) -> float:
    """p*, the probability at which both decisions are expected to cost the same; R_max = cost_fn p*."""
    _require_costs(cost_fn, cost_fp)
    return cost_fp / (cost_fn + cost_fp)


def _require_costs(cost_fn: float, cost_fp: float) -> None:
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


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], found {value}")


class Prices(NamedTuple):
    """What errors and referrals cost, and how well the doctor reads what is referred: `sensitivity`, `specificity`."""

    cost_fn: float
    cost_fp: float
    review: float
    sensitivity: float = 1.0
    specificity: float = 1.0

    @property
    def errors(self) -> dict[str, float]:
        return {"cost_fn": self.cost_fn, "cost_fp": self.cost_fp}

    @property
    def chow_threshold(self) -> float:
        return chow_threshold(**self._asdict())

    def of(self, y_true: np.ndarray) -> dict[str, Any]:
        """`cost_fn`, `cost_fp` and the `review` of each case, the doctor's expected errors in it."""
        return self.errors | {"review": referral_cost(y_true, **self._asdict())}

    def named(self) -> dict[str, dict[str, float]]:
        """The prices under `cost` and the doctor under `reader`, in full words."""
        cost = {"false_negative": self.cost_fn, "false_positive": self.cost_fp, "review": self.review}
        return {"cost": cost, "reader": {"sensitivity": self.sensitivity, "specificity": self.specificity}}


def margins(cases: pd.DataFrame, prices: Prices) -> dict[str, np.ndarray]:
    """The certainties (n,) that need nothing but the probability: weighted by the prices, and |2p - 1|.

    `NEVER` for the cases out of distribution, as in any policy.
    """
    y_prob, foreign = cases["y_prob"].to_numpy(), cases["out_of_distribution"].to_numpy(dtype=bool)
    both = {"margin": certainty(y_prob, **prices.errors), "plain_margin": np.abs(2 * y_prob - 1)}
    return {name: np.where(foreign, NEVER, values) for name, values in both.items()}


def least_certain(certainties: np.ndarray) -> np.ndarray:
    """Rank of each case (n,) from 1 in the order in which they are deferred."""
    return np.asarray(rankdata(certainties, method="ordinal"))
