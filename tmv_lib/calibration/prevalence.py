"""The share of positives at a site, read off logits without a label (label shift).

Both estimates hold where positives look like positives and negatives like negatives in both places. Where they do not,
they are wrong without a sign of it: ask `tmv_lib.site.shift` within each class first.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.special import logit as log_odds

from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite, as_weights, require_both_classes


def at_prevalence(logit: ArrayLike, *, source: float, target: float) -> FloatArray:
    """Logits (n,) for a place where `target` of the cases are positive and not `source`, both in (0, 1).

    z + log(target / (1 - target)) - log(source / (1 - source)), Bayes' rule (Saerens, Latinne & Decaestecker 2002).
    It holds where the prevalence alone differs: positives look like positives and negatives like negatives in both
    places (label shift).

    >>> at_prevalence([0.0], source=0.5, target=0.2).round(4).tolist()  # log(0.2 / 0.8)
    [-1.3863]
    """
    z = as_finite(logit, name="logit")
    return z + float(log_odds(_proportion("target", target)) - log_odds(_proportion("source", source)))


def prevalence_weights(y_true: ArrayLike, *, target: float, weights: ArrayLike | None = None) -> FloatArray:
    """Weights under which `target` in (0, 1) of the cases y_true (n,) are positive, in each row; sums are kept.

    `weights` (n,) or (resamples, n) are what is reweighted, ones where none are given. Raises ValueError where a
    class carries no weight.
    """
    y = as_binary(y_true)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)
    # pi / (w+ / w) for positives, (1 - pi) / (w- / w) for negatives
    share = ((w @ y) / w.sum(axis=-1))[..., None]
    return w * np.where(y == 1, _proportion("target", target) / share, (1 - target) / (1 - share))


def _proportion(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), found {value}")
    return value


EDGE = 1e-4  # estimates are kept within [EDGE, 1 - EDGE], so that their log odds are finite


def prevalence_by_em(logit: ArrayLike, *, source: float, weights: ArrayLike | None = None) -> Any:
    """The prevalence under which calibrated logits (n,) say it themselves (Saerens, Latinne & Decaestecker 2002).

    pi maximises sum_i w_i log[pi q_i + (1 - pi)(1 - q_i)], q = sigma(z - logit pi_s); EM climbs there step by step.
    The derivative falls in pi, so that bisection ends at the same place in fifty steps. source: pi_s in (0, 1), the
    prevalence that the logits are calibrated for. Returns a float, or an array (resamples,) for weights (resamples, n).
    """
    z = as_finite(logit, name="logit")
    w = as_weights(weights, n=z.size)
    q = expit(at_prevalence(z, source=source, target=0.5))
    low, high = np.full(w.shape[:-1], EDGE), np.full(w.shape[:-1], 1 - EDGE)
    for _ in range(50):
        middle = (low + high) / 2
        pi = middle[..., None]
        rising = (w * (2 * q - 1) / (pi * q + (1 - pi) * (1 - q))).sum(axis=-1) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return ((low + high) / 2)[()]


def prevalence_by_confusion(
    y_true: ArrayLike, logit: ArrayLike, site: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """The prevalence that explains the share of positive decisions z > 0 at the site (BBSE, Lipton et al. 2018).

    pi = (mu - FPR) / (TPR - FPR), mu the share at the site, both rates from source cases that the logits were not
    fitted on. logit (n,) of both places, site (n,) 1 at the site and 0 at the source; y_true (n,) plays a part at the
    source alone. Returns a float, or an array (resamples,) for weights (resamples, n). Raises ValueError where, in any
    resample, one place or one class of the source has no case, or TPR is not above FPR.
    """
    y, here = as_binary(y_true), as_binary(site, name="site")
    decided = as_finite(logit, name="logit", n=y.size) > 0
    w = as_weights(weights, n=y.size)

    def rate(among: FloatArray, what: str) -> FloatArray:
        total = w @ among
        if not (total > 0).all():
            raise ValueError(f"{what} are needed, found none")
        return (w @ (among * decided)) / total

    tpr, fpr = rate((1 - here) * y, "positives at the source"), rate((1 - here) * (1 - y), "negatives at the source")
    share = rate(here, "cases of the site")
    if not (tpr > fpr).all():
        worst = np.argmin(tpr - fpr)
        raise ValueError(
            "decisions must be positive more often among the source's positives"
            f" ({np.ravel(tpr)[worst]:.3f}) than its negatives ({np.ravel(fpr)[worst]:.3f})"
        )
    return np.clip((share - fpr) / (tpr - fpr), EDGE, 1 - EDGE)[()]
