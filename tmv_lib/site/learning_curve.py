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
from tmv_lib.statistics.resampling import WHOLE

MEASURES = ("nll", "accuracy", "debiased_ece", "coverage")
SOURCE = 2**13  # logits of the source, of which thresholds are quantiles; of more, evenly spaced ones in their order
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

    Of more than 1,000 patients each draw takes 1,000 by lot, and leaves the rest aside; of `judged_on` likewise.

    n_patients: sizes, of which those are left out that are more than the local patients or, where no other cases
    judge, more than three quarters of them. Raises ValueError where none is left.
    """
    every = _coded(local)
    n_all = every.groups.max() + 1
    most = min(n_all, WHOLE) * (1 if judged_on else MOST)
    sizes = [n for n in sorted(n_patients) if n <= most]
    if not sizes:
        raise ValueError(f"a learning curve from {min(n_patients)} patients needs more than the {n_all} there are")
    judges, rows = judged_on and _coded(judged_on), []
    source_logit = np.sort(as_finite(source_logit, name="source_logit"))
    source_logit = source_logit[:: 1 + len(source_logit) // SOURCE]
    for draw in range(n_draws):
        y, z, patient = _some(every, rng)
        rank = rng.permutation(patient.max() + 1)[patient]
        single = one_image_each(patient, rng=rng)
        teach = rank < np.array(sizes)[:, None]
        update = closed_test(y, z, groups=patient, weights=teach)
        rest = rank >= sizes[-1]
        truth, shipped = _some(judges, rng)[:2] if judges else (y[rest], z[rest])
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


def _coded(cases: Labelled) -> Labelled:
    """The same, checked, patients numbered in the order in which they appear."""
    patient, _ = pd.factorize(np.asarray(cases.groups))
    return Labelled(as_binary(cases.y_true), as_finite(cases.logit, name="logit"), patient)


def _some(cases: Labelled, rng: np.random.Generator) -> Labelled:
    """The cases of at most 1,000 patients, drawn by lot where there are more, and numbered anew."""
    n_patients = cases.groups.max() + 1
    if n_patients <= WHOLE:
        return cases
    number = np.full(n_patients, -1)
    number[rng.choice(n_patients, WHOLE, replace=False)] = np.arange(WHOLE)
    patient = number[cases.groups]
    here = patient >= 0
    return Labelled(cases.y_true[here], cases.logit[here], patient[here])


def _judged(y: FloatArray, logit: FloatArray) -> dict[str, float]:
    return {
        "nll": float(negative_log_likelihood(y, logit)),
        "accuracy": float(((logit > 0) == y).mean()),
        "debiased_ece": float(debiased_calibration_error(y, expit(logit))),
    }
