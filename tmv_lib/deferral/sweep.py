"""What a policy would do at other thresholds and prices: curves to draw, on cases as in `evaluation`."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tmv_lib.deferral import costs as pricing
from tmv_lib.deferral import selective
from tmv_lib.deferral.costs import Prices, least_certain, margins
from tmv_lib.statistics.arrays import FloatArray, as_finite
from tmv_lib.statistics.estimate import curve


def risk_coverage(cases: pd.DataFrame, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Risk-coverage curves of each certainty (n,), of a lottery and of an oracle, as rows to draw."""
    error = (cases["decision"] != cases["y_true"]).astype(int).to_numpy()
    rows = [curve(name, **selective.risk_coverage_curve(error, kappa)._asdict()) for name, kappa in scores.items()]
    n, n_errors = len(error), int(error.sum())
    coverage = np.linspace(1 / n, 1, n)
    rows.append(curve("random", coverage=coverage, selective_risk=np.full(n, n_errors / n)))
    left = np.maximum(0, np.arange(1, n + 1) - (n - n_errors))
    rows.append(curve("oracle", coverage=coverage, selective_risk=left / np.arange(1, n + 1)))
    return pd.concat(rows)


def net_benefits(cases: pd.DataFrame, prices: Prices, *, threshold_probs: FloatArray) -> pd.DataFrame:
    """Decision curve: net benefit at each threshold probability in (0, 1), with and without pricing.

    Decisions are p > threshold probability; the referrals are those of the policy, at their price in missed positives.
    """
    y_true, y_prob = cases["y_true"].to_numpy(), cases["y_prob"].to_numpy()
    referral = prices.of(y_true)["review"] / prices.cost_fn
    nobody, everybody = np.zeros(len(cases)), np.ones(len(cases))
    rows = []
    for p in threshold_probs:
        series = {
            "policy": (y_prob > p, cases["deferred"]),
            "ensemble decides all": (y_prob > p, nobody),
            "all called positive": (everybody, nobody),
            "nobody called positive": (nobody, nobody),
        }
        for name, (y_pred, deferred) in series.items():
            # (TP - odds FP - what the referrals cost) / n, TP with those that doctors find = prevalence - failure cost
            costs = {"cost_fn": 1, "cost_fp": p / (1 - p), "review": referral}
            cost = pricing.failure_cost(y_true, y_pred, deferred=deferred, **costs)
            rows.append((name, p, y_true.mean() - cost))
    return pd.DataFrame(rows, columns=["series", "threshold_prob", "net_benefit"])


def threshold_sweep(cases: pd.DataFrame, prices: Prices, *, thresholds: ArrayLike) -> pd.DataFrame:
    """One row a threshold in [0, 1]: what is decided, how well, what the policy costs and what it is worth.

    Returns columns `threshold`, `coverage`, `deferral_rate`, `selective_risk`, `sensitivity` and `specificity` of
    the decided cases (empty where no such case is decided), `errors_left`, `errors_avoided` (counts), `failure_cost`;
    `reduction` of it against the decisions of `baseline`, a column of 0 and 1, on all cases, and
    `break_even_review_price` (both empty where there is none); `net_benefit`, at the odds of the prices.
    """
    y_true, y_pred = cases["y_true"].to_numpy(), cases["decision"].to_numpy()
    thresholds, n = as_finite(thresholds, name="thresholds", low=0, high=1), len(cases)
    of_case = prices.of(y_true)
    missed, alarmed = y_true * (1 - y_pred), (1 - y_true) * y_pred
    order = np.argsort(cases["certainty"].to_numpy())
    per_case = np.stack([np.ones(n), y_true, missed, alarmed, of_case["review"]])[:, order]
    below = np.concatenate([np.zeros((5, 1)), per_case.cumsum(axis=1)], axis=1)
    deferred = below[:, np.searchsorted(cases["certainty"].to_numpy()[order], thresholds, side="left")]
    decided, positives, misses, alarms, _ = below[:, -1:] - deferred
    errors, rate = misses + alarms, deferred[0] / n
    cost = (prices.cost_fn * misses + prices.cost_fp * alarms + deferred[4]) / n
    everything = pricing.failure_cost(y_true, y_pred, **of_case)
    rival = pricing.failure_cost(y_true, cases["baseline"], **of_case)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "coverage": decided / n,
            "deferral_rate": rate,
            "selective_risk": _share(errors, decided),
            "sensitivity": _share(positives - misses, positives),
            "specificity": _share(decided - positives - alarms, decided - positives),
            "errors_left": errors.astype(int),
            "errors_avoided": (missed.sum() + alarmed.sum() - errors).astype(int),
            "failure_cost": cost,
            "reduction": 1 - cost / rival if rival > 0 else np.nan,
            # cost(r) = cost(review) + (r - review) rate = everything
            "break_even_review_price": prices.review + _share(everything - cost, rate),
            "net_benefit": y_true.mean() - cost / prices.cost_fn,
        }
    )


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, not a number where whole is 0, which a table shows as empty."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def cost_optimal(sweeps: dict[str, pd.DataFrame]) -> dict[str, float]:
    """The threshold that is cheapest on validation, the smallest of several, and cost and coverage of each sweep."""
    cost, thresholds = (sweeps["validation"][name] for name in ("failure_cost", "threshold"))
    found = {"threshold": float(thresholds[cost <= cost.min() + 1e-12].min())}
    for name, rows in sweeps.items():
        row = rows.loc[rows["threshold"] == found["threshold"]].iloc[0]
        found |= {f"{name}_{key}": float(row[key]) for key in ("failure_cost", "coverage")}
    return found


def swept(sweeps: dict[str, pd.DataFrame], test: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """The sweeps, named, as rows to draw; beside that of `test`, what its rivals cost at the same rate of deferral."""
    y_true, decision = test["y_true"].to_numpy(), test["decision"].to_numpy()
    of_case = prices.of(y_true)
    like = sweeps["test"][["threshold", "coverage", "deferral_rate"]]
    rate = like["deferral_rate"].to_numpy()
    rivals: dict[str, Any] = dict(pricing.deferral_costs_at(y_true, decision, deferral_rate=rate, **of_case))
    for name, margin in margins(test, prices).items():
        referred = least_certain(margin) <= np.round(rate * len(test))[:, None]
        costs = [pricing.failure_cost(y_true, decision, deferred=these, **of_case) for these in referred]
        rivals[name.replace("_", " ")] = costs
    order = ("random", "margin", "plain margin", "oracle")
    rows = [sweep.assign(series=name) for name, sweep in sweeps.items()]
    return pd.concat([*rows, *(like.assign(failure_cost=rivals[name], series=f"test, {name}") for name in order)])
