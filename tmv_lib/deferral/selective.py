"""What a confidence is worth when the least confident cases are left undecided, and what can be guaranteed.

A case is accepted when its confidence is at least the threshold; cases of equal confidence are accepted together.
`error` holds 0 and 1, larger `confidence` means surer, `weights` are those of `tmv_lib.statistics.arrays`.
"""

from bisect import bisect_left
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma
from scipy.stats import binom

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite, as_weights


class RiskCoverage(NamedTuple):
    """One point for each distinct confidence, from the surest: share accepted, error rate among the accepted."""

    coverage: FloatArray
    selective_risk: FloatArray


class Certificate(NamedTuple):
    """Accept `confidence >= threshold`: the error rate among accepted cases is at most `risk_bound`.

    True with probability 1 - delta over the calibration cases, if these are independent (one image a patient),
    were used for nothing else, and are exchangeable with the cases to come. The defaults are what nothing certified
    says: accept nobody. errors, n_accepted: among the calibration cases. p_value: P(Bin(n_accepted, risk) <= errors).
    """

    certified: bool = False
    threshold: float = inf
    coverage: float = 0.0
    errors: int = 0
    n_accepted: int = 0
    p_value: float = 1.0
    risk_bound: float = 1.0


def risk_coverage_curve(error: ArrayLike, confidence: ArrayLike, *, weights: ArrayLike | None = None) -> RiskCoverage:
    """Error rate among the accepted cases against the share accepted (El-Yaniv & Wiener 2010); weights (n,) positive.

    >>> coverage, selective_risk = risk_coverage_curve([0, 1, 0, 1], [0.9, 0.5, 0.7, 0.7])
    >>> [round(float(risk), 3) for risk in selective_risk]
    [0.0, 0.333, 0.5]
    """
    _, accepted, errors = _accepted(error, confidence, weights)
    return RiskCoverage(accepted / accepted[-1], errors / accepted)


def aurc(error: ArrayLike, confidence: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Area under the risk-coverage curve in [0, 1]: the mean over k of the error rate of the k surest cases.

    Geifman & El-Yaniv 2017, the discrete rule; among cases of equal confidence the expected value over their
    orders. A random order is expected to reach the error rate itself. Returns a float, or (resamples,).

    >>> round(float(aurc([0, 1, 0], [0.9, 0.8, 0.7])), 4)  # (0 + 1/2 + 1/3) / 3
    0.2778
    """
    _, accepted, errors = _accepted(error, confidence, weights)
    cases, mistakes = np.diff(accepted, prepend=0), np.diff(errors, prepend=0)
    cases_before, mistakes_before = accepted - cases, errors - mistakes

    # Before a group of m cases with e errors stand N cases with E errors. Its j-th rank is expected to have
    # (E + j e/m) / (N + j); over j = 1..m these sum to e + (E - N e/m) (H(N + m) - H(N)), H(k) = 1 + 1/2 + ... + 1/k.
    rate = np.divide(mistakes, cases, out=np.zeros_like(mistakes), where=cases > 0)
    harmonic = digamma(accepted + 1) - digamma(cases_before + 1)
    ranks = mistakes + (mistakes_before - cases_before * rate) * harmonic
    return ranks.sum(axis=-1) / accepted[..., -1]


def eaurc(error: ArrayLike, confidence: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Excess AURC, at least 0: AURC minus that of the oracle which ranks every error last (Geifman et al. 2019)."""
    return aurc(error, confidence, weights=weights) - aurc(error, -np.asarray(error, dtype=float), weights=weights)


def augrc(error: ArrayLike, confidence: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Area under the generalised risk-coverage curve, in [0, 1/2] (Traub et al. 2024, arXiv 2407.01032).

    The generalised risk is the share of all cases that are accepted and wrong. The area equals
    (1 - AUROC_f) acc (1 - acc) + (1 - acc)^2 / 2, AUROC_f of the confidence as a detector of correct cases.
    """
    _, accepted, errors = _accepted(error, confidence, weights)
    # area of (errors / n) over (accepted / n): a trapezoid for each distinct confidence, the first from (0, 0)
    heights = errors - np.diff(errors, prepend=0) / 2
    return (np.diff(accepted, prepend=0) * heights).sum(axis=-1) / accepted[..., -1] ** 2


@lru_cache
def cases_needed(risk: float, delta: float, errors: int = 0) -> int:
    """The least number of accepted cases, `errors` of them wrong, that certify an error rate of at most `risk`.

    >>> cases_needed(0.05, 0.05), cases_needed(0.01, 0.05), cases_needed(0.05, 0.025, errors=2)
    (59, 299, 142)
    """
    _check_share("risk", risk)
    _check_share("delta", delta)
    if errors < 0:
        raise ValueError(f"errors must be at least 0, found {errors}")
    enough = errors + 1
    while binom.cdf(errors, enough, risk) > delta:
        enough *= 2
    return bisect_left(range(enough), True, key=lambda n: binom.cdf(errors, n, risk) <= delta)


def coverage_grid(confidence: ArrayLike, *, start: float, n_steps: int) -> FloatArray:
    """Thresholds that accept shares of these scores from `start` to 1 in equal steps: a grid for `certify_ltt`.

    confidence: scores of cases other than those that certify, for instance of validation; no labels enter.
    start: share in (0, 1]. Fewer than `cases_needed(risk, delta) / n` of n calibration cases can never certify, and
    room for an error or two (`errors=2`) keeps one mistake at the first step from ending the walk.
    Returns thresholds from most to least deferring, each once.
    """
    confidence = as_finite(confidence, name="confidence")
    if not 0 < start <= 1:
        raise ValueError(f"start must lie in (0, 1], found {start}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, found {n_steps}")
    shares = np.linspace(start, 1, n_steps)
    return np.unique(-np.quantile(-confidence, shares, method="inverted_cdf"))[::-1]


def certify_ltt(error: ArrayLike, confidence: ArrayLike, *, risk: float, delta: float, grid: ArrayLike) -> Certificate:
    """The least deferring threshold of a fixed grid with a guaranteed error rate among accepted cases.

    Learn-then-Test with fixed-sequence testing (Angelopoulos et al. 2021, arXiv 2110.01052): walk from the most
    to the least deferring threshold while each rejects "the error rate exceeds `risk`" at level `delta`.

    risk, delta: in (0, 1); the error rate to guarantee, and the chance that the guarantee is wrong. grid: thresholds in
    any order, chosen without the labels of these cases (see `coverage_grid`). Raises ValueError for bad lengths, values
    or ranges.
    """
    _check_share("risk", risk)
    _check_share("delta", delta)
    thresholds = np.unique(as_finite(grid, name="grid"))[::-1]
    distinct, accepted, errors = _accepted(error, confidence)
    position = np.searchsorted(-distinct, -thresholds, side="right")
    n_accepted, n_errors = np.append(0, accepted)[position], np.append(0, errors)[position]

    # p_j = P(Bin(n_j, risk) <= k_j), valid whatever the confidences were
    p_values = binom.cdf(n_errors, n_accepted, risk)
    walked = int(np.logical_and.accumulate(p_values <= delta).sum())
    if walked == 0:
        return Certificate()
    last = walked - 1
    coverage, k, n = n_accepted[last] / accepted[-1], int(n_errors[last]), int(n_accepted[last])
    return Certificate(True, float(thresholds[last]), float(coverage), k, n, float(p_values[last]), risk)


def best_start(error: ArrayLike, confidence: ArrayLike, *, n: int, risk: float, delta: float) -> float:
    """The share in (0, 1] at which a `coverage_grid` should start for n calibration cases, by cases other than these.

    A first step with room for e errors must accept `cases_needed(risk, delta, e)` of the n. For e = 0 to 10 the chance
    to pass is P(Bin(that many, r) <= e), r = (errors + 1/2) / (accepted + 1) at this share of the cases given; the
    likeliest wins, the smaller one where two are alike. 1 where n is too small for any.
    """
    _, accepted, errors = _accepted(error, confidence)
    share, chance = 1.0, 0.0
    for allowed in range(11):
        needed = cases_needed(risk, delta, allowed)
        if needed > n:
            break
        place = min(int(np.searchsorted(accepted, needed / n * accepted[-1])), len(accepted) - 1)
        rate = (errors[place] + 0.5) / (accepted[place] + 1)
        if (passes := float(binom.cdf(allowed, needed, rate))) > chance:
            share, chance = needed / n, passes
    return share


def _accepted(
    error: ArrayLike, confidence: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct confidences from the surest; cases and errors at least so sure, (..., distinct confidences)."""
    error = as_binary(error, name="error")
    confidence = as_finite(confidence, name="confidence", n=error.size)
    weights = as_weights(weights, n=error.size)
    order = np.argsort(-confidence, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(confidence[order])), error.size - 1)
    accepted = np.cumsum(weights[..., order], axis=-1)[..., last_of_ties]
    errors = np.cumsum((weights * error)[..., order], axis=-1)[..., last_of_ties]
    return confidence[order][last_of_ties], accepted, errors


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, found {value}")
