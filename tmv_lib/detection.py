"""Does a signal find the errors: alone, against confidence, and once the confidence is known?

An error is 1 and a right answer 0; a signal is larger where an error is suspected.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tmv_lib.classification import negative_log_likelihood
from tmv_lib.reporting import difference, figure, gain
from tmv_lib.statistics import FloatArray, as_binary, as_finite, auroc, average_precision, holm

FEWEST = 20  # errors, and right answers: with fewer an interval covers less than 90 % (12 % with one, 87 % with ten)


class ErrorLogits(NamedTuple):
    """Logits (n,) of being wrong, by confidence alone and by confidence and signal, and the signal's slope."""

    confidence: FloatArray
    both: FloatArray
    slope: float


def given_confidence(error: ArrayLike, logit: ArrayLike, signal: ArrayLike, *, fit: ArrayLike) -> ErrorLogits:
    """What a signal adds to the confidence: two logistic regressions, with it and without.

    logit P(error) = a + b |z|  and  a + b |z| + c s; where the logit z is calibrated, a = 0 and b = -1 say it all.
    Both standardised, their slopes with a standard Normal prior, so that they are finite even where one separates.

    error (n,) in {0, 1}, logit z and signal s (n,) finite, fit (n,) boolean, the cases that are fitted; all n are
    answered. The slope c is that of one standard deviation of the signal: above 0, more of it means more errors.
    Raises ValueError where fewer than 20 errors, or 20 right answers, are there to fit two slopes.
    """
    e = as_binary(error, name="error")
    columns = [np.abs(as_finite(logit, name="logit", n=e.size)), as_finite(signal, name="signal", n=e.size)]
    fitted = np.asarray(fit, dtype=bool)
    if fitted.shape != e.shape:
        raise ValueError(f"fit must say of each case ({e.size}) whether it is fitted, found shape {fitted.shape}")
    require(e[fitted], fewest=FEWEST, where="to fit on")
    known = [np.stack(columns[:k], axis=1) for k in (1, 2)]
    models = [make_pipeline(StandardScaler(), LogisticRegression()).fit(table[fitted], e[fitted]) for table in known]
    confidence, both = (model.decision_function(table) for model, table in zip(models, known, strict=True))
    return ErrorLogits(confidence, both, float(models[1][-1].coef_[0, 1]))


def require(error: FloatArray, *, fewest: int, where: str) -> None:
    """Raise ValueError unless there are so many errors, and as many right answers."""
    wrong, right = int(error.sum()), int((1 - error).sum())
    if min(wrong, right) < fewest:
        raise ValueError(f"{wrong} errors and {right} right answers {where}: at least {fewest} of each are needed")


def judge(
    error: ArrayLike,
    logit: ArrayLike,
    signals: Mapping[str, ArrayLike],
    *,
    fit: ArrayLike,
    test: ArrayLike,
    groups: ArrayLike,
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Each signal as a detector of errors on the test cases, with intervals, p-values and the answer in words.

    error, logit, groups (n,); fit and test (n,) boolean, of which `fit` alone teaches; signals (n,) each, NaN where
    there is none. A signal's entry holds how many cases and errors it rests on; `error_auroc`,
    `error_average_precision` and `gain_over_margin` (AUROC against that of -|z|); and what it adds once |z| is known:
    `auroc_gain_given_confidence`, `likelihood_gain_given_confidence` (of the logarithm, nats a case) and the slope.
    In words, `finds_errors` (AUROC above 0.5) and `adds_to_confidence` (likelihood gain above 0) are `supported`,
    `the opposite` or `not supported`, two-sided at 5 % after Holm over the signals. What cannot be judged is absent
    with its reason: everything with fewer than 10 errors or right answers on test, what is given confidence with
    fewer than 20 in `fit`. Raises ValueError for arrays that do not fit together.
    """
    e = as_binary(error, name="error")
    z = as_finite(logit, name="logit", n=e.size)
    fitted, judged, patients = np.asarray(fit, dtype=bool), np.asarray(test, dtype=bool), np.asarray(groups)
    for name, values in {"fit": fitted, "test": judged, "groups": patients, **signals}.items():
        if np.shape(values) != e.shape:
            raise ValueError(f"{name} must hold one value a case ({e.size}), found shape {np.shape(values)}")
    found: dict[str, Any] = {}
    for name, values in signals.items():
        s = np.asarray(values, dtype=float)
        there = np.isfinite(s)
        here = there & judged
        found[name] = {"n": int(here.sum()), "n_errors": int(e[here].sum())}
        resampled = partial(figure, groups=patients[here], n_resamples=n_resamples, rng=rng)
        ranked = partial(resampled, stratify=e[here])
        try:
            require(e[here], fewest=FEWEST, where="to judge")
        except ValueError as reason:
            found[name]["absent"] = str(reason)
            continue
        found[name] |= ranked("error_auroc", auroc, e[here], s[here], null=0.5)
        found[name] |= resampled("error_average_precision", average_precision, e[here], s[here])
        found[name] |= ranked("gain_over_margin", gain, e[here], s[here], -np.abs(z[here]), null=0.0)
        try:
            known = given_confidence(e[there], z[there], s[there], fit=fitted[there])
        except ValueError as reason:
            found[name]["given_confidence_absent"] = str(reason)
            continue
        both, confidence = known.both[judged[there]], known.confidence[judged[there]]
        likelihood = partial(difference, negative_log_likelihood)
        found[name] |= ranked("auroc_gain_given_confidence", gain, e[here], both, confidence, null=0.0)
        found[name] |= resampled("likelihood_gain_given_confidence", likelihood, e[here], confidence, both, null=0.0)
        found[name]["slope_given_confidence"] = known.slope
    _answer(found, "error_auroc", "finds_errors", null=0.5)
    _answer(found, "likelihood_gain_given_confidence", "adds_to_confidence", null=0.0)
    return found


def _answer(found: dict[str, Any], name: str, question: str, *, null: float) -> None:
    """Say of each entry whether the figure `name` lies above `null`, after Holm over the entries that have one."""
    tested = [entry for entry in found.values() if f"{name}_p_value" in entry]
    adjusted = holm([entry[f"{name}_p_value"] for entry in tested]) if tested else ()
    for entry, p in zip(tested, adjusted, strict=True):
        entry[f"{name}_p_value_holm"] = float(p)
        direction = "supported" if entry[name] > null else "the opposite"
        entry[question] = direction if p < 0.05 else "not supported"
