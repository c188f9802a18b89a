"""Which cases go to a doctor, and what does that buy?"""

import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import Field
from scipy.special import expit

from tmv_lib import deferral, fitted_policy, policy, trust_card
from tmv_lib.files import join, read_csv, read_rows, write_csv, write_metrics
from tmv_lib.fitted_policy import FittedPolicy
from tmv_lib.guarantee import promised
from tmv_lib.params import Member, Params, named_members, read
from tmv_lib.signals import read_calibrations, read_signals
from tmv_lib.stage import run
from tmv_lib.subgroups import subgroup_columns

SITE = "data/site/cases.csv"
SHIFT = "data/site/shift.json"
NO_SITE = f"{SITE}: no such file; the stage `site` makes it"
NO_NETWORK = "not measured: the kinds of failure need images and networks, here only predictions are known"
THRESHOLDS = np.linspace(0, 1, 101)
THRESHOLD_PROBS = np.arange(1, 100) / 100
KEPT = ["image_id", "y_prob", "kappa", "decision", "deferred", "reason"]
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
    combine: Literal["mean_probability", "mean_logit", "stacking"]
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


class DeferralParams(Params):
    threshold: Annotated[float, Field(ge=0, le=1)]
    budget: Annotated[float, Field(ge=0, le=1)] | None
    calibration: Literal["shipped", "site"]
    cost: Cost
    reader: Reader
    risk: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    audit: Annotated[int, Field(ge=500)]

    @property
    def prices(self) -> policy.Prices:
        cost, reader = self.cost, self.reader
        return policy.Prices(
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
    """What validation taught: signals without gaps, the certainty learned from them, a policy for each calibration.

    chosen: the cases of validation, each judged by what other patients fitted, nobody deferred: where a threshold is
    chosen.
    """

    signals: deferral.CompleteSignals
    learned: deferral.LearnedCertainty
    policies: dict[str, FittedPolicy]
    chosen: pd.DataFrame


class Judged(NamedTuple):
    """The test cases as the policy that is used judges them, and what it is compared with.

    scores: certainties by name, (n,). probs: of each member and of each way to combine them, by name, (n,). sweeps:
    over thresholds, of validation and of test.
    """

    cases: pd.DataFrame
    scores: dict[str, np.ndarray]
    probs: dict[str, np.ndarray]
    sweeps: dict[str, pd.DataFrame]


def main() -> None:
    params = read("params.yaml", "ensemble", EnsembleParams)
    knobs = read("params.yaml", "deferral", DeferralParams)
    members = named_members("params.yaml")
    rng = np.random.default_rng(params.seed)
    lots = rng.spawn(1)[0]  # which image of a patient certifies must not hang on what else is drawn
    used = "site_calibrated" if knobs.calibration == "site" else "as_shipped"
    material = read_material(members, used)

    fitted = fit(material, list(members), params, knobs, rng)
    said = {name: judge(material, fitted, name) for name in material.logits}
    test = compare(material, fitted, said[used], used, knobs.prices)
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    summaries = {name: policy.summary(cases[material.test], knobs.prices, **resampling) for name, cases in said.items()}
    guarantee, audit = promised(
        said[used][material.cal],
        fitted.chosen,
        test.cases,
        words=standing(knobs),
        risk=knobs.risk,
        delta=knobs.delta,
        draws=knobs.audit,
        n_resamples=params.resamples,
        rng=lots,
    )
    bought = answers(test, fitted, members, params, knobs, resampling)
    bought |= summaries if len(summaries) > 1 else summaries | {"site_calibrated_absent": NO_SITE}
    metrics = {
        "ensemble": policy.ways_to_combine(test.cases, test.probs, combine=params.combine, **resampling),
        "deferral": bought,
        "guarantee": guarantee,
    }

    write_csv("data/ensemble/cases.csv", said[used][KEPT])
    write_csv(
        "data/ensemble/validation.csv", fitted.signals.table[material.val].assign(image_id=fitted.chosen["image_id"])
    )
    fitted_policy.write_policy("data/ensemble/policy.json", fitted.policies[used])
    write_csv("plots/ensemble/threshold.csv", policy.swept(test.sweeps, test.cases, knobs.prices))
    write_csv("plots/ensemble/risk_coverage.csv", policy.risk_coverage(test.cases, test.scores))
    write_csv("plots/ensemble/audit.csv", audit)
    net_benefits = policy.net_benefits(test.cases, knobs.prices, threshold_probs=THRESHOLD_PROBS)
    write_csv("plots/ensemble/net_benefit.csv", net_benefits)
    write_metrics("metrics/ensemble.json", metrics)
    draw_card(metrics, members, test.cases)


def read_material(members: dict[str, Member | None], used: str) -> Material:
    """What the earlier stages left. Raises ValueError where the calibration used, a split or a class is not there."""
    cases, signals = gather(list(members), networks=None not in members.values())
    logits = read_calibrations(cases, list(members), site=SITE)
    if used not in logits:
        raise ValueError(NO_SITE)
    val, cal, test = ((cases["split"] == split).to_numpy() for split in ("val", "cal", "test"))
    if cases["y_true"][val].nunique() < 2:
        raise ValueError("data/prepare/cases.csv: split val must hold both classes, the ensemble is fitted on it")
    for name, split in (("cal", cal), ("test", test)):
        if not split.any():
            raise ValueError(f"data/prepare/cases.csv: split {name} has no case")
    return Material(cases, signals, logits, val, cal, test)


def gather(members: list[str], *, networks: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cases outside train with calibrated probabilities, and every signal that the earlier stages left.

    networks: whether there are networks to explain; of models that are known by their predictions these fields are
    empty.
    """
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    cases = cases[cases["split"] != "train"].reset_index(drop=True)
    columns = [f"{kind}_{name}" for name in members for kind in ("mutual_information", "distance")]
    # A field may be empty: an empty map has no share in the border. What is missing is said, and never made up.
    doubt = read_signals("data/uncertainty/cases.csv", ["disagreement", *columns])
    looked = {"explanations": ("border_effect", "border"), "stability": ("instability",)}
    wanted = {stage: [f"{kind}_{name}" for kind in kinds for name in members] for stage, kinds in looked.items()}
    wanted["explanations"].append("map_agreement")
    explained, moved = (
        read_signals(f"data/{stage}/cases.csv", columns)
        if networks
        else cases[["image_id"]].assign(**dict.fromkeys(columns, np.nan))
        for stage, columns in wanted.items()
    )
    kinds = ("y_prob", "logit", "cross_fitted_logit")
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", *(f"{k}_{m}" for m in members for k in kinds)])
    table = join(cases, calibrated, doubt, explained, moved)
    names = ["disagreement", "map_agreement"]
    for kind in ("mutual_information", "distance", "border_effect", "border", "instability"):
        names += [f"{kind}_{name}" for name in members]
    return table, table[names]


def fit(
    material: Material, members: list[str], params: EnsembleParams, knobs: DeferralParams, rng: np.random.Generator
) -> Fitted:
    """All that is learned, from the cases of validation alone."""
    val, prices = material.cases[material.val], knobs.prices
    signals = deferral.complete_signals(material.signals, fitted=material.val)
    out_of_fold = val[[f"cross_fitted_logit_{name}" for name in members]]
    y_true, groups = val["y_true"], val["patient_id"]
    y_prob = fitted_policy.cross_fitted_prob(
        y_true, out_of_fold, groups=groups, way=params.combine, n_folds=params.folds, rng=rng
    )
    learned = deferral.learned_certainty(
        y_true,
        y_prob,
        signals.table[material.val].to_numpy(),
        groups=groups,
        n_folds=params.folds,
        n_foldings=params.foldings,
        rng=rng,
        **prices.errors,
    )
    # Where a threshold is chosen: no case of validation is judged by what its own patient fitted.
    kappa = learned.out_of_fold if learned.beats_margin else deferral.certainty(y_prob, **prices.errors)
    chosen = policy.decide(val, y_prob, kappa, prices, threshold=0)
    chosen["baseline"] = deferral.cheapest_decision(expit(out_of_fold.iloc[:, 0]), **prices.errors)
    threshold = knobs.threshold
    if knobs.budget is not None:
        threshold = deferral.threshold_for_budget(kappa, budget=knobs.budget)
    policies = {
        name: FittedPolicy(
            members,
            knobs.calibration,
            params.combine,
            fitted_policy.fit_stack(y_true, logits[material.val]),
            **prices.errors,
            threshold=threshold,
            weights=by_name(learned.weights.tolist(), signals.table) if learned.beats_margin else {},
            medians=signals.medians,
            gaps=signals.gaps,
        )
        for name, logits in material.logits.items()
    }
    return Fitted(signals, learned, policies, chosen)


def by_name(weights: Iterable[float], signals: pd.DataFrame) -> dict[str, float]:
    """Weights or coefficients of the learned certainty, by the name of what each belongs to."""
    return dict(zip(["constant", "log_odds_of_error", *signals], weights, strict=True))


def judge(material: Material, fitted: Fitted, calibration: str) -> pd.DataFrame:
    """The cases with what the policy says of each in this calibration, and what the first member alone says."""
    by, logits = fitted.policies[calibration], material.logits[calibration]
    said = fitted_policy.judge(by, logits, material.signals, fitted.signals.table[material.val])
    alone = expit(logits[by.members[0]])
    return material.cases.join(said).assign(
        y_prob_baseline=alone, baseline=deferral.cheapest_decision(alone, **by.prices)
    )


def compare(material: Material, fitted: Fitted, said: pd.DataFrame, used: str, prices: policy.Prices) -> Judged:
    """The test cases of the policy that is used, beside other certainties, probabilities and thresholds."""
    by, logits, y_prob = fitted.policies[used], material.logits[used], said["y_prob"].to_numpy()
    scores = {
        "margin": deferral.certainty(y_prob, **by.prices),
        "learned": fitted.learned.kappa(y_prob, fitted.signals.table.to_numpy()),
        "plain": np.abs(2 * y_prob - 1),
    }
    probs = {name: expit(logits[name].to_numpy()) for name in by.members}
    probs |= fitted_policy.combine(logits, stack=by.stack)
    scores, probs = ({name: values[material.test] for name, values in each.items()} for each in (scores, probs))
    test = said[material.test]
    sweep = partial(policy.sweep, prices=prices, thresholds=THRESHOLDS)
    return Judged(test, scores, probs, {"validation": sweep(fitted.chosen), "test": sweep(test)})


def answers(
    test: Judged,
    fitted: Fitted,
    members: dict[str, Member | None],
    params: EnsembleParams,
    knobs: DeferralParams,
    resampling: dict[str, Any],
) -> dict[str, Any]:
    """What the policy decides and costs, by which certainty, how well that ranks, for whom, and what it catches."""
    cases, prices, learned = test.cases, knobs.prices, fitted.learned
    found = policy.decisions(
        cases,
        prices,
        threshold=fitted.policies["as_shipped"].threshold,
        budget=knobs.budget,
        prevalences=params.prevalences,
        **resampling,
    )
    found |= policy.costs(cases, prices, **resampling)
    found["score"] = "learned" if learned.beats_margin else "margin"
    found["learned"] = {"verdict": learned.reason, "coefficients": by_name(learned.coefficients, fitted.signals.table)}
    found["signals_missing"] = fitted.signals.n_missing
    found["signals_left_out"] = ", ".join(fitted.signals.absent) or "none"
    found["cost_optimal"] = policy.cost_optimal(test.sweeps)
    found["ranking"] = policy.rankings(cases, test.scores, **resampling)
    found["calibration_of_decided"] = policy.calibration_of_decided(cases, **resampling)
    votes = np.column_stack([deferral.cheapest_decision(test.probs[name], **prices.errors) for name in members])
    found["disagreement"] = policy.disagreement(cases, votes, **resampling)
    found["subgroups"] = subgroups(cases, resampling)
    networks = None not in members.values()
    found["failures"] = policy.caught(cases, kinds(cases), **resampling) if networks else {"absent": NO_NETWORK}
    return found


def subgroups(test: pd.DataFrame, resampling: dict[str, Any]) -> dict[str, Any]:
    """Coverage and risk by class and by every column of the case table that names subgroups."""
    table = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str}).set_index("image_id").loc[test["image_id"]]
    named = table[subgroup_columns(table)].reset_index(drop=True)
    found = policy.by_subgroup(test.reset_index(drop=True), named, **resampling)
    return found if len(named.columns) else found | {"absent": "the case table has no subgroup column, class excepted"}


def kinds(test: pd.DataFrame) -> pd.Series:
    """The kind of failure of each case, by `failures`; "" where the ensemble does not err at p > 0.5."""
    errors = read_csv("data/failures/errors.csv", ["image_id", "model", "kind"])
    own = errors[errors["model"] == "ensemble"].set_index("image_id")["kind"]
    return test["image_id"].map(own.astype(object)).astype(object).fillna("")


def standing(knobs: DeferralParams) -> str:
    """Whether the guarantee can hold on test, in words."""
    if knobs.calibration == "site":
        return (
            "The guarantee lapses on test: its probabilities were cross-fitted there, which describes a procedure and"
            " not one policy, and carries no certificate."
        )
    if not Path(SHIFT).exists():
        return f"Whether test is a place like the calibration split was not measured ({SHIFT}: no such file)."
    shift = json.loads(Path(SHIFT).read_text(encoding="utf-8"))
    if shift["shifted"]:
        return f"The guarantee lapses here, the site is another place than the source: {shift['words']}"
    return f"{shift['words']} The guarantee holds if its cases are exchangeable."


def draw_card(own: dict[str, Any], members: dict[str, Member | None], test: pd.DataFrame) -> None:
    """The trust card as HTML and as Markdown, from the metrics of every stage that has run."""
    told = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    others = {"phantom", "folder", "medmnist", "table"} - {told["prepare"]["source"]}
    told["prepare"] = {name: value for name, value in told["prepare"].items() if name not in others}
    told["ensemble"] |= {"deferral": told["deferral"]}
    told["train"] = told.get("train", {}) | {"members": told["members"]}
    kept = {name: "predictions.csv" if one is None else "weights.safetensors" for name, one in members.items()}
    files = FILES | {"train": [f"data/train/{name}/{file}" for name, file in kept.items()]}
    metrics, sources = trust_card.read_stages(files, told)
    source = ", ".join(sorted(set(read_csv("data/prepare/cases.csv", ["source"])["source"])))
    card = trust_card.card(
        own | metrics,
        read("card.yaml", "card", trust_card.Facts).about(source),
        members={name: trust_card.in_words(one) for name, one in members.items()},
        sources=sources,
        pictures=[] if None in members.values() else examples(test),
    )
    trust_card.write("plots/ensemble", card)


def examples(test: pd.DataFrame) -> list[trust_card.Picture]:
    """The first error of each kind that `failures` lists for the ensemble, with what the policy does with it."""
    errors = read_csv("data/failures/errors.csv", ["image_id", "model", "kind", "y_true"])
    first = errors[errors["model"] == "ensemble"].drop_duplicates("kind")
    ids = read_csv("data/prepare/cases.csv", ["image_id"])["image_id"]
    images = read_rows("data/prepare/images.npy", image_id=ids, wanted=first["image_id"])
    return trust_card.examples(first, images, test, sheets="../failures/cases")


if __name__ == "__main__":
    run(main)
