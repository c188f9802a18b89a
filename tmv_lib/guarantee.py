"""What can be promised of the cases that a policy decides, how it fares elsewhere, and whether the promise is any good.

`cases` as in `tmv_lib.policy`: a row an image with `patient_id`, `y_true`, `kappa` and `decision`.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tmv_lib import selective
from tmv_lib.reporting import figure, mean
from tmv_lib.statistics import FloatArray, wilson_interval


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


def promised(
    cal: pd.DataFrame,
    other: pd.DataFrame,
    test: pd.DataFrame,
    *,
    words: str,
    risk: float,
    delta: float,
    draws: int,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What is `certified` on `cal`, how it fares on test, and the pooled promise `audited` on both, with its diagram.

    words: whether a promise can hold on test. draws: of calibration sets, for the audit. n_resamples: of patients, for
    the intervals on test.
    """
    limits = {"risk": risk, "delta": delta}
    found, promises, drawn = certified(cal, other, rng=rng, **limits)
    for side, promise in promises.items():
        seen = test if side == "pooled" else test[test["decision"] == (side == "positive")]
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
                n_resamples=n_resamples,
                rng=rng,
            )
    found |= {name: found["pooled"][name] for name in ("ltt", "sgr")} | {"words": words}
    found["audit"], audit = audited(
        drawn, {"cal": drawn, "test": test}, promises["pooled"], draws=draws, rng=rng, **limits
    )
    return found, audit
