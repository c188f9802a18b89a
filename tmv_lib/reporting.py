"""Figures as they stand in a metrics file: with their interval, or absent with the reason."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.classification import (
    accuracy,
    brier_score,
    confusion_counts,
    f1_score,
    negative_log_likelihood,
    negative_predictive_value,
    operating_point,
    per_patient,
    precision,
    sensitivity,
    specificity,
)
from tmv_lib.statistics import auroc, average_precision, bootstrap, holm, wilson_interval

PREDICTIVE = (precision, negative_predictive_value)


def figure(
    name: str,
    metric: Callable[..., Any],
    *arrays: Any,
    interval: bool = True,
    null: float | None = None,
    **resampling: Any,
) -> dict[str, float | str]:
    """A metric with its 95 % interval over resampled patients: `name`, `name_low`, `name_high`.

    resampling: `groups`, `n_resamples`, `rng`, `stratify` of `tmv_lib.statistics.bootstrap`. Stratify by class only
    what needs both classes: a calibration figure also varies with the number of positives. With `null`, for a
    difference 0, `name_p_value` tests that the figure has this value. interval=False leaves out an interval that does
    not cover what it promises.

    What cannot be computed, of all cases or in a resample, comes back as `name_absent` with the reason in words. A
    proportion of 0 or 1 is the same in every resample; it gets Wilson's interval for as many trials as there are
    patients (for an AUROC, of the rarer class), and a difference of proportions of which no patient knows Wilson's
    upper end to both sides.
    """
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(metric(*arrays))
            resampled = bootstrap(metric, *arrays, **resampling)
    except ValueError as error:
        return {f"{name}_absent": str(error)}
    low, high = resampled.low, resampled.high
    if not np.isfinite([value, low, high]).all():
        return {f"{name}_absent": "not defined in every resample of the patients: too few cases of a kind"}
    if low == high and value in (0, 1) and (trials := _trials(metric, *arrays, groups=resampling["groups"])):
        low, high = (float(end) for end in wilson_interval(value * trials, trials))
        low = -high if _differs(metric) else low
    found: dict[str, float | str] = {name: value}
    if interval:
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found if null is None else found | {f"{name}_p_value": resampled.p_value(null)}


def _differs(metric: Callable[..., Any]) -> bool:
    return isinstance(metric, partial) and metric.func is difference


def _trials(metric: Callable[..., Any], *arrays: Any, groups: np.ndarray) -> int:
    """The patients of whom a proportion, or a difference of two, is the share; 0 for what is no proportion."""
    if metric is auroc:
        return min(len(np.unique(groups[np.asarray(arrays[0]) == label])) for label in (0, 1))
    of = metric.args[0] if isinstance(metric, partial) and _differs(metric) else metric
    return len(np.unique(groups)) if of in (mean, accuracy, sensitivity, specificity, *PREDICTIVE) else 0


def adjust(*figures: dict[str, Any]) -> None:
    """Add Holm's `..._holm` beside every `...p_value` in these nested figures: all are one family of tests.

    A test counts once, however often it stands there: what bears one name and agrees to the last digit in value,
    interval and p-value is one test, of logits, say, that a calibrator or a decision left as they were.
    """
    tests: dict[Any, list[tuple[dict[str, Any], str]]] = {}
    for entry, key in (test for found in figures for test in _p_values(found)):
        stem = key.removesuffix("p_value").removesuffix("_")
        own = [name for name, value in entry.items() if name.startswith(stem) and isinstance(value, float)]
        # a p-value without a figure beside it could be that of any test
        same = (key, *((name, entry[name]) for name in own)) if len(own) > 1 else (id(entry), key)
        tests.setdefault(same, []).append((entry, key))
    if tests:
        adjusted = holm([entry[key] for (entry, key), *_ in tests.values()])
        for places, p_value in zip(tests.values(), adjusted, strict=True):
            for entry, key in places:
                entry[f"{key}_holm"] = float(p_value)


def _p_values(found: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for key, value in found.items():
        if isinstance(value, dict):
            yield from _p_values(value)
        elif key.endswith("p_value"):
            yield found, key


def mean(values: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """Mean over cases, (n,) to a float, or one a row of weights (resamples, n). Raises ValueError for no case."""
    if len(values) == 0:
        raise ValueError("there is no such case")
    return values.mean() if weights is None else weights @ values / weights.sum(axis=-1)


def difference(
    metric: Callable[..., Any], y_true: np.ndarray, first: Any, second: Any, *, weights: np.ndarray | None = None
) -> Any:
    """A metric of the first prediction minus that of the second, on the same cases and, in a bootstrap, resamples."""
    return metric(y_true, first, weights=weights) - metric(y_true, second, weights=weights)


gain = partial(difference, auroc)  # gain(outcome, score, rival): how much better a score finds the outcome


def counts(y_true: np.ndarray, patient_id: np.ndarray) -> dict[str, int]:
    """How many images, positives and patients a figure rests on."""
    return {"n": len(y_true), "n_positive": int(np.sum(y_true)), "n_patients": len(np.unique(patient_id))}


def performance(
    val: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float, n_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """How well one model reads the test cases, per image and, under `per_patient`, per patient.

    val, test: `y_true`, `score` (the network's logit), `logit` (calibrated) and `patient_id`, a row an image. Ranking
    by the score; decisions at calibrated p > 0.5, and at the operating point whose sensitivity on val is the one
    given, for images and patients each its own. Every figure with its interval, counts excepted.
    """
    read = partial(_read, sensitivity=sensitivity, n_resamples=n_resamples, rng=rng)
    return read(val, test) | {"per_patient": read(by_patient(val), by_patient(test))}


def by_patient(cases: pd.DataFrame) -> pd.DataFrame:
    """A row a patient from a row an image: `y_true`, `score`, `logit`, `patient_id` as `per_patient` pools them."""
    y_true, score, patient_id = per_patient(cases["y_true"], cases["score"], cases["patient_id"])
    logit = per_patient(cases["y_true"], cases["logit"], cases["patient_id"]).logit
    return pd.DataFrame({"y_true": y_true, "score": score, "logit": logit, "patient_id": patient_id})


def _read(
    val: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float, n_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    y_true, score, logit, groups = (test[name].to_numpy() for name in ("y_true", "score", "logit", "patient_id"))
    resampled = partial(figure, groups=groups, n_resamples=n_resamples, rng=rng)
    found: dict[str, Any] = counts(y_true, groups)
    found |= resampled("auroc", auroc, y_true, score, stratify=y_true)
    found |= resampled("average_precision", average_precision, y_true, score)
    found |= resampled("brier_score", brier_score, y_true, expit(logit))
    found |= resampled("nll", negative_log_likelihood, y_true, logit)
    threshold = operating_point(val["y_true"], val["score"], sensitivity=sensitivity)
    for name, y_pred in (("at_half", expit(logit) > 0.5), ("at_operating_point", score > threshold)):
        decided = y_pred.astype(int)
        tn, fp, fn, tp = confusion_counts(y_true, decided)
        found[name] = {"true_negative": tn, "false_positive": fp, "false_negative": fn, "true_positive": tp}
        found[name] |= resampled("accuracy", accuracy, y_true, decided)
        found[name] |= resampled("f1_score", f1_score, y_true, decided)
        found[name] |= by_class(y_true, decided, groups=groups, n_resamples=n_resamples, rng=rng)
    return found


def by_class(y_true: np.ndarray, y_pred: np.ndarray, *, prefix: str = "", **resampling: Any) -> dict[str, Any]:
    """Sensitivity and specificity over the patients of each class, precision and negative predictive value over those
    of each decision, with their intervals; y_true and y_pred (n,) arrays of 0 and 1, `groups` (n,) among resampling.
    """
    found: dict[str, Any] = {}
    for metric, conditioned, label in (
        (sensitivity, y_true, 1),
        (specificity, y_true, 0),
        (precision, y_pred, 1),
        (negative_predictive_value, y_pred, 0),
    ):
        here = conditioned == label
        kept = {**resampling, "groups": resampling["groups"][here]}
        found |= figure(f"{prefix}{metric.__name__}", metric, y_true[here], y_pred[here], **kept)
    return found


def curve(series: str, **columns: np.ndarray) -> pd.DataFrame:
    """One named series of a diagram in long format."""
    return pd.DataFrame({"series": series, **columns})


def percent(share: float, digits: int = 0) -> str:
    """A share in words.

    >>> percent(0.0514), percent(0.0514, 1)
    ('5 %', '5.1 %')
    """
    return f"{100 * share:.{digits}f} %"
