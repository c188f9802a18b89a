"""Which decisions of a shipped model a site's own labels can vouch for, positive and negative ones separately.

A model whose errors are nearly all false alarms at the site has safe negatives and no safe positives: one error rate
over both would hide it (Conformal Triage, Angelopoulos et al. 2024).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tmv_lib.deferral.selective import Certificate, cases_needed, certify_ltt, coverage_grid
from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite

STEPS = 50  # thresholds a side
NOTHING = Certificate(False, np.inf, 0.0, 0, 0, 1.0, 1.0)


class Sides(NamedTuple):
    """The certificates of decisions for positive (z > 0) and for negative; thresholds are of |z|."""

    positive: Certificate
    negative: Certificate


def certify_sides(y_true: ArrayLike, logit: ArrayLike, *, source_logit: ArrayLike, risk: float, delta: float) -> Sides:
    """Accept z >= t+ as positive and -z >= t- as negative, each with at most the error rate `risk` among the accepted.

    Both hold together with probability 1 - delta over the draw of these cases: each side is certified at delta / 2
    by Learn-then-Test. Thresholds are quantiles of the source's logits (m,) on that side; the walk starts where enough
    of the site's cases are accepted to allow for one error, or for none where they are fewer: that looks at their
    logits, not at their labels.

    y_true (n,), logit (n,): the site's labelled cases, one image a patient, drawn by lot among the patient's images
    (`one_image_each`). The logit must have been fixed before any of them was labelled: the one as shipped, never a
    site-calibrated one. The guarantee holds for cases to come that are drawn like them. An uncertified side accepts
    nobody: its threshold is infinite.
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    source = as_finite(source_logit, name="source_logit")
    sides = ((z > 0, y == 0, z, source), (z <= 0, y == 1, -z, -source))
    return Sides(
        *(_side(wrong[here], sure[here], known[known >= 0], risk, delta / 2) for here, wrong, sure, known in sides)
    )


def accepted(logit: ArrayLike, sides: Sides) -> NDArray[np.bool_]:
    """True (n,) where the decision of logit (n,) is certified on its side."""
    z = as_finite(logit, name="logit")
    return np.where(z > 0, z >= sides.positive.threshold, -z >= sides.negative.threshold)


def one_image_each(groups: ArrayLike, *, rng: np.random.Generator) -> NDArray[np.intp]:
    """The row of one image of every patient, drawn by lot, in ascending order; groups (n,) names the patients."""
    names, _ = pd.factorize(np.asarray(groups))
    shuffled = rng.permutation(names.size)
    _, first = np.unique(names[shuffled], return_index=True)
    return np.sort(shuffled[first])


def _side(
    wrong: NDArray[np.bool_], confidence: FloatArray, expected: FloatArray, risk: float, delta: float
) -> Certificate:
    if not expected.size:
        return NOTHING
    needed = cases_needed(risk, delta, errors=1)
    enough = needed if confidence.size >= needed else cases_needed(risk, delta)
    grid = coverage_grid(expected, start=1 / STEPS, n_steps=STEPS)
    n_accepted = (confidence >= grid[:, None]).sum(axis=1)
    grid = grid[n_accepted >= enough]
    return certify_ltt(wrong, confidence, risk=risk, delta=delta, grid=grid) if grid.size else NOTHING
