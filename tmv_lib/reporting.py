"""Figures as they stand in a metrics file: with their interval, or absent with the reason."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.classification import accuracy, confusion_counts, f1_score, sensitivity, specificity
from tmv_lib.statistics import auroc, average_precision, bootstrap, wilson_interval


def figure(name: str, metric: Callable[..., Any], *arrays: Any, **resampling: Any) -> dict[str, float | str]:
    """A metric with its 95 % interval over resampled patients: `name`, `name_low`, `name_high`.

    resampling: `groups`, `n_resamples`, `rng`, `stratify` of `tmv_lib.statistics.bootstrap`. What cannot be
    computed, of all cases or in a resample, comes back as `name_absent` with the reason in words. A proportion of
    0 or 1 is the same in every resample; it gets Wilson's interval for as many trials as there are patients.
    """
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(metric(*arrays))
            low, high, _ = bootstrap(metric, *arrays, **resampling)
    except ValueError as error:
        return {f"{name}_absent": str(error)}
    if not np.isfinite([value, low, high]).all():
        return {f"{name}_absent": "not defined in every resample of the patients: too few cases of a kind"}
    if low == high and value in (0, 1):
        n_patients = len(np.unique(resampling["groups"]))
        low, high = (float(end) for end in wilson_interval(value * n_patients, n_patients))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def mean(values: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """Mean over cases, (n,) to a float, or one a row of weights (resamples, n). Raises ValueError for no case."""
    if len(values) == 0:
        raise ValueError("there is no such case")
    return values.mean() if weights is None else weights @ values / weights.sum(axis=-1)


def gain(outcome: np.ndarray, score: np.ndarray, rival: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """AUROC of a score minus that of its rival on the same cases."""
    return auroc(outcome, score, weights=weights) - auroc(outcome, rival, weights=weights)


def share(name: str, k: int, n: int) -> dict[str, float]:
    """A proportion of independent cases with Wilson's 95 % interval: `name`, `name_low`, `name_high`."""
    low, high = wilson_interval(k, n)
    return {name: k / n, f"{name}_low": float(low), f"{name}_high": float(high)}


def counts(y_true: np.ndarray, patient_id: np.ndarray) -> dict[str, int]:
    """How many images, positives and patients a figure rests on."""
    return {"n": len(y_true), "n_positive": int(np.sum(y_true)), "n_patients": len(np.unique(patient_id))}


def performance(
    y_true: np.ndarray,
    score: np.ndarray,
    y_prob: np.ndarray,
    *,
    operating_point: float,
    groups: np.ndarray,
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How well one model reads: ranking by `score`, and decisions at y_prob > 0.5 and score > operating_point.

    All arrays (n,). Every figure with its patient-bootstrap interval, and the confusion counts of both decisions.
    """
    resampled = partial(figure, groups=groups, stratify=y_true, n_resamples=n_resamples, rng=rng)
    found: dict[str, Any] = counts(y_true, groups)
    found |= resampled("auroc", auroc, y_true, score)
    found |= resampled("average_precision", average_precision, y_true, score)
    for name, y_pred in (("at_half", y_prob > 0.5), ("at_operating_point", score > operating_point)):
        decided = y_pred.astype(int)
        tn, fp, fn, tp = confusion_counts(y_true, decided)
        found[name] = {"true_negative": tn, "false_positive": fp, "false_negative": fn, "true_positive": tp}
        for metric in (accuracy, f1_score):
            found[name] |= resampled(metric.__name__, metric, y_true, decided)
        found[name] |= by_class(y_true, decided, groups=groups, n_resamples=n_resamples, rng=rng)
    return found


def by_class(y_true: np.ndarray, y_pred: np.ndarray, *, prefix: str = "", **resampling: Any) -> dict[str, Any]:
    """Sensitivity and specificity with their intervals over the patients of each class, (n,) arrays of 0 and 1."""
    found: dict[str, Any] = {}
    for name, metric, label in (("sensitivity", sensitivity, 1), ("specificity", specificity, 0)):
        here = y_true == label
        kept = {**resampling, "groups": resampling["groups"][here]}
        found |= figure(f"{prefix}{name}", metric, y_true[here], y_pred[here], **kept)
    return found


def curve(series: str, **columns: np.ndarray) -> pd.DataFrame:
    """One named series of a diagram in long format."""
    return pd.DataFrame({"series": series, **columns})
