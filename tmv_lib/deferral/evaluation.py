"""What a deferral policy does on the cases of one split: figures with intervals, for whom, and what it is worth.

`cases` has a row per image: `patient_id`, `y_true`, `y_prob`, `certainty`, `decision` (0 or 1), `deferred` and
`out_of_distribution` (boolean), as `policy.decide` gives them. Where it is compared with the first member,
`y_prob_baseline` and `baseline` are that one's probability and decision. `resampler` is that of these cases.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.calibration.errors import calibration_test, expected_calibration_error
from tmv_lib.calibration.prevalence import prevalence_weights
from tmv_lib.calibration.slope import calibration_in_the_large
from tmv_lib.data import subgroups
from tmv_lib.deferral import costs as pricing
from tmv_lib.deferral import selective
from tmv_lib.deferral.costs import Prices, least_certain, margins
from tmv_lib.deferral.doubt import log_odds
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.classification import accuracy, negative_log_likelihood
from tmv_lib.statistics.estimate import Estimate, Resampler, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import generator
from tmv_lib.statistics.tests import wilson_interval


def ways_to_combine(cases: pd.DataFrame, probs: dict[str, np.ndarray], resampler: Resampler) -> dict[str, Any]:
    """How well each probability (n,), of a member or of a way to combine them, reads the cases."""
    y_true = cases["y_true"].to_numpy()
    return resampler.counts(y_true) | {
        name: {
            "ece": expected_calibration_error(y_true, prob),
            "auroc": resampler.estimate(auroc, y_true, prob, stratify=y_true),
            "nll": resampler.estimate(negative_log_likelihood, y_true, log_odds(prob)),
            "accuracy": resampler.estimate(accuracy, y_true, (prob > 0.5).astype(int)),
        }
        for name, prob in probs.items()
    }


def decisions(
    cases: pd.DataFrame, prices: Prices, resampler: Resampler, *, threshold: float, prevalences: list[float]
) -> dict[str, Any]:
    """What the policy decides at the threshold, how well, and what its calls are worth at each prevalence in (0, 1).

    Threshold and prices imply one another (Chow): `chow_threshold` is what the prices ask for, `chow_review_price` what
    a review would have to cost for this threshold to be the cheapest.
    """
    y_true, decision = cases["y_true"].to_numpy(), cases["decision"].to_numpy()
    decided, wrong = ~cases["deferred"].to_numpy(), decision != y_true
    of_decided = resampler.among(decided)
    coverage = resampler.estimate(mean, decided.astype(float))
    figures: dict[str, Any] = {
        **resampler.counts(y_true),
        "threshold": threshold,
        "coverage": coverage,
        "deferral_rate": 1 - float(coverage.value or 0),
        "chow_threshold": prices.chow_threshold,
        "chow_review_price": pricing.chow_review_price(threshold, **prices.errors),
        "deferral_can_pay": prices.chow_threshold > 0,
        **prices.named(),
    }
    foreign = cases["out_of_distribution"].to_numpy(dtype=float)
    figures["out_of_distribution"] = resampler.estimate(mean, foreign)
    figures["selective_risk"] = of_decided.estimate(mean, wrong[decided].astype(float))
    figures |= of_decided.by_class(y_true[decided], decision[decided], prefix="decided_")
    figures |= resampler.by_class(y_true, decision, prefix="deciding_all_")
    figures["of_the_cases"] = decided_counts(cases)
    figures["at_prevalence"] = {f"{share:g}": predictive_values(cases, share, resampler) for share in prevalences}
    errors, left = int(wrong.sum()), int(wrong[decided].sum())
    return figures | {"errors_deciding_all": errors, "errors_left": left, "errors_avoided": errors - left}


def costs(cases: pd.DataFrame, prices: Prices, resampler: Resampler) -> dict[str, Any]:
    """What a case costs with the policy, with the first member or the ensemble deciding all, and with as many referrals
    by lot, by |2p - 1| and by an oracle; the review price that pays, and the net benefit.
    """
    y_true, decision, deferred, baseline = (
        cases[name].to_numpy().astype(int) for name in ("y_true", "decision", "deferred", "baseline")
    )
    of_case = prices.of(y_true)
    cost = pricing.case_costs(y_true, decision, deferred=deferred, **of_case)
    everything = pricing.case_costs(y_true, decision, **of_case)
    rivals = {
        "baseline": pricing.case_costs(y_true, baseline, **of_case),
        "baseline_at_half": pricing.case_costs(y_true, cases["y_prob_baseline"].to_numpy() > 0.5, **of_case),
        "ensemble": everything,
    }
    figures: dict[str, Any] = {"failure_cost": resampler.estimate(mean_cost, cost)}
    for name, rival in rivals.items():
        figures[f"{name}_decides_all"] = {
            "cost": resampler.estimate(mean_cost, rival),
            "reduction": resampler.estimate(_reduction, cost, rival),
        }
    at_rate = pricing.deferral_costs_at(y_true, decision, deferral_rate=[deferred.mean()], **of_case)
    figures |= {f"{name}_deferral_cost": float(of_all[0]) for name, of_all in at_rate.items()}
    for name, margin in margins(cases, prices).items():
        like = pricing.case_costs(y_true, decision, deferred=least_certain(margin) <= deferred.sum(), **of_case)
        figures[f"{name}_deferral_cost"] = float(like.mean())
        figures[f"cost_minus_{name}"] = resampler.estimate(mean_cost, cost - like)
    avoided = everything - (of_case["review"] - prices.review)
    figures["break_even_review_price"] = resampler.estimate(pricing.break_even_review_price, avoided, deferred)
    figures["doctor_reads_all_cost"] = float(np.mean(of_case["review"]))
    # net benefit = prevalence - failure cost / cost_fn, at the odds of the prices
    figures["net_benefit"] = resampler.estimate(mean_cost, y_true - cost / prices.cost_fn)
    return figures | {"net_benefit_deciding_all": resampler.estimate(mean_cost, y_true - everything / prices.cost_fn)}


def mean_cost(values: FloatArray, *, weights: FloatArray | None = None) -> Any:
    """Mean per case. Not a proportion: what is 0 in every resample of the patients is 0."""
    return mean(values, weights=weights)


def _reduction(cost: FloatArray, rival: FloatArray, *, weights: FloatArray | None = None) -> Any:
    return 1 - mean(cost, weights=weights) / mean(rival, weights=weights)


def calibration_of_decided(cases: pd.DataFrame, resampler: Resampler) -> dict[str, Any]:
    """Whether the probabilities hold among the decided, who keep the extreme ones, beside the same of all cases."""
    figures: dict[str, Any] = {}
    for name, inside in (("decided", ~cases["deferred"].to_numpy()), ("all", np.ones(len(cases), dtype=bool))):
        part, own = cases[inside], resampler.among(inside)
        y_true, y_prob = part["y_true"].to_numpy(), part["y_prob"].to_numpy()
        figures[name] = own.counts(y_true)
        if part.empty:
            figures[name]["ece"] = Estimate(absent="there is no such case")
            continue
        figures[name] |= calibration_test(y_true, y_prob, rng=generator(own.seed, "noise floor"))._asdict()
        figures[name]["in_the_large"] = own.estimate(calibration_in_the_large, y_true, log_odds(y_prob))
    return figures


def rankings(cases: pd.DataFrame, scores: dict[str, np.ndarray], resampler: Resampler) -> dict[str, Any]:
    """How well each certainty (n,) sorts errors last: AURC, its excess over the oracle, and AUGRC."""
    error = (cases["decision"] != cases["y_true"]).astype(int).to_numpy()
    every = {**scores, "random": np.zeros(len(error)), "oracle": -error.astype(float)}
    return {"n_errors": int(error.sum())} | {
        name: {
            metric.__name__: resampler.estimate(metric, error, score)
            for metric in (selective.aurc, selective.eaurc, selective.augrc)
        }
        for name, score in every.items()
    }


def summary(cases: pd.DataFrame, prices: Prices, resampler: Resampler) -> dict[str, Any]:
    """Errors, accuracy, coverage, selective risk and failure cost of one policy."""
    y_true, y_pred, deferred = (cases[name].to_numpy() for name in ("y_true", "decision", "deferred"))
    wrong, decided = y_pred != y_true, ~deferred
    at_half = (cases["y_prob"].to_numpy() > 0.5).astype(int)
    return {
        "n": len(cases),
        "errors_deciding_all": int(wrong.sum()),
        "errors_left": int(wrong[decided].sum()),
        "accuracy_at_half": resampler.estimate(accuracy, y_true, at_half),
        "coverage": resampler.estimate(mean, decided.astype(float)),
        "selective_risk": resampler.among(decided).estimate(mean, wrong[decided].astype(float)),
        "failure_cost": resampler.estimate(
            mean_cost, pricing.case_costs(y_true, y_pred, deferred=deferred, **prices.of(y_true))
        ),
    }


def decided_counts(cases: pd.DataFrame) -> dict[str, int]:
    """How many positives and negatives are decided rightly, wrongly, or deferred."""
    deferred, positive, called = (cases[name].to_numpy() == 1 for name in ("deferred", "y_true", "decision"))
    became = {"called_positive": ~deferred & called, "called_negative": ~deferred & ~called, "deferred": deferred}
    return {
        f"{truth}_{what}": int((of_class & these).sum())
        for truth, of_class in (("positive", positive), ("negative", ~positive))
        for what, these in became.items()
    }


def predictive_values(cases: pd.DataFrame, prevalence: float, resampler: Resampler) -> dict[str, Estimate]:
    """Precision and negative predictive value of the decided cases, were this share in (0, 1) of all cases positive.

    Every class keeps the way it is deferred and decided here and only its weight changes: the prevalence is that of the
    cases that come in, and among the decided it is another.
    """
    y_true, decision = cases["y_true"].to_numpy(), cases["decision"].to_numpy()
    decided = ~cases["deferred"].to_numpy()
    figures: dict[str, Estimate] = {}
    for name, called in (("precision", 1), ("negative_predictive_value", 0)):
        own = decided & (decision == called)
        if not own.any():
            figures[name] = Estimate(absent=f"no case is called {('negative', 'positive')[called]}")
            continue
        share = prevalence if called else 1 - prevalence
        estimate = resampler.estimate(partial(_rate_among_called, share=share), y_true == called, own)
        # As in `Resampler`, where every resample says the same: Wilson's end of the rate that came out as 0.
        if estimate.value is not None and estimate.low == estimate.high:
            right, wrong = (own[y_true == label].mean() for label in (called, 1 - called))
            other = np.unique(resampler.groups[y_true == (1 - called if wrong == 0 else called)]).size
            most = float(wilson_interval(0, other)[1])
            end, right, wrong = ("low", right, most) if wrong == 0 else ("high", most, wrong)
            ends: dict[str, Any] = {end: float(share * right / (share * right + (1 - share) * wrong))}
            estimate = replace(estimate, **ends)
        figures[name] = estimate
    return figures


def _rate_among_called(of_class: np.ndarray, own: np.ndarray, *, share: float, weights: Any = None) -> Any:
    # pi P(called | class) / (pi P(called | class) + (1 - pi) P(called | other class))
    w = prevalence_weights(of_class.astype(int), target=share, weights=weights) * own
    return (w * of_class).sum(axis=-1) / w.sum(axis=-1)


def disagreement(cases: pd.DataFrame, votes: np.ndarray, resampler: Resampler) -> dict[str, Any]:
    """What becomes of the cases on which the members disagree; votes (n, members), the decision of each alone."""
    differ = votes.min(axis=1) != votes.max(axis=1)
    wrong, deferred = (cases["decision"] != cases["y_true"]).to_numpy(), cases["deferred"].to_numpy()
    figures: dict[str, Any] = {"n": int(differ.sum())}
    for name, inside in (("agree", ~differ), ("disagree", differ)):
        own = resampler.among(inside)
        figures[name] = {
            "n": int(inside.sum()),
            "n_errors": int(wrong[inside].sum()),
            "error_rate": own.estimate(mean, wrong[inside].astype(float)),
            "deferral_rate": own.estimate(mean, deferred[inside].astype(float)),
        }
    figures["share_of_errors"] = resampler.among(wrong).estimate(mean, differ[wrong].astype(float))
    return figures


def by_subgroup(cases: pd.DataFrame, named: pd.DataFrame, resampler: Resampler) -> dict[str, Any]:
    """Coverage and risk in each class and subgroup, and whether deferral widens its gap to the rest.

    named: (n, columns), rows as in `cases`, of which `subgroups.find` makes subgroups. `gap_deciding_all` is the
    subgroup's error rate less that of the rest when every case is decided, at the whole set's mix of classes,
    `gap_decided` the same among the decided, each as `subgroups.gap` has it and with Holm's p-value; `widened`, how
    much farther the second lies from 0, is not corrected for the number of subgroups; `widening`: `widens`, `narrows`
    or `not_told_apart`. A class has no gap: it is one of the mix. `defined_by_truth`: nobody can know beforehand that a
    case belongs to it.
    """
    wrong = (cases["decision"] != cases["y_true"]).to_numpy(dtype=float)
    y_true, decided = cases["y_true"].to_numpy(dtype=float), ~cases["deferred"].to_numpy(dtype=bool)
    groups = resampler.groups
    classes = [
        subgroups.Subgroup(f"y_true: {name}", y_true == label, True)
        for label, name in enumerate(("negative", "positive"))
        if (y_true == label).any()
    ]
    of_columns, figures = subgroups.find(named, y_true), dict[str, Any]()
    for name, inside, defined_by_truth in [*of_columns, *classes]:
        kept = inside & decided
        among = (of[decided] for of in (wrong, y_true, inside))
        figures[name] = {
            "n": int(inside.sum()),
            "n_errors": int(wrong[inside].sum()),
            "errors_left": int(wrong[kept].sum()),
            "defined_by_truth": defined_by_truth,
            "coverage": resampler.among(inside).estimate(mean, decided[inside].astype(float)),
            "selective_risk": resampler.among(kept).estimate(mean, wrong[kept]),
            **subgroups.gap(wrong, y_true, inside, groups=groups, prefix="gap_deciding_all"),
            **subgroups.gap(*among, groups=groups[decided], prefix="gap_decided"),
            **_widening(wrong, y_true, inside, decided, resampler),
        }
    for prefix in ("gap_deciding_all", "gap_decided"):
        subgroups.adjust_gaps(figures, of_columns, y_true, prefix=prefix)
    return figures


def _widening(
    wrong: FloatArray, y_true: FloatArray, inside: np.ndarray, decided: np.ndarray, resampler: Resampler
) -> dict[str, Any]:
    """How much farther from 0 the gap among the decided lies than the gap when all are decided, with the answer."""
    classes = subgroups.comparable(y_true, inside, resampler.groups, decided)
    if not classes:
        absent = "no class has enough decided patients inside this subgroup and outside"
        return {"widened": Estimate(absent=absent)}
    widened = resampler.estimate(partial(_widened, classes=classes), wrong, y_true, inside, decided)
    if widened.low is None or widened.high is None:
        return {"widened": widened}
    widening = "widens" if widened.low > 0 else "narrows" if widened.high < 0 else "not_told_apart"
    return {"widened": widened, "widening": widening}


def _widened(
    wrong: FloatArray,
    y_true: FloatArray,
    inside: np.ndarray,
    decided: np.ndarray,
    *,
    classes: list[int],
    weights: Any = None,
) -> Any:
    w = np.ones(len(wrong)) if weights is None else weights
    ends = (subgroups.standardised_gap(wrong, y_true, inside, classes, weights=v) for v in (w * decided, w))
    return np.abs(next(ends)) - np.abs(next(ends))


def caught(cases: pd.DataFrame, kinds: pd.Series, prices: Prices, resampler: Resampler) -> dict[str, Any]:
    """Of each kind of failure (n,), "" where there is none: how many errors are deferred, left, or decided rightly.

    The kinds are those of errors at p > 0.5; with unequal costs the cheapest decision puts some of them right and makes
    others, which have no kind ("without a kind"). `severity` is what one error of the kind costs where it is decided,
    `failure_cost_gain` what mending all of them would save per case, were every case decided.
    """
    price = np.where(cases["y_true"].to_numpy() == 1, prices.cost_fn, prices.cost_fp)
    wrong, deferred = (cases["decision"] != cases["y_true"]).to_numpy(), cases["deferred"].to_numpy()
    kind = np.where(wrong & (kinds.to_numpy() == ""), "without a kind", kinds.to_numpy())
    figures: dict[str, Any] = {}
    for name in sorted(set(kind) - {""}):
        here = kind == name
        own = resampler.among(here)
        figures[name] = {
            "n": int(here.sum()),
            "deferred": int((here & deferred).sum()),
            "left": int((here & wrong & ~deferred).sum()),
            "decided_rightly": int((here & ~wrong & ~deferred).sum()),
            "caught": own.estimate(mean, deferred[here].astype(float)),
            "severity": own.estimate(mean, price[here]),
            "failure_cost_gain": resampler.estimate(mean, price * here),
        }
    return figures
