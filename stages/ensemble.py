"""Which cases go to a doctor, and what does that buy?"""

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from tmv_lib import deferral, figures, selective
from tmv_lib.calibration import calibration_in_the_large, calibration_test, expected_calibration_error
from tmv_lib.classification import accuracy, negative_log_likelihood
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import by_class, counts, curve, figure, mean
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, patient_folds, rank_among

THRESHOLDS = np.linspace(0, 1, 101)


class EnsembleParams(Params):
    combine: Literal["mean_probability", "mean_logit", "stacking"]
    folds: Annotated[int, Field(ge=2, le=20)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


class DeferralParams(Params):
    threshold: Annotated[float, Field(ge=0, le=1)]
    false_negative: Annotated[float, Field(gt=0)]
    false_positive: Annotated[float, Field(gt=0)]
    review: Annotated[float, Field(ge=0)]
    risk: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]


def main() -> None:
    params = read("params.yaml", "ensemble", EnsembleParams)
    policy = read("params.yaml", "deferral", DeferralParams)
    members = list(read_members("params.yaml"))
    rng = np.random.default_rng(params.seed)
    cases, signals = gather(members)
    val, cal, test = ((cases["split"] == split).to_numpy() for split in ("val", "cal", "test"))

    combined = combine(cases, members, val)
    y_prob = combined[params.combine]
    cross_fitted = combine_cross_fitted(cases[val], members, params, rng)[params.combine]
    costs = {"cost_fn": policy.false_negative, "cost_fp": policy.false_positive}
    margin = deferral.certainty(y_prob, **costs)
    learned = deferral.learned_certainty(
        cases["y_true"][val],
        cross_fitted,
        signals[val].to_numpy(),
        groups=cases["patient_id"][val],
        n_folds=params.folds,
        rng=rng,
        **costs,
    )
    scores = {"margin": margin, "learned": learned.kappa(y_prob, signals.to_numpy()), "plain": np.abs(2 * y_prob - 1)}
    used = "learned" if learned.beats_margin else "margin"
    cases = cases.assign(
        y_prob=y_prob,
        kappa=scores[used],
        decision=deferral.cheapest_decision(y_prob, **costs),
        deferred=deferral.decide(scores[used], threshold=policy.threshold),
        y_prob_baseline=cases[f"y_prob_{members[0]}"],
        baseline=deferral.cheapest_decision(cases[f"y_prob_{members[0]}"], **costs),
    )
    cases["reason"] = reasons(cases, signals, val, close=margin < policy.threshold)
    certificate = certify(cases, val, cal, test, params, policy, rng)
    metrics = {
        "ensemble": ways_to_combine(
            cases[test], {name: prob[test] for name, prob in combined.items()}, members, params, rng
        ),
        "deferral": bought(cases[test], policy, params, rng)
        | {"score": used, "learned": explained(learned, signals)}
        | {"ranking": rankings(cases[test], {name: score[test] for name, score in scores.items()}, params, rng)},
        "guarantee": certificate,
    }
    metrics["deferral"]["calibration_of_decided"] = calibration_of_decided(cases[test], params, rng)
    kept = ["image_id", "y_prob", "kappa", "decision", "deferred", "reason"]
    write_csv("data/ensemble/cases.csv", cases[kept])
    sweep = swept(cases[test], cases[val], policy)
    write_csv("plots/ensemble/threshold.csv", sweep)
    write_csv("plots/ensemble/risk_coverage.csv", risk_coverage(cases[test], {k: v[test] for k, v in scores.items()}))
    figures.save(figures.trust_card(sentences(metrics, policy), sweep), "plots/ensemble/trust_card.png")
    write_metrics("metrics/ensemble.json", metrics)


def gather(members: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cases outside train with calibrated probabilities, and every signal that the earlier stages left."""
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    cases = cases[cases["split"] != "train"].reset_index(drop=True)
    columns = [f"{kind}_{name}" for name in members for kind in ("mutual_information", "distance")]
    doubt = read_csv("data/uncertainty/cases.csv", ["image_id", "disagreement", *columns])
    explained = read_csv("data/explanations/cases.csv", ["image_id", *(f"border_effect_{name}" for name in members)])
    # A constant map has no rank correlation with anything, an empty field: it counts as fully unstable.
    moved = pd.read_csv("data/stability/cases.csv", dtype={"image_id": str}).fillna(1.0)
    moved = moved[["image_id", *(f"instability_{name}" for name in members)]]
    kinds = ("y_prob", "logit", "cross_fitted_logit")
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", *(f"{k}_{m}" for m in members for k in kinds)])
    table = join(cases, calibrated, doubt, explained, moved)
    names = ["disagreement"]
    for kind in ("mutual_information", "distance", "border_effect", "instability"):
        names += [f"{kind}_{name}" for name in members]
    return table, table[names]


def combine(cases: pd.DataFrame, members: list[str], val: np.ndarray) -> dict[str, np.ndarray]:
    """The ensemble's probability in three ways; stacking is fitted on validation."""
    probs = cases[[f"y_prob_{name}" for name in members]].to_numpy()
    logits = cases[[f"logit_{name}" for name in members]].to_numpy()
    stack = LogisticRegression().fit(logits[val], cases["y_true"][val])
    return {
        "mean_probability": probs.mean(axis=1),
        "mean_logit": expit(logits.mean(axis=1)),
        "stacking": stack.predict_proba(logits)[:, 1],
    }


def combine_cross_fitted(
    val: pd.DataFrame, members: list[str], params: EnsembleParams, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same for validation itself, each case by calibrators and a stack that other patients fitted."""
    logits = val[[f"cross_fitted_logit_{name}" for name in members]].to_numpy()
    y_true = val["y_true"].to_numpy()
    fold = patient_folds(y_true, val["patient_id"], n_folds=params.folds, rng=rng)
    stacked = np.empty(len(val))
    for k in range(params.folds):
        stack = LogisticRegression().fit(logits[fold != k], y_true[fold != k])
        stacked[fold == k] = stack.predict_proba(logits[fold == k])[:, 1]
    return {
        "mean_probability": expit(logits).mean(axis=1),
        "mean_logit": expit(logits.mean(axis=1)),
        "stacking": stacked,
    }


def reasons(cases: pd.DataFrame, signals: pd.DataFrame, val: np.ndarray, *, close: np.ndarray) -> pd.Series:
    """Why a case is deferred: a margin too small, and every signal above nine tenths of validation."""
    words = {
        "disagreement": "members disagree",
        "mutual_information": "unsure under dropout",
        "instability": "unstable explanation",
        "distance": "unlike the training images",
    }
    found: list[list[str]] = [["close to the decision boundary"] if near else [] for near in close]
    for kind, sentence in words.items():
        columns = [name for name in signals if name.startswith(kind)]
        ranks = np.stack([rank_among(signals[name].to_numpy(), signals[name].to_numpy()[val]) for name in columns])
        for place in np.flatnonzero(ranks.max(axis=0) > 0.9):
            found[place].append(sentence)
    said = pd.Series(["; ".join(words) or "several signals together" for words in found])
    return said.where(cases["deferred"], "")


def ways_to_combine(
    test: pd.DataFrame,
    combined: dict[str, np.ndarray],
    members: list[str],
    params: EnsembleParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Each member and each way to combine them on the test split."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    found: dict[str, Any] = counts(y_true, groups) | {"combine": params.combine}
    resampled = partial(figure, groups=groups, n_resamples=params.resamples, rng=rng)
    for name, prob in {**{name: test[f"y_prob_{name}"].to_numpy() for name in members}, **combined}.items():
        clipped = np.clip(prob, 1e-6, 1 - 1e-6)
        found[name] = {"ece": expected_calibration_error(y_true, prob)}
        found[name] |= resampled("auroc", auroc, y_true, prob, stratify=y_true)
        found[name] |= resampled("nll", negative_log_likelihood, y_true, logit(clipped))
        found[name] |= resampled("accuracy", accuracy, y_true, (prob > 0.5).astype(int))
    return found


def bought(
    test: pd.DataFrame, policy: DeferralParams, params: EnsembleParams, rng: np.random.Generator
) -> dict[str, Any]:
    """What the policy decides, how well, and what it costs against others, at the threshold."""
    y_true, decision, deferred, baseline = (
        test[name].to_numpy().astype(int) for name in ("y_true", "decision", "deferred", "baseline")
    )
    groups = test["patient_id"].to_numpy()
    prices = {"cost_fn": policy.false_negative, "cost_fp": policy.false_positive, "review": policy.review}
    resampled = partial(figure, groups=groups, n_resamples=params.resamples, rng=rng)
    decided = deferred == 0
    found: dict[str, Any] = counts(y_true, groups) | {"threshold": policy.threshold}
    found |= resampled("coverage", mean, decided.astype(float))
    found["deferral_rate"] = 1 - found["coverage"]
    # Chow's rule: a case goes to a doctor where deciding it is expected to cost more than a review.
    most = deferral.chow_review_price(0, cost_fn=policy.false_negative, cost_fp=policy.false_positive)
    found["chow_threshold"] = max(0.0, 1 - policy.review / most)
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
            y_true, decision, deferred, cost_fn=policy.false_negative, cost_fp=policy.false_positive
        )
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
    for name, kappa in scores.items():
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
    val: np.ndarray,
    cal: np.ndarray,
    test: np.ndarray,
    params: EnsembleParams,
    policy: DeferralParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The certified operating point: found on `cal`, one image a patient, and how it fares on the test split."""
    error = (cases["decision"] != cases["y_true"]).astype(int).to_numpy()
    kappa = cases["kappa"].to_numpy()
    # Images of one patient are not independent: one of each, drawn by lot.
    drawn = cases[cal].sample(frac=1, random_state=rng).drop_duplicates("patient_id").index.to_numpy()
    least = selective.cases_needed(policy.risk, policy.delta)
    found: dict[str, Any] = {
        "risk": policy.risk,
        "delta": policy.delta,
        "population": "cases exchangeable with the cal split, one image a patient",
        "n_patients": len(drawn),
        "cases_needed_without_error": least,
    }
    start = min(1.0, selective.cases_needed(policy.risk, policy.delta, errors=2) / len(drawn))
    grid = selective.coverage_grid(kappa[val], start=start, n_steps=20)
    for name, certificate in (
        ("ltt", selective.certify_ltt(error[drawn], kappa[drawn], risk=policy.risk, delta=policy.delta, grid=grid)),
        ("sgr", selective.certify_sgr(error[drawn], kappa[drawn], risk=policy.risk, delta=policy.delta)),
    ):
        found[name] = {"certified": certificate.certified}
        if not certificate.certified:
            ordered = error[drawn][np.argsort(-kappa[drawn], kind="stable")]
            without_error = int(ordered.argmax()) if ordered.any() else len(ordered)
            found[name]["words"] = (
                f"Nothing can be certified with {len(drawn)} calibration patients: the surest {without_error} of them"
                f" hold no error, and at most {policy.risk:.0%} errors with {1 - policy.delta:.0%} confidence needs"
                f" {least} without an error. Who needs a guarantee sends every case to a doctor."
            )
            continue
        accepted = kappa[test] >= certificate.threshold
        found[name] |= {
            "threshold": certificate.threshold,
            "cal_coverage": certificate.coverage,
            "cal_errors": certificate.errors,
            "cal_accepted": certificate.n_accepted,
            "test_coverage": float(accepted.mean()),
        }
        if accepted.any():
            found[name] |= figure(
                "test_selective_risk",
                mean,
                error[test][accepted].astype(float),
                groups=cases["patient_id"].to_numpy()[test][accepted],
                n_resamples=params.resamples,
                rng=rng,
            )
    return found


def sentences(metrics: dict[str, Any], policy: DeferralParams) -> list[tuple[str, str]]:
    """The trust card's questions and answers, for the clinician."""
    found, ensemble, ltt = metrics["deferral"], metrics["ensemble"], metrics["guarantee"]["ltt"]
    combined = ensemble[ensemble["combine"]]
    reduction = found["baseline_decides_all"]
    return [
        (
            "When should I use this?",
            f"Of 100 cases like these it decides {100 * found['coverage']:.0f} and hands"
            f" {100 * found['deferral_rate']:.0f} to a doctor (threshold {policy.threshold:g}; if its probabilities are"
            f" true, {found['chow_threshold']:.2f} is the cheapest at these costs).",
        ),
        (
            "How often is it wrong where it decides?",
            f"{between(found, 'selective_risk')} of the decided cases; {found['errors_left']} errors are left of"
            f" {found['errors_deciding_all']} that it would make deciding all {found['n']}.",
        ),
        (
            "What does it miss, what does it alarm?",
            f"Where it decides: sensitivity {between(found, 'decided_sensitivity')}, specificity"
            f" {between(found, 'decided_specificity')}.",
        ),
        (
            "What does that buy?",
            f"Failure cost {found['failure_cost']:.3f} a case; against the baseline model deciding all:"
            f" {between(reduction, 'reduction')} less. Costs assumed: missed disease {policy.false_negative:g},"
            f" false alarm {policy.false_positive:g}, review {policy.review:g}.",
        ),
        (
            "How good is it at reading?",
            f"AUROC {between(combined, 'auroc', percent=False)} on {found['n']} test images.",
        ),
        ("What is guaranteed?", promise(ltt, policy)),
    ]


def promise(ltt: dict[str, Any], policy: DeferralParams) -> str:
    """The guarantee in words: what it says, for whom, and whether the test split bears it out."""
    if not ltt["certified"]:
        return str(ltt["words"])
    broken = ltt.get("test_selective_risk_low", 0.0) > policy.risk
    return (
        f"For cases like those of the calibration split, and for no other place: with {1 - policy.delta:.0%}"
        f" confidence at most {policy.risk:.0%} errors among those decided with a certainty of at least"
        f" {ltt['threshold']:.2f}. Of the test split that is {ltt['test_coverage']:.0%}, and"
        f" {between(ltt, 'test_selective_risk')} of these were wrong."
        + (" The test split is another place: do not rely on this guarantee there." if broken else "")
    )


def between(found: dict[str, Any], name: str, *, percent: bool = True) -> str:
    """A figure with its interval, in words; its reason where it is absent."""
    if f"{name}_absent" in found:
        return f"(not known: {found[f'{name}_absent']})"
    value, low, high = (found[f"{name}{end}"] for end in ("", "_low", "_high"))
    return (
        f"{value:.1%} (95 % interval {low:.1%} to {high:.1%})" if percent else f"{value:.3f} ({low:.3f} to {high:.3f})"
    )


def swept(test: pd.DataFrame, val: pd.DataFrame, policy: DeferralParams) -> pd.DataFrame:
    """Failure cost and deferral rate at each threshold: on validation, where a threshold is chosen, and on test.

    Beside test, random and oracle deferral at the same rate.
    """
    prices = {"cost_fn": policy.false_negative, "cost_fp": policy.false_positive, "review": policy.review}
    rows = []
    for name, split in (("validation", val), ("test", test)):
        y_true, decision = split["y_true"].to_numpy(), split["decision"].to_numpy()
        sweep = deferral.threshold_sweep(
            y_true, split["y_prob"].to_numpy(), split["kappa"].to_numpy(), thresholds=THRESHOLDS, **prices
        )
        rows.append(sweep.assign(series=name))
    rate = sweep["deferral_rate"].to_numpy()
    for name, rival in (("random", deferral.random_deferral_cost), ("oracle", deferral.oracle_deferral_cost)):
        cost = rival(y_true, decision, deferral_rate=rate, **prices)
        rival_rows = sweep[["threshold", "coverage", "deferral_rate"]].assign(failure_cost=cost)
        rows.append(rival_rows.assign(series=f"test, {name}"))
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
