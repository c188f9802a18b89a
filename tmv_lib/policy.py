"""What a deferral policy does on the cases of one split: figures with intervals, for whom, and what is guaranteed.

`cases` has a row an image: `patient_id`, `y_true`, `y_prob`, `kappa`, `decision` (0 or 1), `deferred` (boolean).
`resampling` holds `n_resamples` and `rng` of `tmv_lib.statistics.bootstrap`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tmv_lib import deferral, selective
from tmv_lib.calibration import prevalence_weights
from tmv_lib.classification import accuracy
from tmv_lib.reporting import figure, mean
from tmv_lib.statistics import FloatArray, wilson_interval


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
        return deferral.chow_threshold(**self._asdict())

    def of(self, y_true: np.ndarray) -> dict[str, Any]:
        """`cost_fn`, `cost_fp` and the `review` of each case, the doctor's expected errors in it."""
        return self.errors | {"review": deferral.referral_cost(y_true, **self._asdict())}

    def verdict(self) -> str:
        """Whether deferral can pay at these prices, in words."""
        if self.chow_threshold > 0:
            return f"deferral can pay: with true probabilities it does below a certainty of {self.chow_threshold:.2f}"
        most = deferral.chow_review_price(0, **self.errors)
        return (
            f"deferral never pays: a review costs {self.review:g}, an automatic decision is expected to cost at most"
            f" {most:.3g}, and the doctor reads with sensitivity {self.sensitivity:g}, specificity {self.specificity:g}"
        )


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

    named: words (n, columns), rows as in `cases`. `gap_deciding_all` is the subgroup's error rate less that of the
    rest when every case is decided, `gap_decided` the same among the decided, `widened` how much farther the second
    lies from 0; its interval is not corrected for the number of subgroups.
    """
    named = named.assign(y_true=np.where(cases["y_true"] == 1, "positive", "negative"))
    wrong = (cases["decision"] != cases["y_true"]).to_numpy(dtype=float)
    decided = ~cases["deferred"].to_numpy()
    groups, found = cases["patient_id"].to_numpy(), {}
    for column in named:
        for value in sorted(named[column].dropna().unique()):
            inside = (named[column] == value).to_numpy()
            kept = inside & decided
            entry: dict[str, Any] = {"n": int(inside.sum()), "n_errors": int(wrong[inside].sum())}
            entry["errors_left"] = int(wrong[kept].sum())
            entry |= figure("coverage", mean, decided[inside].astype(float), groups=groups[inside], **resampling)
            entry |= figure("selective_risk", mean, wrong[kept], groups=groups[kept], **resampling)
            widened: dict[str, Any] = figure("widened", _widened, wrong, inside, decided, groups=groups, **resampling)
            if "widened" in widened:
                entry["gap_deciding_all"] = float(_gap(wrong, inside, np.ones(len(wrong))))
                entry["gap_decided"] = float(_gap(wrong, inside, decided.astype(float)))
                low, high = widened["widened_low"], widened["widened_high"]
                entry["words"] = (
                    "deferral widens the gap"
                    if low > 0
                    else "deferral narrows the gap"
                    if high < 0
                    else "not told apart"
                )
            found[f"{column}: {value}"] = entry | widened
    return found


def _gap(wrong: FloatArray, inside: np.ndarray, weights: FloatArray) -> Any:
    within, rest = weights * inside, weights * ~inside
    return within @ wrong / within.sum(axis=-1) - rest @ wrong / rest.sum(axis=-1)


def _widened(wrong: FloatArray, inside: np.ndarray, decided: np.ndarray, *, weights: Any = None) -> Any:
    w = np.ones(len(wrong)) if weights is None else weights
    return np.abs(_gap(wrong, inside, w * decided)) - np.abs(_gap(wrong, inside, w))


def caught(cases: pd.DataFrame, kinds: pd.Series, **resampling: Any) -> dict[str, Any]:
    """Of each kind of failure (n,), "" where there is none: how many errors are deferred, left, or decided rightly.

    The kinds are those of errors at p > 0.5; with unequal costs the cheapest decision puts some of them right and makes
    others, which have no kind ("without a kind").
    """
    wrong, deferred = (cases["decision"] != cases["y_true"]).to_numpy(), cases["deferred"].to_numpy()
    kind = np.where(wrong & (kinds.to_numpy() == ""), "without a kind", kinds.to_numpy())
    found: dict[str, Any] = {}
    for name in sorted(set(kind) - {""}):
        here = kind == name
        found[name] = {"n": int(here.sum()), "deferred": int((here & deferred).sum())}
        found[name]["left"] = int((here & wrong & ~deferred).sum())
        found[name]["decided_rightly"] = int((here & ~wrong & ~deferred).sum())
        groups = cases["patient_id"].to_numpy()[here]
        found[name] |= figure("caught", mean, deferred[here].astype(float), groups=groups, **resampling)
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


class Promise(NamedTuple):
    """The certificates of one side by both methods, and the grid that Learn-then-Test walked."""

    ltt: selective.Certificate
    sgr: selective.Certificate
    grid: FloatArray


def certified(
    cal: pd.DataFrame, other: pd.DataFrame, *, risk: float, delta: float, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Promise], pd.DataFrame]:
    """Certify pooled decisions at delta, and the positive and the negative ones each at delta / 2, from `cal`.

    other: cases that chose the grid, none of them in `cal`. Images of one patient are not independent: one of each is
    drawn by lot. Returns the figures, the promises by side, and the drawn cases.
    """
    drawn = cal.sample(frac=1, random_state=rng).drop_duplicates("patient_id")
    found: dict[str, Any] = {"risk": risk, "delta": delta, "n_patients": len(drawn)}
    found["population"] = "cases exchangeable with the cal split, one image a patient"
    promises = {}
    for side, level in (("pooled", delta), ("positive", delta / 2), ("negative", delta / 2)):
        own, before = (
            rows if side == "pooled" else rows[rows["decision"] == (side == "positive")] for rows in (drawn, other)
        )
        needed = selective.cases_needed(risk, level)
        entry: dict[str, Any] = {"n_patients": len(own), "delta": level, "cases_needed_without_error": needed}
        if own.empty or before.empty:
            found[side] = entry | {"words": "Nothing can be certified: there is no such decision."}
            continue
        error, kappa = (own["decision"] != own["y_true"]).to_numpy(dtype=float), own["kappa"].to_numpy()
        wrong = (before["decision"] != before["y_true"]).to_numpy(dtype=float)
        limits = {"risk": risk, "delta": level}
        start = selective.best_start(wrong, before["kappa"], n=len(own), **limits)
        grid = selective.coverage_grid(before["kappa"], start=start, n_steps=20)
        promises[side] = Promise(
            selective.certify_ltt(error, kappa, grid=grid, **limits),
            selective.certify_sgr(error, kappa, **limits),
            grid,
        )
        both = {name: getattr(promises[side], name) for name in ("ltt", "sgr")}
        words = "" if all(one.certified for one in both.values()) else _nothing(error, kappa, **limits)
        found[side] = entry | {name: _told(one, words) for name, one in both.items()}
    return found, promises, drawn


def _told(certificate: selective.Certificate, words: str) -> dict[str, Any]:
    if not certificate.certified:
        return {"certified": False, "words": words}
    return {
        "certified": True,
        "threshold": certificate.threshold,
        "cal_coverage": certificate.coverage,
        "cal_errors": certificate.errors,
        "cal_accepted": certificate.n_accepted,
    }


def _nothing(error: FloatArray, kappa: FloatArray, *, risk: float, delta: float) -> str:
    """Why nothing is certified, and how many patients it would take, in words."""
    ordered = error[np.argsort(-kappa, kind="stable")]
    without_error = int(ordered.argmax()) if ordered.any() else len(ordered)
    wanted = selective.cases_wanted(error, kappa, risk=risk, delta=delta)
    words = (
        f"Nothing can be certified with {len(error)} calibration patients: the surest {without_error} of them hold no"
        f" error, and at most {risk:.0%} errors with {1 - delta:.4g} confidence needs"
        f" {selective.cases_needed(risk, delta)} without an error at a threshold fixed beforehand. "
    )
    words += (
        "No number of such patients would do: even the surest err too often."
        if wanted is None
        else f"If their error rates stay what they are, it would take about {wanted} patients."
    )
    return words + " Who needs a guarantee sends every case to a doctor."


def audited(
    source: pd.DataFrame,
    populations: dict[str, pd.DataFrame],
    promise: Promise,
    *,
    risk: float,
    delta: float,
    draws: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How often certificates drawn from `source` are violated in each population, and the sorted true risks to plot."""
    error, kappa = ((source["decision"] != source["y_true"]).to_numpy(dtype=float), source["kappa"].to_numpy())
    found: dict[str, Any] = {"draws": draws, "n": len(source)}
    plotted = []
    for place, cases in populations.items():
        truth = ((cases["decision"] != cases["y_true"]).to_numpy(dtype=float), cases["kappa"].to_numpy())
        audits = selective.audit_certificates(
            error,
            kappa,
            risk=risk,
            delta=delta,
            grid=promise.grid,
            n=len(source),
            draws=draws,
            rng=rng,
            population=truth,
        )
        found[place] = {}
        for name, audit in audits.items():
            violated = int(audit.violated.sum())
            low, high = (float(end) for end in wilson_interval(violated, draws))
            found[place][name] = {
                "violation_rate": violated / draws,
                "violation_rate_low": low,
                "violation_rate_high": high,
                "certified_share": float(np.isfinite(audit.threshold).mean()),
                "mean_coverage": float(audit.coverage.mean()),
            }
            plotted.append(
                pd.DataFrame(
                    {
                        "series": f"{name}, used on {place}",
                        "share_of_draws": np.arange(1, draws + 1) / draws,
                        "true_risk": np.sort(audit.risk),
                    }
                )
            )
    limit = pd.DataFrame({"series": "limit", "share_of_draws": [0.0, 1.0], "true_risk": [risk, risk]})
    return found, pd.concat([*plotted, limit])
