"""Which cases go to a doctor, and what does that buy?"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import Field
from scipy.special import expit, logit
from scipy.stats import rankdata

from tmv_lib import deferral, fitted_policy, policy, selective, trust_card
from tmv_lib.calibration import calibration_in_the_large, calibration_test, expected_calibration_error
from tmv_lib.classification import accuracy, negative_log_likelihood
from tmv_lib.files import join, read_csv, read_rows, whole, write_csv, write_metrics
from tmv_lib.params import Member, Params, named_members, read
from tmv_lib.reporting import by_class, counts, curve, figure, mean
from tmv_lib.signals import read_calibrations, read_signals
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, patient_folds
from tmv_lib.subgroups import subgroup_columns

SITE = "data/site/cases.csv"
SHIFT = "data/site/shift.json"
NO_SITE = f"{SITE}: no such file; the stage `site` makes it"
NO_NETWORK = "not measured: the kinds of failure need images and networks, here only predictions are known"
THRESHOLDS = np.linspace(0, 1, 101)
# What is read of each stage, and what it was told: the card says so with the digest of each file.
FILES: dict[str, list[str]] = {
    "prepare": ["data/prepare/cases.csv", "data/prepare/images.npy"],
    "train": [],
    "calibration": ["data/calibration/cases.csv"],
    "site": [SITE, SHIFT],
    "baseline": [],
    "diversity": [],
    "uncertainty": ["data/uncertainty/cases.csv"],
    "explanations": ["data/explanations/cases.csv"],
    "stability": ["data/stability/cases.csv"],
    "failures": ["data/failures/errors.csv"],
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


def main() -> None:
    params = read("params.yaml", "ensemble", EnsembleParams)
    knobs = read("params.yaml", "deferral", DeferralParams)
    described = named_members("params.yaml")
    members = list(described)
    rng = np.random.default_rng(params.seed)
    lots = rng.spawn(1)[0]  # which image of a patient certifies must not hang on what else is drawn
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    networks = None not in described.values()
    cases, signals = gather(members, networks=networks)
    fits = read_calibrations(cases, members, site=SITE)
    used = "site_calibrated" if knobs.calibration == "site" else "as_shipped"
    if used not in fits:
        raise ValueError(NO_SITE)
    val, cal, test = ((cases["split"] == split).to_numpy() for split in ("val", "cal", "test"))
    if cases["y_true"][val].nunique() < 2:
        raise ValueError("data/prepare/cases.csv: split val must hold both classes, the ensemble is fitted on it")
    for name, split in (("cal", cal), ("test", test)):
        if not split.any():
            raise ValueError(f"data/prepare/cases.csv: split {name} has no case")
    complete = deferral.complete_signals(signals, fitted=val)
    signals = complete.table
    cost, reader = knobs.cost, knobs.reader
    prices = policy.Prices(
        cost.false_negative, cost.false_positive, cost.review, reader.sensitivity, reader.specificity
    )

    fold = cross_fitted_prob(cases[val], members, params, rng)
    learned = deferral.learned_certainty(
        cases["y_true"][val],
        fold,
        signals[val].to_numpy(),
        groups=cases["patient_id"][val],
        n_folds=params.folds,
        n_foldings=params.foldings,
        rng=rng,
        **prices.errors,
    )
    # Where a threshold is chosen: no case of validation is judged by what its own patient fitted.
    fold_kappa = learned.out_of_fold if learned.beats_margin else deferral.certainty(fold, **prices.errors)
    first = expit(cases[val][f"cross_fitted_logit_{members[0]}"])
    chosen = decide(cases[val], fold, fold_kappa, prices, threshold=0)
    chosen["baseline"] = deferral.cheapest_decision(first, **prices.errors)
    if knobs.budget is not None:
        knobs = knobs.model_copy(update={"threshold": deferral.threshold_for_budget(fold_kappa, budget=knobs.budget)})

    def judged(logits: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], pd.DataFrame]:
        stack = fitted_policy.fit_stack(cases["y_true"][val], logits[val])
        combined = fitted_policy.combine(logits, stack=stack)
        y_prob = combined[params.combine]
        scores = {
            "margin": deferral.certainty(y_prob, **prices.errors),
            "learned": learned.kappa(y_prob, signals.to_numpy()),
            "plain": np.abs(2 * y_prob - 1),
        }
        kappa = scores["learned" if learned.beats_margin else "margin"]
        return combined, scores, decide(cases, y_prob, kappa, prices, threshold=knobs.threshold)

    columns = {name: policy.summary(judged(logits)[2][test], prices, **resampling) for name, logits in fits.items()}
    combined, scores, cases = judged(fits[used])
    votes = np.column_stack([deferral.cheapest_decision(expit(fits[used][name]), **prices.errors) for name in members])
    cases = cases.assign(y_prob_baseline=expit(fits[used][members[0]]), baseline=votes[:, 0])
    said = fitted_policy.reasons(signals, signals[val], close=scores["margin"] < knobs.threshold)
    cases["reason"] = np.where(cases["deferred"], said, "")
    on_test = {name: score[test] for name, score in scores.items()}

    guarantee, audit = certify(cases, chosen, cal, test, params, knobs, lots)
    found = bought(cases[test], prices, knobs, params, rng)
    found |= {"score": "learned" if learned.beats_margin else "margin", "learned": explained(learned, signals)}
    found |= {"signals_missing": complete.n_missing, "signals_left_out": ", ".join(complete.absent) or "none"}
    sweeps = {
        name: policy.sweep(split, prices, thresholds=THRESHOLDS)
        for name, split in (("validation", chosen), ("test", cases[test]))
    }
    found["cost_optimal"] = cost_optimal(sweeps)
    found["ranking"] = rankings(cases[test], on_test, params, rng)
    found["calibration_of_decided"] = calibration_of_decided(cases[test], params, rng)
    found["disagreement"] = policy.disagreement(cases[test], votes[test], **resampling)
    found["subgroups"] = subgroups(cases[test], resampling)
    found["failures"] = (
        policy.caught(cases[test], kinds(cases[test]), **resampling) if networks else {"absent": NO_NETWORK}
    )
    metrics = {
        "ensemble": ways_to_combine(
            cases[test], fits[used][test], {name: p[test] for name, p in combined.items()}, members, params, rng
        ),
        "deferral": found | columns | ({} if len(fits) > 1 else {"site_calibrated_absent": NO_SITE}),
        "guarantee": guarantee,
    }
    kept = ["image_id", "y_prob", "kappa", "decision", "deferred", "reason"]
    write_csv("data/ensemble/cases.csv", cases[kept])
    names = ["constant", "log_odds_of_error", *signals.columns]
    fitted = fitted_policy.FittedPolicy(
        members,
        knobs.calibration,
        params.combine,
        fitted_policy.fit_stack(cases["y_true"][val], fits[used][val]),
        **prices.errors,
        threshold=knobs.threshold,
        weights=dict(zip(names, learned.weights.tolist(), strict=True)) if learned.beats_margin else {},
        medians=complete.medians,
        gaps=complete.gaps,
    )
    fitted_policy.write_policy("data/ensemble/policy.json", fitted)
    write_csv("data/ensemble/validation.csv", signals[val].assign(image_id=cases["image_id"]))
    write_csv("plots/ensemble/threshold.csv", swept(sweeps, cases[test], prices))
    write_csv("plots/ensemble/risk_coverage.csv", risk_coverage(cases[test], on_test))
    write_csv("plots/ensemble/audit.csv", audit)
    grid = np.arange(1, 100) / 100
    write_csv("plots/ensemble/net_benefit.csv", policy.net_benefits(cases[test], prices, threshold_probs=grid))
    write_metrics("metrics/ensemble.json", metrics)
    draw_card(metrics, described, cases[test])


def decide(
    cases: pd.DataFrame, y_prob: np.ndarray, kappa: np.ndarray, prices: policy.Prices, *, threshold: float
) -> pd.DataFrame:
    """The cases with probability, certainty, cheapest decision, and whether each is deferred."""
    return cases.assign(
        y_prob=y_prob,
        kappa=kappa,
        decision=deferral.cheapest_decision(y_prob, **prices.errors),
        deferred=deferral.decide(kappa, threshold=threshold),
    )


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


def cost_optimal(sweeps: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The threshold that is cheapest on validation, what it promised there, and what it costs on test."""
    found: dict[str, Any] = {"threshold": deferral.cost_optimal_threshold(sweeps["validation"])}
    for name, rows in sweeps.items():
        row = rows.loc[rows["threshold"] == found["threshold"]].iloc[0]
        found |= {f"{name}_{key}": float(row[key]) for key in ("failure_cost", "coverage")}
    return found


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


def cross_fitted_prob(
    val: pd.DataFrame, members: list[str], params: EnsembleParams, rng: np.random.Generator
) -> np.ndarray:
    """The ensemble's probability of validation itself, each case by what other patients fitted."""
    logits = val[[f"cross_fitted_logit_{name}" for name in members]].to_numpy()
    if params.combine == "mean_probability":
        return np.asarray(expit(logits).mean(axis=1))
    if params.combine == "mean_logit":
        return np.asarray(expit(logits.mean(axis=1)))
    y_true = val["y_true"].to_numpy()
    fold = patient_folds(y_true, val["patient_id"], n_folds=params.folds, rng=rng)
    stacked = np.empty(len(val))
    for k in range(params.folds):
        stack = fitted_policy.fit_stack(y_true[fold != k], logits[fold != k])
        stacked[fold == k] = fitted_policy.combine(logits[fold == k], stack=stack)["stacking"]
    return stacked


def ways_to_combine(
    test: pd.DataFrame,
    logits: pd.DataFrame,
    combined: dict[str, np.ndarray],
    members: list[str],
    params: EnsembleParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Each member and each way to combine them on the test split."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    found: dict[str, Any] = counts(y_true, groups) | {"combine": params.combine}
    resampled = partial(figure, groups=groups, n_resamples=params.resamples, rng=rng)
    for name, prob in {**{name: expit(logits[name].to_numpy()) for name in members}, **combined}.items():
        clipped = np.clip(prob, 1e-6, 1 - 1e-6)
        found[name] = {"ece": expected_calibration_error(y_true, prob)}
        found[name] |= resampled("auroc", auroc, y_true, prob, stratify=y_true)
        found[name] |= resampled("nll", negative_log_likelihood, y_true, logit(clipped))
        found[name] |= resampled("accuracy", accuracy, y_true, (prob > 0.5).astype(int))
    return found


def bought(
    test: pd.DataFrame, at: policy.Prices, knobs: DeferralParams, params: EnsembleParams, rng: np.random.Generator
) -> dict[str, Any]:
    """What the policy decides, how well, and what it costs against others, at the threshold."""
    y_true, decision, deferred, baseline = (
        test[name].to_numpy().astype(int) for name in ("y_true", "decision", "deferred", "baseline")
    )
    groups = test["patient_id"].to_numpy()
    prices = at.of(y_true)
    resampled = partial(figure, groups=groups, n_resamples=params.resamples, rng=rng)
    decided = deferred == 0
    found: dict[str, Any] = counts(y_true, groups) | {"threshold": knobs.threshold}
    found |= resampled("coverage", mean, decided.astype(float))
    found["deferral_rate"] = 1 - found["coverage"]
    found |= {"chow_threshold": at.chow_threshold, "words": at.verdict()}
    found |= {"cost": knobs.cost.model_dump(), "reader": knobs.reader.model_dump()}
    found |= {} if knobs.budget is None else {"budget": knobs.budget}
    found |= figure(
        "selective_risk",
        mean,
        (decision != y_true)[decided].astype(float),
        groups=groups[decided],
        n_resamples=params.resamples,
        rng=rng,
    )
    found |= by_class(
        y_true[decided],
        decision[decided],
        prefix="decided_",
        groups=groups[decided],
        n_resamples=params.resamples,
        rng=rng,
    )
    found |= by_class(y_true, decision, prefix="deciding_all_", groups=groups, n_resamples=params.resamples, rng=rng)
    found["of_the_cases"] = policy.decided_counts(test)
    found["at_prevalence"] = {
        f"{prevalence:g}": policy.predictive_values(test, prevalence=prevalence, n_resamples=params.resamples, rng=rng)
        for prevalence in params.prevalences
    }
    found["errors_deciding_all"] = int((decision != y_true).sum())
    found["errors_left"] = int((decision != y_true)[decided].sum())
    found["errors_avoided"] = found["errors_deciding_all"] - found["errors_left"]

    def cost(y_true: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
        return deferral.failure_cost(y_true, decision, deferred=deferred, weights=weights, **prices)

    rivals = {
        "baseline": baseline,
        "baseline_at_half": (test["y_prob_baseline"].to_numpy() > 0.5).astype(int),
        "ensemble": decision,
    }
    found |= resampled("failure_cost", cost, y_true)
    for name, y_pred in rivals.items():

        def everything(y_true: np.ndarray, *, weights: np.ndarray | None = None, y_pred: np.ndarray = y_pred) -> Any:
            return deferral.failure_cost(y_true, y_pred, weights=weights, **prices)

        def reduction(y_true: np.ndarray, *, weights: np.ndarray | None = None, rival: Any = everything) -> Any:
            return 1 - cost(y_true, weights=weights) / rival(y_true, weights=weights)

        found[f"{name}_decides_all"] = resampled("cost", everything, y_true) | resampled("reduction", reduction, y_true)
    rate = [found["deferral_rate"]]
    for name, rival in (("random", deferral.random_deferral_cost), ("oracle", deferral.oracle_deferral_cost)):
        found[f"{name}_deferral_cost"] = float(rival(y_true, decision, deferral_rate=rate, **prices)[0])
    plain = rankdata(np.abs(2 * test["y_prob"].to_numpy() - 1), method="ordinal") <= deferred.sum()
    found["plain_margin_deferral_cost"] = deferral.failure_cost(y_true, decision, deferred=plain, **prices)
    if deferred.any():
        found["break_even_review_price"] = deferral.break_even_review_price(
            y_true, decision, deferred, sensitivity=at.sensitivity, specificity=at.specificity, **at.errors
        )
    else:
        found["break_even_review_price_absent"] = "nobody is deferred"
    found["doctor_reads_all_cost"] = float(np.mean(prices["review"]))
    benefit = partial(deferral.net_benefit, odds=at.cost_fp / at.cost_fn)
    found |= resampled(
        "net_benefit",
        lambda y, decision, deferred, referral, *, weights=None: benefit(
            y, decision, deferred=deferred, referral=referral, weights=weights
        ),
        y_true,
        decision,
        deferred,
        prices["review"] / at.cost_fn,
    )
    found |= resampled("net_benefit_deciding_all", benefit, y_true, decision)
    return found


def calibration_of_decided(test: pd.DataFrame, params: EnsembleParams, rng: np.random.Generator) -> dict[str, Any]:
    """Whether the probabilities hold among the cases that are decided, beside the same of all cases.

    Deferral keeps the extreme probabilities: what is true of all need not be true of these.
    """
    found: dict[str, Any] = {}
    for name, cases in (("decided", test[~test["deferred"]]), ("all", test)):
        y_true, y_prob, groups = (cases[column].to_numpy() for column in ("y_true", "y_prob", "patient_id"))
        found[name] = counts(y_true, groups)
        if cases.empty:
            found[name]["ece_absent"] = "there is no such case"
            continue
        found[name] |= calibration_test(y_true, y_prob, rng=rng)._asdict()
        log_odds = logit(np.clip(y_prob, 1e-6, 1 - 1e-6))
        resampling = {"groups": groups, "n_resamples": params.resamples, "rng": rng}
        found[name] |= figure("in_the_large", calibration_in_the_large, y_true, log_odds, **resampling)
    return found


def rankings(
    test: pd.DataFrame, scores: dict[str, np.ndarray], params: EnsembleParams, rng: np.random.Generator
) -> dict[str, Any]:
    """How well each certainty sorts errors last: AURC, its excess over the oracle, AUGRC; and learned minus margin."""
    error, groups = (test["decision"] != test["y_true"]).astype(int).to_numpy(), test["patient_id"].to_numpy()
    resampled = partial(figure, groups=groups, n_resamples=params.resamples, rng=rng)
    found: dict[str, Any] = {"n_errors": int(error.sum())}
    for name, kappa in {**scores, "random": np.zeros(len(error)), "oracle": -error.astype(float)}.items():
        found[name] = {}
        for metric in (selective.aurc, selective.eaurc, selective.augrc):
            found[name] |= resampled(metric.__name__, metric, error, kappa)

    def difference(error: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
        return selective.augrc(error, scores["learned"], weights=weights) - selective.augrc(
            error, scores["margin"], weights=weights
        )

    return found | resampled("augrc_learned_minus_margin", difference, error)


def explained(learned: deferral.LearnedCertainty, signals: pd.DataFrame) -> dict[str, Any]:
    """Whether learning paid on validation, in words, and the coefficients a standard deviation."""
    names = ["constant", "log_odds_of_error", *signals.columns]
    return {"verdict": learned.reason, "coefficients": dict(zip(names, learned.coefficients, strict=True))}


def certify(
    cases: pd.DataFrame,
    chosen: pd.DataFrame,
    cal: np.ndarray,
    test: np.ndarray,
    params: EnsembleParams,
    knobs: DeferralParams,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The certified operating points, found on `cal`, how they fare on test, and the audit with its diagram."""
    limits = {"risk": knobs.risk, "delta": knobs.delta}
    found, promises, drawn = policy.certified(cases[cal], chosen, rng=rng, **limits)
    for side, promise in promises.items():
        seen = cases[test] if side == "pooled" else cases[test & (cases["decision"] == (side == "positive")).to_numpy()]
        for name in ("ltt", "sgr"):
            certificate = getattr(promise, name)
            if not certificate.certified or seen.empty:
                continue
            accepted = seen[seen["kappa"] >= certificate.threshold]
            found[side][name]["test_coverage"] = len(accepted) / len(seen)
            found[side][name] |= figure(
                "test_selective_risk",
                mean,
                (accepted["decision"] != accepted["y_true"]).to_numpy(dtype=float),
                groups=accepted["patient_id"].to_numpy(),
                n_resamples=params.resamples,
                rng=rng,
            )
    found |= {name: found["pooled"][name] for name in ("ltt", "sgr")}
    found["words"] = standing(knobs)
    found["audit"], audit = policy.audited(
        drawn, {"cal": drawn, "test": cases[test]}, promises["pooled"], draws=knobs.audit, rng=rng, **limits
    )
    return found, audit


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
    metrics, sources = dict(own), []
    told = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    others = {"phantom", "folder", "medmnist", "table"} - {told["prepare"]["source"]}
    told["prepare"] = {name: value for name, value in told["prepare"].items() if name not in others}
    for stage, files in FILES.items():
        if stage == "train":
            kept = {name: "predictions.csv" if one is None else "weights.safetensors" for name, one in members.items()}
            files = [f"data/train/{name}/{file}" for name, file in kept.items()]
        if stage in trust_card.QUESTIONS:
            files = [*files, f"metrics/{stage}.json"]
        found = [path for path in files if Path(path).exists()]
        if not found and stage != "ensemble":
            continue  # it has not run
        for path in (path for path in found if path.startswith("metrics/")):
            metrics |= json.loads(Path(path).read_text(encoding="utf-8"))
        more = {"ensemble": ["deferral"], "train": ["members"]}.get(stage, [])
        params = told.get(stage, {}) | {section: told[section] for section in more}
        sources.append(trust_card.Source(stage, params, {path: trust_card.digest(path) for path in found}))
    source = ", ".join(sorted(set(read_csv("data/prepare/cases.csv", ["source"])["source"])))
    facts = read("card.yaml", "card", trust_card.Facts).about(source)
    words = {
        name: "known by its predictions alone"
        if one is None
        else f"{one.architecture}, {'trained here' if one.train else 'taken as it is'} from weights {one.weights},"
        f" dropout {one.dropout:g}, seed {one.seed}"
        for name, one in members.items()
    }
    card = trust_card.card(
        metrics, facts, members=words, sources=sources, pictures=[] if None in members.values() else examples(test)
    )
    for ending, text in (("html", trust_card.as_html(card)), ("md", trust_card.as_markdown(card))):
        with whole(f"plots/ensemble/trust_card.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def examples(test: pd.DataFrame) -> list[trust_card.Picture]:
    """The first error of each kind that `failures` lists for the ensemble, with what the policy does with it."""
    errors = read_csv("data/failures/errors.csv", ["image_id", "model", "kind", "y_true"])
    first = errors[errors["model"] == "ensemble"].drop_duplicates("kind")
    ids = read_csv("data/prepare/cases.csv", ["image_id"])["image_id"]
    images = read_rows("data/prepare/images.npy", image_id=ids, wanted=first["image_id"])
    policies = test.set_index("image_id").loc[first["image_id"]]
    pictures = []
    for error, image, case in zip(first.itertuples(), images, policies.itertuples(), strict=True):
        truth, done = ("negative", "positive")[error.y_true], "to a doctor" if case.deferred else "decided"
        caption = f"{error.kind}: {truth}, p {case.y_prob:.2f}, {done}"
        sheet = f"../failures/cases/{str(error.kind).replace(' ', '_')}.png"
        pictures.append(trust_card.Picture(trust_card.png(image), caption, sheet))
    return pictures


def swept(sweeps: dict[str, pd.DataFrame], test: pd.DataFrame, at: policy.Prices) -> pd.DataFrame:
    """The figures at each threshold: on validation, where a threshold is chosen, and on test.

    Beside test, the cost of random, plain-margin and oracle deferral at the same rate.
    """
    y_true, decision, prices = test["y_true"].to_numpy(), test["decision"].to_numpy(), at.of(test["y_true"].to_numpy())
    rows = [sweep.assign(series=name) for name, sweep in sweeps.items()]
    like = sweeps["test"][["threshold", "coverage", "deferral_rate"]]
    rate = like["deferral_rate"].to_numpy()
    least = rankdata(np.abs(2 * test["y_prob"].to_numpy() - 1), method="ordinal")
    costs = {
        "random": deferral.random_deferral_cost(y_true, decision, deferral_rate=rate, **prices),
        "plain margin": [
            deferral.failure_cost(y_true, decision, deferred=least <= count, **prices)
            for count in np.round(rate * len(test))
        ],
        "oracle": deferral.oracle_deferral_cost(y_true, decision, deferral_rate=rate, **prices),
    }
    rows += [like.assign(failure_cost=cost, series=f"test, {name}") for name, cost in costs.items()]
    return pd.concat(rows)


def risk_coverage(test: pd.DataFrame, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Risk-coverage curves of both certainties, of a lottery and of an oracle."""
    error = (test["decision"] != test["y_true"]).astype(int).to_numpy()
    rows = [curve(name, **selective.risk_coverage_curve(error, kappa)._asdict()) for name, kappa in scores.items()]
    n, n_errors = len(error), int(error.sum())
    coverage = np.linspace(1 / n, 1, n)
    rows.append(curve("random", coverage=coverage, selective_risk=np.full(n, n_errors / n)))
    left = np.maximum(0, np.arange(1, n + 1) - (n - n_errors))
    rows.append(curve("oracle", coverage=coverage, selective_risk=left / np.arange(1, n + 1)))
    return pd.concat(rows)


if __name__ == "__main__":
    run(main)
