"""What a deferral policy does on the cases of one split: figures with intervals, for whom, and what it is worth.

`cases` has a row per image: `patient_id`, `y_true`, `y_prob`, `kappa`, `decision` (0 or 1), `deferred` and
`out_of_distribution` (boolean), as `fitted_policy.decide` gives them. Where it is compared with the first member,
`y_prob_baseline` and `baseline` are that one's probability and decision.
`resampling` holds `n_resamples` and `rng` of `tmv_lib.statistics.bootstrap`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from scipy.stats import rankdata

from tmv_lib.calibration.errors import calibration_test, expected_calibration_error
from tmv_lib.calibration.prevalence import prevalence_weights
from tmv_lib.calibration.slope import calibration_in_the_large
from tmv_lib.data import subgroups
from tmv_lib.deferral import costs as deferral
from tmv_lib.deferral import selective
from tmv_lib.deferral.costs import Prices
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.classification import accuracy, negative_log_likelihood
from tmv_lib.statistics.estimate import by_class, counts, curve, figure, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.tests import wilson_interval

_LEAST_PROBABILITY = 1e-6  # log odds stay finite


def ways_to_combine(cases: pd.DataFrame, probs: dict[str, np.ndarray], **resampling: Any) -> dict[str, Any]:
    """How well each probability (n,), of a member or of a way to combine them, reads the cases."""
    y_true, groups = cases["y_true"].to_numpy(), cases["patient_id"].to_numpy()
    resampled: Callable[..., dict[str, Any]] = partial(figure, groups=groups, **resampling)
    found: dict[str, Any] = counts(y_true, groups)
    for name, prob in probs.items():
        found[name] = {"ece": expected_calibration_error(y_true, prob)}
        found[name] |= resampled("auroc", auroc, y_true, prob, stratify=y_true)
        found[name] |= resampled("nll", negative_log_likelihood, y_true, _log_odds(prob))
        found[name] |= resampled("accuracy", accuracy, y_true, (prob > 0.5).astype(int))
    return found


def _log_odds(prob: np.ndarray) -> FloatArray:
    return np.asarray(logit(np.clip(prob, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)))


def decisions(
    cases: pd.DataFrame,
    prices: Prices,
    *,
    threshold: float,
    prevalences: list[float],
    **resampling: Any,
) -> dict[str, Any]:
    """What the policy decides at the threshold, how well, and what its calls are worth at each prevalence in (0, 1).

    Threshold and prices imply one another (Chow): `chow_threshold` is what the prices ask for, `chow_review_price` what
    a review would have to cost for this threshold to be the cheapest.
    """
    y_true, decision = cases["y_true"].to_numpy(), cases["decision"].to_numpy()
    groups, decided = cases["patient_id"].to_numpy(), ~cases["deferred"].to_numpy()
    wrong = decision != y_true
    of_decided: dict[str, Any] = {"groups": groups[decided], **resampling}
    found: dict[str, Any] = counts(y_true, groups) | {"threshold": threshold}
    found |= figure("coverage", mean, decided.astype(float), groups=groups, **resampling)
    found["deferral_rate"] = 1 - found["coverage"]
    found["chow_threshold"] = prices.chow_threshold
    found["chow_review_price"] = deferral.chow_review_price(threshold, **prices.errors)
    found |= {"deferral_can_pay": prices.chow_threshold > 0, "words": prices.verdict(), **prices.named()}
    foreign = cases["out_of_distribution"].to_numpy(dtype=float)
    found |= figure("out_of_distribution", mean, foreign, groups=groups, **resampling)
    found |= figure("selective_risk", mean, wrong[decided].astype(float), **of_decided)
    found |= by_class(y_true[decided], decision[decided], prefix="decided_", **of_decided)
    found |= by_class(y_true, decision, prefix="deciding_all_", groups=groups, **resampling)
    found["of_the_cases"] = decided_counts(cases)
    found["at_prevalence"] = {
        f"{prevalence:g}": predictive_values(cases, prevalence=prevalence, **resampling) for prevalence in prevalences
    }
    found["errors_deciding_all"] = int(wrong.sum())
    found["errors_left"] = int(wrong[decided].sum())
    found["errors_avoided"] = found["errors_deciding_all"] - found["errors_left"]
    return found


def costs(cases: pd.DataFrame, prices: Prices, **resampling: Any) -> dict[str, Any]:
    """What a case costs with the policy, with the first member or the ensemble deciding all, and with as many referrals
    by lot, by |2p - 1| and by an oracle; the review price that pays, and the net benefit.
    """
    y_true, decision, deferred, baseline = (
        cases[name].to_numpy().astype(int) for name in ("y_true", "decision", "deferred", "baseline")
    )
    of_case = prices.of(y_true)
    resampled: Callable[..., dict[str, Any]] = partial(figure, groups=cases["patient_id"].to_numpy(), **resampling)

    def cost(y_true: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
        return deferral.failure_cost(y_true, decision, deferred=deferred, weights=weights, **of_case)

    rivals = {
        "baseline": baseline,
        "baseline_at_half": (cases["y_prob_baseline"].to_numpy() > 0.5).astype(int),
        "ensemble": decision,
    }
    found = resampled("failure_cost", cost, y_true)
    for name, y_pred in rivals.items():

        def everything(y_true: np.ndarray, *, weights: np.ndarray | None = None, y_pred: np.ndarray = y_pred) -> Any:
            return deferral.failure_cost(y_true, y_pred, weights=weights, **of_case)

        def reduction(y_true: np.ndarray, *, weights: np.ndarray | None = None, rival: Any = everything) -> Any:
            return 1 - cost(y_true, weights=weights) / rival(y_true, weights=weights)

        found[f"{name}_decides_all"] = resampled("cost", everything, y_true) | resampled("reduction", reduction, y_true)
    rate = [1 - mean((deferred == 0).astype(float))]
    for name, rival in (("random", deferral.random_deferral_cost), ("oracle", deferral.oracle_deferral_cost)):
        found[f"{name}_deferral_cost"] = float(rival(y_true, decision, deferral_rate=rate, **of_case)[0])
    for name, margin in margins(cases, prices).items():
        like = least_certain(margin) <= deferred.sum()
        found[f"{name}_deferral_cost"] = deferral.failure_cost(y_true, decision, deferred=like, **of_case)

        def beyond(y_true: np.ndarray, *, weights: Any = None, like: np.ndarray = like) -> Any:
            rival = deferral.failure_cost(y_true, decision, deferred=like, weights=weights, **of_case)
            return cost(y_true, weights=weights) - rival

        found |= resampled(f"cost_minus_{name}", beyond, y_true)
    price = partial(
        deferral.break_even_review_price,
        sensitivity=prices.sensitivity,
        specificity=prices.specificity,
        **prices.errors,
    )
    found |= resampled("break_even_review_price", price, y_true, decision, deferred)
    found["doctor_reads_all_cost"] = float(np.mean(of_case["review"]))
    benefit = partial(deferral.net_benefit, odds=prices.cost_fp / prices.cost_fn)

    def with_referrals(y: np.ndarray, decision: Any, deferred: Any, referral: Any, *, weights: Any = None) -> Any:
        return benefit(y, decision, deferred=deferred, referral=referral, weights=weights)

    referral = of_case["review"] / prices.cost_fn
    found |= resampled("net_benefit", with_referrals, y_true, decision, deferred, referral)
    return found | resampled("net_benefit_deciding_all", benefit, y_true, decision)


def margins(cases: pd.DataFrame, prices: Prices) -> dict[str, np.ndarray]:
    """The certainties (n,) that need nothing but the probability: weighted by the prices, and |2p - 1|.

    `deferral.NEVER` for the cases out of distribution, as in any policy.
    """
    y_prob, foreign = cases["y_prob"].to_numpy(), cases["out_of_distribution"].to_numpy(dtype=bool)
    both = {"margin": deferral.certainty(y_prob, **prices.errors), "plain_margin": np.abs(2 * y_prob - 1)}
    return {name: np.where(foreign, deferral.NEVER, certainty) for name, certainty in both.items()}


def least_certain(certainty: np.ndarray) -> np.ndarray:
    """Rank of each case (n,) from 1 in the order in which they are deferred."""
    return np.asarray(rankdata(certainty, method="ordinal"))


def calibration_of_decided(cases: pd.DataFrame, **resampling: Any) -> dict[str, Any]:
    """Whether the probabilities hold among the cases that are decided, beside the same of all cases.

    Deferral keeps the extreme probabilities: what is true of all need not be true of these.
    """
    found: dict[str, Any] = {}
    for name, part in (("decided", cases[~cases["deferred"]]), ("all", cases)):
        y_true, y_prob, groups = (part[column].to_numpy() for column in ("y_true", "y_prob", "patient_id"))
        found[name] = counts(y_true, groups)
        if part.empty:
            found[name]["ece_absent"] = "there is no such case"
            continue
        found[name] |= calibration_test(y_true, y_prob, rng=resampling["rng"])._asdict()
        found[name] |= figure(
            "in_the_large", calibration_in_the_large, y_true, _log_odds(y_prob), groups=groups, **resampling
        )
    return found


def rankings(cases: pd.DataFrame, scores: dict[str, np.ndarray], **resampling: Any) -> dict[str, Any]:
    """How well each certainty (n,) sorts errors last: AURC, its excess over the oracle, and AUGRC."""
    error, groups = (cases["decision"] != cases["y_true"]).astype(int).to_numpy(), cases["patient_id"].to_numpy()
    resampled: Callable[..., dict[str, Any]] = partial(figure, groups=groups, **resampling)
    found: dict[str, Any] = {"n_errors": int(error.sum())}
    for name, kappa in {**scores, "random": np.zeros(len(error)), "oracle": -error.astype(float)}.items():
        found[name] = {}
        for metric in (selective.aurc, selective.eaurc, selective.augrc):
            found[name] |= resampled(metric.__name__, metric, error, kappa)
    return found


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


def summary(cases: pd.DataFrame, prices: Prices, **resampling: Any) -> dict[str, Any]:
    """Errors, accuracy, coverage, selective risk and failure cost of one policy."""
    y_true, y_pred, groups = (cases[name].to_numpy() for name in ("y_true", "decision", "patient_id"))
    deferred = cases["deferred"].to_numpy()
    wrong, decided = y_pred != y_true, ~deferred
    resampled: Callable[..., dict[str, Any]] = partial(figure, groups=groups, **resampling)
    found: dict[str, Any] = {
        "n": len(cases),
        "errors_deciding_all": int(wrong.sum()),
        "errors_left": int(wrong[decided].sum()),
    }
    found |= resampled("accuracy_at_half", accuracy, y_true, (cases["y_prob"].to_numpy() > 0.5).astype(int))
    found |= resampled("coverage", mean, decided.astype(float))
    found |= figure("selective_risk", mean, wrong[decided].astype(float), groups=groups[decided], **resampling)
    cost = np.where(deferred, prices.of(y_true)["review"], deferral.error_cost(y_true, y_pred, **prices.errors))
    return found | resampled("failure_cost", mean, cost)


def decided_counts(cases: pd.DataFrame) -> dict[str, int]:
    """How many positives and negatives are decided rightly, wrongly, or deferred."""
    found = {}
    deferred, positive, called = (cases[name].to_numpy() == 1 for name in ("deferred", "y_true", "decision"))
    for truth, of_class in (("positive", positive), ("negative", ~positive)):
        found[f"{truth}_called_positive"] = int((of_class & ~deferred & called).sum())
        found[f"{truth}_called_negative"] = int((of_class & ~deferred & ~called).sum())
        found[f"{truth}_deferred"] = int((of_class & deferred).sum())
    return found


def predictive_values(cases: pd.DataFrame, *, prevalence: float, **resampling: Any) -> dict[str, Any]:
    """Precision and negative predictive value of the decided cases, were this share in (0, 1) of all cases positive.

    Every class keeps the way it is deferred and decided here and only its weight changes: the prevalence is that of the
    cases that come in, and among the decided it is another.
    """
    y_true, decision, groups = (cases[name].to_numpy() for name in ("y_true", "decision", "patient_id"))
    decided = ~cases["deferred"].to_numpy()
    found: dict[str, Any] = {}
    for name, called in (("precision", 1), ("negative_predictive_value", 0)):
        own = decided & (decision == called)
        if not own.any():
            found[f"{name}_absent"] = f"no case is called {('negative', 'positive')[called]}"
            continue
        share = prevalence if called else 1 - prevalence
        rate = partial(_rate_among_called, share=share)
        found |= figure(name, rate, y_true == called, own, groups=groups, **resampling)
        # As in `figure`, where every resample says the same: Wilson's end of the rate that came out as 0.
        if name in found and found[f"{name}_low"] == found[f"{name}_high"]:
            right, wrong = (own[y_true == label].mean() for label in (called, 1 - called))
            other = np.unique(groups[y_true == (1 - called if wrong == 0 else called)]).size
            most = float(wilson_interval(0, other)[1])
            end, right, wrong = ("low", right, most) if wrong == 0 else ("high", most, wrong)
            found[f"{name}_{end}"] = float(share * right / (share * right + (1 - share) * wrong))
    return found


def _rate_among_called(of_class: np.ndarray, own: np.ndarray, *, share: float, weights: Any = None) -> Any:
    # pi P(called | class) / (pi P(called | class) + (1 - pi) P(called | other class))
    w = prevalence_weights(of_class.astype(int), target=share, weights=weights) * own
    return (w * of_class).sum(axis=-1) / w.sum(axis=-1)


def disagreement(cases: pd.DataFrame, votes: np.ndarray, **resampling: Any) -> dict[str, Any]:
    """What becomes of the cases on which the members disagree; votes (n, members), the decision of each alone."""
    differ = votes.min(axis=1) != votes.max(axis=1)
    wrong, deferred = (cases["decision"] != cases["y_true"]).to_numpy(), cases["deferred"].to_numpy()
    groups = cases["patient_id"].to_numpy()
    found: dict[str, Any] = {"n": int(differ.sum())}
    for name, inside in (("agree", ~differ), ("disagree", differ)):
        found[name] = {"n": int(inside.sum()), "n_errors": int(wrong[inside].sum())}
        found[name] |= figure("error_rate", mean, wrong[inside].astype(float), groups=groups[inside], **resampling)
        found[name] |= figure(
            "deferral_rate", mean, deferred[inside].astype(float), groups=groups[inside], **resampling
        )
    found |= figure("share_of_errors", mean, differ[wrong].astype(float), groups=groups[wrong], **resampling)
    return found


def by_subgroup(cases: pd.DataFrame, named: pd.DataFrame, **resampling: Any) -> dict[str, Any]:
    """Coverage and risk in each class and subgroup, and whether deferral widens its gap to the rest.

    named: (n, columns), rows as in `cases`, of which `subgroups.find` makes subgroups. `gap_deciding_all` is the
    subgroup's error rate less that of the rest when every case is decided, at the whole set's mix of classes,
    `gap_decided` the same among the decided, each as `subgroups.gap` has it and with Holm's p-value; `widened`, how
    much farther the second lies from 0, is not corrected for the number of subgroups. A class has no gap: it is one of
    the mix. `defined_by_truth`: nobody can know beforehand that a case belongs to it.
    """
    wrong = (cases["decision"] != cases["y_true"]).to_numpy(dtype=float)
    y_true, decided = cases["y_true"].to_numpy(dtype=float), ~cases["deferred"].to_numpy(dtype=bool)
    groups = cases["patient_id"].to_numpy()
    classes = [
        subgroups.Subgroup(f"y_true: {('negative', 'positive')[label]}", y_true == label, True)
        for label in (0, 1)
        if (y_true == label).any()
    ]
    of_columns, found = subgroups.find(named, y_true), {}
    for name, inside, defined_by_truth in [*of_columns, *classes]:
        kept = inside & decided
        entry: dict[str, Any] = {"n": int(inside.sum()), "n_errors": int(wrong[inside].sum())}
        entry |= {"errors_left": int(wrong[kept].sum()), "defined_by_truth": defined_by_truth}
        entry |= figure("coverage", mean, decided[inside].astype(float), groups=groups[inside], **resampling)
        entry |= figure("selective_risk", mean, wrong[kept], groups=groups[kept], **resampling)
        entry |= subgroups.gap(wrong, y_true, inside, groups=groups, prefix="gap_deciding_all")
        among = (of[decided] for of in (wrong, y_true, inside))
        entry |= subgroups.gap(*among, groups=groups[decided], prefix="gap_decided")
        found[name] = entry | _widening(wrong, y_true, inside, decided, groups=groups, **resampling)
    for prefix in ("gap_deciding_all", "gap_decided"):
        subgroups.adjust_gaps(found, of_columns, y_true, prefix=prefix)
    return found


def _widening(
    wrong: FloatArray,
    y_true: FloatArray,
    inside: np.ndarray,
    decided: np.ndarray,
    *,
    groups: np.ndarray,
    **options: Any,
) -> dict[str, Any]:
    """How much farther from 0 the gap among the decided lies than the gap when all are decided, with the answer."""
    classes = subgroups.comparable(y_true, inside, groups, decided)
    if not classes:
        return {"widened_absent": "no class has enough decided patients inside this subgroup and outside"}
    metric = partial(_widened, classes=classes)
    found: dict[str, Any] = figure("widened", metric, wrong, y_true, inside, decided, groups=groups, **options)
    if "widened" in found:
        low, high = found["widened_low"], found["widened_high"]
        widens, narrows = "deferral widens the gap", "deferral narrows the gap"
        found["words"] = widens if low > 0 else narrows if high < 0 else "not told apart"
    return found


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


def caught(cases: pd.DataFrame, kinds: pd.Series, prices: Prices, **resampling: Any) -> dict[str, Any]:
    """Of each kind of failure (n,), "" where there is none: how many errors are deferred, left, or decided rightly.

    The kinds are those of errors at p > 0.5; with unequal costs the cheapest decision puts some of them right and makes
    others, which have no kind ("without a kind"). `severity` is what one error of the kind costs where it is decided,
    `failure_cost_gain` what mending all of them would save per case, were every case decided.
    """
    y_true, everybody = cases["y_true"].to_numpy(), cases["patient_id"].to_numpy()
    price = np.where(y_true == 1, prices.cost_fn, prices.cost_fp)
    wrong, deferred = (cases["decision"] != cases["y_true"]).to_numpy(), cases["deferred"].to_numpy()
    kind = np.where(wrong & (kinds.to_numpy() == ""), "without a kind", kinds.to_numpy())
    found: dict[str, Any] = {}
    for name in sorted(set(kind) - {""}):
        here = kind == name
        found[name] = {"n": int(here.sum()), "deferred": int((here & deferred).sum())}
        found[name]["left"] = int((here & wrong & ~deferred).sum())
        found[name]["decided_rightly"] = int((here & ~wrong & ~deferred).sum())
        groups = everybody[here]
        found[name] |= figure("caught", mean, deferred[here].astype(float), groups=groups, **resampling)
        found[name] |= figure("severity", mean, price[here], groups=groups, **resampling)
        found[name] |= figure("failure_cost_gain", mean, price * here, groups=everybody, **resampling)
    return found


def net_benefits(cases: pd.DataFrame, prices: Prices, *, threshold_probs: FloatArray) -> pd.DataFrame:
    """Decision curve: net benefit at each threshold probability in (0, 1), with and without deferral.

    Decisions are p > threshold probability; the referrals are those of the policy, at their price in missed positives.
    """
    y_true, y_prob = cases["y_true"].to_numpy(), cases["y_prob"].to_numpy()
    referral = prices.of(y_true)["review"] / prices.cost_fn
    rows = []
    for p in threshold_probs:
        benefit = partial(deferral.net_benefit, y_true, odds=p / (1 - p))
        decision = (y_prob > p).astype(int)
        rows += [
            ("policy", p, benefit(decision, referral=referral, deferred=cases["deferred"])),
            ("ensemble decides all", p, benefit(decision)),
            ("all called positive", p, benefit(np.ones(len(cases)))),
            ("nobody called positive", p, 0.0),
        ]
    return pd.DataFrame(rows, columns=["series", "threshold_prob", "net_benefit"])


def sweep(cases: pd.DataFrame, prices: Prices, *, thresholds: FloatArray) -> pd.DataFrame:
    """What the policy does at each threshold in [0, 1]: `deferral.threshold_sweep`, and what it is worth.

    `reduction` of the failure cost against the decisions of `baseline`, a column of 0 and 1, on all cases;
    `break_even_review_price` (both empty where there is none); `net_benefit`, at the odds of the prices.
    """
    y_true, baseline = cases["y_true"].to_numpy(), cases["baseline"].to_numpy()
    costs = prices.of(y_true)
    rows = deferral.threshold_sweep(y_true, cases["y_prob"], cases["kappa"], thresholds=thresholds, **costs)
    everything = deferral.failure_cost(y_true, cases["decision"], **costs)
    rival = deferral.failure_cost(y_true, baseline, **costs)
    cost, rate = rows["failure_cost"], rows["deferral_rate"]
    # cost(r) = cost(review) + (r - review) rate = everything
    break_even = prices.review + ((everything - cost) / rate.where(rate > 0))
    return rows.assign(
        reduction=1 - cost / rival if rival > 0 else np.nan,
        break_even_review_price=break_even,
        net_benefit=y_true.mean() - cost / prices.cost_fn,
    )


def cost_optimal(sweeps: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The threshold that is cheapest on validation, what it promised there, and what it costs on test; a sweep each."""
    found: dict[str, Any] = {"threshold": deferral.cost_optimal_threshold(sweeps["validation"])}
    for name, rows in sweeps.items():
        row = rows.loc[rows["threshold"] == found["threshold"]].iloc[0]
        found |= {f"{name}_{key}": float(row[key]) for key in ("failure_cost", "coverage")}
    return found


def swept(sweeps: dict[str, pd.DataFrame], test: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """The sweeps, named, as rows to draw; beside `test`, one of them, what random, either margin and oracle deferral of
    these cases cost at the same rate.
    """
    y_true, decision = test["y_true"].to_numpy(), test["decision"].to_numpy()
    of_case = prices.of(y_true)
    ranks = {name: least_certain(margin) for name, margin in margins(test, prices).items()}
    like = sweeps["test"][["threshold", "coverage", "deferral_rate"]]
    rate = like["deferral_rate"].to_numpy()
    rivals = {
        "random": deferral.random_deferral_cost(y_true, decision, deferral_rate=rate, **of_case),
        **{
            name.replace("_", " "): [
                deferral.failure_cost(y_true, decision, deferred=least <= count, **of_case)
                for count in np.round(rate * len(test))
            ]
            for name, least in ranks.items()
        },
        "oracle": deferral.oracle_deferral_cost(y_true, decision, deferral_rate=rate, **of_case),
    }
    rows = [sweep.assign(series=name) for name, sweep in sweeps.items()]
    return pd.concat(
        [*rows, *(like.assign(failure_cost=cost, series=f"test, {name}") for name, cost in rivals.items())]
    )
