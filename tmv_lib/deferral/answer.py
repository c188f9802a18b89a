"""The answer to: which cases go to a doctor, and what does that buy?"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, model_validator
from scipy.special import expit

from tmv_lib.card import card as card_
from tmv_lib.card import facts
from tmv_lib.card.card import Picture, in_words, read_stages, write
from tmv_lib.data.subgroups import subgroup_columns
from tmv_lib.deferral import combination, costs, doubt, evaluation, guarantee
from tmv_lib.deferral import policy as fitted_policy
from tmv_lib.deferral.policy import FittedPolicy
from tmv_lib.pipeline.files import join, read_csv, read_rows
from tmv_lib.pipeline.params import Member, Params, read
from tmv_lib.pipeline.record import read_calibrations, read_signals

SITE = "data/site/cases.csv"
SHIFT = "data/site/shift.json"
NO_SITE = f"{SITE}: no such file; the stage `site` makes it"
NO_NETWORK = "not measured: the kinds of failure need images and networks, here only predictions are known"
THRESHOLDS = np.linspace(0, 1, 101)
THRESHOLD_PROBS = np.arange(1, 100) / 100
KEPT = ["image_id", "y_prob", "kappa", "decision", "out_of_distribution", "deferred", "reason"]
# What is read of each stage, and what it was told: the card says so with the digest of each file.
FILES: dict[str, list[str]] = {
    "prepare": ["data/prepare/cases.csv", "data/prepare/images.npy", "metrics/prepare.json"],
    "train": [],
    "calibration": ["data/calibration/cases.csv", "metrics/calibration.json"],
    "site": [SITE, SHIFT, "metrics/site.json"],
    "baseline": ["metrics/baseline.json"],
    "diversity": ["metrics/diversity.json"],
    "uncertainty": ["data/uncertainty/cases.csv", "metrics/uncertainty.json"],
    "explanations": ["data/explanations/cases.csv", "metrics/explanations.json"],
    "stability": ["data/stability/cases.csv", "metrics/stability.json"],
    "failures": ["data/failures/errors.csv", "metrics/failures.json"],
    "ensemble": [],
}


class EnsembleParams(Params):
    combine: Literal["choose", "first_member", "mean_probability", "mean_logit", "stacking"]
    folds: Annotated[int, Field(ge=2, le=20)]
    foldings: Annotated[int, Field(ge=1, le=50)]
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


class Cost(Params):
    false_negative: Annotated[float, Field(gt=0, lt=math.inf)]
    false_positive: Annotated[float, Field(gt=0, lt=math.inf)]
    review: Annotated[float, Field(ge=0, lt=math.inf)]


class Reader(Params):
    sensitivity: Annotated[float, Field(gt=0, le=1)]
    specificity: Annotated[float, Field(gt=0, le=1)]


class Promised(Params):
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
    cost: Cost
    reader: Reader
    promise: Promised

    @model_validator(mode="after")
    def one_threshold(self) -> "DeferralParams":
        if self.threshold is not None and self.budget is not None:
            raise ValueError("threshold and budget both set the threshold: one of them must be null")
        return self

    @property
    def prices(self) -> costs.Prices:
        cost, reader = self.cost, self.reader
        return costs.Prices(
            cost.false_negative, cost.false_positive, cost.review, reader.sensitivity, reader.specificity
        )


class Material(NamedTuple):
    """Cases outside train, their signals, the members' logits by calibration, and which cases lie in a split, (n,)."""

    cases: pd.DataFrame
    signals: pd.DataFrame
    logits: dict[str, pd.DataFrame]
    val: np.ndarray
    cal: np.ndarray
    test: np.ndarray


class Fitted(NamedTuple):
    """What validation taught: how to combine, what doubt weighs, and the policy.

    validation: its cases as the policy judges them, each by what other patients fitted.
    """

    choice: combination.Choice
    learned: doubt.LearnedDoubt
    policy: FittedPolicy
    validation: pd.DataFrame


def read_material(members: dict[str, Member | None], used: str, folds: int) -> Material:
    """What the earlier stages left. Raises ValueError where the calibration used, a split or a class is not there."""
    cases, signals = gather(list(members), networks=None not in members.values())
    logits = read_calibrations(cases, list(members), site=SITE)
    if used not in logits:
        raise ValueError(NO_SITE)
    val, cal, test = ((cases["split"] == split).to_numpy() for split in ("val", "cal", "test"))
    if cases["y_true"][val].nunique() < 2:
        raise ValueError("data/prepare/cases.csv: split val must hold both classes, the ensemble is fitted on it")
    for name, split, fewest in (("val", val, 2 * folds), ("cal", cal, 2), ("test", test, 2)):
        n_patients = cases["patient_id"][split].nunique()
        if n_patients < fewest:
            raise ValueError(
                f"data/prepare/cases.csv: split {name} has {n_patients} patients, `ensemble` with {folds} folds needs"
                f" {fewest} or more"
            )
    return Material(cases, signals, logits, val, cal, test)


def gather(members: list[str], *, networks: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cases outside train with calibrated logits, and every signal of doubt that the earlier stages left.

    networks: whether there are networks to explain; of models that are known by their predictions these fields are
    empty.
    """
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    cases = cases[cases["split"] != "train"].reset_index(drop=True)
    kinds = ("logit", "cross_fitted_logit")
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", *(f"{k}_{m}" for m in members for k in kinds)])
    of_members = [f"{kind}_{name}" for kind in ("mutual_information", "distance") for name in members]
    doubts = read_signals("data/uncertainty/cases.csv", ["out_of_distribution", "disagreement", *of_members])
    asked = {"explanations": "border_effect", "stability": "instability"} if networks else {}
    tables = [
        read_signals(f"data/{stage}/cases.csv", [f"{kind}_{name}" for name in members]) for stage, kind in asked.items()
    ]
    table = join(cases, calibrated, doubts, *tables)
    names = ["disagreement", *of_members, *(name for part in tables for name in part.columns[1:])]
    return table.assign(out_of_distribution=table["out_of_distribution"] == 1), table[names]


def fit(
    material: Material, members: list[str], params: EnsembleParams, knobs: DeferralParams, rng: np.random.Generator
) -> Fitted:
    """All that is learned, from the cases of validation alone, each judged by what other patients fitted."""
    val, prices = material.cases[material.val], knobs.prices
    out_of_fold = val[[f"cross_fitted_logit_{name}" for name in members]].to_numpy()
    y_true, groups = val["y_true"].to_numpy(), val["patient_id"].to_numpy()
    folds: dict[str, Any] = {"groups": groups, "n_folds": params.folds, "rng": rng}
    choice = combination.choose(y_true, out_of_fold, n_foldings=params.foldings, **folds)
    way = choice.way if params.combine == "choose" else params.combine
    y_prob = combination.cross_fitted(y_true, out_of_fold, way=way, **folds)
    foreign = val["out_of_distribution"].to_numpy()
    signals = fitted_policy.reliance(
        material.signals[material.val], decision=costs.cheapest_decision(y_prob, **prices.errors)
    )
    ranges = doubt.ranges_of(signals)
    learned = doubt.learn(
        y_true[~foreign],
        y_prob[~foreign],
        doubt.doubts(signals, ranges)[~foreign],
        **folds | {"groups": groups[~foreign]},
        n_foldings=params.foldings,
        refer=lambda kappa: costs.decide(kappa, threshold=set_threshold(knobs, kappa)),
        review=prices.of(y_true)["review"][~foreign],
        cost_fn=prices.cost_fn,
        cost_fp=prices.cost_fp,
    )
    kappa = np.full(len(val), costs.NEVER)
    kappa[~foreign] = learned.certainty
    threshold = set_threshold(knobs, kappa)
    decisions = fitted_policy.decide(y_prob, kappa, foreign, threshold=threshold, prices=prices.errors)
    baseline = costs.cheapest_decision(expit(out_of_fold[:, 0]), **prices.errors)
    weights = {kind: weight for kind, weight in learned.weights.items() if learned.used and weight > 0}
    by = FittedPolicy(
        members,
        knobs.calibration,
        way,
        combination.fit_stack(y_true, out_of_fold).tolist(),
        **prices.errors,
        threshold=threshold,
        weights=weights,
        ranges=doubt.weighed(ranges, weights),
    )
    validation = val[["patient_id", "y_true"]].assign(baseline=baseline, **decisions.set_axis(val.index))
    return Fitted(choice, learned, by, validation)


def set_threshold(knobs: DeferralParams, kappa: np.ndarray) -> float:
    """The threshold in force: the one given, that of the budget on these certainties, or what the prices ask for."""
    if knobs.budget is not None:
        return costs.threshold_for_budget(kappa, budget=knobs.budget)
    return knobs.prices.chow_threshold if knobs.threshold is None else knobs.threshold


def judge(material: Material, fitted: Fitted, calibration: str) -> pd.DataFrame:
    """The cases with what the policy says of each in this calibration, and what the first member alone says."""
    by, logits = fitted.policy, material.logits[calibration]
    foreign = material.cases["out_of_distribution"]
    said = fitted_policy.judge(by, logits, material.signals, foreign)
    alone = expit(logits[by.members[0]])
    return (
        material.cases.drop(columns="out_of_distribution")
        .join(said)
        .assign(y_prob_baseline=alone, baseline=costs.cheapest_decision(alone, **by.prices))
    )


def combined(choice: combination.Choice, way: str) -> dict[str, Any]:
    """Which way to combine is in use, what validation prefers, and what choosing gained there."""
    gain = {
        f"nll_minus_first_member{end}": value for end, value in zip(("", "_low", "_high"), choice.gain, strict=True)
    }
    nested = {"times_chosen": {name: count for name, count in choice.times_chosen.items() if count}}
    return {"combine": way, "validation": {"prefers": choice.way, "nll": choice.nll, **nested, **gain}}


def answers(
    test: pd.DataFrame,
    sweeps: dict[str, pd.DataFrame],
    probs: dict[str, np.ndarray],
    fitted: Fitted,
    members: dict[str, Member | None],
    params: EnsembleParams,
    knobs: DeferralParams,
    resampling: dict[str, Any],
) -> dict[str, Any]:
    """What the policy decides and costs, by which certainty, how well that ranks, for whom, and what it catches."""
    prices, learned = knobs.prices, fitted.learned
    threshold = fitted.policy.threshold
    result = evaluation.decisions(test, prices, threshold=threshold, prevalences=params.prevalences, **resampling)
    source = "budget" if knobs.budget is not None else "prices" if knobs.threshold is None else "params"
    result |= {"threshold_from": source} | ({} if knobs.budget is None else {"budget": knobs.budget})
    result |= evaluation.costs(test, prices, **resampling)
    result["learned"] = {"used": learned.used, "n_errors": learned.n_errors, "weights": learned.weights}
    for rival, difference in learned.against.items():
        ends = zip(("", "_low", "_high"), difference, strict=True)
        result["learned"] |= {f"validation_cost_minus_{rival}{end}": value for end, value in ends}
    result["cost_optimal"] = evaluation.cost_optimal(sweeps)
    scores = evaluation.margins(test, prices) | {"policy": test["kappa"].to_numpy()}
    result["ranking"] = evaluation.rankings(test, scores, **resampling)
    result["calibration_of_decided"] = evaluation.calibration_of_decided(test, **resampling)
    votes = np.column_stack([costs.cheapest_decision(prob, **prices.errors) for prob in probs.values()])
    result["disagreement"] = evaluation.disagreement(test, votes, **resampling)
    result["subgroups"] = subgroups(test, resampling)
    networks, way = None not in members.values(), fitted.policy.combine
    result["failures"] = {"absent": NO_NETWORK}
    if networks:
        result["failures"] = evaluation.caught(test, kinds(test, way, list(members)), prices, **resampling)
    return result


def promises(
    cal: pd.DataFrame, test: pd.DataFrame, fitted: Fitted, knobs: DeferralParams, rng: np.random.Generator
) -> dict[str, Any]:
    """What is promised of the policy by `cal`, and whether each promise holds among the labelled cases of test."""
    by, delta = fitted.policy, knobs.promise.delta
    if knobs.calibration == "site":
        return {"delta": delta, "lapses": True}
    made = guarantee.promise(
        cal, fitted.validation, threshold=by.threshold, limits=knobs.promise.limits, delta=delta, rng=rng
    )
    result: dict[str, Any] = {"delta": delta, "lapses": False}
    for name, promise in made.items():
        entry = {key: value for key, value in promise._asdict().items() if value is not None}
        at = by.threshold if promise.threshold is None else promise.threshold
        if promise.status in ("vacuous", "no_case"):
            result[name] = entry
            continue
        try:
            standing = guarantee.stand(name, test, threshold=at, limit=promise.limit, delta=delta, rng=rng)
            entry["on_test"] = {key: value for key, value in standing._asdict().items() if value is not None}
        except ValueError as error:
            entry["on_test_absent"] = str(error)
        result[name] = entry
    if Path(SHIFT).exists():
        result["site_looks_different"] = json.loads(Path(SHIFT).read_text(encoding="utf-8"))["shifted"]
    return result


def subgroups(test: pd.DataFrame, resampling: dict[str, Any]) -> dict[str, Any]:
    """Coverage and risk by class and by every column of the case table that names subgroups."""
    table = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str}).set_index("image_id").loc[test["image_id"]]
    named = table[subgroup_columns(table)].reset_index(drop=True)
    found = evaluation.by_subgroup(test.reset_index(drop=True), named, **resampling)
    return found if len(named.columns) else found | {"absent": "the case table has no subgroup column, class excepted"}


def kinds(test: pd.DataFrame, way: str, members: list[str]) -> pd.Series:
    """Kind of each failure, by `failures`, of the first member or the mean; "" where that is right at p > 0.5."""
    errors = read_csv("data/failures/errors.csv", ["image_id", "model", "kind"])
    model = members[0] if way == "first_member" else "ensemble"
    own = errors[errors["model"] == model].set_index("image_id")["kind"]
    return test["image_id"].map(own.astype(object)).astype(object).fillna("")


def draw_card(own: dict[str, Any], members: dict[str, Member | None], test: pd.DataFrame) -> None:
    """The trust card as HTML and as Markdown, from the metrics of every stage that has run."""
    told = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    others = {"phantom", "folder", "medmnist", "table"} - {told["prepare"]["source"]}
    told["prepare"] = {name: value for name, value in told["prepare"].items() if name not in others}
    told["ensemble"] |= {"deferral": told["deferral"]}
    told["train"] = told.get("train", {}) | {"members": told["members"]}
    kept = {name: "predictions.csv" if one is None else "weights.safetensors" for name, one in members.items()}
    files = FILES | {"train": [f"data/train/{name}/{file}" for name, file in kept.items()]}
    metrics, sources = read_stages(files, told)
    source = ", ".join(sorted(set(read_csv("data/prepare/cases.csv", ["source"])["source"])))
    card = card_.card(
        own | metrics,
        read("card.yaml", "card", facts.Facts).about(source),
        members={name: in_words(one) for name, one in members.items()},
        sources=sources,
        pictures=[] if None in members.values() else examples(test),
    )
    write("plots/ensemble", card)


def examples(test: pd.DataFrame) -> list[Picture]:
    """The first error of each kind that `failures` lists for the ensemble, with what the policy does with it."""
    errors = read_csv("data/failures/errors.csv", ["image_id", "model", "kind", "y_true"])
    first = errors[errors["model"] == "ensemble"].drop_duplicates("kind")
    ids = read_csv("data/prepare/cases.csv", ["image_id"])["image_id"]
    images = read_rows("data/prepare/images.npy", image_id=ids, wanted=first["image_id"])
    return card_.examples(first, images, test, sheets="../failures/cases")
