"""Does a signal find the errors among cases that were called alike: alone, against confidence, and given confidence?

An error is 1 and a right answer 0; a signal is larger where an error is suspected. The named class, `called`, is 1 for
cases called positive, whose errors are false alarms, and 0 for cases called negative, whose errors are missed
positives. It is known before any signal is looked at, so a signal that merely differs between the two finds nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite, as_weights
from tmv_lib.statistics.classification import negative_log_likelihood
from tmv_lib.statistics.estimate import Estimate, Resampler, difference
from tmv_lib.statistics.ranking import auroc, average_precision
from tmv_lib.statistics.tests import holm_distinct

FEWEST = 20  # errors, and right answers: with fewer an interval covers less than 90 % (12 % with one, 87 % with ten)
LEVEL = 0.05  # of a family of tests
WORTHWHILE = 0.02  # AUROC: a gain over the margin that does not exceed it is not worth a second signal
NAMED = {"called_positive": 1, "called_negative": 0}


class ErrorLogits(NamedTuple):
    """Logits (n,) of being wrong, by answer and confidence, and by these and the signal; and the signal's slope."""

    confidence: FloatArray
    both: FloatArray
    slope: float


def adjusted_auroc(error: ArrayLike, score: ArrayLike, called: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Chance in [0, 1] that an error outranks a right answer that was called alike, a tie counting half.

    The class-adjusted AUROC of Janes & Pepe (2009, Biometrika 96): the mean over the errors of their placement among
    the right answers of their own named class, `sum_c E_c AUROC_c / sum_c E_c`, `E_c` the errors called c. A signal
    that differs between the named classes and says nothing within them has 0.5, whatever its pooled AUROC.

    error, called (n,) in {0, 1}, score (n,) finite. Returns a float, or an array (resamples,) for weights
    (resamples, n). Raises ValueError where a named class has no error or no right answer with weight.

    >>> float(adjusted_auroc([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1]))
    1.0
    """
    e = as_binary(error, name="error")
    s, c = as_finite(score, name="score", n=e.size), as_binary(called, name="called", n=e.size)
    w = as_weights(weights, n=e.size)
    beaten, errors = 0.0, 0.0
    for label in np.unique(c):
        here = c == label
        of_class = w[..., here] @ e[here]
        beaten = beaten + of_class * auroc(e[here], s[here], weights=w[..., here])
        errors = errors + of_class
    return beaten / errors


def _adjusted_gain(
    error: FloatArray, score: FloatArray, rival: FloatArray, called: FloatArray, *, weights: FloatArray | None = None
) -> Any:
    return adjusted_auroc(error, score, called, weights=weights) - adjusted_auroc(error, rival, called, weights=weights)


def detector(
    error: ArrayLike,
    score: ArrayLike,
    *,
    called: ArrayLike,
    resampler: Resampler,
    rival: ArrayLike | None = None,
) -> dict[str, Any]:
    """One signal as a detector of errors, judged within the class that was named.

    `called_positive` and `called_negative`: counts and `error_auroc`, absent with the reason where a class has fewer
    than 20 errors or right answers. `adjusted_error_auroc`: `adjusted_auroc` over the classes that are left
    (`rests_on`: both, or one by name), tested against 0.5. `gain_over_margin`: the same less that of the rival, paired.
    `pooled_error_auroc` and `pooled_average_precision` mix the classes and stand beside it.

    error, called (n,) in {0, 1}, score and rival (n,) finite; resampler: of these cases. Raises ValueError for arrays
    that do not fit together.
    """
    e = as_binary(error, name="error")
    s, c = as_finite(score, name="signal", n=e.size), as_binary(called, name="called", n=e.size)
    figures: dict[str, Any] = {"n": e.size, "n_errors": int(e.sum())}
    for name, label in NAMED.items():
        here = c == label
        figures[name] = {"n": int(here.sum()), "n_errors": int(e[here].sum())}
        try:
            require(e[here], fewest=FEWEST, where=f"among cases {name.replace('_', ' ')}")
        except ValueError as reason:
            figures[name]["error_auroc"] = Estimate(absent=str(reason))
        else:
            own = resampler.among(here)
            figures[name]["error_auroc"] = own.estimate(auroc, e[here], s[here], stratify=e[here])
    enough = [figures[name] for name in NAMED if figures[name]["error_auroc"].value is not None]
    if not enough:
        reasons = [str(figures[name]["error_auroc"].absent) for name in NAMED]
        return figures | {"adjusted_error_auroc": Estimate(absent="; ".join(reasons))}
    figures["rests_on"] = "both" if len(enough) == 2 else next(name for name in NAMED if figures[name] in enough)
    kept = _enough(figures, c)
    among, strata = resampler.among(kept), (2 * c + e)[kept]
    estimate = among.estimate(adjusted_auroc, e[kept], s[kept], c[kept], stratify=strata, null=0.5)
    if estimate.value is not None and estimate.low == estimate.high:
        # Every resample ranks alike: as wide as the classes' own intervals, weighted by their errors.
        errors = [one["n_errors"] for one in enough]
        ends = ([getattr(one["error_auroc"], end) for one in enough] for end in ("low", "high"))
        low, high = (float(np.average(end, weights=errors)) for end in ends)
        estimate = replace(estimate, low=low, high=high)
    figures["adjusted_error_auroc"] = estimate
    if rival is not None:
        r = as_finite(rival, name="rival", n=e.size)
        arrays = (of[kept] for of in (e, s, r, c))
        figures["gain_over_margin"] = among.estimate(_adjusted_gain, *arrays, stratify=strata, null=0.0)
    figures["pooled_error_auroc"] = resampler.estimate(auroc, e, s, stratify=e)
    figures["pooled_average_precision"] = resampler.estimate(average_precision, e, s)
    return figures


def given_confidence(
    error: ArrayLike, logit: ArrayLike, signal: ArrayLike, *, called: ArrayLike, fit: ArrayLike
) -> ErrorLogits:
    """What a signal adds to answer and confidence: two logistic regressions of the error, with it and without.

    logit P(error) = a + d called + b |z|  and  a + d called + b |z| + c s; where the logit z is calibrated, a = d = 0
    and b = -1 say it all. All standardised, their slopes with a standard Normal prior, so that they are finite even
    where one separates.

    error, called (n,) in {0, 1}, logit z and signal s (n,) finite, fit (n,) boolean, the cases that are fitted; all n
    are answered. The slope c is that of one standard deviation of the signal: above 0, more of it means more errors.
    Raises ValueError where fewer than 20 errors, or 20 right answers, are there to fit the slopes.
    """
    e = as_binary(error, name="error")
    columns = [
        as_binary(called, name="called", n=e.size),
        np.abs(as_finite(logit, name="logit", n=e.size)),
        as_finite(signal, name="signal", n=e.size),
    ]
    fitted = np.asarray(fit, dtype=bool)
    if fitted.shape != e.shape:
        raise ValueError(f"fit must say of each case ({e.size}) whether it is fitted, found shape {fitted.shape}")
    require(e[fitted], fewest=FEWEST, where="to fit on")
    known = [np.stack(columns[:k], axis=1) for k in (2, 3)]
    models = [make_pipeline(StandardScaler(), LogisticRegression()).fit(table[fitted], e[fitted]) for table in known]
    confidence, both = (model.decision_function(table) for model, table in zip(models, known, strict=True))
    return ErrorLogits(confidence, both, float(models[1][-1].coef_[0, 2]))


def require(error: FloatArray, *, fewest: int, where: str) -> None:
    """Raise ValueError unless there are so many errors, and as many right answers."""
    wrong, right = int(error.sum()), int((1 - error).sum())
    if min(wrong, right) < fewest:
        raise ValueError(f"{wrong} errors and {right} right answers {where}: at least {fewest} of each are needed")


def detectors(
    error: ArrayLike,
    logit: ArrayLike,
    signals: Mapping[str, ArrayLike],
    *,
    called: ArrayLike,
    fit: ArrayLike,
    test: ArrayLike,
    resampler: Resampler,
) -> dict[str, Any]:
    """Each signal as a detector of errors on the test cases, and what it adds once answer and confidence are known.

    error, called, logit (n,), and resampler of the same cases; fit and test (n,) boolean, of which `fit` alone teaches;
    signals (n,) each, NaN where there is none. A signal's entry is that of `detector` against the margin, -|z|, with
    the answers of `answer`; and, given the named class and |z|, `auroc_gain_given_confidence` (adjusted),
    `likelihood_gain_given_confidence` (of the logarithm, nats per case), the slope, and the answer
    `adds_to_confidence`. What is given confidence is absent with its reason for fewer than 20 errors or right answers
    in `fit`. Raises ValueError for arrays that do not fit together.
    """
    e = as_binary(error, name="error")
    z = as_finite(logit, name="logit", n=e.size)
    c = as_binary(called, name="called", n=e.size)
    fitted, tested = np.asarray(fit, dtype=bool), np.asarray(test, dtype=bool)
    for name, values in {"fit": fitted, "test": tested, "groups": resampler.groups, **signals}.items():
        if np.shape(values) != e.shape:
            raise ValueError(f"{name} must hold one value per case ({e.size}), found shape {np.shape(values)}")
    figures: dict[str, Any] = {}
    scores = {name: np.asarray(values, dtype=float) for name, values in signals.items()}
    for name, s in scores.items():
        there = np.isfinite(s)
        here = there & tested
        if not here.any():
            absent = Estimate(absent="no test case has this signal")
            figures[name] = {"n": 0, "n_errors": 0, "adjusted_error_auroc": absent}
            continue
        own = resampler.among(here)
        figures[name] = detector(e[here], s[here], called=c[here], rival=-np.abs(z[here]), resampler=own)
        if figures[name]["adjusted_error_auroc"].value is not None:
            cases = (values[there] for values in (e, z, s, c, fitted, tested))
            figures[name] |= _beyond_confidence(*cases, kept=_enough(figures[name], c[here]), resampler=own)
    on_test = {name: s[tested] for name, s in scores.items()}
    answer(figures, on_test, margin=-np.abs(z[tested]))
    _adjust(figures, _ranks(on_test), "likelihood_gain_given_confidence")
    for entry in figures.values():
        entry["adds_to_confidence"] = _direction(entry, "likelihood_gain_given_confidence", null=0)
    return figures


def _beyond_confidence(
    e: FloatArray,
    z: FloatArray,
    s: FloatArray,
    c: FloatArray,
    fitted: np.ndarray,
    tested: np.ndarray,
    *,
    kept: np.ndarray,
    resampler: Resampler,
) -> dict[str, Any]:
    """What a signal adds given the named class and confidence; kept: test cases of the classes that are compared."""
    try:
        known = given_confidence(e, z, s, called=c, fit=fitted)
    except ValueError as reason:
        return {"given_confidence": Estimate(absent=str(reason))}
    both, confidence, error, called = (values[tested] for values in (known.both, known.confidence, e, c))
    arrays = (of[kept] for of in (error, both, confidence, called))
    likelihood = partial(difference, negative_log_likelihood)
    return {
        "auroc_gain_given_confidence": resampler.among(kept).estimate(
            _adjusted_gain, *arrays, stratify=(2 * called + error)[kept], null=0.0
        ),
        "likelihood_gain_given_confidence": resampler.estimate(likelihood, error, confidence, both, null=0.0),
        "slope_given_confidence": known.slope,
    }


def _enough(entry: Mapping[str, Any], called: FloatArray) -> np.ndarray:
    """Which cases belong to a named class that has enough errors and right answers."""
    return np.isin(called, [label for name, label in NAMED.items() if entry[name]["error_auroc"].value is not None])


def answer(figures: dict[str, Any], scores: Mapping[str, ArrayLike], *, margin: ArrayLike) -> None:
    """Add to each detector's entry its Holm-adjusted p-values and its answers, as values.

    `finds_errors` (adjusted AUROC against 0.5): `supported`, `the opposite` or `not supported`, two-sided at 5 %.
    `over_margin`: `better` where the whole interval of the gain exceeds the smallest worthwhile one, 0.02; `worse`
    where it lies below 0, both at 5 %; `no worthwhile gain` where it ends at or below 0.02; else `not shown`. What was
    not measured is `cannot be tested`.

    figures: the entries by signal, changed in place; scores: the signal (n,) of each; margin (n,), which is no rival of
    itself. A family holds the signals of one question; those that rank all cases alike are one test, and what ranks
    them as the margin does is none of its gains.
    """
    ranks = _ranks(scores)
    same = {"margin", *(name for name, bytes_ in ranks.items() if bytes_ == rankdata(margin).tobytes())}
    _adjust(figures, ranks, "adjusted_error_auroc")
    _adjust({name: entry for name, entry in figures.items() if name not in same}, ranks, "gain_over_margin")
    for name, entry in figures.items():
        entry["finds_errors"] = _direction(entry, "adjusted_error_auroc", null=0.5)
        if name != "margin":
            entry["over_margin"] = _over_margin(entry.get("gain_over_margin", Estimate()))


def _ranks(scores: Mapping[str, ArrayLike]) -> dict[str, bytes]:
    """What two signals share that rank all cases alike."""
    return {name: rankdata(score, nan_policy="omit").tobytes() for name, score in scores.items()}


def _adjust(figures: Mapping[str, dict[str, Any]], ranks: Mapping[str, bytes], name: str) -> None:
    """Holm over the entries that have this figure, signals of equal ranks being one test."""
    tested = {signal: entry for signal, entry in figures.items() if name in entry and entry[name].p_value is not None}
    if tested:
        p_values = [entry[name].p_value for entry in tested.values()]
        adjusted = holm_distinct(p_values, [ranks[signal] for signal in tested])
        for entry, p in zip(tested.values(), adjusted, strict=True):
            entry[name] = replace(entry[name], p_value_holm=float(p))


def _direction(entry: Mapping[str, Any], name: str, *, null: float) -> str:
    estimate = entry.get(name, Estimate())
    if estimate.value is None or estimate.p_value_holm is None:
        return "cannot be tested"
    if estimate.p_value_holm >= LEVEL:
        return "not supported"
    return "supported" if estimate.value > null else "the opposite"


def _over_margin(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return "cannot be tested"
    differs = gain.p_value_holm is not None and gain.p_value_holm < LEVEL
    if differs and gain.low > WORTHWHILE:
        return "better"
    if differs and gain.high < 0:
        return "worse"
    return "no worthwhile gain" if gain.high <= WORTHWHILE else "not shown"
