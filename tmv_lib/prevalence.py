"""The share of positives at a site, read off logits without a label (label shift).

Both estimates hold where positives look like positives and negatives like negatives in both places. Where they do not,
they are wrong without a sign of it: ask `tmv_lib.shift` within each class first.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from tmv_lib.calibration import at_prevalence
from tmv_lib.statistics import as_binary, as_finite

EDGE = 1e-4  # estimates are kept within [EDGE, 1 - EDGE], so that their log odds are finite


def prevalence_by_em(logit: ArrayLike, *, source: float) -> float:
    """The prevalence under which calibrated logits (n,) say it themselves (Saerens, Latinne & Decaestecker 2002).

    EM: pi <- mean sigma(z + logit pi - logit pi_s), to its fixed point, the maximum of the likelihood. source: pi_s in
    (0, 1), the prevalence that the logits are calibrated for.
    """
    z = as_finite(logit, name="logit")
    found = source
    for _ in range(10_000):
        before = found
        found = float(np.clip(expit(at_prevalence(z, source=source, target=before)).mean(), EDGE, 1 - EDGE))
        if abs(found - before) < 1e-9:
            break
    return found


def prevalence_by_confusion(source_y_true: ArrayLike, source_logit: ArrayLike, logit: ArrayLike) -> float:
    """The prevalence that explains the share of positive decisions z > 0 at the site (BBSE, Lipton et al. 2018).

    pi = (mu - FPR) / (TPR - FPR), mu the share at the site (n,), both rates from labelled source cases (m,) that the
    logits were not fitted on. Raises ValueError without both classes, and where TPR is not above FPR.
    """
    y = as_binary(source_y_true, name="source_y_true")
    decided = as_finite(source_logit, name="source_logit", n=y.size) > 0
    if not 0 < y.sum() < y.size:
        raise ValueError("both classes are needed at the source, found one class only")
    tpr, fpr = decided[y == 1].mean(), decided[y == 0].mean()
    if tpr <= fpr:
        raise ValueError(
            f"decisions must be positive more often among positives ({tpr:.3f}) than negatives ({fpr:.3f})"
        )
    share = (as_finite(logit, name="logit") > 0).mean()
    return float(np.clip((share - fpr) / (tpr - fpr), EDGE, 1 - EDGE))
