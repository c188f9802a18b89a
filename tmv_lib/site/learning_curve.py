"""What a number of local patients buys: the closed test and the certificates, over many draws of patients."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit

from tmv_lib.calibration.errors import debiased_calibration_error
from tmv_lib.site.triage import accepted, certify_sides, one_image_each
from tmv_lib.site.updating import UPDATES, closed_test
from tmv_lib.statistics.arrays import FloatArray, as_binary, as_finite
from tmv_lib.statistics.classification import negative_log_likelihood

MEASURES = ("nll", "accuracy", "debiased_ece", "coverage")
MOST = 0.75  # share of the patients that may teach where the rest must judge


class Labelled(NamedTuple):
    """Cases with their truth (n,) in {0, 1}, logit as shipped (n,) and patient (n,)."""

    y_true: FloatArray
    logit: FloatArray
    groups: np.ndarray


def learning_curve(
    local: Labelled,
    *,
    judged_on: Labelled | None,
    source_logit: ArrayLike,
    n_patients: list[int],
    n_draws: int,
    risk: float,
    delta: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """A row a draw and number of local patients: what their labels make of the model on patients they do not hold.

    In each draw patients are taken in random order, the first n of them teach, for every n, so that sizes are
    compared within a draw. judged_on: the cases that judge, in every draw all of them; where None, the patients beyond
    the largest n, the same for all n, so that a row less the row n = 0 of its draw is what the labels changed. The
    logits that n labels make are judged by `nll`, `accuracy` and `debiased_ece` (15 bins of equal width, the noise of
    few cases taken off); the logit as shipped by `coverage`, the share of images whose decision is certified by one
    image of each of n patients (`certify_sides`). n = 0 is the model as shipped; `update` the choice.

    n_patients: sizes, of which those are left out that are more than the local patients or, where no other cases
    judge, more than three quarters of them. Raises ValueError where none is left.
    """
    y, z = as_binary(local.y_true), as_finite(local.logit, name="logit")
    patient, names = pd.factorize(np.asarray(local.groups))
    most = len(names) * (1 if judged_on else MOST)
    sizes = [n for n in sorted(n_patients) if n <= most]
    if not sizes:
        raise ValueError(f"a learning curve from {min(n_patients)} patients needs more than the {len(names)} there are")
    rows = []
    for draw in range(n_draws):
        rank = rng.permutation(len(names))[patient]
        single = one_image_each(patient, rng=rng)
        teach = rank < np.array(sizes)[:, None]
        update = closed_test(y, z, groups=patient, weights=teach)
        rest = rank >= sizes[-1]
        truth, shipped = judged_on[:2] if judged_on else (y[rest], z[rest])
        rows.append({"draw": draw, "n": 0, "update": UPDATES[0], "coverage": 0.0, **_judged(truth, shipped)})
        for k, n in enumerate(sizes):
            here = single[teach[k, single]]
            sides = certify_sides(y[here], z[here], source_logit=source_logit, risk=risk, delta=delta)
            found = _judged(truth, update.intercept[k] + update.slope[k] * shipped)
            coverage = float(accepted(shipped, sides).mean())
            rows.append({"draw": draw, "n": n, "update": UPDATES[update.choice[k]], "coverage": coverage, **found})
    return pd.DataFrame(rows)


def bands(curve: pd.DataFrame) -> pd.DataFrame:
    """What n patients change, paired: `measure`, `n`, `median`, `low`, `high` (5 and 95 % over the draws), a row each.

    Of each draw the value at n less the value as shipped, on the very same cases, so that the band is not the noise of
    the cases that judge.
    """
    levels = curve.set_index(["draw", "n"])[list(MEASURES)]
    change = levels - levels.xs(0, level="n").reindex(levels.index.get_level_values("draw")).to_numpy()
    long = change.reset_index().melt("n", list(MEASURES), var_name="measure")
    grouped = long.groupby(["measure", "n"], sort=False)["value"]
    ends = {"median": 0.5, "low": 0.05, "high": 0.95}
    return pd.DataFrame({name: grouped.quantile(level) for name, level in ends.items()}).reset_index()


def _judged(y: FloatArray, logit: FloatArray) -> dict[str, float]:
    return {
        "nll": float(negative_log_likelihood(y, logit)),
        "accuracy": float(((logit > 0) == y).mean()),
        "debiased_ece": float(debiased_calibration_error(y, expit(logit))),
    }
