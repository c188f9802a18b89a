"""The answer to: which cases go to a doctor, and what does that buy?"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from scipy.special import expit

from tmv_lib.data.subgroups import subgroup_columns
from tmv_lib.deferral import combination, costs, doubt, evaluation, guarantee, sweep
from tmv_lib.deferral.policy import FittedPolicy, apply, decide, reliance
from tmv_lib.pipeline.params import Params, Resamples, Seed, read
from tmv_lib.statistics.estimate import Estimate, Resampler

THRESHOLDS = np.linspace(0, 1, 101)
THRESHOLD_PROBS = np.arange(1, 100) / 100
LEAST_BENEFIT = -0.1  # that is drawn: calling all positive falls without end, and all above 0 would lie on one line
NO_NETWORK = "not measured: the kinds of failure need images and networks, here only predictions are known"
KEPT = ["image_id", "y_prob", "certainty", "decision", "out_of_distribution", "deferred", "reason"]


class EnsembleParams(Params):
    combine: Literal["choose", "first_member", "mean_probability", "mean_logit", "stacking"]
    folds: Annotated[int, Field(ge=2, le=20)]
    foldings: Annotated[int, Field(ge=1, le=50)]
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    resamples: Resamples
    seed: Seed


class CostParams(Params):
    false_negative: Annotated[float, Field(gt=0, lt=math.inf)]
    false_positive: Annotated[float, Field(gt=0, lt=math.inf)]
    review: Annotated[float, Field(ge=0, lt=math.inf)]


class ReaderParams(Params):
    sensitivity: Annotated[float, Field(gt=0, le=1)]
    specificity: Annotated[float, Field(gt=0, le=1)]


class PromiseParams(Params):
    missed_positives: Annotated[float, Field(gt=0, lt=1)]
    false_alarms: Annotated[float, Field(gt=0, lt=1)]
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]

    @property
    def limits(self) -> dict[str, float]:
        """The largest share of errors of each promise."""
        return {
            "missed_positives": self.missed_positives,
            "false_alarms": self.false_alarms,
            "sensitivity": 1 - self.sensitivity,
        }


class DeferralParams(Params):
    threshold: Annotated[float, Field(ge=0, le=1)] | None
    budget: Annotated[float, Field(ge=0, le=1)] | None
    calibration: Literal["shipped", "site"]
    cost: CostParams
    reader: ReaderParams
    promise: PromiseParams

    @model_validator(mode="after")
    def one_threshold(self) -> "DeferralParams":
        if self.threshold is not None and self.budget is not None:
            raise ValueError("threshold and budget both set the threshold: one of them must be null")
        return self

    @property
    def prices(self) -> costs.Prices:
        return _prices(self.cost, self.reader)

    @property
    def in_force(self) -> str:
        """Which calibrated logits decide on test."""
        return "site_calibrated" if self.calibration == "site" else "as_shipped"

    def set_threshold(self, certainties: np.ndarray) -> float:
        """The threshold: the one given, that of the budget on these certainties, or what the prices ask for."""
        if self.budget is not None:
            return costs.threshold_for_budget(certainties, budget=self.budget)
        return self.prices.chow_threshold if self.threshold is None else self.threshold


def read_prices(path: str | Path) -> costs.Prices:
    """What errors, referrals and the doctor's own errors cost by `params.yaml`, whatever else the policy is."""
    return _prices(read(path, "deferral.cost", CostParams), read(path, "deferral.reader", ReaderParams))


def _prices(cost: CostParams, reader: ReaderParams) -> costs.Prices:
    errors = cost.false_negative, cost.false_positive
    return costs.Prices(*errors, cost.review, reader.sensitivity, reader.specificity)


class Material(NamedTuple):
    """Cases outside train with `out_of_distribution`, their signals, and the members' logits by calibration."""

    cases: pd.DataFrame
    signals: pd.DataFrame
    logits: dict[str, pd.DataFrame]

    def rows(self, split: str) -> np.ndarray:
        return (self.cases["split"] == split).to_numpy()


class Fitted(NamedTuple):
    """What validation taught: how to combine, what doubt weighs, and the policy.

    validation: its cases as the policy judges them, each by what other patients fitted.
    """

    choice: combination.Choice
    learned: doubt.LearnedDoubt
    policy: FittedPolicy
    validation: pd.DataFrame


def signal_columns(members: list[str], *, networks: bool) -> dict[str, list[str]]:
    """The columns that each earlier stage left: doubts, and whether a case is out of distribution.

    networks: whether there are any to explain.
    """
    kinds = {"uncertainty": ["mutual_information", "distance"]}
    kinds |= {"explanations": ["border_effect"], "stability": ["instability"]} if networks else {}
    names = {stage: [f"{kind}_{name}" for kind in of for name in members] for stage, of in kinds.items()}
    return names | {"uncertainty": ["out_of_distribution", "disagreement", *names["uncertainty"]]}


def gather(cases: pd.DataFrame, table: pd.DataFrame, logits: dict[str, pd.DataFrame]) -> Material:
    """Cases, signals and logits in one place; table: the cases with the columns of `signal_columns`."""
    foreign = table["out_of_distribution"] == 1
    signals = table[[name for name in table if name not in cases and name != "out_of_distribution"]]
    return Material(cases.assign(out_of_distribution=foreign), signals, logits)


def require_cases(material: Material, params: EnsembleParams, knobs: DeferralParams) -> None:
    """Raise ValueError where the calibration in force, a class of val, or patients of a split are not there."""
    cases, folds = material.cases, params.folds
    if knobs.in_force not in material.logits:
        raise ValueError("deferral.calibration is site, and the stage `site` has not run")
    if cases.loc[material.rows("val"), "y_true"].nunique() < 2:
        raise ValueError("split val must hold both classes, the ensemble is fitted on it")
    for split, fewest in (("val", 2 * folds), ("cal", 2), ("test", 2)):
        n_patients = cases.loc[material.rows(split), "patient_id"].nunique()
        if n_patients < fewest:
            needs = f"`ensemble` with {folds} folds needs {fewest} or more"
            raise ValueError(f"split {split} has {n_patients} patients, {needs}")


def fit(
    material: Material, members: list[str], params: EnsembleParams, knobs: DeferralParams, rng: np.random.Generator
) -> Fitted:
    """All that is learned, from the cases of validation alone, each judged by what other patients fitted."""
    val, prices = material.cases[material.rows("val")], knobs.prices
    out_of_fold = val[[f"cross_fitted_logit_{name}" for name in members]].to_numpy()
    y_true, groups = val["y_true"].to_numpy(), val["patient_id"].to_numpy()
    folds: dict[str, Any] = {"groups": groups, "n_folds": params.folds, "rng": rng}
    choice = combination.choose(y_true, out_of_fold, n_foldings=params.foldings, **folds)
    way = choice.way if params.combine == "choose" else params.combine
    y_prob = combination.cross_fitted(y_true, out_of_fold, way=way, **folds)
    foreign = val["out_of_distribution"].to_numpy()
    cheapest = costs.cheapest_decision(y_prob, **prices.errors)
    signals = reliance(material.signals[material.rows("val")], decision=cheapest)
    ranges = doubt.ranges_of(signals)
    learned = doubt.learn(
        y_true[~foreign],
        y_prob[~foreign],
        doubt.doubts(signals, ranges)[~foreign],
        **folds | {"groups": groups[~foreign]},
        n_foldings=params.foldings,
        refer=lambda certainties: costs.decide(certainties, threshold=knobs.set_threshold(certainties)),
        review=prices.of(y_true)["review"][~foreign],
        cost_fn=prices.cost_fn,
        cost_fp=prices.cost_fp,
    )
    certainties = np.full(len(val), costs.NEVER)
    certainties[~foreign] = learned.certainty
    threshold = knobs.set_threshold(certainties)
    decisions = decide(y_prob, certainties, foreign, threshold=threshold, prices=prices.errors)
    baseline = costs.cheapest_decision(expit(out_of_fold[:, 0]), **prices.errors)
    weights = {kind: weight for kind, weight in learned.weights.items() if learned.used and weight > 0}
    stack = combination.fit_stack(y_true, out_of_fold).tolist()
    costs_of_errors = prices.cost_fn, prices.cost_fp
    ranges = doubt.weighed(ranges, weights)
    policy = FittedPolicy(members, knobs.calibration, way, stack, *costs_of_errors, threshold, weights, ranges)
    validation = val[["patient_id", "y_true"]].assign(baseline=baseline, **decisions.set_axis(val.index))
    return Fitted(choice, learned, policy, validation)


def judge(material: Material, policy: FittedPolicy, calibration: str) -> pd.DataFrame:
    """The cases with what the policy says of each in this calibration, and what the first member alone says."""
    logits, foreign = material.logits[calibration], material.cases["out_of_distribution"]
    answers = apply(policy, logits, material.signals, foreign)
    alone = expit(logits[policy.members[0]])
    baseline = costs.cheapest_decision(alone, **policy.prices)
    cases = material.cases.drop(columns="out_of_distribution").join(answers)
    return cases.assign(y_prob_baseline=alone, baseline=baseline)


def summaries(
    material: Material, policy: FittedPolicy, prices: costs.Prices, resampler: Resampler
) -> dict[str, dict[str, Any]]:
    """What the policy does on test in each calibration."""
    judged = {name: judge(material, policy, name)[material.rows("test")] for name in material.logits}
    return {name: evaluation.summary(cases, prices, resampler) for name, cases in judged.items()}


def ways(material: Material, fitted: Fitted, test: pd.DataFrame, knobs: DeferralParams, resampler: Resampler) -> Any:
    """How well each member, each way to combine them, and the one in use read the test cases."""
    logits, choice = material.logits[knobs.in_force][material.rows("test")], fitted.choice
    probs = {name: expit(logits[name].to_numpy()) for name in logits}
    probs |= {way: combination.combine(logits, way=way, stack=fitted.policy.stack) for way in combination.WAYS[1:]}
    figures = evaluation.ways_to_combine(test, probs | {"in_use": test["y_prob"].to_numpy()}, resampler)
    figures["combine"] = fitted.policy.combine
    figures["validation"] = {
        "prefers": choice.way,
        "nll": choice.nll,
        "times_chosen": {name: count for name, count in choice.times_chosen.items() if count},
        "nll_minus_first_member": choice.gain,
    }
    return figures


def measure(
    material: Material,
    test: pd.DataFrame,
    swept: dict[str, pd.DataFrame],
    fitted: Fitted,
    params: EnsembleParams,
    knobs: DeferralParams,
    resampler: Resampler,
) -> dict[str, Any]:
    """What the policy decides and costs, how well its certainty ranks, and what it does where the members disagree."""
    prices, learned, threshold = knobs.prices, fitted.learned, fitted.policy.threshold
    figures = evaluation.decisions(test, prices, resampler, threshold=threshold, prevalences=params.prevalences)
    figures["threshold_from"] = "prices" if knobs.threshold is None else "params"
    if knobs.budget is not None:
        figures |= {"threshold_from": "budget", "budget": knobs.budget}
    figures |= evaluation.costs(test, prices, resampler)
    against = {f"validation_cost_minus_{rival}": one for rival, one in learned.against.items()}
    figures["learned"] = {"used": learned.used, "n_errors": learned.n_errors, "weights": learned.weights} | against
    figures["cost_optimal"] = sweep.cost_optimal(swept)
    scores = costs.margins(test, prices) | {"policy": test["certainty"].to_numpy()}
    figures["ranking"] = evaluation.rankings(test, scores, resampler)
    figures["calibration_of_decided"] = evaluation.calibration_of_decided(test, resampler)
    logits = material.logits[knobs.in_force][material.rows("test")]
    votes = costs.cheapest_decision(expit(logits.to_numpy()).ravel(), **prices.errors).reshape(logits.shape)
    figures["disagreement"] = evaluation.disagreement(test, votes, resampler)
    return figures


def subgroups(test: pd.DataFrame, table: pd.DataFrame, resampler: Resampler) -> dict[str, Any]:
    """Coverage and risk by class and by every column of the case table that names subgroups."""
    table = table.set_index("image_id").loc[test["image_id"]]
    named = table[subgroup_columns(table)].reset_index(drop=True)
    figures = evaluation.by_subgroup(test.reset_index(drop=True), named, resampler)
    absent = {"absent": "the case table has no subgroup column, class excepted"}
    return figures if len(named.columns) else figures | absent


def failures(
    test: pd.DataFrame, errors: pd.DataFrame, policy: FittedPolicy, prices: costs.Prices, resampler: Resampler
) -> dict[str, Any]:
    """What becomes of each kind of failure, by `failures`, of the first member or the mean, whichever decides."""
    model = policy.members[0] if policy.combine == "first_member" else "ensemble"
    own = errors[errors["model"] == model].set_index("image_id")["kind"]
    kinds = test["image_id"].map(own.astype(object)).astype(object).fillna("")
    return evaluation.caught(test, kinds, prices, resampler)


def promises(
    cal: pd.DataFrame,
    test: pd.DataFrame,
    fitted: Fitted,
    knobs: DeferralParams,
    rng: np.random.Generator,
    *,
    shift: dict[str, Any] | None,
) -> dict[str, Any]:
    """What is promised of the policy by `cal`, and whether each promise holds among the labelled cases of test.

    shift: what `site` says of the looks of the site; None where it has not run.
    """
    threshold, delta = fitted.policy.threshold, knobs.promise.delta
    if knobs.calibration == "site":
        return {"delta": delta, "lapses": True}
    limits = knobs.promise.limits
    made = guarantee.promise(cal, fitted.validation, threshold=threshold, limits=limits, delta=delta, rng=rng)
    figures: dict[str, Any] = {"delta": delta, "lapses": False}
    figures |= {} if shift is None else {"site_looks_different": shift["shifted"]}
    for (name, promise), own in zip(made.items(), rng.spawn(len(made)), strict=True):  # whatever came of the others
        figures[name] = _known(promise)
        if promise.status in ("vacuous", "no_case"):
            continue
        at = threshold if promise.threshold is None else promise.threshold
        try:
            standing = guarantee.stand(name, test, threshold=at, limit=promise.limit, delta=delta, rng=own)
            figures[name]["on_test"] = _known(standing)
        except ValueError as error:
            figures[name]["on_test"] = Estimate(absent=str(error))
    return figures


def _known(values: NamedTuple) -> dict[str, Any]:
    return {key: value for key, value in values._asdict().items() if value is not None}


def sweeps(fitted: Fitted, test: pd.DataFrame, prices: costs.Prices) -> dict[str, pd.DataFrame]:
    """What the policy does at each threshold, on validation and on test."""
    splits = {"validation": fitted.validation, "test": test}
    return {name: sweep.threshold_sweep(cases, prices, thresholds=THRESHOLDS) for name, cases in splits.items()}


def summary(metrics: dict[str, Any], shift: dict[str, Any] | None) -> dict[str, Any]:
    """The dozen figures to look at first, each without its interval; left out where it is absent."""
    deferral, in_use = metrics["deferral"], metrics["ensemble"]["in_use"]
    promised = {name: one["status"] for name in guarantee.PROMISES if (one := metrics["guarantee"].get(name))}
    figures = {
        "verdict": metrics["verdict"]["answer"],
        "auroc": in_use["auroc"],
        "ece": in_use["ece"],
        **{name: deferral[name] for name in ("coverage", "selective_risk", "failure_cost", "doctor_reads_all_cost")},
        "deciding_all_cost": deferral["ensemble_decides_all"]["cost"],
        **{f"promised_{name}": status for name, status in promised.items()},
        **({"site": shift["name"]} if shift else {}),
    }
    values = {name: one.value if isinstance(one, Estimate) else one for name, one in figures.items()}
    return {name: value for name, value in values.items() if value is not None}


def plots(test: pd.DataFrame, swept: dict[str, pd.DataFrame], prices: costs.Prices) -> dict[str, pd.DataFrame]:
    """The diagrams of the question, by name."""
    scores = costs.margins(test, prices) | {"this policy": test["certainty"].to_numpy()}
    benefits = sweep.net_benefits(test, prices, threshold_probs=THRESHOLD_PROBS)
    return {
        "threshold": sweep.swept(swept, test, prices),
        "risk_coverage": sweep.risk_coverage(test, scores),
        "net_benefit": benefits[benefits["net_benefit"] >= LEAST_BENEFIT],
    }
