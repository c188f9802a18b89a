"""The smallest change of a calibrated logit that a site's own labels support, and what it is worth there.

z is the logit as shipped, calibrated on the source. Kept: z. Intercept: a + z, where the total is wrong. Both: a + b z,
where the logits are too large or too small as well.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import chdtrc, chdtri, expit

from tmv_lib.statistics.arrays import FloatArray, IntArray, as_binary, as_finite
from tmv_lib.statistics.classification import RIDGE
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.logistic import fit_logistic
from tmv_lib.statistics.resampling import WHOLE, patient_folds
from tmv_lib.statistics.tests import Z_95

UPDATES = ("keep", "intercept", "both")
LEVEL = 0.05
LEAST_SLOPE = 0.01  # as of the calibrators


class Updates(NamedTuple):
    """One update a row of weights: which of `UPDATES` (0, 1, 2), a, b, both test statistics and the design effect."""

    choice: IntArray
    intercept: FloatArray
    slope: FloatArray
    against_keep: FloatArray
    against_intercept: FloatArray
    design_effect: FloatArray


def closed_test(y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike, weights: ArrayLike | None = None) -> Updates:
    """Choose between keep, intercept and both by the closed test of Vergouwe et al. (2017), and fit the choice.

    With log-likelihoods l0, l1, l2 of the three: keep unless 2 (l2 - l0) / D exceeds the 95 % point of chi-square with
    two degrees of freedom; else intercept unless 2 (l2 - l1) / D exceeds that with one; else both. So that a model
    that is right is left alone 95 % of the time, and one adjustment is not made twice.

    D is the design effect, which the paper does not have: images of one patient tell partly the same, and a test that
    counts them as separate cases updates too often (Rao & Scott 1981). D = trace(K_images^-1 K_patients) / 2, K the
    sums of squared scores over images and over patients at the fit of both; it lies in [1, sum m^2 / sum m] for m
    images a patient, and is 1 for one each. Fits carry a weak ridge about the identity (standard deviation 10). Where
    one class carries no weight nothing can be learned, and z is kept.

    y_true (n,) in {0, 1}, logit (n,) finite, groups (n,) the patients. weights: (rows, n) or (n,), how often each
    case counts, the same for all images of a patient; ones where none are given. Returns arrays (rows,).
    """
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    patient, _ = pd.factorize(np.asarray(groups))
    if patient.size != y.size or (patient < 0).any():
        raise ValueError(f"groups must name the patient of every case ({y.size})")
    w = np.atleast_2d(np.ones(y.size) if weights is None else np.asarray(weights, dtype=float))

    shift = fit_logistic(np.ones((y.size, 1)), y, weights=w, ridge=RIDGE, centre=[0.0], offset=z)[:, 0]
    line = _line(y, z, w)
    losses = [_losses(y, logits, w) for logits in (z, shift[:, None] + z, _on(line, z))]
    effect = _design_effect(y - expit(_on(line, z)), z, w, patient)
    against_keep, against_intercept = (2 * (loss - losses[2]) / effect for loss in losses[:2])
    one_class = np.minimum(w @ y, w @ (1 - y)) == 0
    keep = (against_keep <= chdtri(2, LEVEL)) | one_class
    choice = np.where(keep, 0, np.where(against_intercept <= chdtri(1, LEVEL), 1, 2))
    intercept = np.choose(choice, [np.zeros(len(w)), shift, line[:, 0]])
    slope = np.where(choice == 2, np.maximum(line[:, 1], LEAST_SLOPE), 1.0)  # no update turns a ranking round
    return Updates(choice, intercept, slope, against_keep, against_intercept, effect)


def calibration_interaction(
    y_true: ArrayLike,
    logit: ArrayLike,
    site: ArrayLike,
    *,
    groups: ArrayLike,
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Test that one line calibrates a logit at two places: logit P(y = 1) = a + b z + site (c + d z), c = d = 0.

    A model can be as wrong at home as at the site, and then nothing that is found at the site is the site's doing. With
    log-likelihoods l1 of one line for both and l2 of a line each, 2 (l2 - l1) / D is held against chi-square with two
    degrees of freedom: `p_value`. D = trace[(B0 + B1)^-1 (V0 + V1)] / 2, at least 1, is the `design_effect` of c and d
    (Rao & Scott 1981): B the inverse information of a place's line, V its variance clustered by patient. c and d are
    `intercept_difference` and `slope_difference`, site minus source, with 95 % intervals over resampled patients, or,
    of more than 1,000 patients of a place, Normal ones by V0 + V1. Of
    400 simulated pairs of equally calibrated places 4 to 7 % were rejected at 0.05 from 60 patients each on, with one
    to three images a patient; of 40 and 40, 9 %: there it rejects too often.

    y_true (n,) in {0, 1}; logit (n,) finite, one that no label of either place has fitted; site (n,) 1 at the site and
    0 at the source, groups (n,) the patients, each of one place and resampled within it. Raises ValueError unless both
    places hold both classes.
    """
    y, here = as_binary(y_true), as_binary(site, name="site")
    z = as_finite(logit, name="logit", n=y.size)
    lines, losses, variances, naive = [], [], [], []
    many = max(len(pd.unique(np.asarray(groups)[here == place])) for place in (0, 1)) > WHOLE
    for place, name in ((0, "source"), (1, "site")):
        there = here == place
        if not 0 < y[there].sum() < there.sum():
            raise ValueError(f"calibration is compared where both classes are, found one class only at the {name}")
        label, score, patient = y[there], z[there], pd.factorize(np.asarray(groups)[there])[0]
        counts = patient_counts(patient, n_resamples=0 if many else n_resamples, rng=rng)
        weights = np.vstack([np.ones(score.size), counts])
        line = _line(label, score, weights)
        lines.append(line)
        losses.append(_losses(label, _on(line[:1], score), weights[:1])[0])
        of_images, of_patients = _line_variances(label, score, line[0], patient)
        naive.append(of_images)
        variances.append(of_patients)
    once = np.ones((1, y.size))
    together = _losses(y, _on(_line(y, z, once), z), once)[0]
    effect = max(1.0, float(np.trace(np.linalg.solve(sum(naive), sum(variances))) / 2))
    apart = lines[1] - lines[0]
    spread = Z_95 * np.sqrt(np.diag(sum(variances)))
    low, high = (apart[0] - spread, apart[0] + spread) if many else np.quantile(apart[1:], [0.025, 0.975], axis=0)
    figures = {"p_value": float(chdtrc(2, max(2 * (together - sum(losses)) / effect, 0))), "design_effect": effect}
    return figures | {
        name: Estimate(float(apart[0, k]), float(low[k]), float(high[k]))
        for k, name in enumerate(("intercept_difference", "slope_difference"))
    }


def site_folds(groups: ArrayLike, *, n_folds: int, n_foldings: int, rng: np.random.Generator) -> IntArray:
    """Fold of each case (n_foldings, n), whole patients together, drawn without a look at the labels.

    Folds that were balanced by class would let a patient's label decide who is in its fold, and so reach its own
    prediction. Raises ValueError for fewer patients than folds.
    """
    unseen = np.zeros(np.shape(groups)[0])
    return np.stack([patient_folds(unseen, groups, n_folds=n_folds, rng=rng) for _ in range(n_foldings)])


def patient_counts(groups: ArrayLike, *, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """How often each case (resamples, n) occurs when as many patients are drawn with replacement."""
    patient, names = pd.factorize(np.asarray(groups), sort=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)[:, patient].astype(float)


def cross_fitted_update(
    y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike, folds: IntArray, weights: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Each case updated by a closed test of the patients in the other folds; the mean logit over the foldings.

    folds (n_foldings, n): see `site_folds`. weights (rows, n): how often each case counts, the same for all images of a
    patient. A patient that counts several times stands in one fold with all its copies, so that none of them learns
    from another. Returns logits (rows, n) and the choices among `UPDATES` (rows, n_foldings, n_folds).
    """
    z = as_finite(logit, name="logit")
    n_folds = int(folds.max()) + 1
    fits = folds[:, None, :] != np.arange(n_folds)[:, None]  # (foldings, folds, n): who teaches each fold
    chosen = np.empty((len(weights), len(folds), n_folds), dtype=np.intp)
    logits = np.empty((len(weights), z.size))
    for row, drawn in enumerate(weights):
        update = closed_test(y_true, z, groups=groups, weights=(fits * drawn).reshape(-1, z.size))
        chosen[row] = update.choice.reshape(len(folds), n_folds)
        intercept, slope = (part.reshape(len(folds), n_folds) for part in (update.intercept, update.slope))
        updated = np.take_along_axis(intercept, folds, axis=1) + np.take_along_axis(slope, folds, axis=1) * z
        logits[row] = updated.mean(axis=0)
    return logits, chosen


def _line(y: FloatArray, z: FloatArray, weights: FloatArray) -> FloatArray:
    """Intercept and slope (rows, 2) under the weak ridge about the identity."""
    return fit_logistic(np.column_stack([np.ones(z.size), z]), y, weights=weights, ridge=RIDGE, centre=[0.0, 1.0])


def _on(line: FloatArray, z: FloatArray) -> FloatArray:
    """Logits (rows, n) of the lines (rows, 2)."""
    return line[:, :1] + line[:, 1:] * z


def _line_variances(y: FloatArray, z: FloatArray, line: FloatArray, patient: IntArray) -> tuple[FloatArray, FloatArray]:
    """Variance (2, 2) of intercept and slope, images taken as independent, and clustered by patient."""
    design = np.column_stack([np.ones(z.size), z])
    p = expit(design @ line)
    bread = np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2))
    scores = np.zeros((patient.max() + 1, 2))
    np.add.at(scores, patient, design * (y - p)[:, None])
    return bread, bread @ (scores.T @ scores) @ bread * len(scores) / max(len(scores) - 1, 1)


def _losses(y: FloatArray, logits: FloatArray, w: FloatArray) -> FloatArray:
    """Negative log-likelihood (rows,) in nats, summed over the cases."""
    return (w * np.logaddexp(0, (1 - 2 * y) * logits)).sum(axis=1)


def _design_effect(residual: FloatArray, z: FloatArray, w: FloatArray, patient: IntArray) -> FloatArray:
    """trace(K_images^-1 K_patients) / 2 for residuals (rows, n), kept in [1, sum m^2 / sum m]."""
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=-1))
    if starts.size == z.size:
        return np.ones(len(w))
    first = np.broadcast_to(w, residual.shape)[:, order[starts]]  # copies of each patient
    size = np.diff(starts, append=z.size)
    copies = first @ size
    most = np.divide(first @ size**2, copies, out=np.ones(len(first)), where=copies > 0)

    powers = np.column_stack([np.ones(z.size), z, z**2])
    images = (w * residual**2) @ powers
    constant, linear = (np.add.reduceat(part[:, order], starts, axis=1) for part in (residual, residual * z))
    products = (constant * constant, constant * linear, linear * linear)
    patients = np.stack([(first * product).sum(axis=1) for product in products])
    determinant = images[:, 0] * images[:, 2] - images[:, 1] ** 2
    trace = images[:, 2] * patients[0] - 2 * images[:, 1] * patients[1] + images[:, 0] * patients[2]
    # without residuals, as where the classes are separated, nothing tells how alike images are: take them as one
    known = determinant > 1e-9 * images[:, 0] * images[:, 2]
    effect = np.divide(trace / 2, determinant, out=most.copy(), where=known)
    return np.clip(effect, 1, most)
