"""What mending a kind of failure is predicted to gain, and what a repair gained on cases that nobody had seen.

Every gain is positive where things got better: accuracy and AUROC after less before, costs before less after.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit

from tmv_lib.deferral import costs
from tmv_lib.failures import taxonomy
from tmv_lib.readers import obuchowski_rockette
from tmv_lib.readers.answer import estimate_difference
from tmv_lib.readers.obuchowski_rockette import Jackknifed
from tmv_lib.statistics.classification import accuracy, negative_log_likelihood, sensitivity, specificity
from tmv_lib.statistics.estimate import Estimate, Resampler, mean
from tmv_lib.statistics.ranking import auroc

COMPARED = ("accuracy_gain", "auroc_gain", "failure_cost_gain")  # predicted as well as obtained
FEWEST_SEEDS = 3


class Arm(NamedTuple):
    """One side of a comparison, a row a case and training seed: labels (n,), probabilities (n,), and the prices."""

    y_true: np.ndarray
    y_prob: np.ndarray
    prices: costs.Prices


def predicted(test: pd.DataFrame, of_kind: np.ndarray, kind: str, prices: costs.Prices, resampler: Resampler) -> dict:
    """What would be gained were every test error of a kind mended (`taxonomy.mended`), as `failures` sorts them.

    test: `y_true`, `y_prob` of every test case; of_kind: (n,) whether it is an error of the kind. failure_cost_gain:
    every case decided as the prices ask for.
    """
    y_true, y_prob = test["y_true"].to_numpy(), test["y_prob"].to_numpy()
    arrays = y_true, y_prob, *taxonomy.mended(y_true, y_prob, of_kind, kind=kind)
    price = np.where(y_true == 1, prices.cost_fn, prices.cost_fp)
    return {
        "n_errors": int(of_kind.sum()),
        "accuracy_gain": resampler.estimate(mean, of_kind.astype(float)),
        "auroc_gain": resampler.estimate(taxonomy.auroc_gain, *arrays, stratify=y_true),
        "failure_cost_gain": resampler.estimate(mean, price * of_kind),
    }


def obtained(seed: np.ndarray, patient: np.ndarray, before: Arm, after: Arm) -> dict[str, Any]:
    """What a repair gained, paired by case and training seed, with patients and seeds both random.

    seed, patient (n,) of each row of both arms. The mean over seeds with the interval of Obuchowski and Rockette,
    training seeds in the place of readers: it holds for other patients and for another training. Absent for fewer than
    three seeds.
    """
    seeds, seed_code = np.unique(seed, return_inverse=True)
    if len(seeds) < FEWEST_SEEDS:
        few = f"{len(seeds)} training seeds, {FEWEST_SEEDS} are needed to tell a repair from another training"
        return dict.fromkeys(MEASURES, Estimate(absent=few))
    patients, patient_code = np.unique(patient, return_inverse=True)
    options: dict[str, Any] = {"reader": seed_code, "patient": patient_code, "shape": (len(patients), len(seeds))}
    figures: dict[str, Any] = {"n_seeds": len(seeds), "n_patients": len(patients)}
    figures["n"] = int(len(seed) / len(seeds))
    for name, (metric, sign) in MEASURES.items():
        try:
            first, second = (
                obuchowski_rockette.jackknife(partial(metric, prices=arm.prices), arm.y_true, arm.y_prob, **options)
                for arm in (before, after)
            )
        except ValueError as error:
            figures[name] = Estimate(absent=str(error))
            continue
        gain = second.minus(first)
        signed = Jackknifed(sign * gain.values, sign * gain.without)
        figures[name] = estimate_difference(signed, len(patients) if sign > 0 else 0)
    return figures


def errors_by_cause(cause: np.ndarray, seed: np.ndarray, patient: np.ndarray, before: Arm, after: Arm) -> dict:
    """Where it was planted: of the cases with each cause, the error rate before the repair, and by how much it fell."""
    figures: dict[str, Any] = {}
    for name in sorted(set(cause)):
        here = cause == name
        arms = [Arm(arm.y_true[here], arm.y_prob[here], arm.prices) for arm in (before, after)]
        wrong = np.mean((arms[0].y_prob > 0.5) != (arms[0].y_true == 1))
        gain = obtained(seed[here], patient[here], *arms)["accuracy_gain"]
        figures[str(name)] = {"n": int(here.sum() / len(set(seed))), "error_rate": float(wrong), "fell_by": gain}
    return figures


def within(expected: Estimate, found: Estimate) -> bool | None:
    """Whether the predicted gain lies in the interval of the obtained one; None where either is absent."""
    if expected.value is None or found.low is None or found.high is None:
        return None
    return bool(found.low <= expected.value <= found.high)


def _called(metric: Callable[..., Any]) -> Callable[..., Any]:
    """A metric of answers, of the probabilities that they are more than one half."""

    def measured(y_true: np.ndarray, y_prob: np.ndarray, *, prices: Any, weights: Any = None) -> Any:
        return metric(y_true, (y_prob > 0.5).astype(int), weights=weights)

    return measured


def _auroc(y_true: np.ndarray, y_prob: np.ndarray, *, prices: Any, weights: Any = None) -> Any:
    return auroc(y_true, y_prob, weights=weights)


def _nll(y_true: np.ndarray, y_prob: np.ndarray, *, prices: Any, weights: Any = None) -> Any:
    return negative_log_likelihood(y_true, logit(np.clip(y_prob, 1e-6, 1 - 1e-6)), weights=weights)


def _cost_of_deciding(y_true: np.ndarray, y_prob: np.ndarray, *, prices: costs.Prices, weights: Any = None) -> Any:
    return costs.failure_cost(
        y_true, costs.cheapest_decision(y_prob, **prices.errors), weights=weights, **prices.of(y_true)
    )


def _cost_of_policy(y_true: np.ndarray, y_prob: np.ndarray, *, prices: costs.Prices, weights: Any = None) -> Any:
    called = costs.cheapest_decision(y_prob, **prices.errors)
    deferred = costs.decide(costs.certainty(y_prob, **prices.errors), threshold=prices.chow_threshold)
    return costs.failure_cost(y_true, called, deferred=deferred, weights=weights, **prices.of(y_true))


# By name the metric of labels, probabilities and prices, and 1 where more of it is better, else -1.
MEASURES: dict[str, tuple[Callable[..., Any], int]] = {
    "accuracy_gain": (_called(accuracy), 1),
    "auroc_gain": (_auroc, 1),
    "failure_cost_gain": (_cost_of_deciding, -1),
    "policy_cost_gain": (
        _cost_of_policy,
        -1,
    ),  # of the policy by price-weighted margin, at the threshold the prices ask for
    "sensitivity_gain": (_called(sensitivity), 1),
    "specificity_gain": (_called(specificity), 1),
    "nll_gain": (_nll, -1),
}
