"""One model at the site as shipped, calibrated at the site, and at its ceiling; and whose fault a miscalibration is."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.calibration.errors import calibration_test
from tmv_lib.calibration.slope import calibration_in_the_large, calibration_slope
from tmv_lib.site.learning_curve import Labelled
from tmv_lib.site.shift import LEVEL
from tmv_lib.site.updating import (
    UPDATES,
    calibration_interaction,
    closed_test,
    cross_fitted_update,
    patient_counts,
    site_folds,
)
from tmv_lib.statistics.classification import accuracy, brier_score, confusion_counts, negative_log_likelihood
from tmv_lib.statistics.estimate import Estimate, Resampler
from tmv_lib.statistics.ranking import auroc_with_upper_bound
from tmv_lib.statistics.resampling import generator

# Patients up to which the update is fitted again in every resample. Two fitted numbers vary the mean loss by about
# 1 / n, the patients drawn by 1 / sqrt(n): of 600 and 1,000 patients whose logits were 1 to 2 times too large, the
# ends moved by 8 % of the width at most, and of more they move by less, while the refits would take minutes.
REFITTED = 1000
# Of truth and logit; decisions at p > 0.5.
FIGURES: dict[str, Callable[..., Any]] = {
    "nll": negative_log_likelihood,
    "brier_score": lambda y_true, logit, **weights: brier_score(y_true, expit(logit), **weights),
    "accuracy": lambda y_true, logit, **weights: accuracy(y_true, (logit > 0).astype(int), **weights),
    "slope": calibration_slope,
    "in_the_large": calibration_in_the_large,
}


def labelled(cases: pd.DataFrame, member: str) -> Labelled:
    """Truth, logit as shipped and patient of these cases."""
    return Labelled(*(cases[name].to_numpy() for name in ("y_true", f"logit_{member}", "patient_id")))


def require_ranking(local: pd.DataFrame, member: str) -> None:
    """Raise ValueError where the site's labels say that the scores rank the wrong way: no update may hide that."""
    y_true, logit, groups = labelled(local, member)
    if set(y_true) != {0, 1}:
        return
    ranked = auroc_with_upper_bound(y_true, logit, groups=groups)
    if ranked.high < 0.5:
        raise ValueError(
            f"{member} ranks the cases of the site the wrong way: AUROC {ranked.auroc:.3f}, its upper 97.5 % bound over"
            f" patients {ranked.high:.3f}; are the labels of the site reversed?"
        )


def calibrate_at_site(
    local: pd.DataFrame, test: pd.DataFrame, member: str, params: Any
) -> tuple[dict[str, Any], dict[str, pd.Series]]:
    """One member on the test cases as shipped, site-calibrated and at its ceiling.

    local: the labelled cases of the site; the test cases themselves where the site sent no others, each then judged by
    what other patients fitted. Returns figures, and by `image_id` `site_logit` and `ceiling_logit`.
    """
    y_true, shipped, groups = labelled(test, member)
    require_ranking(local, member)
    taught = labelled(local, member)
    chosen = closed_test(taught.y_true, taught.logit, groups=taught.groups)
    update: dict[str, Any] = {"name": UPDATES[int(chosen.choice[0])]} | {
        name: float(values[0]) for name, values in chosen._asdict().items() if name != "choice"
    }
    measured = partial(measure, y_true, resampler=Resampler(groups, params.resamples, params.seed))
    metrics: dict[str, Any] = {"update": update, "as_shipped": measured(shipped)}
    if local is test:
        calibrated, update["times_chosen_cross_fitted"], intervals = cross_fit(taught, params)
        refitted = len(set(groups)) <= REFITTED
        metrics["site_calibrated"] = measured(calibrated, intervals=not refitted) | (intervals if refitted else {})
        site_logit = pd.Series(calibrated, test["image_id"])
    else:
        calibrated = chosen.intercept[0] + chosen.slope[0] * shipped
        metrics["site_calibrated"] = measured(calibrated)
        of_local = pd.Series(cross_fit(taught, params)[0], local["image_id"])
        site_logit = pd.concat([pd.Series(calibrated, test["image_id"]), of_local])
    best = closed_test(y_true, shipped, groups=groups)
    ceiling = best.intercept[0] + best.slope[0] * np.asarray(shipped)
    metrics["ceiling"] = measured(ceiling, intervals=False)
    return metrics, {"site_logit": site_logit, "ceiling_logit": pd.Series(ceiling, test["image_id"])}


def cross_fit(taught: Labelled, params: Any) -> tuple[np.ndarray, dict[str, int], dict[str, Estimate]]:
    """Logits (n,) updated by other patients, how often each update was chosen, and figures of the whole procedure.

    As shipped where the patients are fewer than the folds. The figures are refitted in every resample, up to `REFITTED`
    patients; with more they are left out, and one folding counts.
    """
    y_true, shipped, groups = taught
    n_patients = len(set(groups))
    if n_patients < params.folds:
        reason = f"{n_patients} patients are fewer than the {params.folds} folds: the logits stay as shipped"
        return shipped, {}, {"intervals": Estimate(absent=reason)}
    n_foldings, n_resamples = (params.foldings, params.resamples) if n_patients <= REFITTED else (1, 0)
    folds = site_folds(groups, n_folds=params.folds, n_foldings=n_foldings, rng=generator(params.seed, "folds"))
    weights = patient_counts(groups, n_resamples=n_resamples, rng=generator(params.seed, "resamples"))
    rows = np.vstack([np.ones(len(shipped)), weights])
    (logit, *resampled), choices = cross_fitted_update(y_true, shipped, groups=groups, folds=folds, weights=rows)
    times = np.bincount(choices[0].ravel(), minlength=len(UPDATES)).tolist()
    # slope and calibration-in-the-large of logits refitted in every resample are 1 and 0 but for rounding: no interval
    names = ("nll", "brier_score", "accuracy") if n_resamples else ()
    intervals = {name: estimate(FIGURES[name], y_true, logit, resampled, weights) for name in names}
    return logit, dict(zip(UPDATES, times, strict=True)), intervals


def estimate(
    metric: Callable[..., Any], y_true: np.ndarray, logit: np.ndarray, resampled: Iterable, weights: np.ndarray
) -> Estimate:
    """metric(y_true, logit) with the 95 % percentile interval of metric(y_true, resampled[b], weights=weights[b]).

    logit (n,); resampled, weights (resamples, n). The interval is absent where a resample has no such figure.
    """
    value = float(metric(y_true, logit))
    try:
        figures = [metric(y_true, row, weights=drawn) for row, drawn in zip(resampled, weights, strict=True)]
    except ValueError as error:
        return Estimate(value, interval_absent=str(error))
    low, high = np.quantile(figures, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def measure(y_true: np.ndarray, logit: np.ndarray, *, resampler: Resampler, intervals: bool = True) -> dict[str, Any]:
    """Calibration and decisions at p > 0.5 of one logit on the test cases; an ECE beside its noise floor."""
    y_pred = (logit > 0).astype(int)
    figures: dict[str, Any] = _wrong(y_true, y_pred)
    for name, metric in FIGURES.items():
        figures[name] = resampler.estimate(metric, y_true, logit, interval=intervals)
    if intervals:
        figures |= resampler.by_class(y_true, y_pred)
    rng = generator(resampler.seed, "noise floor")
    return figures | {"ece": calibration_test(y_true, expit(logit), rng=rng)._asdict()}


def _wrong(y_true: np.ndarray, y_pred: np.ndarray) -> dict[str, int]:
    counts = confusion_counts(y_true, y_pred)
    return {"false_positive": counts.fp, "false_negative": counts.fn}


def combined(test: pd.DataFrame, logits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The mean of the members' probabilities in each calibration: its errors, and how often the members disagree.

    logits: as shipped, site-calibrated and at the ceiling, a column per member, rows as in test.
    """
    y_true = test["y_true"].to_numpy()
    figures: dict[str, Any] = {}
    for name, part in logits.items():
        y_pred, positive = (expit(part.to_numpy()).mean(axis=1) > 0.5).astype(int), part.to_numpy() > 0
        disagree = int((positive.min(axis=1) != positive.max(axis=1)).sum())
        figures[name] = {**_wrong(y_true, y_pred), "accuracy": float(accuracy(y_true, y_pred)), "disagree": disagree}
    return figures


def compare_calibration(held: pd.DataFrame, local: pd.DataFrame, member: str, params: Any) -> dict[str, Any]:
    """Whether the logit as shipped is calibrated otherwise at the site than on `held`, patients that fitted nothing."""
    at_home = closed_test(*labelled(held, member)[:2], groups=held["patient_id"])
    figures: dict[str, Any] = {"update_at_source": UPDATES[int(at_home.choice[0])]}
    both = pd.concat([held.assign(site=0), local.assign(site=1)])
    y_true, logit, groups = labelled(both, member)
    try:
        rng = generator(params.seed, "interaction")
        options: dict[str, Any] = {"groups": groups, "n_resamples": params.resamples, "rng": rng}
        return figures | calibration_interaction(y_true, logit, both["site"], **options)
    except ValueError as error:
        return figures | {"absent": str(error)}


def blame(interaction: dict[str, Any], at_site: str) -> str:
    """Whose a miscalibration is, by `compare_calibration`, adjusted by Holm, and the update taken at the site.

    `site`, `home` (the source shows the same), `neither`, or `unclear`.
    """
    differs = interaction.get("p_value_holm", 1.0) < LEVEL
    home, here = interaction["update_at_source"] != "keep", at_site != "keep"
    if "absent" in interaction or (differs and not here) or (here and not differs and not home):
        return "unclear"
    return "site" if differs else "home" if home else "neither"
